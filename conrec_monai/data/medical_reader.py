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

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from .image_reader import check_size, fit_range

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["is_nifti", "open_dicom", "open_nifti"]

_EXTRA = 'pip install "conrec-monai[medical]"'

# The only elements that are ever parsed: none of them tells anything about a patient.
_HEADER_TAGS: list[str] = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ModalityLUTSequence",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    *(f"{color}PaletteColorLookupTable{part}" for color in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_PIXEL_TAGS: list[str] = ["ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"]
_DEFLATED = "1.2.840.10008.1.2.1.99"
_GRAY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422")
_COLOR_2000 = ("YBR_ICT", "YBR_RCT")  # in JPEG 2000, whose decoders return RGB
_OTHERS = ("YBR_PARTIAL_420", "YBR_PARTIAL_422", "ARGB", "CMYK", "HSV", "XYB")  # known, and not read

_MAX_OFFSET = 2**26  # of the pixels in a NIfTI file; to go there, compressed bytes have to be inflated


class _Refusal(ValueError):
    """What this module itself has to say against a file; it quotes nothing but technical elements."""


def open_dicom(file: BinaryIO) -> tuple[int, Callable[[int], np.ndarray]]:
    """Read the header of a DICOM file.

    Error messages name technical elements only, and never hold what the libraries say: that may quote the file.

    Args:
        file: a file opened by its path, whose bytes 128 to 131 are "DICM".

    Returns:
        The number of frames, and a function that decodes one: CHW with 1 or 3 channels, uint8 up to 8 stored bits (of
        a palette: bits per entry), else uint16.

    Raises:
        ValueError: when pydicom is missing, or the file is damaged, or holds no picture of a known kind.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise ValueError(f"a DICOM file needs pydicom: {_EXTRA}") from None
    try:
        header = _read_header(file)
        columns, rows, count = int(header.Columns), int(header.Rows), int(header.get("NumberOfFrames") or 1)
    except _Refusal:
        raise
    except Exception as error:
        raise ValueError(f"damaged DICOM header ({type(error).__name__})") from None
    check_size(columns, rows, count)

    def decode(frame: int) -> np.ndarray:
        try:
            return _decode_dicom(file, header, frame)
        except _Refusal:
            raise
        except Exception as error:
            raise ValueError(f"damaged or truncated DICOM file ({type(error).__name__})") from None

    return count, decode


def _read_header(file: BinaryIO) -> Dataset:
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    syntax = read_file_meta_info(cast(Any, file).name).get("TransferSyntaxUID")
    if not syntax:
        raise _Refusal("the DICOM file has no TransferSyntaxUID")
    if syntax == _DEFLATED:  # pydicom would inflate the whole file, however large that makes it
        raise _Refusal(f"transfer syntax {syntax} (deflated) is not read: convert the file to another one")
    file.seek(0)
    header = dcmread(file, specific_tags=_HEADER_TAGS, stop_before_pixels=True)
    if not header.get("Rows") or not header.get("Columns"):
        raise _Refusal("the DICOM file holds no picture: no Rows and Columns")
    color, samples = header.PhotometricInterpretation, int(header.SamplesPerPixel)
    if color not in (*_GRAY, *_COLOR, *_COLOR_2000):
        raise _Refusal(f"PhotometricInterpretation {color if color in _OTHERS else 'of an unknown kind'} is not read")
    if samples != (1 if color in _GRAY else 3):
        raise _Refusal(f"PhotometricInterpretation {color} with SamplesPerPixel {samples}")
    stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
    if not 1 <= stored <= allocated <= 16:
        raise _Refusal(f"BitsStored {stored} and BitsAllocated {allocated}, expected 1 to 16")
    if stored > 8 and color in _COLOR[1:]:
        raise _Refusal(f"PhotometricInterpretation {color} with BitsStored {stored}, expected 8")
    return header


def _decode_dicom(file: BinaryIO, header: Dataset, frame: int) -> np.ndarray:
    from pydicom import dcmread
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import JPEG2000TransferSyntaxes, RLELossless

    syntax = header.file_meta.TransferSyntaxUID
    text = f"transfer syntax {syntax} ({syntax.name})" if syntax.name != syntax else "an unknown transfer syntax"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise _Refusal(f"{text} is not read") from None
    if not decoder.is_available:
        raise _Refusal(f"{text} needs a decoder: {_EXTRA}")
    color = header.PhotometricInterpretation
    if color in _COLOR_2000 and syntax not in JPEG2000TransferSyntaxes:
        raise _Refusal(f"PhotometricInterpretation {color} in {text}, expected JPEG 2000")
    file.seek(0)
    if syntax.is_encapsulated:
        # Of compressed pictures the whole file is read, but one frame is decoded.
        dataset = dcmread(file, specific_tags=[*_HEADER_TAGS, *_PIXEL_TAGS])
        if syntax != RLELossless:  # run lengths fill what the header asks for, and may hold any bytes
            _check_codestream(dataset, frame)
        try:
            pixels = pixel_array(dataset, index=frame)
        except RuntimeError:  # no decoder could
            hint = "" if "pylibjpeg" in decoder.available_plugins else f", maybe for lack of a decoder: {_EXTRA}"
            raise _Refusal(f"damaged pixels, {text}{hint}") from None
    else:
        pixels = pixel_array(file, index=frame)
    if color == "PALETTE COLOR":
        return np.stack([_palette(pixels, header, name) for name in ("Red", "Green", "Blue")])
    if color in _GRAY:
        return _gray(pixels, header, frame)[None]
    return _spread(pixels, 0, 2**header.BitsStored - 1, header.BitsStored).transpose(2, 0, 1)


def _check_codestream(dataset: Dataset, frame: int) -> None:
    """Compare the size in the compressed data with that of the header: the decoders would make whatever it says."""
    from pydicom.encaps import get_frame

    tables = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    data = get_frame(
        dataset.PixelData,
        frame,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        extended_offsets=tables if all(tables) else None,
    )
    start = data.find(b"\xff\x4f\xff\x51")  # JPEG 2000: SOC and SIZ
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        size = right - left, bottom - top
    elif data.startswith(b"\xff\xd8"):
        size = _jpeg_size(data)
    else:
        return
    if size != (dataset.Columns, dataset.Rows):
        told = f"Columns and Rows {dataset.Columns} x {dataset.Rows}"
        raise _Refusal(f"{told}, but the compressed picture has {size[0]} x {size[1]}")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a JPEG or JPEG-LS codestream; struct.error without a frame header."""
    offset = 2
    while True:
        marker, length = struct.unpack_from(">HH", data, offset)
        if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)):
            height, width = struct.unpack_from(">HH", data, offset + 5)
            return width, height
        offset += 2 + length


def _gray(pixels: np.ndarray, header: Dataset, frame: int) -> np.ndarray:
    """Turn stored values into gray levels as DICOM PS3.4, N.2 says: modality LUT, then VOI LUT, black is 0.

    Args:
        pixels: HW.
        header: the elements of the file.
        frame: its number, for the elements that are told for each frame.

    Returns:
        HW, uint8 up to 8 stored bits, else uint16.
    """
    low: float = -(2 ** (header.BitsStored - 1)) if header.PixelRepresentation else 0
    high: float = low + 2**header.BitsStored - 1
    values = pixels
    order = _byte_order(header)
    modality = _functional_group(header, frame, "PixelValueTransformationSequence")
    if tables := header.get("ModalityLUTSequence"):
        values, low, high = _look_up(values, tables[0].LUTDescriptor, tables[0].LUTData, order)
    elif modality.get("RescaleSlope") is not None:
        slope, intercept = float(modality.RescaleSlope), float(modality.get("RescaleIntercept") or 0)
        if not (np.isfinite([slope, intercept]).all() and slope):
            raise _Refusal(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g}")
        values = values * slope + intercept
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    voi = _functional_group(header, frame, "FrameVOILUTSequence")
    if voi.get("WindowCenter") is not None and voi.get("WindowWidth") is not None:
        values, low, high = _window(values, voi), 0, 1
    elif tables := voi.get("VOILUTSequence"):
        values, low, high = _look_up(np.rint(values), tables[0].LUTDescriptor, tables[0].LUTData, order)
    if header.PhotometricInterpretation == "MONOCHROME1":  # the lowest is white
        low, high = high, low
    return _spread(values, low, high, header.BitsStored)


def _functional_group(header: Dataset, frame: int, name: str) -> Dataset:
    """Return the elements of a frame, of all frames, or of the file, whichever has them first."""
    for group, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = header.get(group)
        if groups and groups[index].get(name):
            return groups[index].get(name)[0]
    return header


def _window(values: np.ndarray, voi: Dataset) -> np.ndarray:
    """Apply the first window of a file: DICOM PS3.3, C.11.2.1.2. Returns real numbers; 0 is black and 1 white."""
    center, width = (float(np.atleast_1d(voi.get(name))[0]) for name in ("WindowCenter", "WindowWidth"))
    function = voi.get("VOILUTFunction") or "LINEAR"
    if not (np.isfinite([center, width]).all() and width >= (1 if function == "LINEAR" else 1e-9)):
        raise _Refusal(f"WindowCenter {center:g} and WindowWidth {width:g}")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if function != "LINEAR":
        raise _Refusal("VOILUTFunction is none of LINEAR, LINEAR_EXACT, SIGMOID")
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1) + 0.5


def _palette(pixels: np.ndarray, header: Dataset, name: str) -> np.ndarray:
    descriptor = header.get(f"{name}PaletteColorLookupTableDescriptor")
    data = header.get(f"{name}PaletteColorLookupTableData")
    if not descriptor or not data:
        raise _Refusal(f"PALETTE COLOR without {name}PaletteColorLookupTableData (a segmented one is not read)")
    values, low, high = _look_up(pixels, descriptor, data, _byte_order(header))
    return _spread(values, low, high, descriptor[2])


def _byte_order(header: Dataset) -> str:
    return "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"


def _look_up(values: np.ndarray, descriptor: Any, data: Any, order: str) -> tuple[np.ndarray, float, float]:
    """Apply a lookup table of DICOM (PS3.3, C.11.1.1.1): beyond its ends its first and last entries hold.

    Args:
        values: whole numbers.
        descriptor: number of entries, value of the first entry, bits per entry.
        data: the entries, as numbers or as bytes (words, that may hold two entries each).
        order: of the bytes in a word, "<" or ">".

    Returns:
        The entries, and the lowest and highest that there can be.
    """
    count, first, bits = (int(number) for number in descriptor)
    count = count % 65536 or 65536
    if first > 32767 and values.min() < 0:  # a negative number, read as an unsigned one
        first -= 65536
    if isinstance(data, bytes):
        table = np.frombuffer(data, f"{order}u2").astype("<u2")
        if len(table) < count:
            table = table.view(np.uint8)
    else:
        table = np.atleast_1d(np.asarray(data))
    if not 8 <= bits <= 16 or len(table) < count:
        raise _Refusal(f"a lookup table of {count} entries of {bits} bits, with data for {len(table)}")
    index = np.clip(values.astype(np.int64) - first, 0, count - 1)
    return table[index], 0, 2**bits - 1


def _spread(values: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """Scale values to the full range of uint8 (up to 8 `bits`) or uint16: `low` to 0, `high` to the largest number."""
    dtype, top = (np.uint8, 255) if bits <= 8 else (np.uint16, 65535)
    if (low, high) == (0, top) and values.dtype == dtype:
        return values
    share = np.subtract(values, low, dtype=np.float64) / (high - low)  # in 16 bits the difference might wrap around
    return np.rint(np.clip(share, 0, 1) * top).astype(dtype)


def is_nifti(file: BinaryIO) -> bool:
    """Whether a file is a NIfTI-1 or NIfTI-2 file, or a gzip-compressed one. Leaves the file at its start."""
    file.seek(0)
    is_compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    try:
        head = (gzip.GzipFile(fileobj=file) if is_compressed else file).read(348)
    except (OSError, EOFError, zlib.error):
        raise ValueError("damaged gzip data") from None
    file.seek(0)
    return is_compressed or _nifti_version(head) > 0


def _nifti_version(head: bytes) -> int:
    """Return 1 or 2 by the size of the header and the mark in it, 0 for another kind of file."""
    sizes = (head[:4], head[3::-1])  # both byte orders
    if (348).to_bytes(4, "little") in sizes and head[344:348] in (b"n+1\0", b"ni1\0"):
        return 1
    if (540).to_bytes(4, "little") in sizes and head[4:8] in (b"n+2\0", b"ni2\0"):
        return 2
    return 0


def open_nifti(file: BinaryIO) -> tuple[int, Callable[[int], np.ndarray]]:
    """Read the header of a NIfTI file, compressed or not. Extensions of the header are never looked at.

    Args:
        file: a file for which `is_nifti` holds.

    Returns:
        The number of slices along the third axis, and a function that decodes one: CHW with 1 or 3 channels, uint8 or
        uint16. Only the bytes of that slice are held in memory.

    Raises:
        ValueError: when nibabel is missing, or the file is damaged or holds no pictures.
    """
    try:
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header
    except ImportError:
        raise ValueError(f"a NIfTI file needs nibabel: {_EXTRA}") from None
    is_compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_compressed else file
    block = stream.read(540)
    version = _nifti_version(block)
    if not version:
        raise ValueError("compressed with gzip, but what is inside is no NIfTI file")
    if block[344:347] == b"ni1" or block[4:7] == b"ni2":
        raise ValueError("the header of a pair of files (.hdr and .img): convert it to one .nii file")
    header = Nifti1Header(block[:348], check=False) if version == 1 else Nifti2Header(block, check=False)
    shape = tuple(int(size) for size in header.get_data_shape())
    dtype = header.get_data_dtype()
    offset = int(header.get_data_offset())
    slope, intercept = header.get_slope_inter()
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    window = float(header["cal_min"]), float(header["cal_max"])

    # Trailing axes of length 1 say nothing. A last axis of 3 are the channels.
    stored = shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    is_packed = dtype.names is not None  # RGB24 and RGBA32: channels within a pixel
    channels = 1
    if not is_packed and len(shape) > 2 and shape[-1] == 3:
        channels, shape = 3, shape[:-1]
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise ValueError(f"shape {stored}, expected (x, y), (x, y, slices) and at most a last axis of 3 channels")
    if not is_packed and dtype.kind not in "uif":
        raise ValueError(f"numbers of type {dtype}, expected integers or real numbers")
    width, height, count = (*shape, 1)[:3]
    check_size(width, height, count)
    if not (348 if version == 1 else 540) <= offset <= _MAX_OFFSET:
        raise ValueError(f"the header says that the pixels begin at byte {offset}")
    size = width * height * dtype.itemsize  # bytes of a slice of one channel
    if not is_compressed and os.fstat(file.fileno()).st_size < offset + size * count * channels:
        raise ValueError("the file is truncated")
    upright = _upright_axes(header)

    def read(index: int) -> np.ndarray:
        stream.seek(offset + index * size)
        content = stream.read(size)
        if is_compressed and index == count * channels - 1:
            stream.read(1)  # behind the last byte the checksum is compared
        if len(content) < size:
            raise ValueError("the file is truncated")
        return np.frombuffer(content, dtype).reshape(height, width)

    def scaled(index: int) -> np.ndarray:
        return read(index) * np.float64(slope) + intercept

    def decode(frame: int) -> np.ndarray:
        own = [frame + count * channel for channel in range(channels)]
        if is_packed:
            return upright(_unpack(read(frame)))
        if (slope, intercept) != (1, 0) or dtype.kind == "f":
            get: Callable[[int], np.ndarray] = scaled
        else:
            get = read
        array = np.stack([get(index) for index in own])
        if get is read and dtype.kind == "u" and dtype.itemsize <= 2:
            return upright(array.astype(dtype.newbyteorder("=")))
        if window[0] < window[1]:
            if not np.isfinite(array).all():
                raise ValueError("some of the numbers are NaN or infinite")
            share = np.clip((array - window[0]) / (window[1] - window[0]), 0, 1)
            return upright(np.rint(share * 65535).astype(np.uint16))
        # The slices of a volume share one range.
        everything = range(count * channels) if count > 1 else own
        extremes = [(values.min(), values.max()) for values in map(get, everything)]
        return upright(fit_range(array, np.min(extremes), np.max(extremes)))

    return count, decode


def _unpack(pixels: np.ndarray) -> np.ndarray:
    """Turn pixels of RGB24 or RGBA32 (HW) into channels (CHW), composited over black."""
    array = np.stack([pixels[name] for name in "RGB"])
    if "A" in (pixels.dtype.names or ()):
        array = ((array.astype(np.uint16) * pixels["A"] + 127) // 255).astype(np.uint8)
    return array


def _upright_axes(header: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Find how the picture in a NIfTI file is brought upright.

    The first axis of the file runs along the columns and the second along the rows, so that read as it lies the
    picture has the shape (slices, y, x). Where the file has no anatomical axes that is the picture. Otherwise columns
    must run to the left of the patient (or to posterior) and rows to posterior (or inferior), as on a screen.

    Returns:
        Function from CHW to CHW.
    """
    from nibabel.orientations import io_orientation

    if not header["sform_code"] and not header["qform_code"]:
        return lambda array: array
    affine = header.get_best_affine()
    spacing = np.diag(affine)[:2]
    is_pixels = (  # coordinates that count pixels from the first one: what MONAI and nibabel write for pictures
        np.count_nonzero(affine[:3, :3] - np.diag(np.diag(affine)[:3])) == 0
        and (spacing > 0).all()
        and (np.abs(affine[:2, 3]) <= np.maximum(spacing, 1)).all()
    )
    (x_axis, x_sign), (y_axis, y_sign) = io_orientation(affine)[:2]
    if is_pixels or np.isnan([x_axis, y_axis]).any():
        return lambda array: array

    def upright(array: np.ndarray) -> np.ndarray:
        # nibabel's signs are +1 where an axis runs to the right, to anterior, to superior.
        array = array[:, :: -1 if y_sign > 0 else 1, :: -1 if x_sign > 0 else 1]
        return array.transpose(0, 2, 1) if x_axis > y_axis else array

    return upright
