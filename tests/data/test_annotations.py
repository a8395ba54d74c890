"""Files of boxes and masks: read as their formats say, written back by the inverse, on made files and on real ones."""

from __future__ import annotations

import io
import os
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.annotations import voc, yolo
from selfsight.data.annotations.masks import IGNORE, read_mask, upright_mask
from selfsight.data.boxes import Box, Boxes
from selfsight.data.formats.format import Unreadable
from selfsight.errors import SelfsightError

DATA = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}; SELFSIGHT_DATA names another folder")


def test_yolo_is_class_centre_and_size_as_parts_of_the_image():
    found = yolo.read(b"\xef\xbb\xbf3 0.5 0.25 0.5 0.125\r\n\r\nscratch 0.25 0.5 0.5 1 0.93\n")
    assert found.upright(200, 80) == [Box("3", 50, 15, 150, 25), Box("scratch", 0, 0, 100, 80)]
    assert yolo.write(found.upright(200, 80), 200, 80) == b"3 0.5 0.25 0.5 0.125\nscratch 0.25 0.5 0.5 1.0\n"
    assert yolo.read(b"").boxes == () and yolo.write([], 9, 9) == b""
    with pytest.raises(SelfsightError, match="'white cell'"):
        yolo.write([Box("white cell", 0, 0, 1, 1)], 9, 9)


def test_voc_counts_pixels_from_one_and_the_last_belongs_to_the_box():
    """The first pixel alone is xmin = xmax = 1; a box of the whole image goes from 1 to its width."""
    boxes = [Box("dot", 0, 0, 1, 1, truncated=True), Box("all & <more>", 0, 0, 200, 100, difficult=True)]
    boxes += [Box("crowd", 10.25, 0, 20.5, 3, iscrowd=True)]
    root = ET.fromstring(voc.write(boxes, 200, 100, "a.jpg"))
    assert [root.findtext(name) for name in ("filename", "size/width", "size/height")] == ["a.jpg", "200", "100"]
    edges = [[thing.findtext(f"bndbox/{e}") for e in ("xmin", "ymin", "xmax", "ymax")] for thing in root.iter("object")]
    assert edges == [["1", "1", "1", "1"], ["1", "1", "200", "100"], ["11.25", "1", "20.5", "3"]]
    assert voc.read(voc.write(boxes, 200, 100)) == Boxes(tuple(boxes), (200, 100))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_the_unturned_image_are_turned_with_its_pixels(orientation: int):
    """A box that is painted into the stored pixels, found again after Pillow has turned them."""
    stored = np.zeros((20, 30), np.uint8)
    stored[3:9, 4:21] = 255
    image, tags = Image.fromarray(stored), Image.Exif()
    tags[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "PNG", exif=tags.tobytes())
    upright = np.asarray(read_mask(out) == 255)
    rows, columns = np.flatnonzero(upright.any(1)), np.flatnonzero(upright.any(0))
    (box,) = Boxes((Box("x", 4, 3, 21, 9),), (30, 20)).upright(*upright.shape[::-1], orientation)
    seen = Box("x", columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    if orientation >= 5:  # the stated size is that of the stored pixels
        assert box == seen
    else:  # the sizes are alike, so what was stated is taken for upright
        assert box == Box("x", 4, 3, 21, 9)
    (same,) = Boxes((seen,), upright.shape[::-1]).upright(*upright.shape[::-1], orientation)
    assert same == seen


def test_boxes_of_a_smaller_copy_are_scaled():
    assert Boxes((Box("x", 1, 2, 3, 4),), (50, 40)).upright(100, 120) == [Box("x", 2, 6, 6, 12)]


@real
def test_blood_smears_are_written_as_they_were_read():
    files = sorted((DATA / "bccd" / "Annotations").glob("*.xml"))
    for file in files:
        found, root = voc.read(file.read_bytes()), ET.parse(file).getroot()
        width, height = (int(side) for side in found.size)
        again = ET.fromstring(voc.write(found.upright(width, height), width, height))
        names = ("name", "truncated", "difficult", "bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
        one, two = ([[t.findtext(n) for n in names] for t in tree.iter("object")] for tree in (root, again))
        assert one == two
    assert len(files) > 300


@real
def test_steel_is_written_as_it_was_read():
    files = sorted((DATA / "neu" / "boxes").glob("*.txt"))
    for file in files:
        text = file.read_text()
        again = yolo.write(yolo.read(text.encode()).upright(200, 173), 200, 173).decode()
        assert [line.split()[0] for line in again.splitlines()] == [line.split()[0] for line in text.splitlines()]
        for line, same in zip(text.splitlines(), again.splitlines(), strict=True):
            for number, written in zip(line.split()[1:], same.split()[1:], strict=True):
                assert float(written) == pytest.approx(float(number), rel=1e-13, abs=1e-15)
    assert len(files) > 1500


def encoded(image: Image.Image, name: str = "PNG", **options: object) -> io.BytesIO:
    out = io.BytesIO()
    image.save(out, name, **options)
    out.seek(0)
    return out


def grey_png(rows: list[list[int]], bits: int) -> io.BytesIO:
    """A grey PNG of few bits, made from the specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b""
    for row in rows:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        lines += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


IDS = np.array([[0, 1, 255], [7, 0, 254]], np.uint8)


def test_a_palette_gives_numbers_of_colours_and_there_255_is_ignored():
    palette = Image.fromarray(IDS, "P")
    palette.putpalette([(37 * i) % 256 for i in range(768)])
    for name in ("PNG", "TIFF", "BMP"):
        assert read_mask(encoded(palette, name)).tolist() == [[0, 1, IGNORE], [7, 0, 254]]


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP"])
def test_grey_and_one_bit_masks_hold_what_they_hold(name: str):
    assert read_mask(encoded(Image.fromarray(IDS), name)).tolist() == IDS.tolist()
    assert read_mask(encoded(Image.fromarray(IDS > 1), name)).tolist() == (IDS > 1).astype(int).tolist()


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bits_are_numbers_of_sixteen_bits(name: str):
    ids = np.array([[0, 300, 65535], [255, 2, 40000]], np.uint16)
    found = read_mask(encoded(Image.fromarray(ids), name))
    assert found.dtype == np.int32 and found.tolist() == ids.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_spread(bits: int):
    rows = [[(3 * x + y) % 2**bits for x in range(5)] for y in range(3)]
    assert read_mask(grey_png(rows, bits)).tolist() == rows


def test_what_holds_no_class_numbers_is_refused():
    colours = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for file, reason in [
        (encoded(colours), "RGB, which holds colours"),
        (encoded(Image.fromarray(IDS), "JPEG"), "no mask of PNG"),
        (io.BytesIO(b""), "no mask of PNG"),
        (io.BytesIO(encoded(Image.fromarray(IDS)).getvalue()[:40]), "no mask of PNG"),
    ]:
        with pytest.raises(Unreadable, match=re.escape(reason)):
            read_mask(file)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_the_unturned_image_are_turned_with_its_pixels(orientation: int):
    """Pillow turns what it reads with an orientation; a mask beside such an image is turned by its size alone."""
    stored = np.arange(600, dtype=np.uint16).reshape(20, 30)
    tags = Image.Exif()
    tags[0x0112] = orientation
    upright = read_mask(encoded(Image.fromarray(stored), exif=tags.tobytes()))
    height, width = upright.shape
    assert (height, width) == ((20, 30) if orientation < 5 else (30, 20))
    assert (upright_mask(upright, height, width, orientation) == upright).all()
    expected = upright if orientation >= 5 else stored  # of one size with the upright image, so taken for upright
    assert (upright_mask(stored, height, width, orientation) == expected).all()
    with pytest.raises(Unreadable, match="a mask of 30 x 19"):
        upright_mask(stored[:19], height, width, orientation)


@real
def test_masks_of_tiles_and_cells():
    for pattern, classes in [("magnetic-tile/masks/**/*.png", {0, 1}), ("wbc/*/masks/*.png", None)]:
        files = sorted(DATA.glob(pattern))[::20]
        assert files
        for file in files:
            with file.open("rb") as opened:
                ids = read_mask(opened)
            assert (ids == np.asarray(Image.open(file)).astype(int)).all()
            assert classes is None or set(np.unique(ids)) <= classes
