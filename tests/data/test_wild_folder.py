"""The folder that people really have: a thousand photographs among broken files and rare kinds.

Every broken file is named with its reason, every rare kind is used with the pixels that a reference decoder shows,
the counts add up, and a pretraining on it finishes.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import yaml
from helpers import NARROW, picture
from PIL import Image, ImageOps

import selfsight
from selfsight.data.canvases import decoded, measure_format
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.importers import open_source
from selfsight.data.pixels import PixelFormat

GOOD = 1000
RNG = np.random.default_rng(0)
RGB = picture(RNG, 24, 30)
GREY = picture(RNG, 24, 30, 1)
DEEP = RNG.integers(0, 65536, (24, 30), dtype=np.uint16)
PAGES = [picture(RNG, 24, 30), picture(RNG, 26, 28), picture(RNG, 25, 24)]
NEEDS_DICOM = pytest.mark.skipif(find_spec("pydicom") is None, reason="pydicom is not installed")


def encoded(pixels: np.ndarray | Image.Image, name: str, **how: object) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, name, **how)
    return out.getvalue()


def tiff(array: np.ndarray, **how: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **how)
    return out.getvalue()


def tiff_of_pages(pages: list[np.ndarray], **how: object) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for page in pages:
            writer.write(page, photometric="rgb", metadata=None, **how)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def palette(**how: object) -> bytes:
    return encoded(Image.fromarray(RGB).quantize(16), "PNG", **how)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def garbled(data: bytes) -> bytes:
    """Header and end stay, so that only decoding can notice."""
    return data[: len(data) // 2] + bytes(600) + data[len(data) // 2 + 600 :]


def garbled_gif() -> bytes:
    data = bytearray(encoded(RGB, "GIF"))
    start = data.index(b"\x2c", 13 + 768) + 12  # behind the descriptor of the image and the length of the first block
    data[start : start + 100] = bytes(100)
    return bytes(data)


def garbled_jpeg() -> bytes:
    """Zeros among its coefficients a JPEG decoder takes as it comes, but not a Huffman table that is none."""
    data = bytearray(encoded(RGB, "JPEG"))
    start = data.index(b"\xff\xc4") + 5
    data[start : start + 16] = b"\xee" * 16
    return bytes(data)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes) -> bytes:
    """An RGB PNG that promises a size and holds these compressed rows."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def wrong_checksum() -> bytes:
    data = bytearray(encoded(RGB, "PNG"))
    data[29] ^= 0xFF  # of the header chunk, which ends there
    return bytes(data)


def fax() -> bytes:
    """A TIFF whose list of pages is the last that it holds."""
    return encoded(Image.fromarray(GREY).convert("1"), "TIFF", compression="group4")


def circular_tiff() -> bytes:
    data = bytearray(tiff(RGB))
    first = struct.unpack_from("<L", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<L", data, first + 2 + 12 * count, first)  # the page after the first is the first
    return bytes(data)


def dicom(stored: np.ndarray, **attributes: object) -> bytes:
    """Grey values [H, W] of 16 bits as a scanner stores them."""
    import pydicom

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, "1.2.3"
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.PixelRepresentation = 0
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    data.PixelData = stored.tobytes()
    data["PixelData"].VR = "OW"
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


# -- what is broken: the bytes of a file, and why it is set aside --

NOISE = RNG.integers(0, 256, (48, 48, 3), dtype=np.uint8)  # long enough when compressed to be garbled in its middle
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty file"),
    "cut.jpg": (encoded(RGB, "JPEG")[:-40], "truncated JPEG: no end marker"),
    "cut.png": (encoded(RGB, "PNG")[:-40], "truncated PNG: no end chunk"),
    "cut.gif": (encoded(RGB, "GIF")[:-40], "truncated GIF: no end marker"),
    "cut.webp": (encoded(RGB, "WEBP")[:-40], "truncated WebP: the file is shorter than its header says"),
    "cut.bmp": (encoded(RGB, "BMP")[:-40], "truncated BMP: the file is shorter than its header says"),
    "cut.tif": (tiff(RGB)[:-40], "truncated TIFF: the pixels end early"),
    "cut in its list.tif": (fax()[:-4], "truncated TIFF: the list of pages ends early"),
    "cut.npy": (npy(RGB)[:-40], "truncated NPY: the values end early"),
    "text.jpg": (b"A photograph of a cat.\n", "holds text, not an image"),
    "error page.png": (b"<!DOCTYPE html><title>404</title>", "holds a web page, not an image"),
    "error.jpg": (b'{"error": "too many requests"}', "holds JSON text, not an image"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "holds an SVG drawing, not an image"),
    "print.tif": (b"%PDF-1.7\n", "holds a PDF document, not an image"),
    "packed.npy": (b"\x1f\x8b\x08\0\0\0\0\0", "holds a gzip archive, not an image"),
    "arrays.npy": (b"PK\x03\x04\x14\0\0\0", "holds a zip archive, not an image"),
    "zeros.jpg": (bytes(4096), "holds only zeros, not an image"),
    "zeros.mp4": (bytes(4096), "holds only zeros, not an image"),
    "noise.jpg": (b"\x8f\x01" + RNG.bytes(500), "holds no known image format, not an image"),
    "pointer.png": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "holds a Git LFS pointer (run: git lfs pull), not an image",
    ),
    "objects.npy": (npy(np.array([{"a": 1}, None], dtype=object)), "holds Python objects, not numbers"),
    "pickle.npy": (pickle.dumps([1, 2]), "holds no known image format, not an image"),
    "sound.npy": (npy(np.zeros(100)), "an array of shape (100,) is neither an image nor a stack of them"),
    "bomb.png": (
        png(100_000, 100_000, zlib.compress(b"\0")),
        "10,000,000,000 pixels are above the limit of 200,000,000 pixels",
    ),
    "small bomb.png": (
        png(15_000, 15_000, zlib.compress(b"\0")),
        "15000 x 15000 is above the limit of 200,000,000 pixels",
    ),
    "no width.png": (png(0, 24, zlib.compress(b"\0")), "damaged PNG header"),
    "checksum.png": (wrong_checksum(), "damaged PNG header"),
    "no image.jpg": (b"\xff\xd8\xff\xe0\x00\x04\0\0\xff\xd9", "JPEG without an image"),
    "circle.tif": (circular_tiff(), "damaged TIFF: the list of pages runs in a circle"),
    "complex.tif": (tiff(np.ones((24, 30), np.complex64)), "TIFF of complex numbers is not supported"),
}
if find_spec("pydicom"):
    BROKEN["cut.dcm"] = (dicom(DEEP)[:-40], "truncated DICOM: the pixels end early")

# Header and end are right: an import cannot notice, decoding does.
BROKEN_INSIDE: dict[str, tuple[bytes, str]] = {
    "stream.png": (png(24, 24, b"no deflate"), "cannot be decoded: broken data stream when reading image file"),
    "garbled.png": (garbled(encoded(NOISE, "PNG")), "cannot be decoded: broken data stream when reading image file"),
    "garbled.gif": (garbled_gif(), "cannot be decoded: broken data stream when reading image file"),
    "garbled.jpg": (garbled_jpeg(), "cannot be decoded: broken data stream when reading image file"),
    "garbled.tif": (garbled(tiff(NOISE, compression="zlib")), "cannot be decoded: broken data"),
    "garbled 16 bit.png": (
        garbled(imagecodecs.png_encode(NOISE.astype(np.uint16) * 251)),
        "cannot be decoded: broken data",
    ),
    "channels.npy": (npy(np.zeros((24, 30, 5), np.uint8)), "5 channels, not RGB"),
    "channels.tif": (
        tiff(np.zeros((24, 30, 5), np.uint8), photometric="minisblack", planarconfig="contig"),
        "5 channels, not RGB",
    ),
}


# -- what is odd but good: the bytes of a file, and what a reference decoder makes of a file, as 8-bit RGB --


def by_pillow(path: Path) -> list[np.ndarray]:
    """Each frame as Pillow shows it, upright."""
    with Image.open(path) as image:
        frames = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    return frames


def in_rgb(pixels: np.ndarray) -> np.ndarray:
    """The documented rule: of 16 bits the upper 8; floats from 0 to 1, else from their own darkest to brightest."""
    if pixels.dtype == np.uint16:
        pixels = pixels >> 8
    elif pixels.dtype.kind == "f":
        low, high = (0.0, 1.0) if pixels.min() >= 0 and pixels.max() <= 1 else (pixels.min(), pixels.max())
        pixels = np.round((pixels.astype(np.float64) - low) / (high - low) * 255)
    pixels = pixels.astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.stack([pixels] * 3, 2)


def deep_by_pillow(path: Path) -> list[np.ndarray]:
    return [in_rgb(np.asarray(Image.open(path)))]


def by_tifffile(path: Path) -> list[np.ndarray]:
    with tifffile.TiffFile(path) as file:
        return [in_rgb(page.asarray()) for page in file.pages]


def by_numpy(path: Path) -> list[np.ndarray]:
    return [in_rgb(np.load(path))]


def pages_by_numpy(path: Path) -> list[np.ndarray]:
    return [in_rgb(page) for page in np.load(path)]


def by_pydicom(path: Path) -> list[np.ndarray]:
    """Values of 16 bits; with a window, by the formula of the standard (PS3.3 C.11.2.1.2.1)."""
    import pydicom

    data = pydicom.dcmread(path)
    values = data.pixel_array
    if "WindowCenter" in data:
        centre, width = float(data.WindowCenter), float(data.WindowWidth)
        hounsfield = values * float(data.RescaleSlope) + float(data.RescaleIntercept)
        light = ((hounsfield - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
        values = np.round(light * 65535).astype(np.uint16)
    return [in_rgb(values)]


Reference = Callable[[Path], list[np.ndarray]]
ODD: dict[str, tuple[bytes, Reference]] = {
    "grey.jpg": (encoded(GREY, "JPEG"), by_pillow),
    "progressive.jpg": (encoded(RGB, "JPEG", progressive=True), by_pillow),
    "subsampled.jpg": (encoded(RGB, "JPEG", subsampling="4:2:0"), by_pillow),
    "inks.jpg": (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), by_pillow),
    "film behind it.jpg": (encoded(RGB, "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(5000), by_pillow),
    "absurd exif.jpg": (encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(40)), by_pillow),
    "orientation 99.jpg": (encoded(RGB, "JPEG", exif=exif(99)), by_pillow),
    **{f"orientation {n}.jpg": (encoded(RGB, "JPEG", exif=exif(n)), by_pillow) for n in range(1, 9)},
    "turned.png": (encoded(RGB, "PNG", exif=exif(6)), by_pillow),
    "turned.webp": (encoded(RGB, "WEBP", lossless=True, exif=exif(5)), by_pillow),
    "grey.png": (encoded(GREY, "PNG"), by_pillow),
    "alpha.png": (encoded(picture(RNG, 24, 30, 4), "PNG"), by_pillow),
    "grey and alpha.png": (encoded(picture(RNG, 24, 30, 2), "PNG"), by_pillow),
    "palette.png": (palette(), by_pillow),
    "transparent palette.png": (palette(transparency=bytes(range(0, 256, 16))), by_pillow),
    "grey palette.png": (encoded(Image.fromarray(GREY).quantize(16), "PNG"), by_pillow),
    "one bit.png": (encoded(Image.fromarray(GREY).convert("1"), "PNG"), by_pillow),
    "interlaced name.PNG": (encoded(RGB, "PNG"), by_pillow),
    "16 bit.png": (encoded(DEEP, "PNG"), deep_by_pillow),
    "16 bit colours.png": (imagecodecs.png_encode(DEEP.reshape(8, 30, 3)), by_pillow),
    "late checksum.png": (encoded(RGB, "PNG")[:-4] + b"oops", by_pillow),
    "a picture.bmp": (encoded(RGB, "BMP"), by_pillow),
    "palette.bmp": (encoded(Image.fromarray(RGB).quantize(16), "BMP"), by_pillow),
    "a picture.gif": (encoded(RGB, "GIF"), by_pillow),
    "moving.gif": (
        encoded(Image.fromarray(PAGES[0]), "GIF", save_all=True, append_images=[Image.fromarray(PAGES[0][::-1])]),
        by_pillow,
    ),
    "a picture.webp": (encoded(RGB, "WEBP"), by_pillow),
    "alpha.webp": (encoded(picture(RNG, 24, 30, 4), "WEBP", lossless=True), by_pillow),
    "moving.webp": (
        encoded(Image.fromarray(RGB), "WEBP", save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
        by_pillow,
    ),
    "a picture.tif": (tiff(RGB), by_tifffile),
    "16 bit.tif": (tiff(DEEP), by_tifffile),
    "unit float.tif": (tiff((DEEP / 65535).astype(np.float32)), by_tifffile),
    "float.tif": (tiff(DEEP.astype(np.float32) - 1000), by_tifffile),
    "lzw.tif": (tiff(RGB, compression="lzw", predictor=True), by_tifffile),
    "jpeg inside.tif": (tiff(RGB, compression="jpeg"), by_tifffile),
    "tiles.tif": (tiff(RGB, tile=(16, 16)), by_tifffile),
    "planes apart.tif": (tiff(RGB.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"), by_pillow),
    "motorola.tiff": (tiff(DEEP, byteorder=">"), by_tifffile),
    "big.tif": (tiff(RGB, bigtiff=True), by_tifffile),
    "fax.tif": (fax(), by_pillow),
    "palette.tif": (encoded(Image.fromarray(RGB).quantize(16), "TIFF"), by_pillow),
    "inks.tif": (encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"), by_pillow),
    "turned.tif": (encoded(RGB, "TIFF", exif=exif(8)), by_pillow),
    "pages.tif": (tiff_of_pages(PAGES), by_tifffile),
    "a picture.npy": (npy(RGB), by_numpy),
    "channels first.npy": (npy(RGB.transpose(2, 0, 1)), lambda path: [np.load(path).transpose(1, 2, 0)]),
    "columns first.npy": (npy(np.asfortranarray(GREY)), by_numpy),
    "16 bit.npy": (npy(DEEP), by_numpy),
    "float.npy": (npy(DEEP.astype(np.float64) * -3), by_numpy),
    "pages.npy": (npy(np.stack([GREY + i for i in range(20)])), pages_by_numpy),
    "a PNG by another name.jpg": (encoded(RGB, "PNG"), by_pillow),
    "a JPEG by another name.tif": (encoded(RGB, "JPEG"), by_pillow),
    "without suffix": (encoded(RGB, "JPEG"), by_pillow),
    "CAPITALS.JPG": (encoded(RGB, "JPEG"), by_pillow),
    "two\nlines \N{CAT FACE} 图.png": (encoded(RGB, "PNG"), by_pillow),
    "a" * 240 + ".png": (encoded(RGB, "PNG"), by_pillow),
    "folder.jpg/inside.png": (encoded(RGB, "PNG"), by_pillow),
    "one pixel.png": (encoded(RGB[:1, :1], "PNG"), by_pillow),
    "panorama.jpg": (encoded(picture(RNG, 5, 3000), "JPEG"), by_pillow),
}
if find_spec("pydicom"):
    ODD["scan.dcm"] = (dicom(DEEP), by_pydicom)
    ODD["scan with a window.dcm"] = (
        dicom(DEEP, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40000, WindowWidth=50000),
        by_pydicom,
    )
    ODD["1.2.840.113"] = (dicom(DEEP[::-1].copy()), by_pydicom)

OTHERS = {
    "notes.txt": b"a",
    "table.csv": b"b",
    "LICENSE": b"All rights reserved.\n",
    "masks.zip": b"c",
    "v.1": b"\0" * 9,
}


def test_the_folder_holds_enough_kinds():
    assert len(BROKEN) + len(BROKEN_INSIDE) >= 25 and len(ODD) >= 25


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "wild"
    (folder / "good" / "deeper").mkdir(parents=True)
    for i in range(GOOD):
        path = folder / "good" / ("deeper" if i % 2 else "") / f"{i:04d}.jpg"
        path.write_bytes(encoded(picture(RNG, 24, 24), "JPEG"))
    files = {name: data for kinds in (BROKEN, BROKEN_INSIDE, ODD) for name, (data, _) in kinds.items()}
    for name, data in (files | OTHERS).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / ".hidden.jpg").write_bytes(b"of the system")
    for reason, name in enumerate(("dangling.png", "round.png")):
        (folder / name).symlink_to(folder / ("nowhere" if not reason else name))
    (folder / "good" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "good again").symlink_to(folder / "good", target_is_directory=True)
    (folder / "half.tif").write_bytes(half_broken())
    os.mkfifo(folder / "pipe.png")
    os.close(os.open(os.fsencode(folder) + b"/caf\xe9.png", os.O_CREAT))
    return folder


def half_broken() -> bytes:
    """A TIFF of two pages, the second of which is garbled."""
    data = bytearray(tiff_of_pages([RGB, NOISE], compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start = file.pages[1].dataoffsets[0]
    data[start + 100 : start + 700] = bytes(600)
    return bytes(data)


ASIDE = {name: reason for name, (_, reason) in BROKEN.items()}
ASIDE |= {
    "dangling.png": "a link to nothing",
    "round.png": "a link to nothing",
    "pipe.png": "not a file",
    "caf\\xe9.png": "the file name is not UTF-8",
}
ASIDE_LATER = {name: reason for name, (_, reason) in BROKEN_INSIDE.items()}
ASIDE_LATER["half.tif"] = "cannot be decoded: broken data"


def files_in(folder: Path) -> int:
    """Files that are not hidden, links to files among them; a link to a folder is none."""
    return sum(not name.startswith(".") for _, _, names in os.walk(folder) for name in names)


def reasons(collection: Collection) -> dict[str, str]:
    rows = collection.set_aside
    return dict(zip(rows["uri"].to_pylist(), rows["reason"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def collection(wild: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return open_source(wild, tmp_path_factory.mktemp("collection") / "wild.lance")


@pytest.fixture(scope="module")
def pixels(collection: Collection) -> dict[str, list[np.ndarray | Unreadable]]:
    """What decoding gives for each file, its pages in order, in the collection's own format."""
    format = measure_format(collection)
    assert format == PixelFormat("RGB", 8, (0.0, 255.0))
    rows = collection.usable
    got = dict(decoded(collection, rows, format, None, "Decoding"))
    files: dict[str, list[np.ndarray | Unreadable]] = {}
    uris, pages = rows["uri"].to_pylist(), rows["page"].to_pylist()
    for number in sorted(range(len(rows)), key=lambda i: (uris[i], pages[i] or 0)):
        files.setdefault(uris[number], []).append(got[number])
    return files


def test_every_broken_file_is_named_with_its_reason(collection: Collection):
    assert reasons(collection) == ASIDE


def test_what_only_decoding_finds_is_named_with_its_reason(pixels: dict[str, list[np.ndarray | Unreadable]]):
    found = {uri: str(p) for uri, pages in pixels.items() for p in pages if isinstance(p, Unreadable)}
    assert found == ASIDE_LATER
    assert [type(page) for page in pixels["half.tif"]] == [np.ndarray, Unreadable]
    assert np.array_equal(pixels["half.tif"][0], RGB)


@pytest.mark.parametrize("name", [pytest.param(n, id=n[:30]) for n in ODD])
def test_every_odd_file_gives_the_pixels_of_a_reference_decoder(
    wild: Path, pixels: dict[str, list[np.ndarray | Unreadable]], name: str
):
    got, wanted = pixels[name], ODD[name][1](wild / name)
    assert len(got) == len(wanted)
    for page, reference in zip(got, wanted, strict=True):
        assert not isinstance(page, Unreadable), page
        assert page.dtype == np.uint8 and np.array_equal(page, reference)


@NEEDS_DICOM
def test_dicom_is_among_them():
    assert {"scan.dcm", "1.2.840.113"} <= ODD.keys()


def test_the_good_ones_are_what_pillow_shows(wild: Path, pixels: dict[str, list[np.ndarray | Unreadable]]):
    good = {uri: pages for uri, pages in pixels.items() if uri.startswith("good/")}
    assert len(good) == GOOD  # once each, although links lead around the folder
    for uri, (page,) in good.items():
        assert np.array_equal(page, np.asarray(Image.open(wild / uri)))


def test_the_counts_add_up(wild: Path, collection: Collection, pixels: dict[str, list[np.ndarray | Unreadable]]):
    used = {uri for uri, pages in pixels.items() if any(isinstance(page, np.ndarray) for page in pages)}
    later = {uri for uri, pages in pixels.items() if any(isinstance(page, Unreadable) for page in pages)}
    assert used & later == {"half.tif"} and not (used | later) & reasons(collection).keys()
    assert collection.about.others == {".txt": 1, ".csv": 1, ".zip": 1, "": 2, "hidden": 1}
    assert (
        files_in(wild)
        == len(used | later) + len(reasons(collection)) + collection.others - collection.about.others["hidden"]
    )
    assert len(used) == GOOD + len(ODD) + 1


@pytest.mark.parametrize("canvases", ["resident", "stream"])
def test_pretraining_finishes_and_names_every_broken_file(
    wild: Path, collection: Collection, tmp_path: Path, canvases: str
):
    recipe = tmp_path / "tiny.yaml"
    views = {"groups": [{"count": 2, "size": 16}]}
    chosen = {"encoder": "resnet18", "encoder_args": NARROW, "views": views, "precision": "no"}
    recipe.write_text(yaml.safe_dump({"resolved": chosen}))
    table, run = str(collection.path), tmp_path / "run"
    given = {"steps": 2, "batch_size": 8, "size": 32, "recipe": str(recipe), "canvases": canvases}
    result = selfsight.pretrain(str(wild), out=str(run), collection=table, **given)
    assert result.steps == 2
    named = json.loads((run / "set_aside.json").read_text())
    assert {item["uri"]: item["reason"] for item in named} == reasons(collection) | ASIDE_LATER
    assert {item["uri"] for item in named if item["at"] == "decoding"} == set(ASIDE_LATER)
    assert [vars(item) for item in result.set_aside_items] == [
        {"uri": item["uri"], "reason": item["reason"]} for item in named
    ]
    assert result.set_aside == len(ASIDE) + len(ASIDE_LATER)
    assert result.items + result.set_aside == len(collection)
