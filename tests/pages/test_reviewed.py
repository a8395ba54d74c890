"""What is decided of doubted items: a case is done by decisions about its items, whoever made them, and the journal is
all that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_folder

from selfsight.curation.automatic import SIGNED, by_people, undo
from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.errors import DataError, SelfsightError
from selfsight.pages.reviewed import Reviewed, cases_of


def issues_of(ids: list[str]) -> dict[str, Any]:
    """Two pairs that share an item, two strays, two doubted labels; and what `curate --json` says beside."""
    a, b, c, d, e, f, g, *_ = ids

    def one(item: str, score: float, **more: object) -> dict[str, object]:
        return {"id": item, "uri": "x", "score": score, **more}

    return {
        "near_duplicates": {
            "estimated": 1,
            "items": [one(a, 0.9, pair={"id": b, "uri": "y"}), one(b, 0.8, pair={"id": c, "uri": "y"})],
        },
        "off_topic": {"estimated": 1, "items": [one(d, 0.7), one(e, 0.6)]},
        "label_errors": {"estimated": 2, "items": [one(f, 0.5, suggested="dent"), one(g, 0.4, suggested="spot")]},
        "dark": {"estimated": 0, "items": []},
        "items": 12, "notes": ["two things"],
        "slim": {"file": "slim.csv", "items": 3}, "sources": [{"items": 4}], "intervals": {"dark": [0, 0]},
    }  # fmt: skip


def outcomes(reviewed: Reviewed) -> list[str]:
    return [reviewed.outcome(number) for number in range(len(reviewed.cases))]


def lines(items: Collection) -> list[tuple[str, str, object, object]]:
    return [(d.id, d.field, d.old, d.new) for d in Journal(items.path).read()[0]]


def test_each_kind_of_case_is_done_by_its_decisions(items: Collection) -> None:
    ids = items.usable["id"].to_pylist()
    a, b, c, d, e, f, g, *_ = ids
    reviewed = Reviewed(items, issues_of(ids))
    assert outcomes(reviewed) == [""] * 6 and reviewed.open == 6
    reviewed.decide([a, b], "keep")
    assert outcomes(reviewed) == ["both kept", "", "", "", "", ""]
    reviewed.decide([c], "drop")
    reviewed.decide([d], "keep")
    reviewed.decide([e], "drop")
    reviewed.decide([f], "label", "dent")
    assert outcomes(reviewed) == ["both kept", "right dropped", "kept", "dropped", "label dent", ""]
    reviewed.decide([b], "drop")  # and is not kept any more
    assert outcomes(reviewed)[:2] == ["right dropped", "left and right dropped"]
    reviewed.decide([g], "keep")
    assert reviewed.open == 0 and reviewed.given == 7
    assert lines(items) == [
        (a, "keep", None, True), (b, "keep", None, True), (c, "drop", None, True), (d, "keep", None, True),
        (e, "drop", None, True), (f, "label", None, "dent"), (b, "keep", True, False), (b, "drop", None, True),
        (g, "keep", None, True),
    ]  # fmt: skip
    reviewed.decide([g], "keep")
    assert len(lines(items)) == 9 and reviewed.given == 7  # what counts already is not written again


def test_a_label_of_a_stray_does_not_decide_of_it(items: Collection) -> None:
    ids = items.usable["id"].to_pylist()
    reviewed = Reviewed(items, issues_of(ids))
    reviewed.decide([ids[3]], "label", "dent")
    assert outcomes(reviewed)[2] == "" and reviewed.label(ids[3]) == ("dent",)


def test_any_order_of_decisions_and_undos_reads_back_the_same(items: Collection) -> None:
    ids = items.usable["id"].to_pylist()
    reviewed, rng = Reviewed(items, issues_of(ids)), np.random.default_rng(0)
    before = [outcomes(reviewed)]
    for _ in range(60):
        if rng.random() < 0.4:
            undone = reviewed.undo()
            if len(before) > 1:
                before.pop()
                assert undone
            assert outcomes(reviewed) == before[-1]
            continue
        given = reviewed.given
        some = rng.choice(ids[:7], int(rng.integers(1, 3)), replace=False).tolist()
        action = str(rng.choice(["keep", "drop", "label"]))
        reviewed.decide(some, action, str(rng.choice(["dent", "spot"])))  # type: ignore[arg-type]
        if reviewed.given > given:
            before.append(outcomes(reviewed))
        fresh = Reviewed(Collection.open(items.path), issues_of(ids))
        assert outcomes(fresh) == outcomes(reviewed) and fresh.lost == 0
    while reviewed.undo():
        pass
    assert outcomes(reviewed) == [""] * 6 and outcomes(Reviewed(items, issues_of(ids))) == [""] * 6


def test_what_others_decided_counts_and_is_not_taken_back(items: Collection) -> None:
    ids = items.usable["id"].to_pylist()
    anna, ben = (Reviewed(Collection.open(items.path), issues_of(ids), by) for by in ("anna", "ben"))
    anna.decide([ids[3]], "drop")
    ben.refresh()
    assert outcomes(ben)[2] == "dropped"
    ben.decide([ids[3]], "keep")
    for _ in range(2):  # also what ben took back is what ben said last
        with pytest.raises(SelfsightError, match="ben decided about this again since"):
            anna.undo()
        ben.undo()
    assert {d.by for d in Journal(items.path).read()[0]} == {"anna", "ben"}


def test_another_content_is_another_item(items: Collection) -> None:
    ids = items.usable["id"].to_pylist()
    items.decisions.decide(ids[3], "of another picture", "drop", True)
    items.decisions.decide(ids[4], None, "drop", True)  # older journals name no content
    assert outcomes(Reviewed(items, issues_of(ids)))[2:4] == ["", "dropped"]


def test_cases_of_items_that_are_gone_are_counted(items: Collection) -> None:
    ids = items.usable["id"].to_pylist()
    reviewed = Reviewed(items, issues_of(["0" * 32, *ids]))
    assert reviewed.lost == 1 and len(reviewed.cases) == 5


@pytest.mark.parametrize(
    "issues",
    [
        {"dark": {"estimated": 1}}, {"dark": {"estimated": "x", "items": []}}, {"dark": {"estimated": 1, "items": 5}},
        {"dark": {"estimated": 1, "items": [{"id": "a"}]}}, {"dark": {"estimated": 1, "items": ["a"]}},
        {"dark": {"estimated": 1, "items": [{"id": "a", "score": 1, "pair": {"uri": "b"}}]}},
    ],
)  # fmt: skip
def test_what_is_no_result_of_curate_is_one_sentence(issues: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"no issues\.json of selfsight curate"):
        cases_of(issues)


def test_an_undo_gives_back_the_label_that_nobody_had_decided(tmp_path: Path) -> None:
    for seed, name in enumerate(("good", "bad")):
        write_folder(tmp_path / "parts" / name, 4, seed=seed)
    items = open_source(tmp_path / "parts")
    ids = items.usable["id"].to_pylist()
    before = Labels.of(items).values
    reviewed = Reviewed(items, issues_of(ids))
    reviewed.decide([ids[5]], "label", "dent")
    assert Labels.of(Collection.open(items.path)).values[5] == "dent" and outcomes(reviewed)[4] == "label dent"
    reviewed.undo()
    assert Labels.of(Collection.open(items.path)).values == before and outcomes(reviewed)[4] == ""


def test_what_a_person_confirms_outlasts_an_automatic_decision(items: Collection) -> None:
    ids = items.usable["id"].to_pylist()
    Journal(items.path).decide(ids[3], None, "drop", True, by=f"{SIGNED} then")
    reviewed = Reviewed(Collection.open(items.path), issues_of(ids))
    reviewed.decide([ids[3]], "drop")
    undo(Collection.open(items.path))
    assert Collection.open(items.path).decisions.latest("drop")[ids[3]].new is True
    assert by_people(Collection.open(items.path)).usable.num_rows == items.usable.num_rows - 1
