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

import logging
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sklearn
import torch
from torch import nn

from conrec_monai.utils import duration, progress_bar
from conrec_monai.utils.progress import SECONDS_BETWEEN_LINES

from .embedding import embed, embed_levels, has_levels
from .fine_tuning import FineTuneSettings, predict_fine_tuned
from .folds import FoldPlan, Folds, subsample
from .knn import knn_predictions
from .linear import Protocol, check_folds, linear_predictions
from .metrics import metric_names
from .predictions import Predictions
from .shortcut import color_features, shortcut_features
from .statistics import bootstrap, interval, paired_differences, run_differences, score
from .store import PredictionStore, digest

__all__ = ["FINE_TUNED", "PROTOCOLS", "Candidate", "evaluate", "plain_values", "untrained_encoders"]

SHORTCUT = "shortcut baseline"
COLOR = "color baseline"
# What each protocol does, and with which kinds of candidates.
PROTOCOLS = ("linear", "levels", "knn", "frozen_head", "fine_tune", "supervised")
FINE_TUNED = ("frozen_head", "fine_tune", "supervised")
# To be raised whenever a protocol computes other numbers than before: kept predictions are then made anew.
PREDICTIONS = 1
KINDS = ("checkpoint", "imagenet", "untrained", "random")


@dataclass
class Candidate:
    """A model to evaluate.

    Attributes:
        name: unique among the candidates.
        kind: "checkpoint" (pretrained), "imagenet" (pretrained on other images, with labels), "untrained" (random
            weights, frozen) or "random" (the architecture alone, for the protocol "supervised").
        encoder: from BCHW in [0, 1] to B[F].
        images: uint8 NCHW, the images as this encoder takes them.
        about: what is known of it, values that JSON can hold.
        view: how its images were prepared, in words, where the candidates' images differ; models are compared with
            baselines, untrained and random ones of the same view.
        method: name of what this is one run of (with one of several seeds); its own name by default.
    """

    name: str
    kind: str
    encoder: nn.Module
    images: torch.Tensor
    about: dict[str, Any] = field(default_factory=dict)
    view: str = ""
    method: str = ""


def untrained_encoders(make_encoder: Callable[[], nn.Module], seeds: Sequence[int] = (0, 1, 2)) -> dict[int, nn.Module]:
    """Encoders with random weights by their seed: what a representation is worth without any training.

    Args:
        make_encoder: builds an encoder with its initial weights.
        seeds: one encoder per seed. The global random generators are left as they were.
    """
    encoders = {}
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoders[seed] = make_encoder()
    return encoders


@dataclass(frozen=True)
class _Cell:
    """One entry of the results: a model under a protocol with a share of the labels."""

    model: str
    protocol: str
    variant: str | None
    fraction: float
    predictions: Predictions
    features: int | None
    train_images: float
    file: str | None


def evaluate(
    candidates: Sequence[Candidate],
    labels: np.ndarray,
    plan: FoldPlan,
    *,
    ordinal: bool,
    num_classes: int,
    groups: np.ndarray | None = None,
    protocols: Sequence[str] = ("linear", "levels", "knn"),
    fine_tuning: Mapping[str, FineTuneSettings] | None = None,
    fractions: Sequence[float] = (1.0,),
    fraction_repeats: int = 3,
    replicates: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    amp: bool = False,
    store: PredictionStore | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates encoders under several protocols, all on the same folds, with intervals and paired comparisons.

    Beside them stand two baselines that see no content, :func:`shortcut_features` and :func:`color_features` of the
    images, for each view of the candidates.

    Protocols:

    - "linear": logistic regression on the frozen representation, in two variants, "published" and "standardized"; see
      :func:`linear_predictions`. All but random candidates.
    - "levels": the standardized variant on :func:`embed_levels`. The candidates that have levels.
    - "knn": nearest neighbors on the frozen representation, see :func:`knn_predictions`. All but random candidates.
    - "frozen_head": a linear layer on the frozen encoder, trained on augmented images. Pretrained candidates.
    - "fine_tune": the whole network, from the pretrained weights. Pretrained candidates.
    - "supervised": the whole network, from random weights. Random candidates.

    Args:
        candidates: models, each with its images; all have the same N images.
        labels: [N] classes 0 .. num_classes - 1.
        plan: the folds.
        ordinal: True for grades, False for classes without order.
        num_classes: number of classes K.
        groups: [N] group of each image (patient, duplicates), the unit of the bootstrap; None where each is alone.
        protocols: some of the above.
        fine_tuning: settings of each of the last three protocols that is asked for.
        fractions: shares of the training labels, in (0, 1]; see :func:`subsample`.
        fraction_repeats: draws of each share below 1, per fold.
        replicates: of the bootstrap.
        seed: of everything that is random but the folds.
        batch_size: images per forward pass.
        device: where the encoders run.
        amp: train in bfloat16.
        store: keeps what is computed, so that an interrupted evaluation goes on; None to keep nothing.
        progress: show progress bars.

    Returns:
        The entries "models", "results", "comparisons", "methods" and "versions" of the documented ``metrics.json``
        (docs/evaluation.md).

    Raises:
        ValueError: for a name that is taken, another protocol or kind, images of different numbers, and whatever the
            protocols raise.
    """
    _check(candidates, labels, protocols, fractions)
    check_folds(labels, plan.folds)
    _check_groups(plan, groups)
    fine_tuning = dict(fine_tuning or {})
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
    }
    store_key = {
        "predictions": PREDICTIONS,
        "versions": {name: version for name, version in versions.items() if name != "python"},
        "device": torch.device(device).type,
        "labels": digest(np.asarray(labels)),
        "ordinal": ordinal,
        "classes": num_classes,
        "seed": seed,
    }
    runner = _Runner(labels, plan, ordinal, num_classes, groups, seed, batch_size, device, amp, store, progress)
    runner.common = {**store_key, "groups": None if groups is None else digest(groups)}

    views = {candidate.view: candidate.images for candidate in reversed(candidates)}
    baselines = [
        Candidate(f"{name}, {view}" if view else name, "baseline", nn.Identity(), images, view=view)
        for view, images in reversed(views.items())
        for name in (SHORTCUT, COLOR)
    ]
    everyone = [*candidates, *baselines]
    jobs = [
        (candidate, protocol, variant, fraction)
        for protocol in protocols
        for candidate in everyone
        if _applies(protocol, candidate)
        for variant in (("published", "standardized") if protocol == "linear" else (None,))
        for fraction in sorted(fractions)
    ]
    cells = []
    bar = progress_bar(jobs, progress, desc="evaluation", unit="job")
    lines = _Lines(len(jobs), progress and bar.disable)  # no terminal: lines in its place
    for candidate, protocol, variant, fraction in bar:
        bar.set_postfix_str(f"{candidate.name}, {protocol}", refresh=False)
        lines.write(f"{candidate.name}, {protocol}")
        folds = subsample(labels, plan.folds, fraction, fraction_repeats, seed)
        cells.append(runner.run(candidate, protocol, variant, fraction, folds, fine_tuning.get(protocol)))

    results = []
    drawn: list[dict[str, np.ndarray]] = []
    scored: list[dict[str, dict[str, Any]]] = []
    for cell in progress_bar(cells, progress, desc="intervals", leave=False):
        scores: dict[str, dict[str, Any]] = dict(score(labels, cell.predictions, ordinal, num_classes))
        drawn.append(bootstrap(labels, cell.predictions, groups, ordinal, num_classes, replicates, seed))
        for name, values in scores.items():
            values["interval"] = interval(name, values["mean"], drawn[-1][name])
        scored.append(scores)
        results.append(
            {
                "model": cell.model,
                "protocol": cell.protocol,
                "variant": cell.variant,
                "fraction": cell.fraction,
                "features": cell.features,
                "train_images": cell.train_images,
                "one_class": len(np.unique(np.concatenate([f.predicted for f in cell.predictions.folds]))) == 1,
                "metrics": scores,
                "settings": cell.predictions.settings,
                "predictions": cell.file,
            }
        )
    comparisons = _comparisons(cells, scored, drawn, everyone)
    methods = _method_comparisons(cells, scored, drawn, everyone)
    return {
        "models": [{"name": c.name, "kind": c.kind, "method": c.method or c.name, **c.about} for c in everyone],
        "metrics": list(metric_names(ordinal, num_classes)),
        "results": plain_values(results),
        "comparisons": plain_values(comparisons),
        "methods": plain_values(methods),
        "versions": versions,
    }


def _check(
    candidates: Sequence[Candidate], labels: np.ndarray, protocols: Sequence[str], fractions: Sequence[float]
) -> None:
    if not candidates:
        raise ValueError("expected at least one model to evaluate, got none")
    names = [candidate.name for candidate in candidates] + [SHORTCUT, COLOR]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"two models are named {repeated[0]!r}; every model needs a name of its own")
    taken = {SHORTCUT, COLOR, *(c.method or c.name for c in candidates if c.kind in ("untrained", "random"))}
    for candidate in candidates:
        if candidate.kind in ("checkpoint", "imagenet") and (candidate.method or candidate.name) in taken:
            raise ValueError(f"{candidate.name} cannot be a run of {candidate.method!r}, which is something else here")
        if candidate.kind not in KINDS:
            raise ValueError(f"a model must be of the kind {', '.join(KINDS)}, {candidate.name} is {candidate.kind!r}")
        if len(candidate.images) != len(labels):
            raise ValueError(
                f"expected one label per image, got {len(labels)} for {len(candidate.images)} images of"
                f" {candidate.name}"
            )
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocols must be some of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if not protocols or not fractions:
        raise ValueError("expected at least one protocol and one fraction")


def _check_groups(plan: FoldPlan, groups: np.ndarray | None) -> None:
    """The bootstrap needs two groups; known before any work."""
    tested = np.unique(np.concatenate([test for _, test in plan.folds]))
    if len(tested if groups is None else np.unique(groups[tested])) < 2:
        raise ValueError(f"all {len(tested)} test images are of one group; intervals need at least 2 groups")


def _applies(protocol: str, candidate: Candidate) -> bool:
    if protocol == "levels":
        return candidate.kind not in ("random", "baseline") and has_levels(candidate.encoder)
    if protocol == "supervised":
        return candidate.kind == "random"
    if protocol in FINE_TUNED:
        return candidate.kind in ("checkpoint", "imagenet")
    return candidate.kind != "random"


class _Lines:
    """Says in a log how far an evaluation is, once in ten seconds."""

    def __init__(self, total: int, wanted: bool) -> None:
        self.total, self.wanted = total, wanted
        self.done, self.start = 0, time.monotonic()
        self.written = -math.inf

    def write(self, what: str) -> None:
        """A job begins; those before it are done."""
        now = time.monotonic()
        if self.wanted and now - self.written >= SECONDS_BETWEEN_LINES:
            left = (now - self.start) / self.done * (self.total - self.done) if self.done else None
            text = "" if left is None else f", {duration(left)} left"
            logging.getLogger("conrec_monai").info(f"evaluation {self.done}/{self.total}: {what}{text}")
            self.written = now
        self.done += 1


class _Runner:
    """Computes cells, each representation once."""

    def __init__(
        self,
        labels: np.ndarray,
        plan: FoldPlan,
        ordinal: bool,
        num_classes: int,
        groups: np.ndarray | None,
        seed: int,
        batch_size: int,
        device: torch.device | str,
        amp: bool,
        store: PredictionStore | None,
        progress: bool,
    ) -> None:
        self.labels, self.plan, self.ordinal, self.num_classes = labels, plan, ordinal, num_classes
        self.groups, self.seed, self.batch_size = groups, seed, batch_size
        self.device, self.amp, self.store, self.progress = device, amp, store, progress
        self.common: dict[str, Any] = {}
        self._features: tuple[tuple[str, bool], np.ndarray] | None = None
        self._identities: dict[str, str] = {}

    def run(
        self,
        candidate: Candidate,
        protocol: str,
        variant: str | None,
        fraction: float,
        folds: Folds,
        settings: FineTuneSettings | None,
    ) -> _Cell:
        key = {
            **self.common,
            "model": self._identity(candidate),
            "protocol": protocol,
            "variant": variant,
            "folds": digest(*(part for fold in folds for part in fold)),
            "settings": None if settings is None else repr(settings),
            "amp": self.amp and settings is not None,
        }
        predictions = None if self.store is None else self.store.get(key)
        width = None
        if protocol in FINE_TUNED:
            if settings is None:
                raise ValueError(f"the protocol {protocol} needs its settings in fine_tuning")
            if predictions is None:
                predictions = self._fine_tune(candidate, folds, settings, key)
        else:
            if predictions is None:
                features = self._represent(candidate, protocol == "levels")
                predictions = self._probe(features, protocol, variant, folds)
                predictions.settings["features"] = [features.shape[1]]
            width = predictions.settings.pop("features", [None])[0]
        file = None
        if self.store is not None:
            file = f"{self.store.folder.name}/{self.store.path(key).name}"
            if not self.store.path(key).is_file():
                settings_of = {} if width is None else {"features": [width]}
                self.store.put(key, Predictions(predictions.folds, {**predictions.settings, **settings_of}))
        train_images = float(np.mean([len(train) for train, _ in folds]))
        return _Cell(candidate.name, protocol, variant, fraction, predictions, width, train_images, file)

    def _identity(self, candidate: Candidate) -> str:
        """A digest of weights and images: what the numbers of a candidate depend on."""
        if candidate.name not in self._identities:
            weights = [] if candidate.kind == "random" else list(candidate.encoder.state_dict().values())
            self._identities[candidate.name] = digest(
                *(w.detach().cpu().numpy() for w in weights),
                candidate.name.partition(",")[0] if candidate.kind == "baseline" else type(candidate.encoder).__name__,
                getattr(candidate.encoder, "config", None),
                candidate.images.numpy(),
            )
        return self._identities[candidate.name]

    def _represent(self, candidate: Candidate, levels: bool) -> np.ndarray:
        key = (candidate.name, levels)
        if self._features is None or self._features[0] != key:
            if candidate.kind == "baseline":
                baseline = shortcut_features if candidate.name.startswith(SHORTCUT) else color_features
                features = baseline(candidate.images)
            else:
                function = embed_levels if levels else embed
                features = function(candidate.encoder, candidate.images, self.batch_size, self.device, self.progress)
            self._features = (key, features)
        return self._features[1]

    def _probe(self, features: np.ndarray, protocol: str, variant: str | None, folds: Folds) -> Predictions:
        kind: Protocol = "diabetic" if self.ordinal else "categorical"
        if protocol == "knn":
            return knn_predictions(features, self.labels, folds, kind, self.num_classes)
        return linear_predictions(
            features, self.labels, folds, kind, variant != "published", self.num_classes, self.groups, self.seed
        )

    def _fine_tune(
        self, candidate: Candidate, folds: Folds, settings: FineTuneSettings, key: Mapping[str, Any]
    ) -> Predictions:
        return predict_fine_tuned(
            lambda: candidate.encoder,
            candidate.images,
            self.labels,
            folds,
            ordinal=self.ordinal,
            num_classes=self.num_classes,
            settings=settings,
            seed=self.seed,
            device=self.device,
            amp=self.amp,
            progress=self.progress,
            store=None if self.store is None else self.store.of_folds(key),
        )


def _comparisons(
    cells: Sequence[_Cell],
    scored: Sequence[dict[str, dict[str, Any]]],
    drawn: Sequence[dict[str, np.ndarray]],
    everyone: Sequence[Candidate],
) -> list[dict[str, Any]]:
    """Each pretrained model against all others, on the same folds, protocol by protocol."""
    kinds = {candidate.name: candidate.kind for candidate in everyone}
    views = {candidate.name: candidate.view for candidate in everyone}
    pretrained = [candidate.name for candidate in everyone if candidate.kind in ("checkpoint", "imagenet")]
    result = []
    for i, a in enumerate(cells):
        if a.model not in pretrained:
            continue
        for j, b in enumerate(cells):
            same = (a.protocol, a.variant) == (b.protocol, b.variant)
            # A frozen or fine-tuned network is compared with the supervised one too.
            scratch = b.protocol == "supervised" and a.protocol in ("frozen_head", "fine_tune")
            if i == j or a.fraction != b.fraction or not (same or scratch):
                continue
            if kinds[b.model] in ("untrained", "random", "baseline") and views[a.model] != views[b.model]:
                continue  # other images
            if b.model in pretrained and pretrained.index(b.model) < pretrained.index(a.model):
                continue  # the other way round it is there
            result.append(
                {
                    "model": a.model,
                    "other": b.model,
                    "other_kind": kinds[b.model],
                    "protocol": a.protocol,
                    "other_protocol": b.protocol,
                    "variant": a.variant,
                    "fraction": a.fraction,
                    "metrics": paired_differences(scored[i], drawn[i], scored[j], drawn[j]),
                }
            )
    return result


def _method_comparisons(
    cells: Sequence[_Cell],
    scored: Sequence[dict[str, dict[str, Any]]],
    drawn: Sequence[dict[str, np.ndarray]],
    everyone: Sequence[Candidate],
) -> list[dict[str, Any]]:
    """Each pretrained method against all others, runs averaged, protocol by protocol.

    How a method prepares its images is a part of it: those of other views are compared too.
    """
    method = {candidate.name: candidate.method or candidate.name for candidate in everyone}
    kinds = {method[candidate.name]: candidate.kind for candidate in everyone}
    places: dict[tuple, dict[str, list[int]]] = {}
    for i, cell in enumerate(cells):
        block = places.setdefault((cell.protocol, cell.variant, cell.fraction), {})
        block.setdefault(method[cell.model], []).append(i)
    result = []
    for (protocol, variant, fraction), block in places.items():
        pretrained = [name for name in block if kinds[name] in ("checkpoint", "imagenet")]
        pairs = [(a, b, protocol) for number, a in enumerate(pretrained) for b in pretrained[number + 1 :]]
        pairs += [(a, b, protocol) for a in pretrained for b in block if b not in pretrained]
        if protocol in ("frozen_head", "fine_tune"):  # a trained network is compared with the supervised one too
            scratch = places.get(("supervised", None, fraction), {})
            pairs += [(a, b, "supervised") for a in pretrained for b in scratch]
        for a, b, other_protocol in pairs:
            members = (block[a], places[other_protocol, variant, fraction][b])
            scores_a, drawn_a, scores_b, drawn_b = (
                [values[i] for i in member] for member in members for values in (scored, drawn)
            )
            result.append(
                {
                    "method": a,
                    "other": b,
                    "other_kind": kinds[b],
                    "runs": len(members[0]),
                    "other_runs": len(members[1]),
                    "protocol": protocol,
                    "other_protocol": other_protocol,
                    "variant": variant,
                    "fraction": fraction,
                    "metrics": run_differences(scores_a, drawn_a, scores_b, drawn_b),  # type: ignore[arg-type]
                }
            )
    return result


def plain_values(value: Any) -> Any:
    """Values that JSON can hold: plain numbers, None in place of what is not finite."""
    if isinstance(value, Mapping):
        return {key: plain_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain_values(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
