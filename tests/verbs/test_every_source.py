"""Every kind of source and every kind of pixels: pretrains for two steps and embeds.

Low bytes and fifth channels count: features change when only they change, and do not when nothing does.
"""

from __future__ import annotations

import csv
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import yaml
from helpers import NARROW, picture, write_folder
from PIL import Image

import selfsight
from selfsight.encoders.weights import load
from selfsight.verbs.import_ import import_

COUNT = 8
SIDE = 32


@pytest.fixture
def pretrain(tmp_path: Path) -> Callable[..., Path]:
    """Pretrains the smallest encoder on a source for two steps: the folder of the run."""

    def run(source: str, name: str = "run") -> Path:
        recipe = tmp_path / "tiny.yaml"
        views = {"groups": [{"count": 2, "size": 16}]}
        recipe.write_text(yaml.safe_dump({"resolved": {"encoder_args": NARROW, "views": views, "precision": "no"}}))
        given = {"encoder": "resnet18", "size": SIDE, "batch_size": 4, "recipe": str(recipe)}
        result = selfsight.pretrain(source, out=str(tmp_path / name), steps=2, **given)
        assert (result.steps, result.set_aside) == (2, 0)
        return tmp_path / name

    return run


def embed(source: str | Path, run: Path) -> dict[str, np.ndarray]:
    """Features by the name of the file without its suffix, and its page."""
    result = selfsight.embed(str(source), model=str(run))
    assert np.isfinite(result.features).all()
    return {f"{Path(u).stem} {i}": f for i, (u, f) in enumerate(zip(result.uris, result.features, strict=True))}


def check(source: str, pretrain: Callable[..., Path], count: int) -> Path:
    """Pretrain and embed; of different pictures the features differ."""
    run = pretrain(source)
    features = np.stack(list(embed(source, run).values()))
    assert features.shape == (count, load(str(run)).dim)
    assert len(np.unique(features.round(5), axis=0)) == count
    return run


# -- sources: each maker leaves a source of 8 pictures in a folder and says how it is called --


def a_folder(at: Path) -> str:
    return str(write_folder(at / "photos", COUNT, size=(SIDE, 36)))


def paths_in(at: Path) -> list[str]:
    return sorted(str(path.relative_to(at)) for path in Path(a_folder(at)).rglob("*.png"))


def a_list(at: Path) -> str:
    (at / "list.txt").write_text("\n".join(paths_in(at)))
    return str(at / "list.txt")


def a_table(at: Path, name: str, delimiter: str) -> str:
    with (at / name).open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("path", "label"), *((p, "a") for p in paths_in(at))])
    return str(at / name)


def a_parquet(at: Path) -> str:
    pq.write_table(pa.table({"path": paths_in(at)}), at / "table.parquet")
    return str(at / "table.parquet")


def tables_of_sites(at: Path) -> str:
    for number in range(2):
        site = at / f"site{number}"
        write_folder(site / "images", COUNT // 2, size=(SIDE, 36), seed=number)
        names = sorted(str(path.relative_to(site)) for path in site.rglob("*.png"))
        (site / "labels.csv").write_text("\n".join(["path", *names]))
    return str(at / "site*" / "labels.csv")


def a_zip(at: Path) -> str:
    with zipfile.ZipFile(at / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths_in(at):
            archive.write(at / path, path)
    return str(at / "photos.zip")


def shards(at: Path, count: int) -> Path:
    """WebDataset: a sample is the files of one number, here a picture and its class."""
    paths = paths_in(at)
    (at / "shards").mkdir()
    for number in range(count):
        with tarfile.open(at / "shards" / f"shard-{number:03d}.tar", "w") as tar:
            for path in paths[number::count]:
                tar.add(at / path, f"{Path(path).stem}.png")
                label = tarfile.TarInfo(f"{Path(path).stem}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"7"))
    return at / "shards"


def a_hugging_face_folder(at: Path) -> str:
    datasets = pytest.importorskip("datasets")
    images = [Image.open(at / path) for path in paths_in(at)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * (COUNT // 2)}, features=features)
    table.save_to_disk(str(at / "saved"))
    return str(at / "saved")


def a_torchvision_name(at: Path) -> str:
    """MNIST in its own format, of six pictures to train and two to test, where torchvision looks for it."""
    from selfsight.data.cache import cache_folder

    raw = cache_folder() / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("t10k", 2)):
        pixels = np.stack([picture(rng, 28, 28, 1) for _ in range(count)])
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(range(count)))
    return "torchvision:MNIST"


def a_collection(at: Path) -> str:
    import_(a_folder(at), out=str(at / "photos.lance"))
    return str(at / "photos.lance")


def a_video(path: Path, seconds: int) -> str:
    """A picture a second."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(seconds)
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = SIDE
        for _ in range(seconds):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(rng, SIDE, SIDE))))
        container.mux(stream.encode())
    return str(path)


def a_folder_of_videos(at: Path) -> str:
    a_video(at / "films" / "a.mp4", 3)
    a_video(at / "films" / "b.mkv", 5)
    return str(at / "films")


def a_file_of_pages(at: Path) -> str:
    rng = np.random.default_rng(0)
    tifffile.imwrite(at / "stack.tif", np.stack([picture(rng, SIDE, SIDE, 1) for _ in range(COUNT)]))
    return str(at / "stack.tif")


SOURCES: dict[str, Callable[[Path], str]] = {
    "folder": a_folder,
    "list": a_list,
    "csv": lambda at: a_table(at, "table.csv", ","),
    "tsv": lambda at: a_table(at, "table.tsv", "\t"),
    "parquet": a_parquet,
    "tables by a pattern": tables_of_sites,
    "zip": a_zip,
    "tar": lambda at: str(shards(at, 1) / "shard-000.tar"),
    "shards by braces": lambda at: str(shards(at, 3) / "shard-{000..002}.tar"),
    "folder of shards": lambda at: str(shards(at, 2)),
    "hugging face": a_hugging_face_folder,
    "torchvision": a_torchvision_name,
    "collection": a_collection,
    "video": lambda at: a_video(at / "film.mp4", COUNT),
    "folder of videos": a_folder_of_videos,
    "file of pages": a_file_of_pages,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_pretrains_and_embeds(tmp_path: Path, pretrain: Callable[..., Path], kind: str):
    check(SOURCES[kind](tmp_path), pretrain, COUNT)


# -- pixels: each maker gives the bytes of one file --


def encoded(image: Image.Image, name: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **how)
    return out.getvalue()


def by_pillow(name: str, mode: str, **how: object) -> Callable[[np.random.Generator], bytes]:
    channels = {"LA": 2, "RGBA": 4}.get(mode, 3)
    return lambda rng: encoded(Image.fromarray(picture(rng, SIDE, 36, channels)).convert(mode), name, **how)


def deep(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """uint16 of any shape [H, W, ...]: a pattern that reaches into the low bytes."""
    height, width, *more = shape
    channels = int(np.prod(more, initial=1))
    planes = np.stack([picture(rng, height, width, 1) for _ in range(channels)], 2).astype(np.uint16) * 256
    planes += rng.integers(0, 256, planes.shape, dtype=np.uint16)
    return planes.reshape(shape)


def tiff(array: np.ndarray, **how: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **how)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def dicom(stored: np.ndarray) -> bytes:
    """uint16 [H, W], or uint8 [H, W, 3]."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, "1.2.3"
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    data.PlanarConfiguration = data.PixelRepresentation = 0
    data.BitsAllocated = data.BitsStored = 8 * stored.dtype.itemsize
    data.PixelData = stored.tobytes()
    data["PixelData"].VR = "OB" if stored.itemsize == 1 else "OW"
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


Maker = Callable[[np.random.Generator], bytes]
PIXELS: dict[str, tuple[Maker, str, int]] = {  # how a file is made, and the mode and depth that its encoder takes
    "grey.jpg": (by_pillow("JPEG", "L"), "L", 8),
    "rgb.jpg": (by_pillow("JPEG", "RGB"), "RGB", 8),
    "cmyk.jpg": (by_pillow("JPEG", "CMYK"), "CMYK", 8),
    "grey.png": (by_pillow("PNG", "L"), "L", 8),
    "grey and alpha.png": (by_pillow("PNG", "LA"), "LA", 8),
    "rgba.png": (by_pillow("PNG", "RGBA"), "RGBA", 8),
    "palette.png": (by_pillow("PNG", "P"), "RGB", 8),
    "one bit.png": (by_pillow("PNG", "1"), "L", 8),
    "grey 16 bit.png": (lambda rng: imagecodecs.png_encode(deep(rng, SIDE, 36)), "L", 16),
    "rgb 16 bit.png": (lambda rng: imagecodecs.png_encode(deep(rng, SIDE, 36, 3)), "RGB", 16),
    "rgba 16 bit.png": (lambda rng: imagecodecs.png_encode(deep(rng, SIDE, 36, 4)), "RGBA", 16),
    "rgb.webp": (by_pillow("WEBP", "RGB"), "RGB", 8),
    "rgba.webp": (by_pillow("WEBP", "RGBA", lossless=True), "RGBA", 8),
    "rgb.bmp": (by_pillow("BMP", "RGB"), "RGB", 8),
    "grey.bmp": (by_pillow("BMP", "L"), "L", 8),
    "rgb.gif": (by_pillow("GIF", "RGB"), "RGB", 8),
    "grey.tif": (by_pillow("TIFF", "L"), "L", 8),
    "cmyk.tif": (by_pillow("TIFF", "CMYK"), "CMYK", 8),
    "palette.tif": (by_pillow("TIFF", "P"), "RGB", 8),
    "16 bit.tif": (lambda rng: tiff(deep(rng, SIDE, 36)), "L", 16),
    "float.tif": (lambda rng: tiff(rng.normal(0, 1e5, (SIDE, 36)).astype(np.float32)), "L", 32),
    "five channels.tif": (lambda rng: tiff(deep(rng, SIDE, 36, 5), planarconfig="contig"), "5", 16),
    "rgb.npy": (lambda rng: npy(picture(rng, SIDE, 36)), "RGB", 8),
    "16 bit.npy": (lambda rng: npy(deep(rng, SIDE, 36)), "L", 16),
    "float.npy": (lambda rng: npy(rng.random((SIDE, 36))), "L", 32),
    "five channels.npy": (lambda rng: npy(picture(rng, SIDE, 36, 5)), "5", 8),
    "grey.dcm": (lambda rng: dicom(deep(rng, SIDE, 36)), "L", 16),
    "rgb.dcm": (lambda rng: dicom(picture(rng, SIDE, 36)), "RGB", 8),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_every_kind_of_pixels_pretrains_and_embeds(tmp_path: Path, pretrain: Callable[..., Path], kind: str):
    make, mode, depth = PIXELS[kind]
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(COUNT):
        (tmp_path / "photos" / f"{i}{Path(kind).suffix}").write_bytes(make(rng))
    geometry = load(str(check(str(tmp_path / "photos"), pretrain, COUNT))).geometry
    assert (geometry.mode, geometry.depth, geometry.size) == (mode, depth, SIDE)


def test_pages_of_several_files_pretrain_and_embed(tmp_path: Path, pretrain: Callable[..., Path]):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name, pages in (("a", 3), ("b", 5)):
        stack = np.stack([deep(rng, SIDE, 36) for _ in range(pages)])
        tifffile.imwrite(tmp_path / "photos" / f"{name}.tif", stack, photometric="minisblack")
    check(str(tmp_path / "photos"), pretrain, COUNT)


# -- low bytes and fifth channels --

LOW_BYTE: dict[str, Callable[[np.ndarray], bytes]] = {
    ".npy": npy,
    ".png": imagecodecs.png_encode,
    ".tif": tiff,
    ".dcm": dicom,
}
FIFTH_CHANNEL: dict[str, Callable[[np.ndarray], bytes]] = {
    ".npy": npy,
    ".tif": lambda pixels: tiff(pixels, photometric="minisblack", planarconfig="contig"),
    ".tiff": lambda pixels: tiff(pixels.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"),
}


def with_other_low_byte(pixels: np.ndarray) -> np.ndarray:
    return pixels ^ np.random.default_rng(9).integers(1, 256, pixels.shape, dtype=np.uint16)


def with_other_fifth_channel(pixels: np.ndarray) -> np.ndarray:
    changed = pixels.copy()
    changed[:, :, 4] = pixels[::-1, :, 4]
    return changed


@pytest.mark.parametrize(
    ("writers", "shape", "change"),
    [(LOW_BYTE, (SIDE, 36), with_other_low_byte), (FIFTH_CHANNEL, (SIDE, 36, 5), with_other_fifth_channel)],
    ids=["low byte", "fifth channel"],
)
def test_features_change_with_what_eight_bits_or_three_channels_would_lose(
    tmp_path: Path,
    pretrain: Callable[..., Path],
    writers: dict[str, Callable[[np.ndarray], bytes]],
    shape: tuple[int, ...],
    change: Callable[[np.ndarray], np.ndarray],
):
    rng = np.random.default_rng(0)
    pictures = [deep(rng, *shape) for _ in range(COUNT)]
    changed = [change(p) if i == 3 else p for i, p in enumerate(pictures)]
    assert np.array_equal(changed[3] >> 8, pictures[3] >> 8) or np.array_equal(
        changed[3][..., :4], pictures[3][..., :4]
    )
    run = None
    for suffix, write in writers.items():
        features = []
        for number, versions in enumerate((pictures, pictures, changed)):
            folder = tmp_path / f"{suffix[1:]}{number}" / "photos"
            folder.mkdir(parents=True)
            for i, pixels in enumerate(versions):
                (folder / f"{i}{suffix}").write_bytes(write(pixels))
            run = run or pretrain(str(folder))
            features.append(np.stack([f for _, f in sorted(embed(folder, run).items())]))
        first, again, other = features
        assert np.array_equal(first, again)
        size = np.abs(first).max()
        moved = np.abs(other - first).max(1)
        assert moved[3] > 1e-3 * size, suffix
        assert (np.delete(moved, 3) < 1e-6 * size).all(), suffix
