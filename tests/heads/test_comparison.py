"""compare of two heads: differences by hand, what is proven and what is not, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_encoder, write_colours

import selfsight
from selfsight.data.importers import open_source
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError
from selfsight.heads.comparison import HeadComparison
from selfsight.probing.evaluation import Interval
from selfsight.report.head_worth import preferred
from selfsight.verbs.compare import show


def write_labels(images: Path, file: Path, seed: int | None) -> str:
    """A table of labels: the folders' names, or with a seed names that say nothing."""
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    labels = [name.split("/")[0] for name in names]
    if seed is not None:
        labels = np.random.default_rng(seed).permutation(labels).tolist()
    lines = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    file.write_text("\n".join(["path,label", *lines]))
    return str(file)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/, test/, and heads: good, same (the same but for the folds), bad (of labels that say nothing), two (of two
    classes), and numbers."""
    folder = tmp_path_factory.mktemp("compared")
    save(tiny_encoder(32), folder / "encoder")
    save(tiny_encoder(48), folder / "larger")
    train, encoder = write_colours(folder / "train", 12), str(folder / "encoder")
    write_colours(folder / "test", 10, seed=1)
    (folder / "test" / "red" / "003.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    random = write_labels(train, folder / "random.csv", 0)

    def learn(name: str, **how: str) -> None:
        how = {"model": encoder, "method": "linear"} | how
        selfsight.train.classify(str(train), out=str(folder / name), **how)  # type: ignore[arg-type]

    learn("good")
    learn("same", model=str(folder / "larger"))
    learn("bad", labels=random)
    shutil.copytree(train / "red", folder / "few" / "red")
    shutil.copytree(train / "blue", folder / "few" / "blue")
    selfsight.train.classify(str(folder / "few"), model=encoder, out=str(folder / "two"))
    table = (folder / "random.csv").read_text()
    for place, name in enumerate(("red", "green", "blue")):
        table = table.replace(f",{name}", f",{place}")
    (folder / "numbers.csv").write_text(table)
    learn("numbers", labels=str(folder / "numbers.csv"), kind="number")
    return folder


def compared(place: Path, one: str, other: str) -> HeadComparison:
    return selfsight.compare(str(place / one), str(place / other), test=str(place / "test"))


def right(place: Path, head: str) -> np.ndarray:
    table = selfsight.predict(str(place / "test"), head=str(place / head)).table
    return np.array([row["label"] == row["uri"].split("/")[0] for row in table.to_pylist() if not row["reason"]])


def test_the_difference_is_that_of_the_answers_item_by_item(place: Path) -> None:
    result = compared(place, "good", "bad")
    one, other = right(place, "good"), right(place, "bad")
    assert result.items == 29 == len(one) and result.leading == "top1"
    gap = result.difference["top1"]
    assert result.metrics[0]["top1"].value == pytest.approx(one.mean())
    assert gap.value == pytest.approx(one.mean() - other.mean()) and result.better == 0
    rng = np.random.default_rng(7)
    gaps = (one.astype(float) - other)[rng.integers(0, 29, (4000, 29))].mean(1)  # paired, by another bootstrap
    assert (gap.low, gap.high) == pytest.approx(np.quantile(gaps, [0.025, 0.975]), abs=0.04)


def test_it_is_the_same_the_other_way_round(place: Path) -> None:
    one, other = compared(place, "good", "bad"), compared(place, "bad", "good")
    assert other.better == 1 and (one.metrics[0], one.metrics[1]) == (other.metrics[1], other.metrics[0])
    for name, gap in one.difference.items():
        if gap.value is not None:
            assert other.difference[name].value == pytest.approx(-gap.value)


def test_a_head_is_not_better_than_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = compared(place, "good", "good")
    assert result.better is None and {gap.value for gap in result.difference.values()} <= {0.0, None}
    show(result)
    first, *rest = capsys.readouterr().out.splitlines()
    value = f"{100 * right(place, 'good').mean():.1f} %"
    assert first == (
        f"No measurable difference: accuracy {value} of {place / 'good'}, {value} of {place / 'good'}, +0.0 [0.0, 0.0] "
        "points on 29 items."
    )
    assert any(line.startswith("calibration error") for line in rest)
    assert json.loads(json.dumps(result.to_dict()))["difference"]["top1"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_heads_on_other_encoders_answer_the_same_items(place: Path) -> None:
    result = compared(place, "good", "same")
    both = [right(place, name).mean() for name in ("good", "same")]
    assert [side["top1"].value for side in result.metrics] == pytest.approx(both) and result.items == 29


def test_what_was_learnt_from_is_said_once_with_its_name(place: Path) -> None:
    result = selfsight.compare(str(place / "good"), str(place / "bad"), test=str(place / "train"))
    assert result.notes == ["36 test images were learnt from, byte for byte; the figures flatter"]
    labels = write_labels(place / "test", place / "test.csv", None)
    told = selfsight.compare(str(place / "two"), str(place / "two"), test=str(place / "few"), labels=None)
    assert told.better is None and told.items == 24
    table = open_source(str(place / "test"))
    assert selfsight.compare(str(place / "good"), str(place / "bad"), test=str(table.path), labels=labels).items == 29


def test_what_cannot_be_compared_is_one_sentence(place: Path) -> None:
    good, test = str(place / "good"), str(place / "test")
    for heads, how, said in (
        ((good, str(place / "two")), {"test": test}, "do not know the same classes: green"),
        ((good, str(place / "numbers")), {"test": test}, "is for labels of the kind class, .*numbers for number"),
        ((good, str(place / "encoder")), {"test": test}, "encoder is not a head"),
        ((good, good), {}, "--test is missing"),
        ((good, good, good), {"test": test}, "compared in pairs, not 3 at a time"),
        ((good, good), {"test": test, "probe": test}, "--probe is for runs"),
        ((str(place / "encoder"), str(place / "larger")), {"test": test}, "--test is for heads"),
        ((str(place / "encoder"), str(place / "larger")), {"labels": "x.csv"}, "--labels is for heads"),
    ):
        with pytest.raises(SelfsightError, match=said):
            selfsight.compare(*heads, **how)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("leading", "ends", "better", "said"),
    [
        ("top1", (0.03, 0.01, 0.05), 0,
         "a is better: accuracy 90.0 % of a, 87.0 % of b, +3.0 [1.0, 5.0] points on 70 items."),
        ("map", (-0.03, -0.05, -0.01), 1,
         "b is better: mean average precision 0.87 of a, 0.9 of b, -0.03 [-0.05, -0.01] on 70 items."),
    ],
)  # fmt: skip
def test_the_sentence(leading: str, ends: tuple[float, float, float], better: int, said: str) -> None:
    values = (0.9, 0.87) if better == 0 else (0.87, 0.9)
    sides = tuple({leading: Interval(value, 0.5, 1.0)} for value in values)
    result = HeadComparison(("a", "b"), "class", 70, sides, {leading: Interval(*ends)}, leading, better)  # type: ignore[arg-type]
    assert preferred(result) == said
