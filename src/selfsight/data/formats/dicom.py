"""DICOM, by pydicom (the extra `dicom`): values rescaled and windowed as a viewer shows them first.

No name, number or date of a patient leaves a file, but for the attributes that a user names.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, BinaryIO

import numpy as np

from selfsight.data.formats.common import check_size
from selfsight.data.formats.format import (
    DTYPES,
    MAX_FRAMES,
    Header,
    Unreadable,
    check_frame,
    each_frame,
    hostile,
    without_nodata,
)
from selfsight.errors import SelfsightError, meant

SUFFIXES = frozenset({".dcm", ".dicom"})

# pydicom warns of each value that breaks a rule of the standard; what matters is in our reasons.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom\.")

_UNDEFINED = 0xFFFFFFFF  # a length
_ITEM, _END = 0xFFFEE000, 0xFFFEE0DD
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DEFLATED, _PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
_MAX_INFLATED = 2**30
_TO_VALUES = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept")
_TO_LIGHT = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
_KINDS = ("OB", "OW", "OF", "OD", "OL", "OV", "UN")  # of values that may hold pixels
_NO_TEXT = ("SQ", *_KINDS)


def identify(head: bytes) -> bool:
    """Whether a file begins as DICOM does, or as DICOM without its preamble."""
    return head[128:132] == b"DICM" or _is_bare(head)


def _is_bare(head: bytes) -> bool:
    """Whether a file begins with attributes of DICOM, little-endian, as files without a preamble do: the first is of
    group 2 or 8 and names its kind, or is followed by another one of its group."""
    if head[:2] not in (b"\2\0", b"\x08\0"):
        return False
    after = 8 + int.from_bytes(head[4:8], "little")
    return head[4:6] in (b"UL", b"CS", b"UI", b"SH", b"DA", b"OB") or head[:2] == head[after : after + 2]


def headers(file: BinaryIO, rate: float | None) -> list[Header]:
    """One image a frame."""
    with hostile("damaged DICOM"):
        opened = _open(file)
        many = opened.frames > 1
        return [
            Header("DICOM", opened.columns, opened.rows, opened.mode, opened.view(frame).depth, frame if many else None)
            for frame in range(opened.frames)
        ]


def read(
    file: BinaryIO, frames: Sequence[int], rate: float | None, at_least: int | None
) -> Iterator[np.ndarray | Unreadable]:
    """Pixels [H, W, C]. Only the asked frames are read and decoded."""
    return each_frame(lambda: _open(file), _Opened.pixels, frames)


def attributes(file: BinaryIO, names: Sequence[str]) -> dict[str, str | None]:
    """Values, as text, of the attributes with the given DICOM keywords; None where a file does not have one.

    Raises `SelfsightError` for a keyword that DICOM does not know, `Unreadable` for a damaged file.
    """
    _import_pydicom()
    from pydicom.datadict import dictionary_VR, keyword_dict

    for name in names:
        if name not in keyword_dict:
            close = meant(name, keyword_dict)
            raise SelfsightError(f"{name!r} is not a DICOM keyword, such as PatientID.{close}")
        if dictionary_VR(name).split(" ")[0] in _NO_TEXT:
            raise SelfsightError(f"The DICOM attribute {name} holds no text; name one that does, such as PatientID.")
    with hostile("damaged DICOM"):
        data, _ = _dataset(file)
        return {name: _text(data.get(name)) for name in names}


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    from pydicom.multival import MultiValue

    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


@dataclass
class _View:
    """How one frame is brought to what a viewer shows. data: the attributes that say so. bits: of a stored value.

    limits: the smallest and largest value after the rescaling, None where these are not known.
    """

    data: Any
    bits: int
    depth: int
    limits: tuple[float, float] | None
    light: str  # "lut", "window" or ""


@dataclass
class _Opened:
    """A DICOM file and where its pixels are.

    syntax: UID of how they are encoded. keyword, kind: of their element. start: of its value, in bytes.
    """

    file: BinaryIO
    data: Any
    syntax: Any
    decoder: Any
    keyword: str
    kind: str
    start: int
    rows: int
    columns: int
    frames: int
    photometric: str
    common: _View | None = None

    @property
    def mode(self) -> str:
        return "L" if self.photometric in _GREY else "RGB"

    @property
    def failure(self) -> str:
        """Why a frame could not be decoded: broken, or of a kind that the installed decoders do not know."""
        if not self.syntax.is_encapsulated:
            return "cannot be decoded: broken data"
        more = _packages(self.decoder)
        return f"DICOM compressed as {self.syntax.name} cannot be decoded" + (
            f"; try pip install {more}" if more else ""
        )

    def view(self, frame: int) -> _View:
        """The same for all frames, unless each brings its own."""
        if self.common is not None:
            return self.common
        groups = [self.data]
        shared, single = (self.data.get(f"{kind}FunctionalGroupsSequence") for kind in ("Shared", "PerFrame"))
        groups += list(shared[:1]) if shared else []
        groups += [single[frame]] if single and frame < len(single) else []
        view = _view_of(self, groups)
        if not single:
            self.common = view
        return view

    def pixels(self, frame: int) -> np.ndarray:
        """[H, W, C]."""
        check_frame(frame, self.frames)
        with hostile(self.failure):
            return self._decoded(frame)

    def _decoded(self, frame: int) -> np.ndarray:
        from pydicom.pixels.utils import as_pixel_options

        self.file.seek(self.start)
        named = {"pixel_keyword": self.keyword, "pixel_vr": self.kind, "number_of_frames": self.frames}
        options = as_pixel_options(self.data, **named)
        stored, _ = self.decoder.as_array(self.file, index=frame, **options)
        if stored.shape[:2] != (self.rows, self.columns):
            raise Unreadable("the pixels are not of the size that the header says")
        with np.errstate(all="ignore"):
            if self.photometric in _GREY:
                stored = without_nodata(stored, _padding_in(stored, self.data), self.photometric == "MONOCHROME1")
                return _shown(stored, self.view(frame), self.photometric)[:, :, None]
            return _coloured(stored, self)


def _import_pydicom() -> None:
    try:
        from pydicom import config
    except ImportError:
        raise Unreadable("DICOM needs pydicom: pip install 'selfsight[dicom]'") from None
    config.settings.reading_validation_mode = config.IGNORE


def _dataset(file: BinaryIO) -> tuple[Any, BinaryIO]:
    """All attributes before the pixels, and the file, positioned at the tag of the pixels or at its end."""
    from pydicom import dcmread

    file.seek(0)
    head = file.read(2**20)
    if not head:
        raise Unreadable("empty file")
    if _is_bare(head):
        raise Unreadable("DICOM without its preamble: save it again, with dcmtk by dcmconv OLD NEW")
    if not identify(head):
        raise Unreadable("not a DICOM file")
    if _DEFLATED in head:
        file = _inflated(file, head)
    file.seek(0)
    return dcmread(file, stop_before_pixels=True), file


def _inflated(file: BinaryIO, head: bytes) -> BinaryIO:
    """The same file without the compression that lies over all of it, so that its size can be limited."""
    start = 144 + int.from_bytes(head[140:144], "little")  # the first attribute is the length of those before it
    file.seek(start)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = stream.decompress(file.read(), _MAX_INFLATED)
    except zlib.error:
        raise Unreadable("damaged DICOM: its compression is broken") from None
    if stream.unconsumed_tail:
        raise Unreadable("the decompressed file is above the limit of 1 GB")
    if not stream.eof:
        raise Unreadable("truncated DICOM: its compression ends early")
    return io.BytesIO(head[:start].replace(_DEFLATED, _PLAIN) + plain)


@hostile("damaged DICOM")
def _open(file: BinaryIO) -> _Opened:
    _import_pydicom()
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    data, file = _dataset(file)
    implicit, little = data.original_encoding
    syntax = data.file_meta.get("TransferSyntaxUID")
    if not syntax:
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = syntax
    keyword, kind, length, start = _pixel_element(file, data, "<" if little else ">")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Unreadable(f"DICOM compressed as {syntax.name} is not supported") from None
    if not decoder.is_available:
        raise Unreadable(f"DICOM compressed as {syntax.name} needs more: pip install {_packages(decoder)}")
    rows, columns = _integer(data, "Rows"), _integer(data, "Columns")
    check_size(columns, rows)
    frames = max(1, _integer(data, "NumberOfFrames", 1))
    if frames > MAX_FRAMES:
        raise Unreadable(f"a DICOM of {frames:,} frames is above the limit of {MAX_FRAMES:,}")
    opened = _Opened(file, data, syntax, decoder, keyword, kind, start, rows, columns, frames, _photometric(data))
    if syntax.is_encapsulated:
        _check_fragments(file, start, frames)
    else:
        _check_length(opened, length)
    return opened


def _packages(decoder: Any) -> str:
    return " ".join(dict.fromkeys(re.findall(r"pylibjpeg[\w-]*", " ".join(decoder.missing_dependencies))))


def _pixel_element(file: BinaryIO, data: Any, order: str) -> tuple[str, str, int, int]:
    """Keyword of the pixels, kind and length of their value, and where it starts."""
    at = file.tell()
    head = file.read(12)
    group, element = struct.unpack(order + "HH", head[:4]) if len(head) == 12 else (0, 0)
    keyword = _PIXELS.get(group << 16 | element)
    if keyword is None:
        if "Rows" in data and "Columns" in data:
            raise Unreadable("truncated DICOM: it describes an image but ends before the pixels")
        raise Unreadable("DICOM without pixels")
    # Some files do not name the kinds of their values although their header says that they do.
    kind = head[4:6].decode("latin-1")
    place = 8 if kind in _KINDS else 4
    (length,) = struct.unpack_from(order + "L", head, place)
    return keyword, kind if kind in _KINDS else "OW", length, at + place + 4


def _integer(data: Any, keyword: str, default: int | None = None) -> int:
    value = data.get(keyword)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise Unreadable(f"DICOM with a missing or damaged {keyword}") from None


def _photometric(data: Any) -> str:
    photometric, samples = str(data.get("PhotometricInterpretation")), _integer(data, "SamplesPerPixel", 1)
    known = photometric in (*_GREY, "PALETTE COLOR") if samples == 1 else photometric in _COLOUR and samples == 3
    if not known:
        raise Unreadable(f"DICOM of {samples} samples a pixel and the colours {photometric[:40]} is not supported")
    return photometric


def _check_length(opened: _Opened, length: int) -> None:
    size = opened.file.seek(0, 2)
    wide = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(opened.keyword)
    bits = wide or _integer(opened.data, "BitsAllocated")
    samples = 2 if opened.photometric == "YBR_FULL_422" else _integer(opened.data, "SamplesPerPixel", 1)
    needed = ceil(opened.rows * opened.columns * samples * bits * opened.frames / 8)
    there = size - opened.start if length == _UNDEFINED else min(length, size - opened.start)
    if needed > there:
        raise Unreadable("truncated DICOM: the pixels end early")


def _check_fragments(file: BinaryIO, start: int, frames: int) -> None:
    """Walks over the compressed pieces; the first is a table of places."""
    size, count = file.seek(0, 2), 0
    while start < size:
        file.seek(start)
        head = file.read(8)
        if len(head) < 8:
            break
        group, element, length = struct.unpack("<HHL", head)
        if group << 16 | element == _END:
            break
        if group << 16 | element != _ITEM or length == _UNDEFINED:
            raise Unreadable("damaged DICOM: its compressed pixels are not in order")
        start += 8 + length
        count += 1
    if start > size or count - 1 < frames:
        raise Unreadable("truncated DICOM: the compressed pixels end early")


def _view_of(opened: _Opened, groups: list[Any]) -> _View:
    """From the attributes of the file, then of all frames, then of one frame; later ones count."""
    from pydicom import Dataset

    view = Dataset()
    view.file_meta = opened.data.file_meta  # says the order of bytes in tables
    for group in groups:
        inner = [group.get(kind) for kind in ("PixelValueTransformationSequence", "FrameVOILUTSequence")]
        for source in [group, *(sequence[0] for sequence in inner if sequence)]:
            for keyword in (*_TO_VALUES, *_TO_LIGHT):
                if source.get(keyword) not in (None, ""):
                    view[keyword] = source[keyword]
    if opened.photometric not in _GREY:
        return _View(view, 8, 8, None, "")
    is_float = opened.keyword != "PixelData"
    bits = 32 if is_float else _integer(opened.data, "BitsStored", _integer(opened.data, "BitsAllocated"))
    signed = not is_float and _integer(opened.data, "PixelRepresentation", 0) == 1
    slope, intercept = float(view.get("RescaleSlope", 1)), float(view.get("RescaleIntercept", 0))
    table = view.get("ModalityLUTSequence")
    limits = None if is_float else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if table:
        limits = (0.0, 2.0 ** int(table[0].LUTDescriptor[2]) - 1)
    elif limits:
        limits = (limits[0] * slope + intercept, limits[1] * slope + intercept)
    light = _light_of(view)
    whole = not is_float and (bool(table) or (not signed and (slope, intercept) == (1, 0)))
    depth = 8 if bits <= 8 else 16
    if not light:
        top = limits[1] if limits and whole else np.inf
        depth = 8 if top <= 255 else 16 if top <= 65535 else 32
    return _View(view, bits, depth, limits, light)


def _light_of(view: Any) -> str:
    """Which of the first view is to be applied: its table, its window, or nothing where these are damaged."""
    tables = view.get("VOILUTSequence")
    if tables and tables[0].get("LUTDescriptor") and tables[0].get("LUTData") is not None:
        return "lut" if int(tables[0].LUTDescriptor[2]) in (8, *range(10, 17)) else ""
    try:
        centre, width = (float(np.atleast_1d(view.get(f"Window{kind}"))[0]) for kind in ("Center", "Width"))
    except (TypeError, ValueError, IndexError):
        return ""
    function = str(view.get("VOILUTFunction", "LINEAR")).upper()
    narrowest = 1 if function == "LINEAR" else 1e-30
    known = function in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    return "window" if known and isfinite(centre) and isfinite(width) and width >= narrowest else ""


def _padding_in(stored: np.ndarray, data: Any) -> np.ndarray:
    """[H, W] bool, the pixels outside of the image proper: PixelPaddingValue, up to PixelPaddingRangeLimit if there is
    one (PS3.3, C.7.5.1.1.2)."""
    try:
        ends = [int(data.PixelPaddingValue), int(data.get("PixelPaddingRangeLimit", data.PixelPaddingValue))]
    except (AttributeError, TypeError, ValueError):  # none, or not a number
        return np.zeros(stored.shape, bool)
    if stored.dtype.kind in "iu":  # the header may name the same bits signed or unsigned
        count = 2 ** (8 * stored.dtype.itemsize)
        lowest = -count // 2 if stored.dtype.kind == "i" else 0
        ends = [(end - lowest) % count + lowest for end in ends]
    return (stored >= min(ends)) & (stored <= max(ends))


def _shown(stored: np.ndarray, view: _View, photometric: str) -> np.ndarray:
    """Grey values [H, W] as `view` says, more being brighter."""
    from pydicom.pixels.processing import apply_modality_lut

    values = apply_modality_lut(stored, view.data)
    inverted = photometric == "MONOCHROME1"
    wanted = DTYPES[view.depth]
    if view.light:
        top = 255 if view.depth == 8 else 65535
        light = _by_table(values, view, top) if view.light == "lut" else _by_window(values, view, top)
        light = np.rint(light).clip(0, top)
        shown: np.ndarray = (top - light if inverted else light).astype(wanted, order="C")
        return shown
    if inverted:
        values = sum(view.limits) - values.astype(np.float64) if view.limits else -values
    if view.bits == 1:
        values = values * 255
    return values.astype(wanted, order="C")


def _by_window(values: np.ndarray, view: _View, top: int) -> np.ndarray:
    """0 to `top`. pydicom takes the range of its result from the stored bits; these are set to that of ours."""
    from pydicom import Dataset
    from pydicom.pixels.processing import apply_windowing

    window = Dataset()
    window.PhotometricInterpretation, window.PixelRepresentation = "MONOCHROME2", 0
    window.BitsStored = top.bit_length()
    for keyword in _TO_LIGHT[1:]:
        if keyword in view.data:
            window[keyword] = view.data[keyword]
    return np.asarray(apply_windowing(values, window))


def _by_table(values: np.ndarray, view: _View, top: int) -> np.ndarray:
    from pydicom.pixels.processing import apply_voi

    count, first, bits = (int(value) for value in view.data.VOILUTSequence[0].LUTDescriptor)
    last = first + (count or 2**16) - 1
    light: np.ndarray = apply_voi(np.rint(values).clip(first, last).astype(np.int64), view.data)
    scaled: np.ndarray = light * (top / (2**bits - 1))
    return scaled


def _coloured(stored: np.ndarray, opened: _Opened) -> np.ndarray:
    """[H, W, 3] uint8."""
    from pydicom.pixels.processing import apply_color_lut

    bits = _integer(opened.data, "BitsStored", 8)
    if opened.photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, opened.data)[:, :, :3]
        bits = 8 * stored.dtype.itemsize
    if stored.dtype.kind == "u" and bits > 8:
        stored = stored >> (bits - 8)
    return stored.astype(np.uint8, order="C")
