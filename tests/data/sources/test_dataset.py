"""Data sets of libraries, made or put in place by the test: nothing is fetched."""

from __future__ import annotations

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.formats.format import Unreadable
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.source import Options, Source
from selfsight.errors import SelfsightError


def png(value: int, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def pixels(source: Source, uri: str) -> np.ndarray:
    with source.open(uri) as file:
        return np.asarray(Image.open(file))


# -- torchvision --


def idx(array: np.ndarray) -> bytes:
    """The format of the MNIST files."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes()


def test_torchvision_with_train_and_test(cache: Path):
    raw = cache / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 255, (5, 28, 28)), "t10k": rng.integers(0, 255, (2, 28, 28))}
    for name, labels in (("train", [5, 0, 9, 0, 1]), ("t10k", [7, 2])):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images[name]))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.array(labels)))
    source = make_source("torchvision:mnist", Options(columns={"group": "{0}"}, exclude=("train/00000000",)))
    entries = list(source.entries())
    assert [entry.uri for entry in entries][:2] == ["train/00000001", "train/00000002"]
    assert [entry.columns["label"] for entry in entries] == [
        *("0 - zero", "9 - nine", "0 - zero", "1 - one"),
        *("7 - seven", "2 - two"),
    ]
    assert entries[-1].columns == {"split": "test", "label": "2 - two", "group": "test"}
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: pixels(source, f"train/{i % 5:08d}"), range(20)))
    assert all(np.array_equal(array, images["train"][i % 5]) for i, array in enumerate(read))
    for uri in ("train/00000005", "other/00000000", "train/x", "-1"):
        with pytest.raises(Unreadable, match="not in the data set any more"):
            source.open(uri)


def test_torchvision_with_split(cache: Path):
    folder = cache / "torchvision" / "food-101"
    for name in ("meta", "images/soup", "images/cake"):
        (folder / name).mkdir(parents=True)
    for split, names in (("train", {"soup": ["soup/1"], "cake": ["cake/2"]}), ("test", {"soup": ["soup/3"]})):
        (folder / "meta" / f"{split}.json").write_text(json.dumps(names))
        for name in chain(*names.values()):
            Image.new("RGB", (8, 8), (int(name[-1]), 2, 3)).save(folder / "images" / f"{name}.jpg", "PNG")
    source = make_source("torchvision:Food101", Options())
    rows = {entry.uri: (entry.columns["split"], entry.columns["label"]) for entry in source.entries()}
    expected = {"train/00000000": ("train", "soup"), "train/00000001": ("train", "cake")}
    assert rows == expected | {"test/00000000": ("test", "soup")}
    assert pixels(source, "test/00000000")[0, 0].tolist() == [3, 2, 3]
    (folder / "images" / "soup" / "3.jpg").unlink()
    with pytest.raises(Unreadable, match="not readable by torchvision"):
        source.open("test/00000000")


def test_torchvision_without_files(cache: Path):
    from torchvision.datasets import FakeData

    source = make_source("torchvision:FakeData", Options(include=("0000000[12]",)))
    entries = list(source.entries())
    assert [(entry.uri, entry.columns) for entry in entries] == [("00000001", {}), ("00000002", {})]
    assert np.array_equal(pixels(source, "00000002"), np.asarray(FakeData()[2][0]))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("CIFAR", r"no data set 'CIFAR'\. Did you mean CIFAR10\?"),
        ("EMNIST", "cannot be loaded from .* asks for more than a name"),
    ],
)
def test_torchvision_that_cannot_be_is_one_sentence(cache: Path, name: str, sentence: str):
    with pytest.raises(SelfsightError, match=sentence) as error:
        list(make_source(f"torchvision:{name}", Options()).entries())
    assert "\n" not in str(error.value)


# -- Hugging Face --


def features(**more: object) -> object:
    import datasets

    common = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    return datasets.Features(common | {"who": datasets.Value("string")} | more)


@pytest.fixture
def hugging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    datasets.disable_progress_bars()
    return tmp_path_factory.mktemp("hugging")


def rows(count: int, first: int = 0) -> dict[str, list[object]]:
    numbers = range(first, first + count)
    kinds: list[object] = [(0, 1, None)[i % 3] for i in range(count)]
    return {"picture": [{"bytes": png(i)} for i in numbers], "kind": kinds, "who": [f"p{i}" for i in numbers]}


def test_saved_splits_with_class_names(hugging: Path):
    import datasets

    splits = {"train": datasets.Dataset.from_dict(rows(4), features=features())}
    splits["test"] = datasets.Dataset.from_dict(rows(3, 10), features=features())
    datasets.DatasetDict(splits).save_to_disk(hugging / "pets")
    source = make_source(str(hugging / "pets"), Options(columns={"group": "who", "place": "{0}"}))
    entries = list(source.entries())
    assert [entry.uri for entry in entries][2:5] == ["train/00000002", "train/00000003", "test/00000000"]
    assert [entry.columns["label"] for entry in entries] == ["cat", "dog", None, "cat", "cat", "dog", None]
    expected = {"split": "test", "label": "dog", "group": "p11", "place": "test"}
    assert entries[5].columns == expected  # and `who` only as it was named
    assert source.name == "pets"
    for entry in entries:
        with source.open(entry.uri) as file:
            assert len(file.read()) == entry.bytes
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda i: int(pixels(source, f"test/{i % 3:08d}")[0, 0]), range(30)))
    assert values == [10 + i % 3 for i in range(30)]
    arrow = hugging / "pets" / "train" / "data-00000-of-00001.arrow"
    assert entries[0].modified_ns == arrow.stat().st_mtime_ns
    with pytest.raises(Unreadable, match="not in the data set any more"):
        source.open("train/00000004")


def test_one_saved_split_and_a_folder_of_parquet(hugging: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hugging / "cache")
    whole = datasets.Dataset.from_dict(rows(3), features=features())
    whole.save_to_disk(hugging / "one")
    (hugging / "files").mkdir()
    whole.to_parquet(hugging / "files" / "train.parquet")
    source = make_source(str(hugging / "one"), Options())
    assert [(e.uri, e.columns) for e in source.entries()][:2] == [
        ("00000000", {"label": "cat"}),
        ("00000001", {"label": "dog"}),
    ]
    monkeypatch.chdir(hugging)
    source = make_source("hf:files", Options(include=("*2",)))
    assert source.location == f"hf:{hugging / 'files'}"  # found again from another folder
    assert [(e.uri, e.columns["split"]) for e in source.entries()] == [("train/00000002", "train")]
    assert pixels(source, "train/00000002").max() == 2


def test_which_column_holds_the_images(hugging: Path):
    import datasets

    more = {"mask": [{"bytes": png(100 + i)} for i in range(2)], "label": ["x", "y"]}
    both = features(mask=datasets.Image(), label=datasets.Value("string"))
    datasets.Dataset.from_dict(rows(2) | more, features=both).save_to_disk(hugging / "two")
    with pytest.raises(SelfsightError, match=r"several columns of images: picture, mask\. Add --columns path="):
        list(make_source(str(hugging / "two"), Options()).entries())
    source = make_source(str(hugging / "two"), Options(columns={"path": "mask"}))
    assert [entry.columns["label"] for entry in source.entries()] == ["x", "y"]  # not `kind`
    assert pixels(source, "00000001").max() == 101
    for path, sentence in (("who2", "no column for path=who2"), ("kind", "Column 'kind' of .* holds no images")):
        with pytest.raises(SelfsightError, match=sentence):
            list(make_source(str(hugging / "two"), Options(columns={"path": path})).entries())
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(hugging / "none")
    with pytest.raises(SelfsightError, match=r"has no column of images\. Its columns: text"):
        list(make_source(str(hugging / "none"), Options()).entries())


def test_images_that_a_row_only_names_or_lacks(hugging: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hugging / "cache")
    for name in ("cat/1.png", "dog/2.png"):
        (hugging / "files" / name).parent.mkdir(parents=True)
        (hugging / "files" / name).write_bytes(png(int(name[4])))
    source = make_source(f"hf:{hugging / 'files'}", Options())
    assert [(e.uri, e.bytes, e.columns["label"]) for e in source.entries()] == [
        ("train/00000000", None, "cat"),
        ("train/00000001", None, "dog"),
    ]
    assert pixels(source, "train/00000000").max() == 1
    (hugging / "files" / "dog" / "2.png").unlink()
    with pytest.raises(Unreadable, match="file vanished since import"):
        source.open("train/00000001")
    lacking = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": [{"bytes": png(1)}, None]}, features=lacking).save_to_disk(hugging / "lacking")
    source = make_source(str(hugging / "lacking"), Options())
    assert [entry.bytes for entry in source.entries()] == [len(png(1)), None]
    with pytest.raises(Unreadable, match="no image in this row"):
        source.open("00000001")


def test_a_damaged_folder_and_a_name_out_of_reach_are_one_sentence(hugging: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    datasets.Dataset.from_dict(rows(3), features=features()).save_to_disk(hugging / "cut")
    arrow = hugging / "cut" / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(SelfsightError, match=r"cut cannot be loaded|cut is damaged"):
        list(make_source(str(hugging / "cut"), Options()).entries())
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    with pytest.raises(SelfsightError, match="is not on this machine and the hub does not answer"):
        list(make_source("hf:nobody/nothing", Options()).entries())
    assert not datasets.config.HF_HUB_OFFLINE


def test_without_the_package_the_sentence_says_what_to_install(hugging: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SelfsightError, match=r"pip install 'selfsight\[huggingface\]'"):
        list(make_source("hf:some/name", Options()).entries())
