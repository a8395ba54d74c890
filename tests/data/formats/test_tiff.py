"""TIFF: files that tifffile and Pillow write, compared with the arrays that went in; damage made by hand."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import picture
from PIL import Image

from selfsight.data.formats import tiff
from selfsight.data.formats.format import Header, Unreadable

RNG = np.random.default_rng(0)


def written(array: np.ndarray | None, **how: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **how)
    return out.getvalue()


def headers_of(data: bytes) -> list[Header]:
    assert tiff.identify(data[:256])
    return tiff.headers(io.BytesIO(data), None)


def pixels_of(data: bytes, *frames: int) -> list[np.ndarray]:
    got = list(tiff.read(io.BytesIO(data), frames or (0,), None, None))
    for pixels in got:
        if isinstance(pixels, Unreadable):
            raise pixels
    return got  # type: ignore[return-value]


def reason_of(data: bytes) -> str:
    """Why a file is set aside; of its images one at least cannot be read."""
    with pytest.raises(Unreadable) as raised:
        tiff.headers(io.BytesIO(data), None)
    assert any(isinstance(got, Unreadable) for got in tiff.read(io.BytesIO(data), range(6), None, None))
    return str(raised.value)


def values(dtype: Any, *shape: int) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.normal(0, 100, shape).astype(dtype)
    span = np.iinfo(dtype)
    return RNG.integers(span.min, span.max, shape, dtype=dtype, endpoint=True)


DTYPES = [("u1", 8), ("u2", 16), ("u4", 32), ("i1", 32), ("i2", 32), ("f2", 32), ("f4", 32), ("f8", 32)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype, depth", DTYPES)
def test_every_type_of_number(dtype: str, depth: int, order: str):
    array = values(dtype, 21, 34)
    data = written(array, byteorder=order, bigtiff=order == ">")
    assert headers_of(data) == [Header("TIFF", 34, 21, "L", depth)]
    (got,) = pixels_of(data)
    assert got.dtype == {8: np.uint8, 16: np.uint16, 32: np.float32}[depth]
    assert (got[:, :, 0] == array.astype(got.dtype)).all()


STORED: list[dict[str, Any]] = [
    {}, {"tile": (16, 32)}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True},
    {"compression": "zlib", "tile": (32, 16), "predictor": True}, {"rowsperstrip": 5}, {"compression": "packbits"},
    {"compression": "zstd"}, {"compression": "png"}, {"planarconfig": "separate"},
    {"planarconfig": "separate", "tile": (16, 16), "compression": "lzw"},
]  # fmt: skip


@pytest.mark.parametrize("how", STORED, ids=str)
def test_every_way_of_storing(how: dict[str, Any]):
    array = values("u2", 45, 50, 3)
    stored = array.transpose(2, 0, 1) if "planarconfig" in how else array
    data = written(stored, photometric="rgb", **how)
    assert headers_of(data) == [Header("TIFF", 50, 45, "RGB", 16)]
    assert (pixels_of(data)[0] == array).all()


def test_jpeg_within():
    array = picture(RNG, 40, 56)
    out = io.BytesIO()
    Image.fromarray(array).save(out, "TIFF", compression="jpeg", quality=95)
    tiled = {"compression": "jpeg", "tile": (16, 16)}
    stored = [out.getvalue(), written(array, photometric="ycbcr", subsampling=(2, 2), **tiled)]
    stored.append(written(array, photometric="rgb", **tiled))
    for data in stored:
        assert headers_of(data) == [Header("TIFF", 56, 40, "RGB", 8)]
        assert (pixels_of(data)[0] == np.asarray(Image.open(io.BytesIO(data)))).all()
    assert np.abs(pixels_of(stored[0])[0].astype(int) - array).mean() < 12


MODES = [
    ("minisblack", 2, None, "2"), ("minisblack", 2, ["unassalpha"], "LA"), ("minisblack", 5, None, "5"),
    ("minisblack", 4, None, "4"), ("minisblack", 3, None, "3"), ("rgb", 4, ["unassalpha"], "RGBA"),
    ("rgb", 4, ["assocalpha"], "RGBA"), ("rgb", 4, ["unspecified"], "4"), ("rgb", 5, ["unspecified"] * 2, "5"),
    ("separated", 4, None, "CMYK"), ("separated", 5, ["unassalpha"], "5"),
]  # fmt: skip


@pytest.mark.parametrize("photometric, channels, extra, mode", MODES)
def test_channels_and_what_they_are(photometric: str, channels: int, extra: list[str] | None, mode: str):
    array = values("u1", 20, 30, channels)
    data = written(array, photometric=photometric, extrasamples=extra, planarconfig="contig")
    assert [header.mode for header in headers_of(data)] == [mode]
    assert (pixels_of(data)[0] == array).all()


def test_white_is_zero_is_turned():
    for dtype, top in (("u1", 255), ("u2", 65535)):
        array = values(dtype, 20, 30)
        assert (pixels_of(written(array, photometric="miniswhite"))[0][:, :, 0] == top - array).all()
    bits = RNG.integers(0, 2, (20, 30)).astype(bool)
    assert (pixels_of(written(bits, photometric="miniswhite"))[0][:, :, 0] == 255 * ~bits).all()


def test_few_bits_fill_eight_as_in_pillow():
    for bits in (1, 2, 4):
        array = RNG.integers(0, 1 << bits, (20, 32)).astype(np.uint8)
        how = {"bitspersample": bits} if bits > 1 else {}
        data = written(array if bits > 1 else array.astype(bool), photometric="minisblack", **how)
        assert headers_of(data) == [Header("TIFF", 32, 20, "L", 8)]
        assert (pixels_of(data)[0][:, :, 0] == array * (255 // ((1 << bits) - 1))).all()
    twelve = RNG.integers(0, 4096, (20, 32)).astype(np.uint16)
    assert (pixels_of(written(twelve, bitspersample=12))[0][:, :, 0] == twelve).all()


def test_palettes_give_their_colours():
    image = Image.fromarray(picture(RNG, 20, 30)).quantize(32)
    out = io.BytesIO()
    image.save(out, "TIFF")
    assert headers_of(out.getvalue()) == [Header("TIFF", 30, 20, "RGB", 8)]
    assert (pixels_of(out.getvalue())[0] == np.asarray(image.convert("RGB"))).all()
    index, colours = RNG.integers(0, 256, (20, 30)).astype(np.uint8), RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    data = written(index, photometric="palette", colormap=colours)
    assert (pixels_of(data)[0] == (colours >> 8).T[index]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int):
    array = values("u2", 20, 30)
    data = written(array, extratags=[(274, 3, 1, orientation, True)])
    # Where row 0 and column 0 of the file belong, from the TIFF specification.
    upright = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.T, 6: np.rot90(array, -1),
        7: np.rot90(array, 2).T, 8: np.rot90(array, 1),
    }[orientation]  # fmt: skip
    (header,) = headers_of(data)
    assert (header.height, header.width, header.exif_orientation) == (*upright.shape, orientation)
    assert (pixels_of(data)[0][:, :, 0] == upright).all()


def test_every_page_is_an_image_but_for_thumbnails_and_masks():
    first, second, third = values("u1", 16, 24), values("u2", 40, 30), values("u1", 8, 12)
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        file.write(first, metadata=None)
        file.write(first[::2, ::2], metadata=None, subfiletype=1)
        file.write(second, metadata=None)
        file.write(first > 9, metadata=None, subfiletype=4)
        file.write(third, metadata=None)  # half of the first, yet no thumbnail
    data = out.getvalue()
    assert headers_of(data) == [
        Header("TIFF", 24, 16, "L", 8, 0), Header("TIFF", 30, 40, "L", 16, 1), Header("TIFF", 12, 8, "L", 8, 2),
    ]  # fmt: skip
    for pixels, wanted in zip(pixels_of(data, 0, 1, 2), (first, second, third), strict=True):
        assert (pixels[:, :, 0] == wanted).all()
    assert (pixels_of(data, 2)[0][:, :, 0] == third).all()


def test_a_lone_page_marked_as_reduced_is_taken():
    array = values("u1", 16, 24)
    assert (pixels_of(written(array, subfiletype=1, metadata=None))[0][:, :, 0] == array).all()


def test_a_pyramid_is_one_image():
    array = values("u1", 128, 192)
    out = io.BytesIO()
    with tifffile.TiffWriter(out, ome=True) as file:
        file.write(array, subifds=2, tile=(32, 32))
        file.write(array[::2, ::2], subfiletype=1, tile=(32, 32))
        file.write(array[::4, ::4], subfiletype=1, tile=(32, 32))
    assert headers_of(out.getvalue()) == [Header("TIFF", 192, 128, "L", 8)]
    assert (pixels_of(out.getvalue())[0][:, :, 0] == array).all()


HYPERSTACKS = [
    ("imagej", "TZCYX", (2, 3, 4)), ("imagej", "ZYX", (5,)), ("imagej", "CYX", (2,)), ("ome", "TZCYX", (2, 3, 4)),
    ("ome", "CTZYX", (4, 2, 3)), ("ome", "ZCYX", (3, 5)), ("ome", "TYX", (4,)), ("shaped", "TCYX", (3, 5)),
    ("shaped", "QYX", (4,)),
]  # fmt: skip


@pytest.mark.parametrize("kind, axes, lead", HYPERSTACKS)
def test_of_hyperstacks_channels_stay_together(kind: str, axes: str, lead: tuple[int, ...]):
    array = values("u2", *lead, 18, 26)
    how: dict[str, Any] = {} if kind == "shaped" else {kind: True}
    data = written(array, metadata={"axes": axes}, photometric="minisblack", **how)
    # [T, Z, C, Y, X] from the axes, without any reader of TIFF
    channels = axes.find("C")
    stack = np.moveaxis(array, channels, -1) if channels >= 0 else array[..., None]
    stack = stack.reshape(-1, *stack.shape[-3:])
    mode = str(stack.shape[-1]) if channels >= 0 else "L"
    assert headers_of(data) == [Header("TIFF", 26, 18, mode, 16, i) for i in range(len(stack))] or (
        len(stack) == 1 and headers_of(data) == [Header("TIFF", 26, 18, mode, 16)]
    )
    for got, wanted in zip(pixels_of(data, *range(len(stack))), stack, strict=True):
        assert (got == wanted).all()
    assert (pixels_of(data, len(stack) - 1)[0] == stack[-1]).all()


def test_a_stack_of_colour_images_in_ome():
    array = values("u1", 4, 20, 30, 3)
    data = written(array, ome=True, photometric="rgb", metadata={"axes": "TYXS"})
    assert headers_of(data) == [Header("TIFF", 30, 20, "RGB", 8, i) for i in range(4)]
    assert (np.stack(pixels_of(data, 0, 1, 2, 3)) == array).all()


@pytest.mark.parametrize("how", [{"imagej": True, "metadata": {"axes": "ZYX"}}, {"metadata": {}}], ids=str)
def test_a_stack_with_one_page_for_all(how: dict[str, Any]):
    array = values("u2", 6, 20, 30)
    data = written(array, truncate=True, **how)
    assert len(tifffile.TiffFile(io.BytesIO(data)).pages) == 1
    assert headers_of(data) == [Header("TIFF", 30, 20, "L", 16, i) for i in range(6)]
    assert (np.stack(pixels_of(data, 1, 4))[..., 0] == array[[1, 4]]).all()
    assert reason_of(data[:-40]).startswith("truncated TIFF")


def test_a_damaged_description_leaves_the_pages():
    array = values("u1", 3, 20, 30)
    for text in ('<OME><Image><Pixels SizeT="99999999999999" DimensionOrder="XYZCT"/></Image></OME>', "<OME <OME>"):
        out = io.BytesIO()
        with tifffile.TiffWriter(out) as file:
            for page in array:
                file.write(page, description=text, metadata=None)
        assert len(headers_of(out.getvalue())) == 3
        assert (pixels_of(out.getvalue(), 2)[0][:, :, 0] == array[2]).all()


def test_reading_a_page_does_not_read_the_others():
    array = values("u2", 10, 64, 64)

    class Counted(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.count += len(data)
            return data

        def readinto(self, buffer: Any) -> int:
            length = super().readinto(buffer)
            self.count += length
            return length

    for how in ({}, {"compression": "zlib"}, {"ome": True, "metadata": {"axes": "ZYX"}}):
        file = Counted(written(array, **how))
        (got,) = tiff.read(file, [7], None, None)
        assert (got[:, :, 0] == array[7]).all()  # type: ignore[index]
        assert file.count < 3 * array[0].nbytes


def test_truncated_files_are_found_in_the_header():
    for how in ({}, {"compression": "zlib"}, {"tile": (16, 16)}, {"ome": True}, {"bigtiff": True}):
        data = written(values("u1", 4, 64, 64), metadata=None if how != {"ome": True} else {}, **how)
        for kept in (len(data) - 1, len(data) * 3 // 4, len(data) // 3, 12, 5):
            assert reason_of(data[:kept]).startswith(("truncated TIFF", "damaged TIFF"))
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:  # the pixels of the last page lie last
        for _ in range(3):
            file.write(values("u1", 64, 64), metadata=None)
    assert reason_of(out.getvalue()[:-10]) == "truncated TIFF: the pixels end early"


def test_hostile_structures_end():
    data = bytearray(written(values("u1", 8, 8), metadata=None))
    (first,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<L", data, first + 2 + 12 * count, first)  # the next page is the first again
    assert reason_of(bytes(data)) == "damaged TIFF: the list of pages runs in a circle"
    assert reason_of(b"II*\0" + bytes(12)) == "TIFF without an image"
    assert reason_of(b"") == "empty file"


def test_a_strip_larger_than_its_image_is_not_decoded():
    data = bytearray(written(np.zeros((64, 64), np.uint8), compression="jpeg", metadata=None))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc" * 2
    (got,) = tiff.read(io.BytesIO(bytes(data)), [0], None, None)
    assert str(got) == "a strip of 65500 x 65500 is above the limit of 200,000,000 pixels"


def lzw(*codes: int) -> bytes:
    """A strip of LZW codes of 9 bits, highest bit first."""
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def strip_of(data: bytes, strip: bytes) -> bytes:
    """The file with another strip in place of its one."""
    out = bytearray(data)
    page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    at = len(out)
    for code, value in ((273, at), (279, len(strip))):
        tag = page.tags[code]
        struct.pack_into("<H" if tag.dtype == 3 else "<L", out, tag.valueoffset, value)
    return bytes(out) + strip


def test_codes_of_lzw_that_the_table_does_not_hold_are_not_decoded():
    # Found by the fuzzer: imagecodecs 2026.3.6 reads wild memory where the first code of a table is not a letter.
    small = written(np.zeros((1, 2), np.uint8), compression="lzw", metadata=None)
    good = strip_of(small, lzw(256, 7, 9, 257))
    assert pixels_of(good)[0].ravel().tolist() == [7, 9]
    for codes in ((256, 300, 9, 257), (256, 258, 9, 257), (256, 7, 256, 400, 257)):
        assert not tiff._is_safe_lzw(lzw(*codes), False)
        (got,) = tiff.read(io.BytesIO(strip_of(small, lzw(*codes))), [0], None, None)
        assert str(got) == "cannot be decoded: broken data"


def test_channels_without_end_are_not_taken():
    data = written(values("u1", 2, 2, 10_001), photometric="minisblack", planarconfig="contig", metadata=None)
    assert reason_of(data) == "10,001 channels are above the limit of 10,000"


def test_the_pixel_limit_is_checked_before_any_pixel():
    small = written(values("u1", 8, 8), metadata=None, compression="zlib")
    huge = bytearray(small)
    page = tifffile.TiffFile(io.BytesIO(small)).pages.first
    for code, size in ((256, 20000), (257, 10001), (278, 10001)):
        tag = page.tags[code]
        struct.pack_into("<H" if tag.dtype == 3 else "<L", huge, tag.valueoffset, size)
    assert reason_of(bytes(huge)) == "20000 x 10001 is above the limit of 200,000,000 pixels"


def test_what_is_not_supported_says_so():
    assert reason_of(written(values("f4", 8, 8).astype(np.complex64))) == "TIFF of complex numbers is not supported"
    data = bytearray(written(values("u1", 8, 8), metadata=None))
    tag = tifffile.TiffFile(io.BytesIO(bytes(data))).pages.first.tags[259]
    struct.pack_into("<H", data, tag.valueoffset, 50002)
    assert reason_of(bytes(data)) == "TIFF compression JPEGXL is not supported"
    data = bytearray(written(values("u1", 8, 8), metadata=None))
    struct.pack_into("<H", data, tifffile.TiffFile(io.BytesIO(bytes(data))).pages.first.tags[277].valueoffset, 0)
    assert reason_of(bytes(data)) == "TIFF of no samples a pixel"


# -- no data --


@pytest.mark.parametrize(
    "dtype, said",
    [("f4", "-9999"), ("f4", "-3.4028234663852886e+38"), ("f8", "nan"), ("i2", "-32768"), ("u2", "65535 ")],
)
def test_what_gdal_declares_as_no_data_says_nothing(dtype: str, said: str):
    data = RNG.integers(100, 900, (20, 30)).astype(dtype)
    value, corner = np.dtype(dtype).type(float(said)), np.s_[:7, :9]
    whole = data.copy()
    whole[corner] = value
    (got,) = pixels_of(written(whole, photometric="minisblack", extratags=[(42113, "s", 0, said, True)]))
    wanted = data.astype(got.dtype)
    wanted[corner] = np.nan if dtype[0] == "f" else min(data[7:].min(), data[:7, 9:].min())
    assert np.array_equal(got[:, :, 0], wanted, equal_nan=True)
    (plain,) = pixels_of(written(whole, photometric="minisblack"))
    assert np.array_equal(plain[:, :, 0], whole.astype(plain.dtype), equal_nan=True)  # without the tag it is a value


def test_no_data_where_white_is_zero_is_dark_and_of_eight_bits_a_colour():
    data = RNG.integers(100, 900, (20, 30)).astype("u2")
    data[:5] = 0
    tag = [(42113, "s", 0, "0", True)]
    (got,) = pixels_of(written(data, photometric="miniswhite", extratags=tag))
    assert (got[:5, :, 0] == got.min()).all() and np.array_equal(got[5:, :, 0], 65535 - data[5:])
    small = data.astype("u1")
    (got,) = pixels_of(written(small, photometric="minisblack", extratags=tag))
    assert np.array_equal(got[:, :, 0], small)


@pytest.mark.parametrize("said", ["", "none", "1e400", "0.5", "70000"])
def test_a_declaration_that_no_pixel_can_meet_changes_nothing(said: str):
    data = values("u2", 8, 9)
    (got,) = pixels_of(written(data, photometric="minisblack", extratags=[(42113, "s", 0, said, True)]))
    assert np.array_equal(got[:, :, 0], data)


def test_an_image_that_is_all_no_data_is_set_aside():
    data = written(np.full((8, 9), 7, "u2"), photometric="minisblack", extratags=[(42113, "s", 0, "7", True)])
    with pytest.raises(Unreadable, match="every pixel is declared to hold no data"):
        pixels_of(data)
