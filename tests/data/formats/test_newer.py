"""AVIF, JPEG 2000, JPEG XL, MPO and HEIC: what other writers stored comes back, and damage is named."""

from __future__ import annotations

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from helpers import picture
from PIL import Image

from selfsight.data.decoding import family_of
from selfsight.data.formats import common, newer
from selfsight.data.formats.format import Header, Unreadable

RNG = np.random.default_rng(0)
HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200)


def by_pillow(pixels: np.ndarray, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **how)
    return out.getvalue()


def opened(data: bytes) -> tuple[list[Header], list[np.ndarray | Unreadable]]:
    """Headers and pixels of all frames, by whichever family takes the file."""
    family = family_of(io.BytesIO(data))
    headers = family.headers(io.BytesIO(data), None)
    return headers, list(family.read(io.BytesIO(data), range(len(headers)), None, None))


def one(data: bytes) -> tuple[Header, np.ndarray]:
    (header,), (pixels,) = opened(data)
    assert isinstance(pixels, np.ndarray), pixels
    assert pixels.shape[:2] == (header.height, header.width)
    return header, pixels


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("container", ["jp2", "j2k"])
@pytest.mark.parametrize("dtype, depth", [("u1", 8), ("u2", 16)])
def test_jpeg_2000_without_loss(channels: int, mode: str, container: str, dtype: str, depth: int):
    pixels = picture(RNG, 21, 34, channels).astype(dtype) * (257 if depth == 16 else 1) // 3
    header, got = one(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=container))
    assert (header.format, header.mode, header.depth) == ("JPEG2000", mode, depth)
    assert got.dtype == dtype and np.array_equal(got, pixels.reshape(21, 34, channels))


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("dtype, depth", [("u1", 8), ("u2", 16), ("f4", 32)])
def test_jpeg_xl_without_loss(channels: int, mode: str, dtype: str, depth: int):
    pixels = picture(RNG, 40, 30, channels).astype(dtype) * (257 if depth == 16 else 1)
    pixels = pixels / np.float32(255) if depth == 32 else pixels
    header, got = one(imagecodecs.jpegxl_encode(pixels, lossless=True))
    assert (header.format, header.mode, header.depth) == ("JPEG XL", mode, depth)
    assert got.dtype == dtype and np.allclose(got, pixels.reshape(40, 30, channels), atol=0 if depth < 32 else 1e-6)


@pytest.mark.parametrize("height, width", [(8, 8), (16, 32), (40, 30), (256, 256), (48, 64), (700, 1000), (9, 1)])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(height: int, width: int):
    data = imagecodecs.jpegxl_encode(np.zeros((height, width), np.uint8))
    assert newer._size_of_jpeg_xl(data) == (width, height)
    wrapped = imagecodecs.jpegxl_encode(np.zeros((height, width), np.uint8), usecontainer=True)
    assert wrapped.startswith(newer._JXL) and newer._size_of_jpeg_xl(wrapped) == (width, height)


def test_a_jpeg_xl_whose_metadata_holds_the_bytes_that_code_begins_with():
    pixels = picture(RNG, 20, 30)
    data = imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=True)
    at = data.index(b"jxlc") - 4 if b"jxlc" in data else data.index(b"jxlp") - 4
    box = b"Exif" + b"\0\0\0\0" + b"\xff\x0a" * 8
    data = data[:at] + struct.pack(">I", 4 + len(box)) + box + data[at:]
    header, got = one(data)
    assert (header.width, header.height) == (30, 20) and np.array_equal(got, pixels)


def test_a_jpeg_xl_of_several_frames_is_no_image_of_many_channels():
    frames = np.stack([picture(RNG, 20, 30, 1) for _ in range(3)])
    with pytest.raises(Unreadable, match="several frames"):
        newer.headers(io.BytesIO(imagecodecs.jpegxl_encode(frames, photometric="gray")), None)


def test_avif_in_colour_grey_and_turned():
    pixels = picture(RNG, 20, 32)
    header, got = one(by_pillow(pixels, "AVIF", quality=100, subsampling="4:4:4"))
    assert (header.format, header.mode, header.depth, header.width) == ("AVIF", "RGB", 8, 32)
    assert np.abs(got.astype(int) - pixels).mean() < 2
    header, got = one(by_pillow(pixels[:, :, 0], "AVIF", quality=100))
    assert header.mode == "L" and np.abs(got[:, :, 0].astype(int) - pixels[:, :, 0]).mean() < 2
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    header, got = one(by_pillow(pixels, "AVIF", quality=100, subsampling="4:4:4", exif=exif))
    assert (header.width, header.height, header.exif_orientation) == (20, 32, 6)
    assert np.abs(got.astype(int) - np.rot90(pixels, -1)).mean() < 2


def test_every_frame_of_an_avif_sequence():
    levels = [20, 120, 220]
    out = io.BytesIO()
    first, *rest = [Image.new("RGB", (16, 8), (level,) * 3) for level in levels]
    first.save(out, "AVIF", save_all=True, append_images=rest, quality=100)
    headers, frames = opened(out.getvalue())
    assert [header.frame for header in headers] == [0, 1, 2]
    assert [round(float(frame.mean()) / 20) * 20 for frame in frames] == levels  # type: ignore[union-attr]


def test_of_an_mpo_the_first_image():
    pixels = picture(RNG, 24, 40)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))])
    header, got = one(out.getvalue())
    wanted = np.asarray(Image.open(out))  # its first frame
    assert (header.format, header.frame) == ("JPEG", None) and np.array_equal(got, wanted)
    assert np.abs(got.astype(int) - pixels).mean() < 10  # not the black one behind it
    assert ".mpo" in common.SUFFIXES


def test_heic_is_named():
    with pytest.raises(Unreadable, match="HEIC is not read: save it as JPEG, PNG or TIFF"):
        newer.headers(io.BytesIO(HEIC), None)
    assert family_of(io.BytesIO(HEIC)) is newer and {".heic", ".heif"} <= newer.SUFFIXES


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "JXL"])
def test_a_file_that_was_cut_is_set_aside(kind: str):
    pixels = picture(RNG, 64, 64)
    data = imagecodecs.jpegxl_encode(pixels) if kind == "JXL" else by_pillow(pixels, kind)
    for share in (0.3, 0.6, 0.95):
        cut = data[: int(len(data) * share)]
        with pytest.raises(Unreadable):
            newer.headers(io.BytesIO(cut), None)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "JXL"])
def test_hostile_bytes_end_in_a_reason(kind: str):
    pixels = picture(RNG, 32, 32)
    data = imagecodecs.jpegxl_encode(pixels) if kind == "JXL" else by_pillow(pixels, kind)
    for _ in range(60):
        broken = bytearray(data)
        for place in RNG.integers(12, len(data), 6):
            broken[place] = RNG.integers(256)
        try:
            headers, frames = opened(bytes(broken))
        except Unreadable:
            continue
        for frame in frames:
            assert isinstance(frame, Unreadable) or frame.shape[:2] == (headers[0].height, headers[0].width)


def test_the_limit_of_pixels_is_checked_before_any_is_decoded():
    pixels = picture(RNG, 40, 40)
    for data in (by_pillow(pixels, "AVIF"), by_pillow(pixels, "JPEG2000"), imagecodecs.jpegxl_encode(pixels)):
        with pytest.raises(Unreadable, match="40 x 40 is above the limit of 1,000 pixels"), common.at_most(1000):
            newer.headers(io.BytesIO(data), None)
