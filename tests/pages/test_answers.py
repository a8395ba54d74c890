"""What people said: the journal after each answer, undo, two people, and what is in dispute."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.errors import MachineError, SelfsightError
from selfsight.pages.answers import Agreement, Answers, names_of


def said(items: Collection) -> list[tuple[object, object, str]]:
    """(old, new, by) of the journal's lines, as any reader finds them."""
    decisions, skipped = Journal(items.path).read()
    assert not skipped and all(d.field == "label" for d in decisions)
    return [(d.old, d.new, d.by) for d in decisions]


def another(items: Collection, by: str, **how: str) -> Answers:
    """Another process's view of the same collection."""
    return Answers(Collection.open(items.path), by, **how)  # type: ignore[arg-type]


def test_each_answer_is_in_the_journal_when_it_was_given(items: Collection) -> None:
    answers = Answers(items, "anna")
    first, second = answers.ids[:2]
    answers.give(first, ["good"])
    assert said(items) == [(None, "good", "anna")]
    answers.give(second, [" bad "])
    answers.give(first, ["bad"])
    assert said(items) == [(None, "good", "anna"), (None, "bad", "anna"), ("good", "bad", "anna")]
    answers.give(first, ["bad"])  # says nothing new
    assert len(said(items)) == 3 and answers.given == 3
    assert Journal(items.path).read()[0][0].content_hash == items.usable["content_hash"][0].as_py()
    assert answers.counts == {"good": 0, "bad": 2} and answers.labels == {first: ("bad",), second: ("bad",)}
    assert another(items, "anna").counts == {"bad": 2}


def test_undo_appends_the_inverse_as_often_as_there_are_answers(items: Collection) -> None:
    answers = Answers(items)
    one, other = answers.ids[:2]
    for item, name in ((one, "a"), (other, "a"), (one, "b"), (one, "a"), (one, "b")):
        answers.give(item, [name])
    before = said(items)
    undone = [answers.undo() for _ in range(6)]
    assert undone == [one, one, one, other, one, None]
    assert said(items)[len(before) :] == [(new, old, by) for old, new, by in reversed(before)]
    for now in (answers, another(items, "local")):
        assert not now.labels and not now.mine and not now.second
    assert answers.given == 0


def test_undo_does_not_touch_what_somebody_else_decided_since(items: Collection) -> None:
    anna, ben = Answers(items, "anna"), another(items, "ben")
    item = anna.ids[0]
    anna.give(item, ["a"])
    ben.give(item, ["b"])
    with pytest.raises(SelfsightError, match="labelled again since, by ben"):
        anna.undo()
    assert ben.undo() == item and anna.undo() == item
    assert [line[:2] for line in said(items)] == [(None, "a"), ("a", "b"), ("b", "a"), ("a", None)]


def test_what_others_write_counts_at_once_and_old_is_what_it_replaces(items: Collection) -> None:
    anna, ben = Answers(items, "anna"), another(items, "ben")
    for i, item in enumerate(anna.ids[:6]):
        (anna, ben)[i % 2].give(item, ["a"])
        (ben, anna)[i % 2].give(item, ["b"])
    assert [line[:2] for line in said(items)] == [(None, "a"), ("a", "b")] * 6
    anna.refresh()
    ben.refresh()
    assert anna.labels == ben.labels == another(items, "cleo").labels


def test_a_dispute_is_settled_by_the_next_answer_of_whoever_knows_of_both(items: Collection) -> None:
    anna, ben = Answers(items, "anna"), another(items, "ben")
    one, two, three, four = anna.ids[:4]
    for item in (one, two, three, four):
        anna.give(item, ["a"])
    assert ben.refresh() is None and ben.second == [one, two, three, four] and not ben.disputed
    for item in (one, two, three):
        ben.give(item, ["b"])
    ben.give(four, ["a"])
    anna.refresh()
    assert anna.disputed == ben.disputed == [one, two, three]
    assert {anna.label(item) for item in (one, two, three)} == {("b",)}  # the latest counts until then
    assert ben.opinions(one) == {"anna": ("a",), "ben": ("b",)}

    anna.give(one, ["b"])  # gives in
    ben.give(two, ["a"])  # gives in: on paper the inverse of ben's answer, and no undo
    ben.give(three, ["b"])  # insists
    for now in (anna, ben, another(items, "cleo")):
        now.refresh()
        assert not now.disputed
        assert [now.label(item) for item in (one, two, three, four)] == [("b",), ("a",), ("b",), ("a",)]
        assert now.agreement == [Agreement("anna", "ben", 4, 0.25, 0.0)]  # of what was said before

    assert ben.undo() == three and ben.disputed == [three]
    assert ben.undo() == two and ben.disputed == [two, three] and ben.label(two) == ("b",)
    assert another(items, "cleo").disputed == [two, three]


def test_taking_back_leaves_no_opinion(items: Collection) -> None:
    anna, ben = Answers(items, "anna"), another(items, "ben")
    item = anna.ids[0]
    anna.give(item, ["a"])
    ben.give(item, ["b"])  # the wrong key
    ben.undo()
    assert not ben.disputed and ben.second == [item] and not ben.agreement and ben.label(item) == ("a",)
    ben.give(item, ["a"])
    assert ben.agreement == [Agreement("anna", "ben", 1, 1.0, None)]
    assert another(items, "cleo").opinions(item) == {"anna": ("a",), "ben": ("a",)}


def test_whatever_two_people_do_a_fresh_reader_knows_the_same(items: Collection) -> None:
    """Random answers and undos: labels, opinions and disputes are functions of the journal alone."""
    chance = random.Random(0)
    people = [Answers(items, "anna"), another(items, "ben"), another(items, "cleo")]
    stacks: list[list[str]] = [[], [], []]
    for _ in range(150):
        who = chance.randrange(3)
        if chance.random() < 0.3:
            try:
                people[who].undo()
            except SelfsightError:
                assert stacks[who]
        else:
            item = chance.choice(people[0].ids[:4])
            people[who].give(item, [chance.choice("abc")])
            stacks[who].append(item)
        fresh = another(items, people[who].by)
        now = people[who]
        assert (now.labels, now.mine, now.disputed) == (fresh.labels, fresh.mine, fresh.disputed)
        assert [now.opinions(item) for item in now.ids[:4]] == [fresh.opinions(item) for item in now.ids[:4]]
        latest = items.decisions.latest("label")
        assert now.labels == {item: (d.new,) for item, d in latest.items() if d.new}


def kappa(one: list[str], other: list[str], quadratic: bool = False) -> float:
    """Cohen 1960 and 1968, from the table of counts."""
    names = sorted({*one, *other})
    table = np.zeros((len(names), len(names)))
    for a, b in zip(one, other, strict=True):
        table[names.index(a), names.index(b)] += 1 / len(one)
    i, j = np.indices(table.shape)
    weights = (i - j) ** 2 if quadratic else i != j
    chance = table.sum(1)[:, None] * table.sum(0)[None]
    return float(1 - (weights * table).sum() / (weights * chance).sum())


@pytest.mark.parametrize("kind", ["class", "grade"])
def test_agreement_and_kappa(items: Collection, kind: str) -> None:
    anna, ben = Answers(items, "anna", kind), another(items, "ben", kind=kind)  # type: ignore[arg-type]
    one, other = list("001122012012"), list("002122112002")
    for item, a in zip(anna.ids, one, strict=True):
        anna.give(item, [a])
    for item, b in zip(anna.ids, other, strict=True):
        ben.give(item, [b])
    [found] = ben.agreement
    assert (found.first, found.second, found.items) == ("anna", "ben", 12)
    assert found.same == sum(a == b for a, b in zip(one, other, strict=True)) / 12
    assert found.kappa == pytest.approx(kappa(one, other, kind == "grade"), abs=1e-12)


def test_several_classes_are_a_list_in_any_order(items: Collection) -> None:
    anna, ben = Answers(items, "anna", "classes"), another(items, "ben", kind="classes")
    item = anna.ids[0]
    anna.give(item, ["b", "a", "b"])
    ben.give(item, ["a", "b"])
    assert said(items) == [(None, ["a", "b"], "anna"), (["a", "b"], ["a", "b"], "ben")]
    assert not ben.disputed and ben.agreement[0].same == 1.0 and ben.counts == {"a": 1, "b": 1}
    assert another(items, "cleo").kind == "classes"  # one class was asked for, and one item has two
    with pytest.raises(SelfsightError, match="names one class or more"):
        anna.give(item, [])


@pytest.mark.parametrize("name", ["", "  ", "a|b", "NA", "nan", "a\nb", "x" * 81, "\ud800", "a\u202eb", "tab\tbed"])
def test_names_that_a_table_of_labels_would_not_give_back(items: Collection, name: str) -> None:
    answers = Answers(items)
    with pytest.raises(SelfsightError, match="cannot be the name of a class"):
        answers.give(answers.ids[0], [name])
    with pytest.raises(SelfsightError, match="cannot be the name of a person"):
        Answers(items, name)
    assert not items.decisions.files


def test_an_item_that_is_not_there_and_two_answers_to_one_question(items: Collection) -> None:
    answers = Answers(items)
    with pytest.raises(SelfsightError, match="There is no item nothing"):
        answers.give("nothing", ["a"])
    with pytest.raises(SelfsightError, match="names one class"):
        answers.give(answers.ids[0], ["a", "b"])
    assert not items.decisions.files


def test_torn_lines_are_counted_and_nothing_else_is_lost(items: Collection) -> None:
    before = Answers(items)
    for item in before.ids[:3]:
        before.give(item, ["a"])
    [segment] = items.decisions.files
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-20])  # what a kill within a write leaves
    (segment.parent / "0-other.jsonl").write_bytes(b'{"time": 1, "id"\nnonsense\n\xff\xfe\n')
    now = another(items, "local")
    assert now.damaged == 4 and len(now.labels) == 2
    now.give(now.ids[5], ["b"])
    assert len(another(items, "local").labels) == 3 and another(items, "local").damaged == 4
    assert segment.read_bytes() == whole[:-20]


def test_a_journal_that_cannot_be_written_takes_no_answer(items: Collection) -> None:
    answers = Answers(items)
    answers.give(answers.ids[0], ["a"])
    folder = items.decisions.folder
    away = folder.rename(folder.with_name("away"))
    folder.write_text("in its place")
    with pytest.raises(MachineError, match="cannot be written"):
        answers.give(answers.ids[1], ["a"])
    folder.unlink()
    away.rename(folder)
    answers.refresh()
    assert answers.labels == {answers.ids[0]: ("a",)} == another(items, "local").labels and answers.given == 1


def test_the_column_counts_and_folders_do_not(tmp_path: Path, plates: Path) -> None:
    import selfsight
    from selfsight.data.importers import open_source

    (tmp_path / "sorted").mkdir()
    (tmp_path / "sorted" / "good").symlink_to(plates)
    assert not Answers(open_source(plates.parent / "sorted")).labels
    names = sorted(path.name for path in plates.glob("*.png"))
    rows = [f"{name},{label}" for name, label in zip(names, ["b", "a|c", "", *["a"] * 9], strict=True)]
    (plates / "table.csv").write_text("\n".join(["path,label", *rows]))
    selfsight.import_(str(plates / "table.csv"), out=str(tmp_path / "x.lance"))
    items = Collection.open(tmp_path / "x.lance")
    answers = Answers(items)
    assert len(answers.labels) == 11 and answers.kind == "classes"
    assert answers.classes == ["a", "b", "c"] and not answers.mine and not answers.second
    item = next(item for item in answers.ids if answers.label(item) == ("b",))
    answers.give(item, ["d"])
    assert said(items) == [("b", ["d"], "local")] and answers.classes == ["a", "b", "c", "d"]
    answers.undo()
    assert said(items)[1] == (["d"], "b", "local") and answers.label(item) == ("b",)


def test_names_of() -> None:
    assert [names_of(v) for v in (None, "", "a", "a|b", "b | a|", ["b", "a", "b"], (), 3, 2.5, 3.0)] == [
        (), (), ("a",), ("a", "b"), ("a", "b"), ("a", "b"), (), ("3",), ("2.5",), ("3",),
    ]  # fmt: skip


def test_grades_stand_by_their_value(items: Collection) -> None:
    answers = Answers(items, kind="grade")
    for item, grade in zip(answers.ids, ["10", "2", "1"], strict=False):
        answers.give(item, [grade])
    assert answers.classes == ["1", "2", "10"]
    answers.give(answers.ids[3], ["none"])
    assert answers.classes == ["10", "2", "1", "none"] and math.isclose(sum(answers.counts.values()), 4)
