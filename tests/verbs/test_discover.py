"""discover: things composed into pictures are found without labels, named once a cluster, and written as COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_encoder, write_folder
from PIL import Image
from scipy.ndimage import gaussian_filter

import selfsight
from selfsight.data.annotations import coco
from selfsight.data.annotations.rle import decode
from selfsight.data.importers import open_source
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.verbs.discover import show

SIDE = 96
Edges = tuple[int, int, int, int]


def scene(rng: np.random.Generator, dark: bool) -> tuple[np.ndarray, Edges]:
    """[H, W, 3] of a smooth texture with one thing, a dark ring or a bright square, and its box."""
    noise = gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (2, 2, 0))
    picture = 120 + 12 * noise / noise.std() + rng.uniform(-15, 15, 3)
    radius = int(rng.integers(14, 22))
    x, y = (int(edge) for edge in rng.integers(radius + 2, SIDE - radius - 2, 2))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    far = np.hypot(rows - y, columns - x)
    if dark:
        picture[far <= radius] = (20, 10, 60)
        picture[far <= radius / 3] = (90, 60, 160)
    else:
        inside = (abs(rows - y) <= radius) & (abs(columns - x) <= radius)
        picture[inside] = (250, 200, 60)
    return picture.clip(0, 255).astype(np.uint8), (x - radius, y - radius, x + radius + 1, y + radius + 1)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder(size=SIDE, seed=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, Edges]]]:
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    truth = {}
    for number in range(24):
        pixels, box = scene(rng, number % 2 == 0)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        truth[f"{number:02d}.png"] = ("square" if number % 2 else "ring", box)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder, truth


def share(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, wide) * max(0.0, high)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
    return both / (sum(areas) - both)


def test_things_are_found_named_and_written(
    photos: tuple[Path, dict[str, tuple[str, Edges]]],
    encoder: Encoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, truth = photos
    out = tmp_path / "found"
    result = selfsight.discover(str(folder), model=encoder, out=str(out), most=1, clusters=4)
    file = coco.read((out / "objects.json").read_bytes())
    assert result.items == 24 and result.set_aside == 1 and result.objects == sum(c.objects for c in result.clusters)
    assert [each.objects for each in result.clusters] == sorted((e.objects for e in result.clusters), reverse=True)
    hits = {}
    for called, (_, box) in truth.items():
        for one in file.images[called].outlines if called in file.images else ():
            mask = decode(one.region)  # type: ignore[arg-type]
            y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            edges = one.box.x0, one.box.y0, one.box.x1, one.box.y1  # type: ignore[union-attr]
            assert mask.shape == (SIDE, SIDE) and edges == (x[0], y[0], x[-1] + 1, y[-1] + 1)
            assert 0 < (one.score or 0) <= 1
            hits[called] = share(edges, box)
    centre = (SIDE / 4, SIDE / 4, 3 * SIDE / 4, 3 * SIDE / 4)
    by_chance = np.mean([share(centre, box) >= 0.5 for _, box in truth.values()])
    assert np.mean([hits.get(called, 0) >= 0.5 for called in truth]) >= 0.7 > by_chance + 0.3

    sheets = open_source(str(out / "clusters"))
    kind = {}  # an oracle names each cluster by most of what it holds, and leaves the smallest without a name
    for each in result.clusters:
        held = [truth[called][0] for called, image in file.images.items() if image.outlines[0].label == each.name]
        kind[each.name] = max(set(held), key=held.count)
    for row in sheets.usable.select(["id", "uri"]).to_pylist():
        if (name := Path(row["uri"]).stem) != result.clusters[-1].name:
            sheets.decisions.decide(row["id"], None, "label", kind[name])
    named = selfsight.discover(str(folder), out=str(out), named=True)
    renamed = coco.read((out / "named.json").read_bytes())
    assert named.unnamed == result.clusters[-1].objects and named.objects == result.objects - named.unnamed
    assert set(renamed.classes) <= {"ring", "square"}
    right = [image.outlines[0].label == truth[called][0] for called, image in renamed.images.items()]
    assert len(right) == named.pictures and np.mean(right) >= 0.8
    show(result)
    show(named)
    said = capsys.readouterr().out
    assert f"selfsight label {out / 'clusters'}" in said and "--named" in said and "train detect" in said
    with Image.open(out / "discover.png") as sheet:
        assert sheet.width > 8 * 160


def test_mistakes_are_one_sentence(tmp_path: Path, encoder: Encoder) -> None:
    photos, out = write_folder(tmp_path / "photos", 3), str(tmp_path / "found")
    with pytest.raises(SelfsightError, match="--model says how pictures are seen"):
        selfsight.discover(str(photos), out=out)
    with pytest.raises(SelfsightError, match="--most and --clusters are 1 or more, not 0 and 12"):
        selfsight.discover(str(photos), out=out, model=encoder, most=0)
    with pytest.raises(SelfsightError, match="--size is at least"):
        selfsight.discover(str(photos), out=out, model=encoder, size=8)
    with pytest.raises(SelfsightError, match=r"holds no objects\.json\. First: selfsight discover"):
        selfsight.discover(str(photos), out=out, named=True)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "objects.json").write_text("{}")
    with pytest.raises(SelfsightError, match="holds objects that were found before"):
        selfsight.discover(str(photos), out=out, model=encoder)
    with pytest.raises(DataError, match=r"objects\.json cannot be read: not a COCO file"):
        selfsight.discover(str(photos), out=out, named=True)
    (tmp_path / "found" / "objects.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(DataError, match="clusters is not there"):
        selfsight.discover(str(photos), out=out, named=True)
