"""The one way through: the features of one image at a time, whatever the batches, the kind and the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import garble, tiny_encoder
from PIL import Image

from selfsight.data.collection import Collection
from selfsight.data.features import Key
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders import features as module
from selfsight.encoders.encoder import Encoder, Features
from selfsight.encoders.features import encode, gathered, item_features, pooled, pooled_labelled
from selfsight.errors import DataError, SelfsightError
from selfsight.files import append_lance, as_vectors


def one_by_one(encoder: Encoder, collection: Collection, rows: pa.Table) -> list[Features]:
    """The features of each image alone, opened by Pillow."""
    out, size = [], encoder.geometry.size
    for uri in rows["uri"].to_pylist():
        image = Image.open(Path(collection.about.location) / uri).convert("RGB")
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        unit = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            out.append(encoder.eval()((unit - 0.5) / 0.25, levels=True))
    return out


def near(got: np.ndarray, wanted: torch.Tensor) -> bool:
    return bool(np.abs(got - wanted.numpy()).max() <= 1e-5 * np.abs(wanted.numpy()).max())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_every_kind_is_that_of_one_image_at_a_time(
    images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(module, "BATCH", 4)  # two full batches and a part
    collection, encoder = open_source(images(10)), tiny_encoder(name=name)
    rows = collection.usable
    alone = one_by_one(encoder, collection, rows)
    encoder.train()
    for kind in ("pooled", "patches"):
        numbers, features, bad = gathered(item_features(encoder, collection, rows, kind), rows)
        assert numbers.tolist() == list(range(10)) and bad == {}
        assert all(near(f, getattr(a, kind)[0]) for f, a in zip(features, alone, strict=True))
    seen = []
    for numbers, levels, _ in item_features(encoder, collection, rows, kind="levels"):
        seen += numbers
        assert [level.shape[1] for level in levels] == list(encoder.level_channels)
        for place, number in enumerate(numbers):
            for level, wanted in zip(levels, alone[number].levels, strict=True):
                assert near(level[place], wanted[0])
    assert sorted(seen) == list(range(10)) and encoder.training


def test_what_cannot_be_decoded_is_named_and_left_out(images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH", 2)
    folder = images(6)
    garble(folder / "000.png")
    garble(folder / "odd" / "ones" / "005.png")  # the last that is read: a batch of nothing else
    collection, encoder = open_source(folder), tiny_encoder()
    rows = collection.usable
    numbers, features, bad = gathered(item_features(encoder, collection, rows, "patches"), rows)
    broken = {u: i for u, i in zip(rows["uri"].to_pylist(), rows["id"].to_pylist(), strict=True) if i in bad}
    assert set(broken) == {"000.png", "odd/ones/005.png"} and len(features) == 4
    assert set(rows["id"].to_pylist()) == set(bad) | set(rows.take(numbers)["id"].to_pylist())
    for feature, alone in zip(features, one_by_one(encoder, collection, rows.take(numbers)), strict=True):
        assert near(feature, alone.patches[0])
    for path in folder.rglob("*.png"):
        garble(path)
    with pytest.raises(SelfsightError, match="None of the 6 images"):
        pooled(encoder, collection)


def test_labels_go_on_with_the_features_of_their_items(images: Callable[..., Path], tmp_path: Path):
    folder = images(6)
    garble(folder / "002.png")
    collection, encoder = open_source(folder), tiny_encoder()
    (tmp_path / "labels.csv").write_text("path,label\n000.png,a\n002.png,b\n004.png,c\nodd/ones/003.png,d\n")
    given = Labels.of(collection, path=str(tmp_path / "labels.csv")).labelled().take([3, 1, 0, 2])
    labels, features, bad = pooled_labelled(encoder, collection, given)
    assert labels.values == tuple(value for value in given.values if value != "b") and len(features) == 3
    assert [collection.uri_of(item) for item in bad] == ["002.png"]
    for feature, alone in zip(features, one_by_one(encoder, collection, labels.rows), strict=True):
        assert near(feature, alone.pooled[0])
    again, kept, none = pooled_labelled(encoder, collection, labels)
    assert (again.values, none) == (labels.values, {}) and (kept == features).all()


def test_shards_are_the_whole_once(images: Callable[..., Path]):
    collection, encoder = open_source(images(7)), tiny_encoder()
    rows = collection.usable.take([3, 0, 6, 5, 1, 2, 4])  # in no order
    whole = gathered(item_features(encoder, collection, rows), rows)[1]
    out, taken = np.zeros_like(whole), []
    for shard in range(3):
        for numbers, features, _ in item_features(encoder, collection, rows, shard=(shard, 3)):
            out[numbers] = features
            taken.append(sorted(rows.take(numbers)["id"].to_pylist()))
    ids = sorted(rows["id"].to_pylist())
    assert taken == [ids[0::3], ids[1::3], ids[2::3]] and np.allclose(out, whole, rtol=1e-5, atol=1e-6)
    with pytest.raises(SelfsightError, match="no shard 3 of 3"):
        list(item_features(encoder, collection, rows, shard=(3, 3)))


def test_what_is_kept_is_not_encoded_again(images: Callable[..., Path]):
    collection, encoder = open_source(images(6)), tiny_encoder()
    seen: list[int] = []
    hook = encoder.net.conv1.register_forward_hook(lambda m, i, o: seen.append(len(i[0])))
    some = collection.usable.take([4, 1])
    _, first, _ = pooled(encoder, collection, some)
    rows, features, _ = pooled(encoder, collection)
    again = pooled(encoder, collection)[1]
    hook.remove()
    assert seen == [2, 4] and rows.equals(collection.usable)
    assert features.tobytes() == again.tobytes() and features[[4, 1]].tobytes() == first.tobytes()
    assert all(near(f, a.pooled[0]) for f, a in zip(features, one_by_one(encoder, collection, rows), strict=True))


def test_features_of_the_first_release_are_taken(images: Callable[..., Path]):
    collection, encoder = open_source(images(4)), tiny_encoder()
    rows, kept = collection.usable, np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    table = pa.table({"id": rows["id"], "content_hash": rows["content_hash"], "features": as_vectors(kept)})
    append_lance(table.slice(0, 3), collection.path.parent / "features" / f"{encoder.digest}.lance")
    features = pooled(encoder, collection)[1]
    assert (features[:3] == kept[:3]).all() and (features[3] != kept[3]).all()


def test_an_interruption_keeps_what_was_done(images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH", 2)
    collection, encoder = open_source(images(6)), tiny_encoder()
    calls: list[int] = []

    def interrupt(part: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    hook = encoder.net.conv1.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        pooled(encoder, collection)
    hook.remove()
    known, _ = collection.features.read(Key(encoder.digest, "pooled", encoder.geometry), collection.usable)
    assert known.sum() == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_encoder_whose_features_are_not_finite_is_refused_and_nothing_kept(
    images: Callable[..., Path], value: float
):
    collection, encoder = open_source(images(3)), tiny_encoder()
    encoder.net.conv1.weight.data[0, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"gives features of \S+ or its neighbours that are NaN or infinite"):
        pooled(encoder, collection)
    known, _ = collection.features.read(Key(encoder.digest, "pooled", encoder.geometry), collection.usable)
    assert not known.any()


@dataclass
class Counts:
    """An encoder of texts: how often each letter comes."""

    digest: str = "letters"
    dim: int = 3
    licence: str = "none"

    def encode(self, inputs: list[str], levels: bool = False) -> Features:
        counts = torch.tensor([[float(text.count(letter)) for letter in "abc"] for text in inputs])
        return Features(counts, counts[:, None], (1, 1))


def test_an_encoder_of_texts_needs_no_more_than_the_protocol():
    got = dict(encode(Counts(), [("first", ["abba", "c"]), ("second", ["cab"])]))
    assert got["first"].tolist() == [[2, 2, 0], [0, 0, 1]] and got["second"].tolist() == [[1, 1, 1]]
