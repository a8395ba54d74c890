"""label: the process that serves the page, what a kill leaves, and the file of labels."""

from __future__ import annotations

import csv
import http.client
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_encoder, write_folder
from opened import Opened

import selfsight
from selfsight.data.boxed import Boxed
from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.errors import MachineError
from selfsight.pages.answers import Answers
from selfsight.verbs.label import COLUMNS, Labelling, show


class Page(Opened):
    """The command, with what it answers."""

    def answer(self, item: str, *labels: str) -> Any:
        return self.ask("POST", "api/answer", {"id": item, "labels": labels})


@contextmanager
def page(*words: str) -> Iterator[Page]:
    there = Page("label", *words)
    try:
        yield there
    finally:
        there.kill()
        there.wait(20)


@pytest.fixture
def photos(images: Callable[..., Path]) -> Path:
    return images(40, size=(12, 16))


def ids_of(source: Path) -> list[str]:
    return open_source(source).usable["id"].to_pylist()  # type: ignore[no-any-return]


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


# -- the process --


def test_a_kill_while_answers_are_given_loses_none_and_a_restart_goes_on(photos: Path) -> None:
    confirmed: list[tuple[str, str]] = []
    with page(str(photos)) as first:
        order = first.ask("GET", "api/state")["order"]
        assert order == ids_of(photos)

        def give() -> None:
            try:
                for i, item in enumerate(order * 50):
                    first.answer(item, f"c{i % 7}")
                    confirmed.append((item, f"c{i % 7}"))
            except (OSError, http.client.HTTPException):
                return  # killed

        giving = threading.Thread(target=give)
        giving.start()
        while len(confirmed) < 25:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait(20)
        giving.join(20)
    assert 25 <= len(confirmed) < 50 * len(order)
    decisions, _ = Journal(open_source(photos).path).read()
    kept = [(d.id, d.new) for d in decisions]
    assert kept[: len(confirmed)] == confirmed and len(kept) <= len(confirmed) + 1  # one may not have been confirmed
    labelled = {item for item, _ in kept}
    with page(str(photos), "--json") as second:
        state = second.ask("GET", "api/state")
        assert state["labels"] == {d.id: [d.new] for d in decisions} and state["now"]["damaged"] == 0
        left = [item for item in order if item not in labelled]
        assert state["order"][: len(left)] == left  # unlabelled ones first
        for item in left:
            second.answer(item, "c0")
        second.send_signal(signal.SIGINT)
        out, err = second.communicate(timeout=20)
    assert second.returncode == 0 and not err, err
    told = json.loads(out)
    assert (told["given"], told["labelled"], told["items"]) == (len(left), 40, 40)
    assert len(list(Path(told["journal"]).glob("*.jsonl"))) == (2 if left else 1)


def test_ctrl_c_says_how_many_and_where_and_no_name_is_logged(photos: Path, tmp_path: Path, cache: Path) -> None:
    order = ids_of(photos)[::-1]
    ask = tmp_path / "ask.csv"
    ask.write_text("\n".join(["rank,id,path,label", *(f"{i},{item},x.png," for i, item in enumerate(order))]))
    with page(str(photos), "--by", "anna", "--ask", str(ask)) as there:
        assert there.ask("GET", "api/state")["order"] == order
        for item in order[:3]:
            there.answer(item, "secret-class")
        there.ask("POST", "api/undo", {})
        there.send_signal(signal.SIGINT)
        out, err = there.communicate(timeout=20)
    assert there.returncode == 0
    assert "2 labels given.\n2 of 40 items have a label (2 secret-class).\n" in out
    assert str(open_source(photos).decisions.folder) in out and "cache clear keeps it" in out
    assert f"selfsight label {photos} --export labels.csv" in out
    said = there.said + err
    assert "Label 40 items here" in said and len(said.splitlines()) == 2 and there.token in said
    assert not any(word in said for word in (*order[:3], "secret-class", ".png", "GET", "POST"))


def test_boxes_are_drawn_until_ctrl_c(photos: Path) -> None:
    box = {"label": "dent", "x0": 1, "y0": 2, "x1": 9, "y1": 8}
    with page(str(photos), "--kind", "box", "--classes", "spot, dent") as there:
        state = there.ask("GET", "api/state")
        assert (state["order"], state["classes"]) == (ids_of(photos), {"spot": 0, "dent": 0})
        there.ask("POST", "api/boxes", {"id": state["order"][0], "boxes": [box]})
        there.ask("POST", "api/boxes", {"id": state["order"][1], "boxes": []})
        there.send_signal(signal.SIGINT)
        out, err = there.communicate(timeout=20)
    assert there.returncode == 0 and "Draw boxes on 40 items here" in there.said and not err
    assert "2 items answered.\n2 of 40 items have boxes (1 dent).\n" in out
    assert f"selfsight label {photos} --kind box --export boxes.json" in out
    known = Boxed.of(Labels.of(open_source(photos), kind="boxes"))
    assert known.names == ("dent",) and [len(value) for value in known.values] == [1, 0]


def test_what_is_in_the_way_is_one_sentence(photos: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(selfsight.SelfsightError, match=f"Port {port} cannot be used"):
            selfsight.label(str(photos), port=port)
    with pytest.raises(selfsight.SelfsightError, match=r"written as \.csv"):
        selfsight.label(str(photos), export="labels.xlsx")
    with pytest.raises(selfsight.SelfsightError, match="in the folder of the images"):
        selfsight.label(str(photos), export=str(photos / "labels.csv"))
    with pytest.raises(selfsight.SelfsightError, match="name of a person"):
        selfsight.label(str(photos), by="a|b")


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_packages_it_says_what_to_install_and_exports(
    photos: Path, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("selfsight.pages.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # what an import finds of a package that is not installed
    with pytest.raises(MachineError) as said:
        selfsight.label(str(photos))
    assert str(said.value) == f"Pages need {missing}: pip install 'selfsight[serve]'"
    assert selfsight.label(str(photos), export=str(tmp_path / "labels.csv")).exported


def test_suggestions_come_from_the_model_and_the_order_from_a_table_of_paths(photos: Path, tmp_path: Path) -> None:
    """Half of the pictures are dark, and three labels say so of all."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "plates"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray((rng.integers(0, 40, (32, 32, 3)) + 200 * (i % 2)).astype(np.uint8)).save(
            folder / f"{i:02d}.png"
        )
    from selfsight.encoders.store import save

    save(tiny_encoder(), tmp_path / "encoder")
    dark = {row["id"]: int(row["uri"][:2]) % 2 == 0 for row in open_source(folder).usable.to_pylist()}
    ids = dict(zip(open_source(folder).usable["uri"].to_pylist(), ids_of(folder), strict=True))
    chosen = [f"{i:02d}.png" for i in (7, 4, 19, 0)]
    (tmp_path / "ask.csv").write_text("\n".join(["Path,label", *(f"{name}," for name in chosen)]))
    with page(str(folder), "--model", str(tmp_path / "encoder"), "--ask", str(tmp_path / "ask.csv")) as there:
        state = there.ask("GET", "api/state")
        assert state["suggests"] and "Label 4 items" in there.said
        assert state["order"] == [ids[name] for name in chosen]
        for wanted in (True, False):
            there.answer(next(item for item in state["order"] if dark[item] is wanted), "dark" if wanted else "light")
        for item, is_dark in dark.items():
            first = there.ask("GET", f"api/items/{item}")["suggestions"][0]
            if item not in there.ask("GET", "api/state")["labels"]:
                assert first["name"] == ("dark" if is_dark else "light"), item


# -- what is asked --


def test_an_ask_that_does_not_fit_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    ask = tmp_path / "ask.csv"
    with pytest.raises(selfsight.SelfsightError, match=r"ask\.csv does not exist\. Check its path"):
        selfsight.label(str(photos), ask=str(ask))
    ask.write_text("path,label\nnothing.png,\n000.png,\n")
    with pytest.raises(selfsight.SelfsightError, match=r"names 1 items that are not in .*: nothing\.png\. Was it made"):
        selfsight.label(str(photos), ask=str(ask))
    ask.write_text("file,label\n000.png,\n")
    with pytest.raises(selfsight.SelfsightError, match="no column id or path"):
        selfsight.label(str(photos), ask=str(ask))
    ask.write_text("path,label\n")
    with pytest.raises(selfsight.SelfsightError, match="names no item that can be read"):
        selfsight.label(str(photos), ask=str(ask))


# -- the file of labels --


def test_what_was_exported_is_read_back(photos: Path, tmp_path: Path) -> None:
    answers = Answers(open_source(photos), "anna")
    for i, item in enumerate(answers.ids[:9]):
        answers.give(item, [("good", 'a "quoted", class', "ünï", "-1")[i % 4]])
    answers.undo()
    ben = Answers(open_source(photos), "ben")
    ben.give(answers.ids[0], ["bad"])
    out = tmp_path / "labels.csv"
    result = selfsight.label(str(photos), export=str(out))
    assert (result.exported, result.labelled, result.items, result.given) == (str(out), 8, 40, 0)
    rows = table(out)
    assert len(rows) == 8 and tuple(rows[0]) == COLUMNS
    assert {row["by"] for row in rows} == {"anna", "ben"} and [row["by"] for row in rows if row["label"] == "bad"] == [
        "ben"
    ]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["time"]) for row in rows)
    fresh = write_folder(tmp_path / "elsewhere" / "photos", 40, size=(12, 16))  # the same pictures, no journal
    read = Labels.of(open_source(fresh), path=str(out))
    assert not open_source(fresh).decisions.files
    assert {item: value for item, value in zip(read.ids, read.values, strict=True) if value} == {
        item: names[0] for item, names in ben.labels.items()
    }
    by_path = tmp_path / "paths.csv"
    by_path.write_text(
        "\n".join(["path,label", *(f'{row["path"]},"{row["label"].replace(chr(34), chr(34) * 2)}"' for row in rows)])
    )
    assert Labels.of(open_source(fresh), path=str(by_path)).values == read.values


def test_several_classes_and_the_column_are_exported_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 4, size=(12, 16))
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    (folder / "t.csv").write_text(
        "\n".join(["path,label", f"{names[0]},a", f"{names[1]},b|a", f"{names[2]},", f"{names[3]},c"])
    )
    items = selfsight.import_(str(folder / "t.csv"), out=str(tmp_path / "x.lance"))
    assert items
    collection = Collection.open(tmp_path / "x.lance")
    ids = dict(zip(collection.usable["uri"].to_pylist(), collection.usable["id"].to_pylist(), strict=True))
    answers = Answers(collection, "anna")
    answers.give(ids[names[2]], ["d", "a"])
    answers.give(ids[names[3]], ["c", "e"])
    answers.undo()
    out = tmp_path / "labels.csv"
    selfsight.label(str(tmp_path / "x.lance"), export=str(out))
    rows = {row["path"]: (row["label"], row["by"]) for row in table(out)}
    assert rows == {names[0]: ("a", ""), names[1]: ("a|b", ""), names[2]: ("a|d", "anna"), names[3]: ("c", "anna")}
    read = Labels.of(open_source(folder), path=str(out), kind="classes")
    values = dict(zip(read.rows["uri"].to_pylist(), read.values, strict=True))
    assert values == {names[0]: ("a",), names[1]: ("a", "b"), names[2]: ("a", "d"), names[3]: ("c",)}


def test_folder_names_are_no_labels_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "sorted" / "good", 4, size=(12, 16))
    out = tmp_path / "labels.csv"
    result = selfsight.label(str(tmp_path / "sorted"), export=str(out))
    assert result.labelled == 0 and table(out) == [] and out.read_text().strip() == ",".join(COLUMNS)
    assert Labels.of(open_source(tmp_path / "sorted")).kind == "class"  # as other verbs see them
    show(result)
    assert f"0 of 4 items have a label.\nWritten to {out}" in capsys.readouterr().out


def test_damage_and_disputes_are_told(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answers = Answers(open_source(photos), "anna")
    ben = Answers(open_source(photos), "ben")
    for i, item in enumerate(answers.ids[:4]):
        answers.give(item, ["a"])
        ben.give(item, ["b" if i == 0 else "a"])
    with open_source(photos).decisions.files[-1].open("ab") as segment:
        segment.write(b'{"time": 1, "id": "')
    result = selfsight.label(str(photos), export=str(tmp_path / "labels.csv"))
    assert (result.damaged, result.disputed, result.labelled) == (1, 1, 4)
    show(result)
    captured = capfd.readouterr()
    assert "1 line of the journal is cut" in captured.err
    assert (
        "anna and ben agree on 75 % of 4 items, kappa 0.00." in captured.out
        and "People differ about 1 item:" in captured.out
    )
    assert isinstance(result, Labelling) and result.to_dict()["agreement"][0]["same"] == 0.75


def test_forget_names_the_file_of_labels(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from selfsight.verbs.forget import show as show_forgotten

    answers = Answers(open_source(photos))
    answers.give(answers.ids[0], ["a"])
    out = tmp_path / "labels.csv"
    selfsight.label(str(photos), export=str(out))
    forgotten = selfsight.forget(str(photos), answers.ids[0])
    assert [(each.kind, each.path) for each in forgotten.elsewhere] == [("labels", str(out))]
    show_forgotten(forgotten)
    assert f"{out} still holds labels of them" in capsys.readouterr().out
    assert answers.ids[0] not in "".join(file.read_text() for file in open_source(photos).decisions.files)
    assert out.exists()
