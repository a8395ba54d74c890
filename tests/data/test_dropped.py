"""Items that people dropped: set aside for every verb, back when it is undone; a run that was begun keeps its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import SMALL_RECIPE
from PIL import Image

import selfsight
from selfsight.data.collection import DROPPED, Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels, caveats
from selfsight.errors import DataError
from selfsight.training.run import Run
from selfsight.training.show import Show


def drop(items: Collection, *uris: str, value: bool = True) -> None:
    rows = {row["uri"]: row for row in items.table.to_pylist()}
    for uri in uris:
        items.decisions.decide(rows[uri]["id"], rows[uri]["content_hash"], "drop", value, old=not value)


def test_what_is_dropped_is_set_aside_until_it_is_taken_back(images: Callable[..., Path]):
    folder = images(6)
    (folder / "broken.png").write_bytes(b"no picture")
    items = open_source(folder)
    before = items.usable["uri"].to_pylist()
    drop(items, "000.png", "002.png")
    assert items.usable["uri"].to_pylist() == before  # an open collection does not change under its verb
    now = open_source(folder)
    assert now.usable["uri"].to_pylist() == [uri for uri in before if uri not in ("000.png", "002.png")]
    assert now.reasons()[DROPPED] == 2 and now.unreadable["uri"].to_pylist() == ["broken.png"]
    assert now.id_hash() != items.id_hash()
    assert now.deciding(lambda decision: False).id_hash() == items.id_hash()
    drop(now, "000.png", "002.png", value=False)
    assert open_source(folder).id_hash() == items.id_hash()


def test_a_drop_is_of_the_picture_that_was_looked_at(images: Callable[..., Path]):
    folder = images(4)
    drop(open_source(folder), "000.png")
    assert "000.png" not in open_source(folder).usable["uri"].to_pylist()
    Image.new("RGB", (50, 40), "red").save(folder / "000.png")  # a better picture in its place
    assert "000.png" in open_source(folder).usable["uri"].to_pylist()


def test_strict_refuses_broken_files_and_not_what_people_dropped(images: Callable[..., Path]):
    folder = images(4)
    drop(open_source(folder), "000.png")
    assert len(open_source(folder, strict=True).usable) == 3
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        open_source(folder, strict=True)


def test_figures_say_how_many_were_dropped(tmp_path: Path, images: Callable[..., Path]):
    drop(open_source(images(6)), "odd/ones/001.png")
    items = open_source(tmp_path / "photos")
    notes = caveats((items, Labels.of(items)))
    assert any("1 items of" in note and "dropped by decisions" in note for note in notes)
    assert not any("cannot be read" in note for note in notes)


def test_a_copy_of_a_collection_leaves_dropped_items_out(tmp_path: Path, images: Callable[..., Path]):
    selfsight.import_(str(images(6)), out=str(tmp_path / "all.lance"))
    drop(Collection.open(tmp_path / "all.lance"), "000.png")
    selfsight.import_(str(tmp_path / "all.lance"), out=str(tmp_path / "copy.lance"))
    assert "000.png" not in Collection.open(tmp_path / "copy.lance").table["uri"].to_pylist()


def test_a_run_goes_on_to_the_bit_with_what_it_was_begun_with(
    tmp_path: Path, images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    folder = images(12)
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE.replace("canvas_side", "precision: 'no'\n  canvas_side"))

    def train(name: str) -> dict[str, bytes]:
        selfsight.pretrain(str(folder), out=str(tmp_path / name), recipe=str(tmp_path / "recipe.yaml"), steps=6)
        return {file.name: file.read_bytes() for file in (tmp_path / name / "encoder").iterdir()}

    drop(open_source(folder), "000.png")
    whole = train("whole")
    with monkeypatch.context() as patch:
        shown = Show.__call__

        def stopping(self: Show, row: dict[str, object]) -> None:
            shown(self, row)
            signal.raise_signal(signal.SIGINT)

        patch.setattr(Show, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            train("stopped")
    drop(open_source(folder), "002.png", "odd/ones/003.png")
    drop(open_source(folder), "000.png", value=False)
    assert train("stopped") == whole
    pinned = Run(tmp_path / "stopped").read_recipe()[2]
    assert pinned["items"] == 11
    assert [item.uri for item in Run(tmp_path / "stopped").read_set_aside()] == ["000.png"]
    assert train("anew") != whole and Run(tmp_path / "anew").read_recipe()[2]["items"] == 10
