"""Labels: where they come from, what overrides them, what is refused, and splits that keep groups together."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selfsight.data.boxes import BOXES_TYPE, Box
from selfsight.data.collection import SCHEMA, About, Collection, item_id
from selfsight.data.importers import import_source
from selfsight.data.labels import Kind, Labels, caveats, common_classes
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.source import Options
from selfsight.errors import SelfsightError


def collection(folder: Path, name: str = "c", **columns: list[Any]) -> Collection:
    """Items whose ids are their numbers, in a source that is a folder."""
    count = len(next(iter(columns.values())))
    rows = [{"id": str(i), "uri": f"{i}.png", "content_hash": f"h{name}{i}", "status": "ok"} for i in range(count)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for column, values in columns.items():
        if column in table.column_names:
            place = table.schema.get_field_index(column)
            table = table.set_column(place, SCHEMA.field(column), pa.array(values, SCHEMA.field(column).type))
        else:
            kind = BOXES_TYPE if column == "boxes" else pa.string()
            table = table.append_column(column, pa.array(values, kind))
    return Collection.write(folder / f"{name}.lance", table, table.schema, About(str(folder)))


def table(folder: Path, text: str) -> str:
    path = folder / "labels.csv"
    path.write_text(text)
    return str(path)


def by_path(labels: Labels) -> list[Any]:
    return [value for _, value in sorted(zip(labels.rows["uri"].to_pylist(), labels.values, strict=True))]


# -- where they come from --


def test_folders_do_not_count_once_people_named_classes_of_their_own(tmp_path: Path) -> None:
    days = collection(tmp_path, "a", uri=["mon/x.png", "mon/y.png", "tue/z.png"])
    assert Labels.of(days).values == ("mon", "mon", "tue")
    days.decisions.decide("1", None, "label", "good")
    assert Labels.of(days).values == ("mon", "good", "tue")  # one new class may be a correction
    days.decisions.decide("2", None, "label", "bad")
    found = Labels.of(days)
    assert found.values == (None, "good", "bad") and "names of folders, of which none is among them" in found.doubt
    days.decisions.decide("0", None, "label", "tue")  # somebody takes folders for classes: all count again
    assert Labels.of(days).values == ("tue", "good", "bad")


def test_classes_that_are_called_like_splits_are_questioned(tmp_path: Path):
    folders = collection(tmp_path, "a", uri=["Train/cat/x.png", "val/dog/y.png", "z.png"])
    said = "The classes are called Train and val, like splits. To take the folders within as classes: "
    assert Labels.of(folders).doubt == f"{said}selfsight import --columns split={{0}},label={{1}}"
    assert Labels.of(folders).doubt in caveats((folders, Labels.of(folders)))
    one = Labels.of(collection(tmp_path, "b", label=["test", None]))
    said = "The only class is called test, like a split. To name the column of the classes: "
    assert one.doubt == f"{said}selfsight import --columns label=COLUMN"
    for uris in (["train/x.png", "bus/y.png"], ["x.png", "y.png"], ["trains/x.png", "tests/y.png"]):
        assert Labels.of(collection(tmp_path, "c", uri=uris)).doubt == ""


def test_classes_that_differ_in_spelling_only_are_named(tmp_path: Path):
    words = collection(
        tmp_path, "a", label=["Cat", "cat ", "no finding", "No_Finding", "dog", "1", "01", "1.0", "2", "-1"]
    )
    said = "Classes that differ in spelling only count as different ones: '01' and '1' and '1.0'; 'Cat' and 'cat'; "
    assert Labels.of(words).doubt == f"{said}'No_Finding' and 'no finding'"
    assert Labels.of(collection(tmp_path, "b", label=["cat", "cats", "1", "10", "-1", "dog-1", "dog1"])).doubt == ""
    test = collection(tmp_path, "c", label=["cat", "dog", "cow"])
    train = collection(tmp_path, "d", label=["Cat", "dog", "dog"])
    with pytest.raises(SelfsightError, match=r"that .* has not: cat \(it has Cat\), cow\.$"):
        common_classes(Labels.of(train), Labels.of(test))


def test_the_column_where_any_item_has_one_else_the_outermost_folder(tmp_path: Path):
    uris = ["cat/x.png", "a|b/deep/y.png", "z.png"]
    assert Labels.of(collection(tmp_path, "a", uri=uris, label=["wolf", None, ""])).values == ("wolf", None, None)
    labels = Labels.of(collection(tmp_path, "b", uri=uris))
    assert labels.values == ("cat", "a|b", None) and labels.kind == "class"  # a bar in a folder's name is part of it
    assert labels.classes == ["a|b", "cat"] and labels.known.tolist() == [True, True, False]
    assert labels.labelled().ids == ["0", "1"] and labels.numbers(["a|b", "cat"]).tolist() == [1, 0, -1]


def test_a_table_without_labels_does_not_take_folders_in_silence(tmp_path: Path):
    for name in ("siteA/1.png", "siteA/2.png", "siteB/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), int(Path(name).stem)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text("path,class\nsiteA/1.png,dent\nsiteA/2.png,ok\nsiteB/3.png,dent\n")
    labels = Labels.of(import_source(make_source(str(tmp_path / "t.csv"), Options()), tmp_path / "t.lance"))
    assert by_path(labels) == ["siteA", "siteA", "siteB"]
    assert "t.csv has no column label: the outermost folders are taken" in labels.doubt
    assert "--columns label=COLUMN" in labels.doubt
    named = make_source(str(tmp_path / "t.csv"), Options(columns={"label": "class"}))
    items = import_source(named, tmp_path / "u.lance")
    assert by_path(Labels.of(items)) == ["dent", "ok", "dent"] and Labels.of(items).doubt == ""
    folder = import_source(make_source(str(tmp_path), Options()), tmp_path / "v.lance")
    assert by_path(Labels.of(folder)) == ["siteA", "siteA", "siteB"] and Labels.of(folder).doubt == ""
    assert [labels.doubt] == [note for note in caveats((items, labels), (items, labels)) if "no column label" in note]


def test_the_number_of_a_row_is_not_the_id_of_an_item(tmp_path: Path):
    items = collection(tmp_path, uri=["0.png", "1.png"])
    assert Labels.of(items, path=table(tmp_path, "ID,path,label\n7,0.png,a\n8,1.png,b\n")).values == ("a", "b")


@pytest.mark.parametrize("header", ["path,label", "Path,Label", "ID,LABEL"])
def test_a_table_of_labels_is_read_in_any_case_and_na_is_no_label(tmp_path: Path, header: str):
    items = collection(tmp_path, uri=["0.png", "1.png", "2.png"])
    names = ["0", "1", "2"] if header.startswith("ID") else ["0.png", "1.png", "2.png"]
    path = table(tmp_path, f"{header}\n{names[0]},ok\n{names[1]},NA\n{names[2]},none\n")
    assert Labels.of(items, path=path).values == ("ok", None, "none")


def test_some_rows_only(tmp_path: Path):
    items = collection(tmp_path, uri=["cat/x.png", "dog/y.png", "cat/z.png"])
    labels = Labels.of(items, items.usable.take([2, 1]))
    assert labels.ids == ["2", "1"] and labels.values == ("cat", "dog")
    assert labels.take([1]).values == ("dog",)


def test_the_digest_is_of_what_is_known_of_which_item_and_not_of_the_order_of_rows(tmp_path: Path):
    names = iter("abcdefgh")

    def digest(kind: Kind = "class", take: tuple[int, ...] = (0, 1, 2), **changes: list[Any]) -> str:
        columns = {"label": ["1", "2", None], "group": ["p", "p", None]} | changes
        return Labels.of(collection(tmp_path, next(names), **columns), kind=kind).take(take).digest

    base = digest()
    assert digest(take=(2, 0, 1)) == digest(content_hash=["x", "y", "z"]) == base
    others = [digest(label=["1", "3", None]), digest(label=["2", "1", None]), digest(group=["p", "q", None])]
    assert len({base, *others, digest(take=(0, 1)), digest("number")}) == 6


def test_the_digest_of_boxes_and_of_masks_that_are_drawn(tmp_path: Path):
    items = collection(tmp_path, label=["x"])
    for kind, field, one, other in (
        ("boxes", "boxes", [asdict(Box("cat", 0.0, 1.0, 2.0, 3.0))], [asdict(Box("cat", 0.0, 1.0, 2.0, 3.25))]),
        ("masks", "mask", {"cat": {"size": [2, 2], "counts": "04"}}, {"cat": {"size": [2, 2], "counts": "13"}}),
    ):
        found = [Labels.of(items, kind=kind).digest]
        for value in (one, other, one):
            items.decisions.decide("0", "h", field, value)
            found.append(Labels.of(items, kind=kind).digest)
        assert len(set(found)) == 3 and found[1] == found[3]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("by", ["id", "path"])
def test_a_table_says_all_and_what_it_does_not_name_has_none(tmp_path: Path, by: str, suffix: str):
    items = collection(tmp_path, uri=["a/0.png", "a/1.png", "b/2.png"], label=["x", "x", "x"])
    names = ["0", "2", "1"] if by == "id" else ["./a/0.png", "b\\2.png", "a/1.png"]
    path, cells = str(tmp_path / f"labels.{suffix}"), ["007", "cat", ""]
    if suffix == "csv":
        Path(path).write_text(f"{by},label\n" + "".join(f"{n},{c}\n" for n, c in zip(names, cells, strict=True)))
    else:
        pq.write_table(pa.table({by: names, "label": cells}), path)
    assert Labels.of(items, path=path).values == ("007", None, "cat")


def test_a_path_names_every_page_of_a_file(tmp_path: Path):
    items = collection(tmp_path, uri=["stack.tif", "stack.tif", "b.png"], page=[0, 1, None])
    assert Labels.of(items, path=table(tmp_path, "path,label\nstack.tif,cat\n")).values == ("cat", "cat", None)


def test_decisions_override_whatever_else_there_is(tmp_path: Path):
    items = collection(tmp_path, uri=["cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png"])
    first = items.decisions.decide("0", "h", "label", "dog", old="cat")
    items.decisions.decide("1", "h", "label", None, old="cat")
    items.decisions.decide("2", "h", "label", 3.0)
    for path in (None, table(tmp_path, "id,label\n0,cat\n1,cat\n2,cat\n3,cat\n")):
        assert Labels.of(items, path=path).values == ("dog", None, "3", "cat")
    items.decisions.undo(first)
    items.decisions.decide("3", "h", "label", ["x", "y"])
    labels = Labels.of(items)
    assert labels.kind == "classes" and labels.values == (("cat",), None, ("3",), ("x", "y"))


# -- kinds --


def test_several_labels_anywhere_make_it_several_everywhere(tmp_path: Path):
    labels = Labels.of(collection(tmp_path, label=["b|a", "c", None, " a | a "]))
    assert labels.kind == "classes" and labels.classes == ["a", "b", "c"]
    assert labels.values == (("a", "b"), ("c",), None, ("a",))
    with pytest.raises(SelfsightError, match=r"such as 'a\|b'; one class an item is needed"):
        labels.numbers(labels.classes)


def test_numbers_and_grades_are_what_was_asked_for(tmp_path: Path):
    items = collection(tmp_path, label=["10", "2", "1e1", None])
    assert Labels.of(items).classes == ["10", "1e1", "2"]
    assert Labels.of(items, kind="number").values == (10.0, 2.0, 10.0, None)
    grades = Labels.of(collection(tmp_path, "g", label=["10", "2", "0", None]), kind="grade")
    assert grades.classes == ["0", "2", "10"] and grades.numbers(grades.classes).tolist() == [2, 1, 0, -1]
    for kind, text, sentence in [("number", "tall", "of 0.png is 'tall', not a number"), ("grade", "1|2", "one grade")]:
        with pytest.raises(SelfsightError, match=sentence):
            Labels.of(collection(tmp_path, "x", label=[text, "1"]), kind=kind)  # type: ignore[arg-type]


def test_boxes_and_masks(tmp_path: Path):
    box = {"label": "cat", "x0": 0.0, "y0": 1.0, "x1": 2.0, "y1": 3.0}
    items = collection(tmp_path, boxes=[[box], [], None, None], mask=["m/0.png", None, None, None])
    items.decisions.decide("2", "h", "boxes", [box | {"difficult": True}])
    rle = {"cat": {"size": [2, 2], "counts": "04"}}
    items.decisions.decide("1", "h", "mask", rle)
    boxes, masks = Labels.of(items, kind="boxes"), Labels.of(items, kind="masks")
    cat = Box("cat", 0.0, 1.0, 2.0, 3.0)
    assert boxes.values == ((cat,), (), (Box("cat", 0.0, 1.0, 2.0, 3.0, difficult=True),), None)
    assert boxes.classes == ["cat"] and boxes.known.tolist() == [True, True, True, False]  # no box is also known
    assert masks.values == ("m/0.png", rle, None, None) and masks.classes == []


# -- what is refused --


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,label\n9,cat\n0,cat\n8,dog\n", "labels for 2 items that are not in .*: 8, 9"),
        ("path,label\n0.png,cat\nno.png,cat\n", "labels for 1 items that are not in .*: no.png"),
        ("id,label\n0,cat\n1,dog\n0,dog\n", "gives 0 two labels, 'cat' and 'dog'"),
        ("id,class\n0,cat\n", "has no column label. Its columns: 'id', 'class'"),
        ("name,label\n0,cat\n", "no column path or id"),
        ("id,label\n0,cat,more\n", "row 2: 3 cells"),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path: Path, text: str, sentence: str):
    items = collection(tmp_path, label=["a", "b"])
    with pytest.raises(SelfsightError, match=sentence):
        Labels.of(items, path=table(tmp_path, text))


def test_the_same_label_twice_and_labels_of_what_was_forgotten_are_no_mistake(tmp_path: Path):
    items = collection(tmp_path, label=["a", "b"])
    items.about.forgotten = ["gone", item_id(items.source.name, "gone.png")]
    for text in ("id,label\n0,cat\n0,cat\ngone,dog\n", "path,label\n0.png,cat\ngone.png,dog\n"):
        assert Labels.of(items, path=table(tmp_path, text)).values == ("cat", None)


def test_too_little_to_learn_from(tmp_path: Path):
    bare, one = collection(tmp_path, "a", uri=["0.png", "1.png"]), collection(tmp_path, "b", label=["x", "x"])
    labels = Labels.of(bare)
    assert labels.kind == "none" and labels.values == (None, None)
    with pytest.raises(SelfsightError, match=r"No item of .* has a label. Put each class in a folder of its own"):
        labels.labelled()
    assert len(Labels.of(one).labelled()) == 2
    with pytest.raises(SelfsightError, match="one class only, 'x'; 2 or more are needed"):
        Labels.of(one).labelled(least=2)
    with pytest.raises(SelfsightError, match="no labels of the kind 'colour'"):
        Labels.of(one, kind="colour")  # type: ignore[arg-type]


def test_groups_on_both_sides_are_said(tmp_path: Path):
    train = collection(tmp_path, "train", label=["a", "b", "a"], group=["p3", "p1", None])
    test = collection(tmp_path, "test", label=["a", "b", "a", "a"], group=["p1", "p2", None, "p3"])
    sides = [(items, Labels.of(items)) for items in (train, test)]
    assert caveats(*sides) == ["2 of 3 groups of test, such as p1, are in train too; the figures flatter"]
    alone = collection(tmp_path, "alone", label=["a", "b"], group=["p2", None])
    assert caveats(sides[0], (alone, Labels.of(alone))) == []


def test_two_collections_agree_on_classes_and_say_what_they_lack(tmp_path: Path):
    train = collection(tmp_path, "train", label=["b", "a", None, None], content_hash=["1", "2", "3", "4"])
    test = collection(tmp_path, "test", label=["a", "a", None], content_hash=["4", "5", "6"])
    sides = [(items, Labels.of(items)) for items in (train, test)]
    assert common_classes(sides[0][1], sides[1][1]) == ["a", "b"]
    assert caveats(*sides) == [
        "1 image is in both train and test, byte for byte; the figures flatter",
        f"{tmp_path}: 2 of 4 images have no label and are left out",
        f"{tmp_path}: 1 of 3 images have no label and are left out",
    ]
    strange = Labels.of(collection(tmp_path, "strange", label=["a", "c"]))
    with pytest.raises(SelfsightError, match=r"has classes that .* has not: c"):
        common_classes(sides[0][1], strange)


# -- splits --


def ward(folder: Path, seed: int = 0) -> Labels:
    """300 items of three classes (one rare), in groups of 1 to 9; some alone, some without a label."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, 60)
    groups: list[str | None] = [f"patient {i}" for i, size in enumerate(sizes) for _ in range(size)][:240]
    groups += [None] * (300 - len(groups))
    label = rng.choice(["a", "b", "rare", ""], 300, p=[0.5, 0.35, 0.1, 0.05]).tolist()
    return Labels.of(collection(folder, f"ward{seed}", label=label, group=groups))


def sides_of(labels: Labels, parts: np.ndarray) -> dict[str, set[int]]:
    sides: dict[str, set[int]] = {}
    for group, part in zip(labels.groups, parts.tolist(), strict=True):
        if group is not None and part >= 0:
            sides.setdefault(group, set()).add(part)
    return sides


def test_folds_keep_groups_together_and_classes_alike(tmp_path: Path):
    labels = ward(tmp_path)
    folds = labels.folds(5, seed=3)
    assert ((folds >= 0) == labels.known).all()
    assert all(len(parts) == 1 for parts in sides_of(labels, folds).values())
    totals = Counter(value for value in labels.values if value)
    for fold in range(5):
        counts = Counter(labels.values[i] for i in np.flatnonzero(folds == fold))
        for name, total in totals.items():
            assert abs(counts[name] - total / 5) <= 1.5, (fold, name)  # though units are of up to 9


def test_items_that_stand_alone_are_dealt_to_the_item(tmp_path: Path):
    labels = Labels.of(collection(tmp_path, label=["a"] * 53 + ["b"] * 21 + ["c"] * 6))
    folds = labels.folds(5)
    for name, total in Counter(labels.values).items():
        counts = [sum(labels.values[i] == name for i in np.flatnonzero(folds == fold)) for fold in range(5)]
        assert sum(counts) == total and max(counts) - min(counts) <= 1
    kept, held = labels.hold_out(0.2)
    assert [sum(labels.values[i] == name for i in held) for name in "abc"] == [11, 4, 1]  # 10.6, 4.2 and 1.2
    assert sorted([*kept, *held]) == list(range(80))


def test_splits_depend_on_seed_and_ids_and_not_on_the_order_of_rows(tmp_path: Path):
    labels = ward(tmp_path)
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = labels.take(order)
    assert (shuffled.folds(4, seed=7) == labels.folds(4, seed=7)[order]).all()
    held = {labels.ids[i] for i in labels.hold_out(0.3, seed=7)[1]}
    assert held == {shuffled.ids[i] for i in shuffled.hold_out(0.3, seed=7)[1]}
    assert held != {labels.ids[i] for i in labels.hold_out(0.3, seed=8)[1]}
    assert len(held) == pytest.approx(0.3 * labels.known.sum(), abs=3)
    parts = np.where(labels.known, np.isin(labels.ids, list(held)), -1)
    assert all(len(part) == 1 for part in sides_of(labels, parts).values())


def test_over_seeds_every_item_is_held_out_as_often_as_any_other(tmp_path: Path):
    labels = Labels.of(collection(tmp_path, label=["a", "b"] * 20))
    counts = np.zeros(40)
    for seed in range(400):
        counts[labels.hold_out(0.25, seed)[1]] += 1
    assert np.abs(counts / 400 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 400)


def test_numbers_are_split_without_classes(tmp_path: Path):
    labels = Labels.of(collection(tmp_path, label=[str(i) for i in range(30)]), kind="number")
    assert Counter(labels.folds(3).tolist()) == {0: 10, 1: 10, 2: 10}


def test_splits_that_cannot_be(tmp_path: Path):
    labels = Labels.of(collection(tmp_path, label=["a", "b"] * 4, group=["p"] * 4 + ["q"] * 4))
    assert sorted(Counter(labels.folds(2).tolist()).values()) == [4, 4]
    with pytest.raises(SelfsightError, match="8 labelled items lie in 2 groups"):
        labels.folds(3)
    with pytest.raises(SelfsightError, match="two folds or more, not 1"):
        labels.folds(1)
    for share in (0.0, 1.0):
        with pytest.raises(SelfsightError, match="between 0 and 1"):
            labels.hold_out(share)
