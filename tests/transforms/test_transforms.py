# Copyright (c) The ConRec for MONAI contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

from __future__ import annotations

import colorsys
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.stats import ks_2samp

from conrec_monai.transforms import (
    RandColorJitter,
    RandColorJitterd,
    RandGaussianBlur,
    RandGaussianBlurd,
    RandGrayscale,
    RandGrayscaled,
    RandHorizontalFlip,
    RandHorizontalFlipd,
    RandInPaint,
    RandInPaintd,
    RandIntensityCurve,
    RandIntensityCurved,
    RandLocalPixelShuffle,
    RandLocalPixelShuffled,
    RandMasking,
    RandMaskingd,
    RandOutPaint,
    RandOutPaintd,
    RandResizedCrop,
    RandResizedCropd,
    RandRotatedCrop,
    RandRotatedCropd,
    TwoViews,
    TwoViewsd,
    Views,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    unit_float,
)
from conrec_monai.transforms.base import take

TWINS = [
    (RandResizedCrop, RandResizedCropd, {"size": 32}),
    (RandHorizontalFlip, RandHorizontalFlipd, {}),
    (RandColorJitter, RandColorJitterd, {}),
    (RandGrayscale, RandGrayscaled, {}),
    (RandGaussianBlur, RandGaussianBlurd, {}),
    (RandIntensityCurve, RandIntensityCurved, {}),
    (RandLocalPixelShuffle, RandLocalPixelShuffled, {}),
    (RandInPaint, RandInPaintd, {}),
    (RandOutPaint, RandOutPaintd, {}),
    (RandMasking, RandMaskingd, {}),
    (RandRotatedCrop, RandRotatedCropd, {"size": 32}),
    (RandInPaint, RandInPaintd, {"fill": "mean"}),
    (RandOutPaint, RandOutPaintd, {"fill": "mean"}),
    (RandMasking, RandMaskingd, {"fill": "mean"}),
]

OPTIONS = {"masked_views": 1, "masking_fill": "mean", "crop_scale": (0.3, 1.0), "rotate": True}
OPTIONS |= {"jitter": 0.5, "gray_prob": 0.1, "blur_prob": 0.3}


def _images(n: int = 12, channels: int = 3, size: int = 40) -> torch.Tensor:
    return torch.rand(n, channels, size, size + 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("array", "dictionary", "arguments"), TWINS)
def test_batched_equals_per_sample_equals_dictionary(array, dictionary, arguments):
    images = _images()
    transform = array(**arguments).set_random_state(3)
    params = transform.randomize(len(images), images.shape[1:])
    before = images.clone()
    output = transform.apply(images, params)
    assert torch.equal(images, before)
    for i, image in enumerate(images):
        torch.testing.assert_close(transform.apply(image[None], take(params, [i]))[0], output[i], rtol=0, atol=1e-6)
    single = transform.set_random_state(5)(images[0])
    twin = dictionary(keys=["a", "b"], **arguments).set_random_state(5)({"a": images[0], "b": images[0], "c": 1})
    assert torch.equal(twin["a"], single) and torch.equal(twin["b"], single) and twin["c"] == 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"masked_views": 0}, OPTIONS])
def test_two_views_batched_equals_per_sample(channels, options):
    images = _images(6, channels)
    transform = TwoViews(32, **options).set_random_state(0)
    params = transform.randomize(6, images.shape[1:])
    views = transform.apply(images, params)
    assert views.input.shape == views.target.shape == (12, channels, 32, 32)
    assert (views.input is views.target) == (options.get("masked_views") == 0)
    assert torch.equal(views.input, views.target) == (views.input is views.target)
    for i in range(6):
        alone = transform.apply(images[i : i + 1], take(params, [i, 6 + i]))
        for whole, part in zip(views, alone, strict=True):
            torch.testing.assert_close(part, whole[[i, 6 + i]], rtol=0, atol=1e-6)


def test_one_state_drives_every_step():
    images = (_images() * 255).to(torch.uint8)
    transform = TwoViews(32).set_random_state(0)
    transform.batch(images)
    state = transform.R.get_state()
    first = transform.batch(images)
    transform.R.set_state(state)
    second = transform.batch(images)
    third = transform.batch(images)
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_options_are_all_arguments_but_the_size():
    assert ("image_size", *TwoViews.OPTIONS) == tuple(inspect.signature(TwoViews).parameters)
    assert set(OPTIONS) == set(TwoViews.OPTIONS)
    with pytest.raises(TypeError, match="masking"):
        TwoViewsd("image", 32, masking=True)
    assert TwoViewsd("image", 32, allow_missing_keys=True, **OPTIONS)({"label": 1}) == {"label": 1}


@pytest.mark.parametrize(("channels", "following"), [(3, 544200176), (1, 753217307)])
def test_defaults_draw_in_the_published_order(channels, following):
    shape, view = (channels, 40, 44), (channels, 32, 32)
    views = TwoViews(32).set_random_state(0)
    params = views.randomize(4, shape)
    state = np.random.RandomState(0)
    steps = {"crop": RandResizedCrop(32), "flip": RandHorizontalFlip(), "jitter": RandColorJitter()}
    steps |= {"gray": RandGrayscale(), "blur": RandGaussianBlur()} if channels == 3 else {}
    expected = {
        name: step.set_random_state(state=state).randomize(8, shape if name == "crop" else view)
        for name, step in steps.items()
    }
    maskings = [RandLocalPixelShuffle(), RandInPaint(), RandOutPaint()]
    if channels == 1:
        maskings = [RandLocalPixelShuffle(prob=1.0), *maskings[1:], RandIntensityCurve()]
    expected["mask"] = {"masking": state.randint(len(maskings), size=8)}
    for masking in maskings:
        expected["mask"][type(masking).__name__] = masking.set_random_state(state=state).randomize(8, view)
    np.testing.assert_equal(params, expected)
    assert views.R.randint(2**31) == state.randint(2**31) == following  # as the first release drew


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_two_views_array_and_dictionary(options):
    image = (_images()[0].numpy() * 255).astype(np.uint8)
    before = image.copy()
    views = TwoViews(32, **options).set_random_state(1)(image)
    result = TwoViewsd("image", 32, **options).set_random_state(1)({"image": image, "label": 2})
    assert (
        isinstance(views.input, np.ndarray) and views.input.shape == (2, 3, 32, 32) and views.input.dtype == np.float32
    )
    np.testing.assert_array_equal(result["image"], views.input)
    np.testing.assert_array_equal(result["image_target"], views.target)
    assert result["label"] == 2
    np.testing.assert_array_equal(image, before)


def test_types_and_ranges():
    image = (_images()[0] * 65535).to(torch.int32).numpy().astype(np.uint16)
    output = RandColorJitter().set_random_state(0)(image)
    assert isinstance(output, np.ndarray) and output.dtype == np.float32 and 0 <= output.min() <= output.max() <= 1
    meta = RandHorizontalFlip(1.0)(MetaTensor(_images()[0], meta={"name": "x"}))
    assert isinstance(meta, MetaTensor) and meta.meta["name"] == "x"
    assert torch.equal(meta.as_tensor(), _images()[0].flip(-1))
    assert unit_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]
    assert unit_float(torch.tensor([65535], dtype=torch.uint16)).tolist() == [1]


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 999),
    channels=st.sampled_from([1, 3]),
    size=st.integers(25, 48),
    options=st.sampled_from([{}, OPTIONS]),
)
def test_views_stay_in_range(seed, channels, size, options):
    images = torch.rand(3, channels, 30, 41, generator=torch.Generator().manual_seed(seed))
    for view in TwoViews(size, **options).set_random_state(seed).batch(images):
        assert view.dtype == torch.float32 and view.shape == (6, channels, size, size)
        assert view.min() >= 0 and view.max() <= 1


@settings(deadline=None, max_examples=20)
@given(
    rgb=st.tuples(*[st.floats(0, 1, width=32)] * 3),
    factor=st.floats(0, 3, width=32),
    delta=st.floats(-0.5, 0.5, width=32),
)
def test_saturation_and_hue_against_colorsys(rgb, factor, delta):
    pixel = torch.tensor(rgb).view(1, 3, 1, 1)
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    saturated = adjust_saturation(pixel, torch.tensor([factor]).view(1, 1, 1, 1)).flatten().tolist()
    np.testing.assert_allclose(saturated, colorsys.hsv_to_rgb(h, min(1, s * factor), v), atol=1e-5)
    turned = adjust_hue(pixel, torch.tensor([delta]).view(1, 1, 1, 1)).flatten().tolist()
    np.testing.assert_allclose(turned, colorsys.hsv_to_rgb((h + delta) % 1, s, v), atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), height=st.integers(4, 80), width=st.integers(4, 80))
def test_crops_fit(seed, height, width):
    crop = RandResizedCrop(16).set_random_state(seed)
    y, x, h, w = crop.randomize(20, (3, height, width))["box"].T
    assert (h > 0).all() and (w > 0).all() and (y >= 0).all() and (x >= 0).all()
    assert (y + h <= height).all() and (x + w <= width).all() and (10 * h * w >= height * width).all()


def test_crop_of_a_strip_is_the_whole_image():
    assert RandResizedCrop(16).set_random_state(0).randomize(2, (3, 4, 80))["box"].tolist() == [[0, 0, 4, 80]] * 2


def test_whole_image_crop_is_identity():
    images = torch.rand(2, 3, 32, 32)
    output = RandResizedCrop(32).apply(images, {"box": np.array([[0, 0, 32, 32]] * 2)})
    torch.testing.assert_close(output, images, rtol=0, atol=1e-6)


def test_constant_image_keeps_its_value_in_crop_and_blur():
    images = torch.full((4, 3, 40, 40), 0.3)
    torch.testing.assert_close(RandResizedCrop(25).set_random_state(0).batch(images), torch.full((4, 3, 25, 25), 0.3))
    blurred = gaussian_blur(images, torch.tensor([0.5, 1, 1.5, 2]), 5)
    torch.testing.assert_close(blurred, images)  # by reflection; zeros would darken the border
    assert gaussian_blur(images, torch.full((4,), 2.0), 5, "zeros")[0, 0, 0, 0] < 0.2


def test_reflected_blur_against_torch():
    images = _images(2)
    sigma, radius = torch.tensor([0.7, 1.9]), 3
    offsets = torch.arange(-radius, radius + 1)
    for image, s in zip(images, sigma, strict=True):
        kernel = torch.exp(-0.5 * (offsets / s) ** 2)
        kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).expand(3, 1, -1, -1)
        padded = torch.nn.functional.pad(image[None], [radius] * 4, mode="reflect")
        expected = torch.nn.functional.conv2d(padded, kernel, groups=3)
        torch.testing.assert_close(gaussian_blur(image[None], s[None], 7), expected, rtol=0, atol=1e-6)


def test_shuffle_moves_whole_pixels_inside_their_window():
    size = 40
    image = torch.arange(size * size).float().view(1, 1, size, size).repeat(1, 3, 1, 1) / size**2
    transform = RandLocalPixelShuffle()
    params = {"windows": np.array([[[2, 3, 5, 7], [20, 20, 6, 6], [0, 0, 0, 9]]]), "seed": np.array([[1, 2, 3]])}
    output = transform.apply(image, params)
    assert torch.equal(output[:, 0], output[:, 1])
    outside = torch.ones(size, size, dtype=torch.bool)
    for y, x, h, w in params["windows"][0]:
        outside[y : y + h, x : x + w] = False
        window = (slice(None), slice(None), slice(y, y + h), slice(x, x + w))
        assert torch.equal(output[window].flatten().sort().values, image[window].flatten().sort().values)
        assert h == 0 or not torch.equal(output[window], image[window])
    assert torch.equal(output[..., outside], image[..., outside])


def test_overlapping_windows_read_from_the_unshuffled_image():
    image = torch.arange(1600).float().view(1, 1, 40, 40)
    windows = np.array([[[4, 4, 6, 6], [4, 4, 6, 6]]])
    twice = RandLocalPixelShuffle().apply(image, {"windows": windows, "seed": np.array([[1, 2]])})
    once = RandLocalPixelShuffle().apply(image, {"windows": windows[:, 1:], "seed": np.array([[2]])})
    assert torch.equal(twice, once)


def test_shuffle_is_uniform():
    # Every pixel of a 2 x 2 window goes to every place with probability 1/4.
    n = 4000
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(n, 1, 1)[:, None]
    image = torch.nn.functional.pad(image, (0, 30, 0, 30))
    seeds = np.random.RandomState(0).randint(0, 2**32, size=(n, 1), dtype=np.int64)
    output = RandLocalPixelShuffle().apply(image, {"windows": np.array([[[0, 0, 2, 2]]] * n), "seed": seeds})
    for place in output[:, 0, :2, :2].reshape(n, 4).T:
        counts = torch.bincount(place.long(), minlength=4)
        assert (counts - n / 4).abs().max() < 5 * (n * 3 / 16) ** 0.5


def test_painting_by_hand():
    image = torch.full((1, 3, 30, 30), 0.5)
    color = np.array([[[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]]])
    windows = np.array([[[3, 3, 4, 4], [5, 5, 4, 4]]])
    painted = RandInPaint().apply(image, {"windows": windows, "color": color})[0]
    torch.testing.assert_close(painted[:, 4, 4], torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(painted[:, 6, 6], torch.tensor([0.9, 0.8, 0.7]))  # the later window covers
    assert (painted != 0.5).any(0).sum() == 16 + 16 - 4
    out = RandOutPaint().apply(image, {"windows": windows, "color": color[:, 0]})[0]
    torch.testing.assert_close(out[:, 0, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert (out == 0.5).all(0).sum() == 28


def test_painting_with_the_mean_by_hand():
    first = torch.zeros(3, 32, 32)
    first[0, :, :16], first[0, :, 16:], first[1], first[2, :8] = 0.25, 0.75, 0.125, 1
    images = torch.stack([first, 1 - first])
    before = images.clone()
    means = torch.tensor([[0.5, 0.125, 0.25], [0.5, 0.875, 0.75]])[..., None, None]
    windows = np.array([[[3, 3, 4, 5], [5, 6, 4, 4], [0, 0, 0, 9]], [[20, 4, 5, 6], [3, 14, 9, 4], [0, 0, 0, 9]]])
    inside = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    inside[0, 0, 3:7, 3:8] = inside[0, 0, 5:9, 6:10] = inside[1, 0, 20:25, 4:10] = inside[1, 0, 3:12, 14:18] = True
    for part in (slice(0, 2), slice(0, 1), slice(1, 2)):
        x, covered, mean, params = images[part], inside[part], means[part], {"windows": windows[part]}
        assert torch.equal(RandInPaint("mean").apply(x, params), torch.where(covered, mean, x))
        assert torch.equal(RandOutPaint("mean").apply(x, params), torch.where(covered, x, mean))
    assert torch.equal(images, before)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), channels=st.sampled_from([1, 3]))
def test_painted_pixels_have_the_mean_of_the_target(seed, channels):
    transform = TwoViews(32, masking_fill="mean").set_random_state(seed)
    params = transform.randomize(6, (channels, 40, 44))
    views = transform.apply(_images(6, channels), params)
    for masking, x, target in zip(params["mask"]["masking"], *views, strict=True):
        if masking in (1, 2):  # in- or out-painting
            changed = (x != target).any(0)
            mean = target.mean(dim=(1, 2))[:, None].expand(-1, int(changed.sum()))
            torch.testing.assert_close(x[:, changed], mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_masked_views(channels):
    """The second view of each image alone; with the same draws both of them."""
    images = torch.rand(200, channels, 32, 32)
    one, two = (TwoViews(25, masked_views).set_random_state(0).batch(images) for masked_views in (1, 2))
    assert torch.equal(one.target, two.target) and torch.equal(one.input[200:], two.input[200:])
    assert torch.equal(one.input[:200], one.target[:200])
    equal = (one.input == one.target).flatten(1).all(1)
    assert equal[200:].float().mean() < 0.1  # now and then no window is drawn
    assert [TwoViews(25, number).first_restored(6) for number in (0, 1, 2)] == [0, 3, 0]


def test_no_masking():
    images = torch.rand(5, 3, 32, 32)
    transform = TwoViews(9, masked_views=0).set_random_state(0)
    assert "mask" not in transform.randomize(5, images.shape[1:])
    views = transform.batch(images)
    assert views.input is views.target


def test_rotated_crop_of_given_places():
    """A quarter turn of the whole image, and its upper right quarter."""
    image = torch.rand(1, 3, 32, 32)
    crop = RandRotatedCrop(32)
    quarter = np.array([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    torch.testing.assert_close(crop.apply(image, {"theta": quarter}), image.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    corner = np.array([[[0.5, 0.0, 0.5], [0.0, 0.5, -0.5]]])
    found = RandRotatedCrop(16).apply(image, {"theta": corner})
    torch.testing.assert_close(found, image[:, :, :16, 16:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [40, 80])
def test_rotated_crop_keeps_shapes_and_turns_by_any_angle(width):
    params = RandRotatedCrop(9, (0.3, 0.6), (0.8, 1.25)).set_random_state(0).randomize(4000, (3, 40, width))
    pixels = np.array([width, 40])[:, None] / 2 * params["theta"][:, :, :2]  # in pixels of the image
    sides = np.linalg.norm(pixels, axis=1)  # half the width and the height of a crop, whatever way it is turned
    cosine = (pixels[..., 0] * pixels[..., 1]).sum(1) / sides.prod(1)
    assert abs(cosine).max() < 1e-6  # still a rectangle
    area, ratio = 4 * sides.prod(1) / (40 * width), sides[:, 0] / sides[:, 1]
    assert area.max() <= 0.6 + 1e-9 and area.mean() == pytest.approx(0.45 if width == 40 else 0.42, abs=0.02)
    if width == 40:
        assert area.min() >= 0.3 and 0.8 <= ratio.min() and ratio.max() <= 1.25
        assert abs(np.log(ratio).mean()) < 0.01
    angle = np.arctan2(pixels[:, 1, 0], pixels[:, 0, 0])
    counts = np.histogram(angle, bins=8, range=(-np.pi, np.pi))[0]
    assert abs(counts - 500).max() < 5 * (4000 * 7 / 64) ** 0.5


def test_rotated_crop_keeps_the_circle_of_a_retina():
    """The whole of a white disk, turned: the same disk; a crop of its center: white."""
    rows = torch.linspace(-1, 1, 64)
    radius = (rows[:, None] ** 2 + rows**2).sqrt()
    disk = (radius < 0.95).float().expand(50, 1, 64, 64)
    turned = RandRotatedCrop(64, (1, 1), (1, 1)).set_random_state(0).batch(disk)
    assert turned[..., radius < 0.9].min() > 0.99 and turned[..., radius > 1].max() < 0.01
    params = {"theta": RandRotatedCrop(64, (0.4, 0.4), (1, 1)).set_random_state(0).randomize(50, (1, 64, 64))["theta"]}
    params["theta"][:, :, 2] = 0
    assert RandRotatedCrop(64).apply(disk, params).min() > 0.99


def test_gray_images_get_four_maskings_and_always_fifteen_windows():
    params = RandMasking().set_random_state(0).randomize(400, (1, 32, 32))
    assert set(params["masking"]) == {0, 1, 2, 3}
    assert (params["RandLocalPixelShuffle"]["windows"][..., 2] > 0).all()
    assert set(RandMasking().set_random_state(0).randomize(400, (3, 32, 32))["masking"]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandMasking()(torch.rand(3, 24, 40)), "at least 25 px a side, got 24 x 40"),
        (lambda: TwoViews(24), "at least 25 px a side, got 24 x 24"),
        (lambda: RandColorJitter()(torch.rand(2, 30, 30)), "1 or 3 channels, got 2"),
        (lambda: RandHorizontalFlip()(torch.rand(30, 30)), "shape CHW, got \\(30, 30\\)"),
        (lambda: RandHorizontalFlip()(torch.ones(3, 9, 9) * 255), "values in \\[0, 1\\], found 255 to 255"),
        (lambda: RandHorizontalFlip()(torch.ones(3, 9, 9, dtype=torch.int64)), "got torch.int64"),
        (lambda: RandHorizontalFlip(1.5), "prob"),
        (lambda: RandColorJitter(-1), "strength"),
        (lambda: RandColorJitter(prob=2), "prob"),
        (lambda: RandGrayscale(-0.1), "prob"),
        (lambda: RandGaussianBlur(padding="wrap"), "padding must be 'reflect' or 'zeros', got 'wrap'"),
        (lambda: RandGaussianBlur(sigma=(0, 1)), "sigma"),
        (lambda: RandGaussianBlur(prob=2), "prob"),
        (lambda: RandResizedCrop(0), "size"),
        (lambda: RandResizedCrop(9, scale=(0.5, 1.5)), "scale"),
        (lambda: RandResizedCrop(9, ratio=(2, 1)), "ratio"),
        (lambda: RandResizedCrop(9, min_area=0.9), "min_area"),
        (lambda: RandInPaint("blue"), "^fill must be one of random, mean, got 'blue'\\.$"),
        (lambda: RandOutPaint("blue"), "^fill must be one of random, mean, got 'blue'\\.$"),
        (lambda: RandMasking(fill="blue"), "^fill must be one of random, mean, got 'blue'\\.$"),
        (lambda: RandRotatedCrop(0), "size"),
        (lambda: RandRotatedCrop(9, scale=(0.5, 0.4)), "scale"),
        (lambda: RandRotatedCrop(9, ratio=(0, 1)), "ratio"),
        (lambda: TwoViews(32, 3), r"^masked_views must be 0, 1 or 2, got 3\.$"),
        (lambda: TwoViews(32, gray_prob=2), "^gray_prob must be in \\[0, 1\\], got 2\\.$"),
        (lambda: TwoViews(32, blur_prob=-1), "^blur_prob must be in \\[0, 1\\], got -1\\.$"),
        (lambda: TwoViews(32, crop_scale=(0, 1)), "^crop_scale must be two increasing numbers in \\(0, 1\\], got "),
        (lambda: TwoViews(32, crop_scale=(0.5, 0.1)), "^crop_scale must be two increasing numbers in \\(0, 1\\], got "),
        (lambda: TwoViews(32, masking_fill="blue"), "^masking_fill must be one of random, mean, got 'blue'\\.$"),
        (lambda: TwoViews(32, jitter=-1), "^jitter must not be negative, got -1\\.$"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_key():
    with pytest.raises(KeyError, match="image"):
        RandHorizontalFlipd("image")({"label": 1})
    assert RandHorizontalFlipd("image", allow_missing_keys=True)({"label": 1}) == {"label": 1}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("replicas", [2, 3])
def test_parts_of_a_batch_are_those_of_the_whole(channels, replicas):
    images = torch.rand(6, channels, 32, 32)
    for make in (
        lambda: TwoViews(32),
        lambda: TwoViews(32, **OPTIONS),
        lambda: RandMasking(),
        lambda: RandMasking("mean"),
    ):
        whole_of, *parts_of = (make().set_random_state(3) for _ in range(replicas + 1))
        whole = whole_of.batch(images)
        parts = [t.batch(x, i, replicas) for i, (t, x) in enumerate(zip(parts_of, images.chunk(replicas), strict=True))]
        if isinstance(whole, Views):  # both views of the first part, then of the second
            for name in ("input", "target"):
                halves = zip(*(getattr(part, name).chunk(2) for part in parts), strict=True)
                torch.testing.assert_close(torch.cat([x for half in halves for x in half]), getattr(whole, name))
        else:
            torch.testing.assert_close(torch.cat(parts), whole)
        following = whole_of.R.randint(2**31)
        assert all(part.R.randint(2**31) == following for part in parts_of)  # all go on alike


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("options", [{}, OPTIONS, {**OPTIONS, "masked_views": 0}])
def test_parts_in_the_cache_are_the_whole(channels, options, monkeypatch):
    images = torch.rand(7, channels, 32, 32)
    whole = TwoViews(32, **options).set_random_state(5).batch(images)
    monkeypatch.setattr(
        "conrec_monai.transforms.views.CACHE_BYTES", 3 * 4 * channels * 32**2 // torch.get_num_threads()
    )
    in_parts = TwoViews(32, **options).set_random_state(5).batch(images)
    for a, b in zip(whole, in_parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_batches_and_single_samples_have_one_distribution():
    """Two-sample tests of what the whole chain does to one picture, drawn 300 at once and one by one."""
    image = torch.linspace(0.1, 0.9, 3 * 40 * 40).view(3, 40, 40)
    together = TwoViews(32).set_random_state(0).batch(image.expand(300, -1, -1, -1))
    single = TwoViews(32).set_random_state(1)
    alone = [single(image) for _ in range(300)]
    apart = Views(*(torch.cat([getattr(v, name) for v in alone]) for name in ("input", "target")))
    figures = {
        "mean": lambda v: v.target.mean(dim=(1, 2, 3)),
        "deviation": lambda v: v.target.std(dim=(1, 2, 3)),
        "tint": lambda v: (v.target[:, 0] - v.target[:, 2]).mean(dim=(1, 2)),
        "sharpness": lambda v: v.target.diff(dim=3).abs().mean(dim=(1, 2, 3)),
        "direction": lambda v: v.target[..., :16].mean(dim=(1, 2, 3)) - v.target[..., 16:].mean(dim=(1, 2, 3)),
        "masked": lambda v: (v.input != v.target).any(dim=1).float().mean(dim=(1, 2)),
        "filling": lambda v: (v.input - v.target).mean(dim=(1, 2, 3)),
    }
    for name, figure in figures.items():
        assert ks_2samp(figure(together).numpy(), figure(apart).numpy()).pvalue > 0.005, name
