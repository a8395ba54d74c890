"""TIFF, by tifffile and imagecodecs. Every page is an image; planes of ImageJ, OME and LSM files are put together."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from selfsight.data.formats.common import check_size, jpeg_markers
from selfsight.data.formats.format import (
    DTYPES,
    MAX_FRAMES,
    MAX_PIXELS,
    Header,
    Unreadable,
    check_frame,
    each_frame,
    hostile,
    without_nodata,
)
from selfsight.data.orientation import known, turns, upright

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

Page = Any  # TiffPage or TiffFrame of tifffile; of frames `keyframe` is the page that describes them
SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".lsm"})

# tifffile logs an error or a warning for each oddity of a file; what matters is in our reasons.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

# The kinds whose description says how the pages belong together; in all others each page is an image of its own.
_SERIES = ("ome", "imagej", "shaped", "lsm", "svs", "scn", "qpi", "bif", "philips")
_SLIDES = ("svs", "qpi", "bif", "philips")
# Kinds that look for further files beside this one, or that change the pixels.
_OFF = ("mmstack", "ndtiff", "fluoview", "stk", "sis", "ndpi", "avs", "eer", "scanimage", "nih", "mdgel", "uniform")
_MAX_VALUES = 4 * MAX_PIXELS
_MAX_TAGS = 4096
# Bits, description, places and lengths of strips and tiles, palette, extra samples, their format, JPEG tables.
_NEEDED_TAGS = (258, 270, 273, 279, 320, 324, 325, 338, 339, 347)
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_GDAL_NODATA = 42113  # tag
_WHITE_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR = 0, 2, 3, 5, 6  # photometric interpretations
_ALPHA = (1, 2)  # of ExtraSamples
_LZW, _JPEG, _JPEG_2000, _PNG, _WEBP = 5, (6, 7), (33003, 33005, 34712), 34933, 50001
# None, CCITT (3), LZW, Deflate (2), PackBits, LZMA, Zstandard, and the image formats whose size is checked.
_COMPRESSIONS = (1, 2, 3, 4, 5, 8, 32946, 32773, 34925, 50000, *_JPEG, *_JPEG_2000, _PNG, _WEBP)
_MAX_CHANNELS = 10_000
_CLEAR, _END_OF_LZW = 256, 257
_LZW_CODES = 2**12  # more than there can be between two that empty the table
_JPEG_SIZES = {0xC0 + i for i in range(16)} - {0xC4, 0xC8, 0xCC}  # markers of the frame header


def identify(head: bytes) -> bool:
    """Whether a file begins as a TIFF or a BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def headers(file: BinaryIO, rate: float | None) -> list[Header]:
    """One image a page, without masks and reduced pages; of a stack of planes one image for all channels."""
    with hostile("damaged TIFF"):
        return list(_open(file).headers())


def read(
    file: BinaryIO, frames: Sequence[int], rate: float | None, at_least: int | None
) -> Iterator[np.ndarray | Unreadable]:
    """Pixels [H, W, C]. Only the asked pages are read."""
    return each_frame(lambda: _open(file), _Opened.pixels, frames)


@dataclass
class _Item:
    """One image of a file: a plane of `series` for each channel, or a page of the file."""

    series: TiffPageSeries | None
    planes: tuple[int, ...]


@dataclass
class _Opened:
    """A TIFF and the images in it. size: bytes of the file."""

    file: BinaryIO
    tiff: TiffFile
    size: int
    items: list[_Item]

    def headers(self) -> Iterator[Header]:
        """Of each image that is whole; planes that an OME description names but the file lacks make none."""
        page = None
        for frame, item in enumerate(self.items):
            planes = self.planes(item)
            if planes is None:
                continue
            if planes[0].keyframe is not page:
                page = planes[0].keyframe
                description = _describe(page, len(planes))
            for plane in planes:
                _check_end(plane, self.size)
            yield Header("TIFF", *description, frame if len(self.items) > 1 else None, _orientation(page))
        if page is None:
            raise Unreadable("TIFF without an image")

    def planes(self, item: _Item) -> list[Page] | None:
        """The pages that hold the planes, or None if one is missing."""
        if item.series is None:
            return [self.tiff.pages[item.planes[0]]]
        page = item.series.keyframe
        if not _is_one_block(item.series):
            planes: list[Page] = [item.series[plane] for plane in item.planes]
            if any(plane is None for plane in planes):
                return None
            if len({plane.keyframe.hash for plane in planes}) > 1:
                raise Unreadable("damaged TIFF: the planes of an image differ")
            return planes
        from tifffile import TiffFrame

        return [
            TiffFrame(
                self.tiff, page.index, offset=page.offset, keyframe=page, databytecounts=(page.nbytes,),
                dataoffsets=(page.dataoffsets[0] + plane * page.nbytes,),
            )
            for plane in item.planes
        ]  # fmt: skip

    @hostile("cannot be decoded: broken data")
    def pixels(self, frame: int) -> np.ndarray:
        """[H, W, C], upright."""
        check_frame(frame, len(self.items))
        planes = self.planes(self.items[frame])
        if planes is None:
            raise Unreadable("a plane of this image is missing in the file")
        page = planes[0].keyframe
        _, _, _, depth = _describe(page, len(planes))
        parts = []
        for plane in planes:
            _check_end(plane, self.size)
            _check_segments(self.file, plane)
            raw = plane.asarray(squeeze=False, maxworkers=1)[:, 0]  # [S, H, W, s]: S apart, s beside each other
            parts.append(np.moveaxis(raw, 0, 2).reshape(*raw.shape[1:3], -1))
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, 2)
        if (value := _nodata_of(page, pixels.dtype)) is not None:
            pixels = without_nodata(pixels, pixels == value, page.photometric == _WHITE_IS_ZERO)
        pixels = _to_light(pixels, page, with_palette=len(planes) == 1)
        return upright(pixels.astype(DTYPES[depth], copy=False), _orientation(page))


@hostile("damaged TIFF")
def _open(file: BinaryIO) -> _Opened:
    size = file.seek(0, 2)
    if not size:
        raise Unreadable("empty file")
    kinds = _page_kinds(file, size)
    special, off = {}, {f"is_{kind}": False for kind in _OFF}
    tiff = _tiff(file, off)
    if tiff.is_ome:
        try:
            special = {"omexml": _checked_ome(tiff.ome_metadata)}
        except Exception:  # a damaged description says nothing of the pages
            off["is_ome"] = False
        tiff = _tiff(file, off | special)
    items = _series_items(tiff, size)
    if items is None:
        # Pages that were read as parts of a series are read again, as pages of their own.
        tiff = _tiff(file, off | {f"is_{kind}": False for kind in _SERIES if kind != "lsm"})
        chosen = [i for i, kind in enumerate(kinds) if not kind & (_REDUCED | _MASK)]
        items = [_Item(None, (i,)) for i in chosen or [0]]
    if len(items) > MAX_FRAMES:
        raise Unreadable(f"a TIFF of {len(items):,} images is above the limit of {MAX_FRAMES:,}")
    return _Opened(file, tiff, size, items)


def _tiff(file: BinaryIO, options: dict[str, Any]) -> TiffFile:
    from tifffile import TiffFile

    file.seek(0)
    return TiffFile(file, name="file", _multifile=False, **options)  # it would take the descriptor for a name


def _page_kinds(file: BinaryIO, size: int) -> list[int]:
    """NewSubfileType of each page. Raises `Unreadable` where the chain of pages ends early or runs in a circle.

    tifffile takes the pages up to such a place for the whole file.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    counted, entry, offset_kind = ("Q", 20, "Q") if big else ("H", 12, "L")
    width, offset_width = struct.calcsize(order + counted), struct.calcsize(order + offset_kind)
    start = 8 if big else 4
    if len(head) < start + offset_width:
        raise Unreadable("truncated TIFF: the list of pages ends early")
    (at,) = struct.unpack_from(order + offset_kind, head, start)
    kinds, seen = [], set()
    while at:
        if at in seen:
            raise Unreadable("damaged TIFF: the list of pages runs in a circle")
        seen.add(at)
        file.seek(min(at, size))
        data = file.read(width)
        count = struct.unpack(order + counted, data)[0] if len(data) == width else 0
        if count > _MAX_TAGS:
            raise Unreadable("damaged TIFF: a page has too many tags")
        tags = file.read(count * entry + offset_width)
        if len(data) < width or len(tags) < count * entry + offset_width:
            raise Unreadable("truncated TIFF: the list of pages ends early")
        kinds.append(_subfile_type(tags, order, big, size))
        if len(kinds) > MAX_FRAMES:
            raise Unreadable(f"a TIFF of more than {MAX_FRAMES:,} pages")
        (at,) = struct.unpack_from(order + offset_kind, tags, count * entry)
    if not kinds:
        raise Unreadable("TIFF without an image")
    return kinds


def _subfile_type(tags: bytes, order: str, wide: bool, size: int) -> int:
    """NewSubfileType of a page. Raises `Unreadable` if a tag that its pixels need lies beyond the end."""
    entry = order + ("HHQ" if wide else "HHL")
    step, place, inline = (20, "Q", 8) if wide else (12, "L", 4)
    kinds = 0
    for start in range(0, len(tags) - step, step):
        code, kind, count = struct.unpack_from(entry, tags, start)
        value = start + step - inline
        if code == 254:
            kinds = struct.unpack_from(order + ("H" if kind == 3 else "L"), tags, value)[0]
        elif code == 255:  # the older tag
            kinds |= _REDUCED * (struct.unpack_from(order + "H", tags, value)[0] == 2)
        elif code in _NEEDED_TAGS:
            length = count * _TAG_BYTES.get(kind, 0)
            if length > inline and struct.unpack_from(order + place, tags, value)[0] + length > size:
                raise Unreadable("truncated TIFF: the description of a page ends early")
    return kinds


def _checked_ome(description: str | None) -> str:
    """The description without annotations. Raises where it names more planes than any file has."""
    root = ElementTree.fromstring(description or "")
    for element in list(root.iter()):
        counts = [v for k, v in element.attrib.items() if k.startswith(("Size", "First", "Plane", "NumPlanes", "IFD"))]
        if any(not 0 <= int(count) <= 10 * MAX_FRAMES for count in counts):
            raise Unreadable("damaged OME description")
        if prod(int(element.attrib.get(f"Size{axis}", 1)) for axis in "ZCT") > 10 * MAX_FRAMES:
            raise Unreadable("damaged OME description")
    for element in [e for e in root if e.tag.endswith("StructuredAnnotations")]:
        root.remove(element)  # they name axes by their steps, without a limit, and give no planes
    return ElementTree.tostring(root, encoding="unicode")


def _series_items(tiff: TiffFile, size: int) -> list[_Item] | None:
    """The images by the description of the file; None if it has none, or none that fits its pages."""
    if not any(getattr(tiff, f"is_{kind}") for kind in _SERIES):
        return None
    try:
        series = tiff.series
        if series and series[0].kind in _SLIDES:
            series = series[:1]  # the others are thumbnail, label and overview
        if all(one.kind in _SERIES for one in series):
            return [_Item(one, planes) for one in series for planes in _planes_by_frame(one)]
    except (Unreadable, MemoryError):
        raise
    except Exception:  # a damaged description says nothing of the pages
        return None
    # ImageJ writes large stacks with one page, after which the other images follow without pages.
    told = (tiff.imagej_metadata or {}).get("images", 1)
    page = tiff.pages.first
    if isinstance(told, int) and told > 1 and len(tiff.pages) == 1 and page.is_contiguous:
        raise Unreadable("truncated TIFF: the file is shorter than its description says")
    return None


def _planes_by_frame(series: TiffPageSeries) -> Iterator[tuple[int, ...]]:
    """The numbers of the planes that make each image: axes C and S are its channels, all others give frames."""
    shape, axes, page = series.get_shape(False), series.get_axes(False), series.keyframe
    lead = next(k for k in range(len(shape)) if prod(shape[k:]) == page.size)  # the rest lies within a page
    count = prod(shape[:lead])
    if count > 10 * MAX_FRAMES:
        raise Unreadable(f"a TIFF of {count:,} planes is above the limit")
    channels = [i for i in range(lead) if axes[i] in "CS"]
    others = [i for i in range(lead) if axes[i] not in "CS"]
    planes = np.arange(count).reshape(shape[:lead]).transpose(others + channels)
    for row in planes.reshape(-1, prod(shape[i] for i in channels)):
        yield tuple(row.tolist())


def _is_one_block(series: TiffPageSeries) -> bool:
    """Whether the planes follow each other without pages of their own."""
    page = series.keyframe
    return bool(series.is_truncated and page.is_contiguous and series.size > page.size)


def _describe(page: Page, planes: int) -> tuple[int, int, str, int]:
    """Width, height (upright), mode and depth. Raises `Unreadable` for what cannot be read."""
    bits = page.bitspersample
    if page.compression not in _COMPRESSIONS:
        raise Unreadable(f"TIFF compression {getattr(page.compression, 'name', 'unknown')} is not supported")
    if page.dtype is None:
        raise Unreadable(f"TIFF of {bits} bits a sample is not supported")
    if page.dtype.kind not in "buif":
        raise Unreadable("TIFF of complex numbers is not supported")
    if page.imagedepth != 1:
        raise Unreadable("TIFF with a volume in one page is not supported")
    if page.photometric == _YCBCR and page.compression not in (*_JPEG, *_JPEG_2000, _WEBP):
        raise Unreadable("TIFF of luminance and colour difference (YCbCr) is supported with JPEG only")
    width, height, samples = int(page.imagewidth), int(page.imagelength), int(page.samplesperpixel)
    check_size(width, height)
    if samples < 1:
        raise Unreadable("TIFF of no samples a pixel")
    tile = prod(page.chunks) if page.is_tiled else 0
    if max(width * height * samples * planes, tile) > _MAX_VALUES:
        raise Unreadable(f"{width} x {height} x {samples * planes} is above the limit of {_MAX_VALUES:,} values")
    if samples * planes > _MAX_CHANNELS:
        raise Unreadable(f"{samples * planes:,} channels are above the limit of {_MAX_CHANNELS:,}")
    depth = {"b": 8, "u": 8 * page.dtype.itemsize}.get(page.dtype.kind, 32)
    mode = _mode(page) if planes == 1 else str(samples * planes)
    if mode == "RGB" and page.photometric == _PALETTE:
        depth = 8
    if turns(_orientation(page))[0]:
        width, height = height, width
    return width, height, mode, depth if depth in (8, 16) else 32


def _mode(page: Page) -> str:
    samples = page.samplesperpixel
    alpha = len(page.extrasamples) == 1 and page.extrasamples[0] in _ALPHA
    if page.photometric == _PALETTE and samples == 1:
        if page.colormap is None or page.colormap.ndim != 2 or page.dtype.name not in ("bool", "uint8", "uint16"):
            raise Unreadable("TIFF with a palette that is missing or damaged")
        return "RGB"
    if page.photometric in (_RGB, _YCBCR) and samples - alpha == 3:
        return "RGBA" if alpha else "RGB"
    if page.photometric == _INKS and samples == 4 and page.tags.valueof(332, 1) == 1:  # InkSet
        return "CMYK"
    if samples == 1:
        return "L"
    return "LA" if page.photometric < _RGB and samples == 2 and alpha else str(samples)


def _orientation(page: Page) -> int:
    return known(page.tags.valueof(274))


def _check_end(plane: Page, size: int) -> None:
    """Raises `Unreadable` if strips or tiles are missing or lie beyond the end of the file."""
    page = plane.keyframe
    needed = 1 if page.is_contiguous else prod(page.chunked)
    counts = (page.nbytes,) if page.is_contiguous else plane.databytecounts
    if len(plane.dataoffsets) < needed or len(counts) < needed:
        raise Unreadable("truncated TIFF: parts of the pixels are missing")
    ends = (offset + count for offset, count in zip(plane.dataoffsets, counts, strict=False))
    if max(ends, default=0) > size:
        raise Unreadable("truncated TIFF: the pixels end early")
    if sum(counts) > 4 * size:
        raise Unreadable("damaged TIFF: parts of the pixels lie over each other")


def _check_segments(file: BinaryIO, plane: Page) -> None:
    """A strip that is an image format of its own says its size again; a false one would fill the memory.

    Of LZW see `_is_safe_lzw`.
    """
    page = plane.keyframe
    compression = page.compression
    if compression not in (_LZW, *_JPEG, *_JPEG_2000, _PNG):
        return
    for offset, count in zip(plane.dataoffsets, plane.databytecounts, strict=False):
        file.seek(offset)
        data = file.read(count)
        if compression == _LZW:
            if not _is_safe_lzw(data, page.fillorder == 2):
                raise Unreadable("cannot be decoded: broken data")
            continue
        width, height = _segment_size(compression, data)
        if width * height > MAX_PIXELS:
            raise Unreadable(f"a strip of {width} x {height} is above the limit of {MAX_PIXELS:,} pixels")


def _segment_size(compression: int, data: bytes) -> tuple[int, int]:
    if compression in _JPEG:
        places, kind = [at + 3 for marker, at in jpeg_markers(data) if marker in _JPEG_SIZES], ">HH"
    elif compression in _JPEG_2000:
        places, kind = [found.end() + 4 for found in re.finditer(rb"\xff\x4f\xff\x51", data)], ">LL"
    else:
        places, kind = [16], ">LL"
    sizes = [struct.unpack_from(kind, data, at) for at in places if at + struct.calcsize(kind) <= len(data)]
    return max(sizes, key=prod, default=(0, 0))


def _is_safe_lzw(data: bytes, reversed_bits: bool) -> bool:
    """Whether each code that follows an empty table is a letter; imagecodecs 2026.3.6 would read wild memory.

    Where codes lie follows from how many have been read since the table was emptied, but for where that is.
    """
    octets = np.frombuffer(data + bytes(4), np.uint8)
    if reversed_bits:
        octets = np.packbits(np.unpackbits(octets), bitorder="little")
    old = not octets[0] and bool(octets[1] & 1)  # lowest bit first, as before TIFF 6
    entries = np.arange(257, 257 + _LZW_CODES) - old  # of the table, when a code is read
    widths = 9 + np.searchsorted([511, 1023, 2047], entries, side="right")
    starts = np.cumsum(widths) - widths
    at, end = 9, 8 * len(data)  # bits; the first code empties the table
    while at + 9 <= end:
        count = int(np.searchsorted(starts + widths, end - at, side="right"))
        places, width = at + starts[:count], widths[:count]
        first, second, third = (octets[(places >> 3) + i].astype(np.uint32) for i in range(3))
        if old:
            codes = (first | second << 8 | third << 16) >> (places & 7)
        else:
            codes = (first << 16 | second << 8 | third) >> (24 - (places & 7) - width)
        codes &= (1 << width) - 1
        if codes[0] > _END_OF_LZW:
            return False
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END_OF_LZW))
        if not len(stops) or codes[stops[0]] == _END_OF_LZW:
            return True
        at = int(places[stops[0]] + width[stops[0]])
    return True


def _nodata_of(page: Page, dtype: np.dtype[Any]) -> Any:
    """The value that holds no data, as GDAL declares it in tag 42113; None if there is none that `dtype` can be. Of
    8 bits none counts: their window is fixed, and 0 or 255 is often both a colour and the border."""
    tag = page.tags.get(_GDAL_NODATA)
    if tag is None or page.photometric == _PALETTE or dtype.kind not in "uif" or dtype.itemsize == 1:
        return None
    try:
        value = float(str(tag.value).strip("\0 "))
    except ValueError:
        return None
    if dtype.kind != "f" and not (value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max):
        return None
    with np.errstate(over="ignore"):
        return dtype.type(value)


def _to_light(pixels: np.ndarray, page: Page, with_palette: bool) -> np.ndarray:
    """What the photometric interpretation asks for: more is brighter, palettes give colours, few bits fill eight."""
    bits = page.bitspersample
    if pixels.dtype == bool:
        pixels, bits = pixels.view(np.uint8), 1
    if page.photometric == _PALETTE and with_palette and pixels.shape[2] == 1:
        palette: np.ndarray = page.colormap.T  # [N, 3], 16 bits
        if palette.max(initial=0) > 255:  # some writers fill the lower half only
            palette = palette >> 8
        colours: np.ndarray = palette.astype(np.uint8)[pixels[:, :, 0]]
        return colours
    unsigned = pixels.dtype.kind == "u"
    if page.photometric == _WHITE_IS_ZERO:
        top = (1 << bits) - 1 if isinstance(bits, int) else 255
        pixels = pixels.dtype.type(top) - pixels if unsigned else -pixels
    if unsigned and isinstance(bits, int) and bits < 8:
        levels = np.arange(256) * 255 // ((1 << bits) - 1)
        pixels = levels.clip(0, 255).astype(np.uint8)[pixels]
    return pixels
