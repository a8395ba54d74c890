"""What version 0.1.0 wrote is read, and what its verbs said they still say: the fixture was made by commit b83fcf1.

A test here that fails says that people's runs, collections, features, decisions or scripts would break. See
`record.py` for when the stored outputs may be recorded anew.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from stored import (
    COMMANDS,
    FIXTURE,
    HELP,
    ITEM,
    ITEMS,
    JSON,
    answer,
    cache_of,
    differences,
    help_of,
    options_of,
    place,
    say,
    unpack,
)

import selfsight

KEPT = next((FIXTURE / "collection" / "features").glob("*.lance"))  # [24, 16], of the encoder of run/
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
JOURNAL = (FIXTURE / "collection" / "decisions.jsonl").read_text()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder in which all commands were given in their order, and their answers; the journal before `forget` is
    among them."""
    with place(tmp_path_factory.mktemp("done") / "fixture") as work:
        unpack(work)
        answers: dict[str, Any] = {}
        for name in COMMANDS:
            if name == "forget":
                answers["journal"] = (work / "collection" / "decisions.jsonl").read_text()
            answers[name] = answer(name, work)
    yield work, answers


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A fresh copy of the fixture, in which the process is."""
    with place(tmp_path / "fixture") as folder:
        unpack(folder)
        yield folder


DROPPED = "train/square/1.png"  # by a decision in the fixture, which its version kept and did not follow
DROPPED_ID = hashlib.blake2b(f"images\0{DROPPED}\x000".encode(), digest_size=16).hexdigest()


def features_of(table: pa.Table) -> dict[str, np.ndarray]:
    """{id: features [D]}."""
    return {row["id"]: np.array(row["features"]) for row in table.select(["id", "features"]).to_pylist()}


# -- the verbs --


@pytest.mark.parametrize("name", COMMANDS)
def test_json_says_what_it_said(name: str, done: tuple[Path, dict[str, Any]]) -> None:
    stored = json.loads((JSON / f"{name}.json").read_text(encoding="utf-8"))
    assert not differences(stored, done[1][name])


@pytest.mark.parametrize("name", sorted(path.stem for path in HELP.glob("*.txt")))
def test_every_option_is_there_with_its_default(name: str, tmp_path: Path) -> None:
    stored = options_of((HELP / f"{name}.txt").read_text(encoding="utf-8"))
    assert len(stored) > 2 or name == "train", "a group of verbs has one line a verb"
    with place(tmp_path):
        now = options_of(help_of(name))
    assert not stored.keys() - now.keys()
    for name, (default, choices) in stored.items():
        assert now[name][0] == default, name
        assert {*(choices or "").split(", ")} <= {*(now[name][1] or "").split(", "), ""}, name


# -- runs --


def test_a_stopped_run_goes_on_to_where_the_whole_one_came(done: tuple[Path, dict[str, Any]]) -> None:
    whole = load_file(FIXTURE / "run" / "encoder" / "model.safetensors")
    resumed = load_file(done[0] / "stopped" / "encoder" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_an_extended_run_went_further(done: tuple[Path, dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in (done[0] / "run" / "metrics.jsonl").read_text().splitlines()]
    before = (FIXTURE / "run" / "metrics.jsonl").read_text()
    assert (done[0] / "run" / "metrics.jsonl").read_text().startswith(before) and rows[-1]["step"] == 10
    new, old = (load_file(folder / "run" / "encoder" / "model.safetensors") for folder in (done[0], FIXTURE))
    assert any(not torch.equal(new[name], old[name]) for name in old)


def test_the_planned_recipe_trains_what_the_plan_was_made_from(done: tuple[Path, dict[str, Any]]) -> None:
    assert done[1]["pretrain"]["evidence"] == done[1]["pretrain_planned"]["evidence"]


def test_the_report_says_the_verdict(done: tuple[Path, dict[str, Any]]) -> None:
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    assert done[1]["report"]["verdict"]["sentence"][:60] in page


# -- the collection --


def test_the_collection_says_what_its_table_says(work: Path) -> None:
    rows = {row["uri"]: row for row in selfsight.Collection.open(ITEMS).table.to_pylist()}
    with (work / "images" / "items.csv").open(newline="") as file:
        listed = {row["path"]: row for row in csv.DictReader(file)}
    assert rows.keys() == listed.keys()
    for uri, row in rows.items():
        said = listed[uri]
        assert row["id"] == hashlib.blake2b(f"images\0{uri}\x000".encode(), digest_size=16).hexdigest()
        assert (row["label"], row["group"], row["mask"] or "") == (said["class"], said["patient"], said["mask"])
        assert row["status"] == ("set_aside" if uri in ("broken.png", DROPPED) else "ok")
        content = hashlib.blake2b((work / "images" / uri).read_bytes(), digest_size=16).hexdigest()
        assert row["content_hash"] == content
        assert bool(row["boxes"]) == bool(said["boxes"])


# -- features --


def test_features_are_those_that_were_kept(work: Path) -> None:
    shutil.rmtree("collection/features")
    kept = features_of(lance.dataset(str(KEPT)).to_table())
    now = features_of(selfsight.embed(ITEMS, model="run").table)
    assert len(kept) == 24 and now.keys() == kept.keys() - {DROPPED_ID}
    scale = np.abs(np.stack(list(kept.values()))).max()
    for item in now:
        features = kept[item]
        np.testing.assert_allclose(now[item], features, rtol=1e-5, atol=1e-5 * scale)


def test_kept_features_are_used_and_not_computed_again(work: Path) -> None:
    kept = lance.dataset(str(KEPT)).to_table()
    marked = [[value + 1000 * (i == 3) for value in row] for i, row in enumerate(kept["features"].to_pylist())]
    column = pa.array(marked, kept.schema.field("features").type)
    lance.write_dataset(kept.set_column(2, "features", column), f"collection/features/{KEPT.name}", mode="overwrite")
    for image in (work / "images").rglob("train/*/*.png"):
        image.write_bytes(b"no image any more")
    now = features_of(selfsight.embed(ITEMS, model="run").table)
    assert now.keys() == {*kept["id"].to_pylist()} - {DROPPED_ID}
    for item, features in zip(kept["id"].to_pylist(), marked, strict=True):
        if item != DROPPED_ID:
            np.testing.assert_array_equal(now[item], np.array(features, np.float32))


def test_without_kept_features_images_are_read(work: Path) -> None:
    """The control of the test above."""
    shutil.rmtree("collection/features")
    for image in (work / "images").rglob("train/*/*.png"):
        image.write_bytes(b"no image any more")
    assert len(selfsight.embed(ITEMS, model="run").table) == 9


# -- decisions --


def test_no_verb_changes_the_journal_and_forget_only_what_it_is_asked(done: tuple[Path, dict[str, Any]]) -> None:
    work, answers = done
    assert answers["journal"] == JOURNAL
    gone = answers["forget"]["forgotten"][0]["id"]
    assert answers["forget"]["forgotten"][0]["uri"] == ITEM
    lines = JOURNAL.splitlines(keepends=True)
    left = [line for line in lines if gone not in line]
    assert 0 < len(left) < len(lines)
    assert (work / "collection" / "decisions.jsonl").read_text() == "".join(left)


def test_the_journal_holds_what_was_decided() -> None:
    entries = [json.loads(line) for line in JOURNAL.splitlines()]
    assert [(e["field"], e["old"], e["new"], e["by"]) for e in entries] == [
        ("label", "round", "square", "local"),
        ("drop", False, True, "anna"),
        ("label", "square", "round", "local"),
    ]


def test_a_cached_collection_with_decisions_is_not_cleared(work: Path) -> None:
    entry = cache_of(work) / "collections" / "images-0123456789ab"
    shutil.copytree("collection", entry)
    said = json.loads(say("cache", "clear", "--yes", "--json"))
    assert [row["name"] for row in said["kept"]] == [entry.name] and not said["cleared"]
    assert (entry / "decisions.jsonl").read_text() == JOURNAL
    (entry / "decisions.jsonl").unlink()
    assert [row["name"] for row in json.loads(say("cache", "clear", "--yes", "--json"))["cleared"]] == [entry.name]
