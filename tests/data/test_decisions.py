"""The journal of what people decided: appended, merged, undone, forgotten; several writers, cut lines, older files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from selfsight.data.decisions import Journal
from selfsight.errors import SelfsightError

BOX = {"label": "cat", "x0": 0.0, "y0": 1.5, "x1": 8.0, "y1": 9.0}


def write_segment(folder: Path, name: str, *lines: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(lines))


def line(time: float, item: str, new: object, field: str = "label") -> str:
    entry = {"time": time, "id": item, "content_hash": "h", "field": field, "old": None, "new": new, "by": "ann"}
    return json.dumps(entry) + "\n"


def test_a_decision_is_appended_and_undone_by_the_inverse(tmp_path: Path):
    journal = Journal(tmp_path / "photos.lance")
    decision = journal.decide("a", "hash", "label", "cat", old="dog")
    (file,) = (tmp_path / "photos.decisions").glob("*.jsonl")
    first = file.read_bytes()
    journal.undo(decision, by="ann")
    assert file.read_bytes().startswith(first)
    entries = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [list(entry) for entry in entries] == [["time", "id", "content_hash", "field", "old", "new", "by"]] * 2
    assert [list(entry.values())[1:] for entry in entries] == [
        ["a", "hash", "label", "dog", "cat", "local"], ["a", "hash", "label", "cat", "dog", "ann"],
    ]  # fmt: skip
    assert Journal(tmp_path / "photos.lance").latest("label")["a"].new == "dog"


def test_every_value_of_every_field_comes_back(tmp_path: Path):
    values = [("label", "é\n\ud800"), ("label", ["a", "b"]), ("label", 2.5), ("label", None), ("drop", True)]
    values += [("keep", False), ("boxes", [BOX]), ("boxes", []), ("mask", {"cell": {"size": [2, 2], "counts": "04"}})]
    journal = Journal(tmp_path / "c.lance")
    for field, value in values:
        journal.decide("a", None, field, value)
    assert [(decision.field, decision.new) for decision in journal.read()[0]] == values


@pytest.mark.parametrize(
    ("field", "value"),
    [("colour", "red"), ("label", True), ("label", float("nan")), ("label", [1]), ("drop", 1), ("keep", "yes"),
     ("boxes", BOX), ("boxes", [{"label": "cat"}]), ("mask", "m.png"), ("mask", {"cell": "m.png"})],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(tmp_path: Path, field: str, value: object):
    with pytest.raises(SelfsightError, match=field):
        Journal(tmp_path / "c.lance").decide("a", None, field, value)  # type: ignore[arg-type]
    assert not (tmp_path / "c.decisions").exists()


def test_segments_are_merged_by_time_segment_and_line(tmp_path: Path):
    folder = tmp_path / "c.decisions"
    write_segment(folder, "2-b.jsonl", line(1.0, "a", "third"), line(0.5, "a", "first"), line(3.0, "b", "x"))
    write_segment(folder, "1-a.jsonl", line(1.0, "a", "second"), line(1.0, "c", "one"), line(1.0, "c", "two"))
    journal = Journal(tmp_path / "c.lance")
    assert [decision.new for decision in journal.read()[0]] == ["first", "second", "one", "two", "third", "x"]
    assert {item: decision.new for item, decision in journal.latest("label").items()} == {
        "a": "third", "b": "x", "c": "two",
    }  # fmt: skip


def test_a_line_that_was_cut_is_counted_and_skipped_and_nothing_is_written_after_it(tmp_path: Path):
    write_segment(tmp_path / "c.decisions", "1-a.jsonl", line(1.0, "a", "cat"), line(2.0, "b", "dog")[:-20])
    journal = Journal(tmp_path / "c.lance")
    journal.decide("c", None, "label", "bird")
    decisions, skipped = Journal(tmp_path / "c.lance").read()
    assert [decision.id for decision in decisions] == ["a", "c"] and skipped == 1
    assert journal.remembered({"a", "b", "x"}) == {"a", "b"}


def test_what_an_older_version_wrote_is_read_and_overridden(tmp_path: Path):
    old = {"time": 1.0, "id": "a", "field": "label", "old": None, "new": "cat", "by": "ann"}
    (tmp_path / "decisions.jsonl").write_text(json.dumps(old) + "\n" + json.dumps(old | {"id": "b"}) + "\n")
    journal = Journal(tmp_path / "c.lance")
    journal.decide("a", "h", "label", "dog")
    assert {item: (d.new, d.content_hash) for item, d in journal.latest("label").items()} == {
        "a": ("dog", "h"), "b": ("cat", None),
    }  # fmt: skip


def test_writers_have_segments_of_their_own(tmp_path: Path):
    """Four processes at once: nothing is lost, no line is mixed with another."""
    code = (
        "import sys; from pathlib import Path; from selfsight.data.decisions import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for i in range(20): journal.decide(f'{sys.argv[2]}-{i}', None, 'drop', True)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "c.lance")]
    writers = [subprocess.Popen([*arguments, str(number)]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    decisions, skipped = Journal(tmp_path / "c.lance").read()
    assert {decision.id for decision in decisions} == {f"{w}-{i}" for w in range(4) for i in range(20)}
    assert skipped == 0 and len(list((tmp_path / "c.decisions").glob("*.jsonl"))) == 4


def test_forgetting_leaves_no_line_that_names_the_item(tmp_path: Path):
    (tmp_path / "decisions.jsonl").write_text(line(0.0, "b", "old-secret") + line(0.0, "a", "kept"))
    journal = Journal(tmp_path / "c.lance")
    journal.decide("a", None, "label", "also kept")
    journal.decide("b", None, "label", "secret")
    write_segment(tmp_path / "c.decisions", "0-cut.jsonl", line(1.0, "b", 'secret "quoted"')[:-15])
    journal.forget({"b"})
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret" not in everything and b'"b"' not in everything
    assert [decision.new for decision in journal.read()[0]] == ["kept", "also kept"]
    assert not (tmp_path / "c.decisions" / "0-cut.jsonl").exists()
    journal.decide("a", None, "label", "later")  # the same writer goes on in what is left of its segment
    assert journal.latest("label")["a"].new == "later"


def test_a_clock_that_is_set_back_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal, now = Journal(tmp_path / "c.lance"), iter([10.0, 5.0])
    monkeypatch.setattr("selfsight.data.decisions.time.time", lambda: next(now))
    for name in ("before", "after"):
        journal.decide("a", None, "label", name)
    assert journal.latest("label")["a"].new == "after"
