"""Sources of a collection: what is told of them from its images, by the verb and by files that travel."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from helpers import SMALL_RECIPE, tiny_encoder
from PIL import Image
from safetensors.torch import load_file

import selfsight
from selfsight.curation.summaries import MOST_BYTES, summarise, to_json
from selfsight.curation.told import noise_share, source_column
from selfsight.data.batches import Batches
from selfsight.data.canvases import Streamed
from selfsight.data.importers import open_source
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import read_folder, save
from selfsight.errors import DataError, SelfsightError
from selfsight.training.losses import RunLoss
from selfsight.verbs.curate import show
from selfsight.views.make import make_views

SITES = ("east", "inverted", "noisy", "north", "south", "west")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sites of 24 pictures, bright discs and squares on a dark ground; one is inverted, one noisy. The table
    beside them has the columns label and site."""
    folder, rng = tmp_path_factory.mktemp("sites"), np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] - 15.5
    rows = []
    for site in SITES:
        (folder / site).mkdir()
        for i in range(24):
            label, size, at = ("disc", "square")[i % 2], rng.uniform(5, 9), rng.uniform(-5, 5, 2)
            away = np.hypot(x - at[0], y - at[1]) if label == "disc" else np.maximum(abs(x - at[0]), abs(y - at[1]))
            pixels = 40 + 120 * (away[..., None] < size) * rng.uniform(0.8, 1.2, 3) + rng.normal(0, 3, (32, 32, 3))
            pixels = 255 - pixels if site == "inverted" else pixels
            pixels = pixels + rng.normal(0, 60, pixels.shape) if site == "noisy" else pixels
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / site / f"{i:02d}.png")
            rows.append((f"{site}/{i:02d}.png", label, site))
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "site"), *rows])
    return folder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


def test_the_inverted_and_the_noisy_site_are_shown_and_dropped(
    sites: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sites, tmp_path / "sites")
    table = str(tmp_path / "sites" / "items.csv")
    found = selfsight.curate(table, model=encoder, out=str(tmp_path / "report"), auto=0.01)
    assert found.sources is not None
    assert {one.source: one.verdict for one in found.sources[:2]} == {"inverted": "remove", "noisy": "remove"}
    assert all(one.verdict != "remove" for one in found.sources[2:])
    listed = json.loads((tmp_path / "report" / "issues.json").read_text())
    assert [one["source"] for one in listed["sources"]] == [one.source for one in found.sources]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "its images are inverted" in page and page.count("<tr><th>north</th>") == 1
    show(found)
    assert "its pixels are noise for a great part" in capsys.readouterr().out
    left = {uri.split("/")[0] for uri in open_source(table).usable["uri"].to_pylist()}
    assert left == {"east", "north", "south", "west"}


def test_files_that_travel_say_the_same(sites: Path, encoder: Encoder, tmp_path: Path) -> None:
    save(encoder, tmp_path / "encoder")
    model, told = str(tmp_path / "encoder"), tmp_path / "told"
    for site in SITES:
        given = selfsight.curate(str(sites / site), model=model, summary=str(told / f"{site}.json"))
        assert given.items == 24 and given.summary == str(told / f"{site}.json")
        assert not any(f"{i:02d}.png" in (told / f"{site}.json").read_text() for i in range(24))
    apart = selfsight.curate(str(told), summaries=True).sources
    found = selfsight.curate(str(sites / "items.csv"), model=model)
    harmful, whole = found.faults["harmful_sources"], found.sources
    assert harmful.estimated == 48
    assert {item.uri.split("/")[0] for item in harmful.items} == {"inverted", "noisy"}
    assert apart is not None and whole is not None
    for one, other in zip(apart, whole, strict=True):  # the folders of a site alone give no labels
        assert (one.source, one.verdict) == (other.source, other.verdict)
        assert one.evidence["inverted"].value == pytest.approx(other.evidence["inverted"].value, abs=2e-3)
        assert one.difference.value == pytest.approx(other.difference.value, abs=2e-3)


def test_a_run_gives_the_loss_of_its_objective(sites: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE)
    run, table = str(tmp_path / "run"), str(sites / "items.csv")
    selfsight.pretrain(table, out=run, recipe=str(tmp_path / "recipe.yaml"), steps=1)
    sources = selfsight.curate(table, model=run).sources
    assert sources is not None and all(one.loss is not None for one in sources)
    items = open_source(table)
    rows = items.usable.filter(pc.equal(items.usable["site"], "north"))
    loss = RunLoss(Path(run), read_folder(tmp_path / "run" / "encoder").geometry.format, items)
    found = loss.of(rows)
    assert len(found) == 3 and (found == loss.of(rows)).all() and not loss.of(rows.slice(0, 15)).size
    # As by hand: the weights of the checkpoint, two views of each image, the batch by itself.
    objective, weights = (
        loss.objective,
        load_file(next((tmp_path / "run" / "checkpoints").glob("*/module.safetensors"))),
    )
    assert all(torch.equal(objective.state_dict()[name], tensor) for name, tensor in weights.items())
    batches = Batches(Streamed(items, loss.format, loss.recipe.canvas_side, 1, rows=rows), 8, loss.recipe.seed)
    views = make_views(batches.gather(np.arange(8), 0), objective.views, loss.normalise, loss.recipe.seed)
    with torch.no_grad():
        assert found[0] == pytest.approx(float(objective.eval()(views, 1.0).total), rel=1e-5)


@pytest.mark.parametrize("sigma", [5.0, 20.0])
def test_noise_share_is_that_of_the_variance(sigma: float) -> None:
    rng = np.random.default_rng(0)
    smooth = 60 * np.sin(np.mgrid[:200, :200].sum(0) / 20)[..., None] + 128
    noisy = smooth + rng.normal(0, sigma, smooth.shape)
    assert noise_share(noisy) == pytest.approx(sigma**2 / noisy.var(), rel=0.05)
    edges = 200.0 * (np.mgrid[:200, :200].sum(0) % 40 < 20)[..., None]
    assert noise_share(edges) == 0.0
    assert noise_share(np.full((8, 8, 3), 7.0)) is None and noise_share(np.zeros((1, 8, 1))) is None


def test_mistakes_are_one_sentence(sites: Path, encoder: Encoder, tmp_path: Path) -> None:
    rows = open_source(str(sites / "items.csv")).usable
    assert source_column(rows) == source_column(rows, "site") == "site"
    assert source_column(rows.filter(pc.equal(rows["site"], "north"))) is None
    with pytest.raises(
        DataError, match=r"no column 'sit' to take sources from\. Did you mean site\? .*--columns sit=COLUMN"
    ):
        source_column(rows, "sit")
    with pytest.raises(SelfsightError, match="Give the encoder that all sources use: --model RUN"):
        selfsight.curate(str(sites), summary=str(tmp_path / "a.json"))
    with pytest.raises(SelfsightError, match=r"written as \.json, not as"):
        selfsight.curate(str(sites), model=encoder, summary=str(tmp_path / "a.csv"))
    with pytest.raises(DataError, match=r"holds 0 summaries \(\.json\), and two or more are compared"):
        selfsight.curate(str(tmp_path), summaries=True)
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"Of 2 summaries in .*, 0 can be compared\. left out: .*a\.json is no summary"):
        selfsight.curate(str(tmp_path), summaries=True)


def test_files_that_are_none_do_not_spoil_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    told = {name: json.loads(to_json(summarise(name, "digest", rng.normal(size=(30, 6))))) for name in ("a", "b", "c")}
    for name, summary in told.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(summary))
    clean = selfsight.curate(str(tmp_path), summaries=True)
    assert clean.notes == [] and clean.sources is not None and len(clean.sources) == 3
    other = {"text": "<html>", "next": told["a"] | {"format_version": 2}, "foreign": told["a"] | {"encoder": "another"},
             "escape": told["a"] | {"source": "\x1b[2J"}, "twin": told["a"] | {"source": "t"}}  # fmt: skip
    for name, content in (other | {"twin 2": other["twin"]}).items():
        (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with (tmp_path / "huge.json").open("wb") as huge:
        huge.truncate(10 * MOST_BYTES)
    (tmp_path / "folder.json").mkdir()
    found = selfsight.curate(str(tmp_path), summaries=True)
    assert found.sources == clean.sources
    for said in (
        "folder.json", "text.json is no summary", "huge.json is no summary", "next.json was written by a newer",
        "escape.json is no summary", "of the encoder another", "2 summaries are of a source 't'",
    ):  # fmt: skip
        assert sum(said in note for note in found.notes) == 1
    assert len(found.notes) == 7
    show(found)
    assert "\x1b" not in capsys.readouterr().out
