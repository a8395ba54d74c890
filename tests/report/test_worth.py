"""What an encoder is worth, in tables and sentences: only what an interval proves is called a gain."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from selfsight.probing.evaluation import Accuracy, Draws, Evaluation, Interval
from selfsight.report import nameless
from selfsight.report.charts import label_curve
from selfsight.report.worth import (
    FLATTERED,
    ROWS,
    Cell,
    accuracy_table,
    conclusion,
    enough,
    gain_table,
    points,
    recall_table,
    titles,
    uneven,
)
from selfsight.verbs.evaluate import show

COUNTS = ("1", "5", "all")


def probes(top1: float, few: tuple[float, ...], recall: tuple[float, float]) -> dict[str, Any]:
    scores = {"top1": top1, "balanced": top1, "top2": None, "macro_f1": top1, "auroc": None}
    spread = {"1": 0.1, "5": 0.02, "all": 0.0}
    shots = {count: {"mean": mean, "std": spread[count]} for count, mean in zip(COUNTS, few, strict=True)}
    return {
        "knn": scores,
        "linear": scores,
        "few_shot": shots,
        "recall": dict(zip(("good", "crack"), recall, strict=True)),
    }


def gained(*found: tuple[float, float, float]) -> dict[str, Any]:
    return {
        count: {"value": value, "low": low, "high": high}
        for count, (value, low, high) in zip(COUNTS, found, strict=True)
    }


PROVEN, UNPROVEN, LOST = (0.123, 0.10, 0.14), (0.003, -0.006, 0.012), (-0.05, -0.08, -0.02)
MEASURED = {
    "encoder": probes(0.9, (0.55, 0.80, 0.9), (0.95, 0.60)),
    "random": probes(0.7, (0.50, 0.677, 0.7), (0.9, 0.5)),
    "pixels": probes(0.6, (0.60, 0.60, 0.6), (0.8, 0.4)),
    "about": {
        "classes": ["good", "crack"], "train_items": 60, "test_items": 20, "seeds": 3, "notes": ["a & b"],
        "test_of": {"good": 15, "crack": 5}, "passes": 2.7, "minutes": 1.5,
    },
    "gains": {"random": gained(PROVEN, UNPROVEN, PROVEN), "pixels": gained(LOST, UNPROVEN, PROVEN)},
}  # fmt: skip
EVALUATION = Evaluation.of(MEASURED)


PIXELS_WIN = (
    "Raw pixels are better than this encoder with 1 label per class (by 5.0 points): try --minutes 20, as 2.7 passes "
    "over the images are few."
)


def over_random(*found: tuple[float, float, float], **about: Any) -> list[str]:
    """The conclusion from these gains over random weights."""
    gains = {"random": {count: Interval(*gain) for count, gain in zip(COUNTS, found, strict=True)}}
    return conclusion(replace(EVALUATION, gains=gains, about=replace(EVALUATION.about, **about)))


def test_a_gain_is_what_an_interval_proves() -> None:
    assert over_random(PROVEN, PROVEN, (0.02, 0.01, 0.03)) == [
        "Pretraining helps: +2.0 to +12.3 points over random weights."
    ]
    assert over_random(PROVEN, UNPROVEN, UNPROVEN) == [
        "Pretraining helps with 1 label per class: +12.3 points over random weights.",
        "No measurable gain over random weights with 5 labels per class and all labels.",
    ]
    assert over_random(LOST, UNPROVEN, UNPROVEN, passes=100.0) == [
        "Random weights are better than this encoder with 1 label per class (by 5.0 points).",
        "No measurable gain over random weights with 5 labels per class and all labels.",
    ]


def test_no_gain_after_few_passes_says_how_long_to_train() -> None:
    said = ["No measurable gain over random weights.", "2.7 passes over the images are few: try --minutes 20."]
    assert over_random(UNPROVEN, UNPROVEN, UNPROVEN) == said
    assert over_random(UNPROVEN, UNPROVEN, UNPROVEN, minutes=6.0)[1].endswith("try --minutes 45.")  # 6 * 20 / 2.7
    assert over_random(UNPROVEN, UNPROVEN, UNPROVEN, passes=40.0) == said[:1]
    assert over_random(UNPROVEN, UNPROVEN, UNPROVEN, passes=None) == said[:1]


def test_other_controls_are_told_where_they_are_not_beaten() -> None:
    assert conclusion(EVALUATION) == [
        PIXELS_WIN,
        "Pretraining helps with 1 label per class and all labels: +12.3 points over random weights.",
        "No measurable gain over random weights with 5 labels per class.",
        "No measurable gain over raw pixels with 5 labels per class.",
    ]


def first(controls: dict[str, dict[str, Interval]], **about: Any) -> str:
    """The first sentence where these gains are measured beside those over random weights."""
    gains = {"random": EVALUATION.gains["random"], **controls}
    beside = {name: EVALUATION.pixels for name in controls if name not in ROWS}
    told = replace(EVALUATION, gains=gains, beside=beside, about=replace(EVALUATION.about, **about))
    assert not any("better than this encoder" in said for said in conclusion(told)[1:])
    return conclusion(told)[0]


def test_what_is_better_is_said_first_with_what_to_do() -> None:
    lost, even, won = Interval(*LOST), Interval(*UNPROVEN), Interval(*PROVEN)
    assert first({"start": {"knn": lost, "1": even, "all": lost}}, model="runs/my first") == (
        "Starting weights are better than this encoder with k-NN (by 5.0 points) and all labels (by 5.0 points): use "
        "them as they are, with --model 'runs/my first/start'."
    )
    stock = {"package:efficientnet_lite0": {"1": lost}, "pixels": {"1": won}}
    assert first(stock) == (
        "package:efficientnet_lite0 is better than this encoder with 1 label per class (by 5.0 points): use it as it "
        "is, or start from it with --weights package:efficientnet_lite0."
    )
    assert first({"Encoder 1": {"knn": lost}}).endswith(": use it as it is, or start from it.")
    assert first({"pixels": {"knn": lost}}, passes=40.0).endswith(": try more --minutes, or start from --weights.")
    assert first({"pixels": {"knn": lost}}, passes=None).endswith(
        ": try another encoder, or pretrain one on your own images."
    )
    helps = "Pretraining helps with 1 label per class and all labels: +12.3 points over random weights."
    assert first({"start": {"knn": even, "1": even}, "runs/b": {"1": won}}) == helps
    pixels = {"knn": lost} | EVALUATION.gains["pixels"]
    worse = replace(EVALUATION, gains=EVALUATION.gains | {"start": {"5": Interval(-0.2, -0.3, -0.1)}, "pixels": pixels})
    assert conclusion(worse)[0].startswith("Starting weights") and conclusion(worse)[-2] == (  # by more than pixels
        "Raw pixels are better than this encoder with k-NN (by 5.0 points) and 1 label per class (by 5.0 points)."
    )


def test_a_loss_with_all_labels_alone_does_not_come_first() -> None:
    gains = {"random": EVALUATION.gains["random"], "pixels": {"1": Interval(*PROVEN), "all": Interval(*LOST)}}
    told = conclusion(replace(EVALUATION, gains=gains))
    assert told[0].startswith("Pretraining helps")
    assert told[-1] == "Raw pixels are better than this encoder with all labels (by 5.0 points)."


def test_balanced_accuracy_leads_where_classes_are_uneven() -> None:
    content = json.loads(json.dumps(MEASURED))
    content["about"]["leading"] = "balanced"
    content["encoder"]["linear"] |= {"top1": 0.91, "balanced": 0.52, "auroc": 0.77}
    content["encoder"]["few_shot"]["1"] |= {
        "balanced": {"mean": 0.31, "std": 0.04}, "auroc": {"mean": 0.66, "std": 0.02},
    }  # fmt: skip
    measured = Evaluation.of(content)
    assert Evaluation.of(measured.to_dict()) == measured
    table = accuracy_table(measured)
    row = dict(zip(table.columns, (cell.text for cell in table.rows[0].cells), strict=True))
    assert list(row)[:3] == ["k-NN", "linear", "top-1"] and "balanced" not in row
    assert (row["linear"], row["top-1"], row["AUROC"]) == ("52.0", "91.0", "77.0")
    assert (row["1/class"], row["1/class AUROC"]) == ("31.0 ± 4.0", "66.0 ± 2.0")
    assert row["5/class"] == "–" and "all labels AUROC" not in row  # an older version did not measure it
    assert uneven(measured) == (
        "Test images are uneven over classes (5 of crack, 15 of good), so accuracy is balanced: the mean over classes "
        "of the share that is found."
    )
    assert conclusion(measured)[1].endswith("+12.3 points of balanced accuracy over random weights.")
    assert uneven(EVALUATION) == "" and "1/class AUROC" not in accuracy_table(EVALUATION).columns
    few = {count: Accuracy(0.9, 0.1, balanced=Draws(0.5, 0.02)) for count in ("1", "5")}
    figure = label_curve(replace(measured, encoder=replace(measured.encoder, few_shot=few)), ROWS)
    assert figure["data"][0]["y"] == [50.0, 50.0] and figure["layout"]["yaxis"]["title"]["text"] == (
        "balanced accuracy, %"
    )


def test_encoders_beside_it_are_in_every_table_and_without_paths_on_a_private_page() -> None:
    names = ("package:efficientnet_lite0", "/home/anna/runs/b")
    gains = EVALUATION.gains | dict.fromkeys(names, EVALUATION.gains["random"])
    beside = dict.fromkeys(names, EVALUATION.random)
    measured = replace(EVALUATION, gains=gains, beside=beside, commonest=EVALUATION.pixels)
    assert [row.title for row in accuracy_table(measured).rows] == [
        "this encoder", "random weights", "raw pixels", *names, "commonest class",
    ]  # fmt: skip
    assert gain_table(measured).columns[2:] == [f"over {name}" for name in names]
    assert recall_table(measured).columns[-2:] == [*names][:2]
    assert [trace["name"] for trace in label_curve(measured, titles(measured))["data"]][-2:] == [*names]
    private = nameless.evaluation(measured)
    assert list(private.beside) == ["package:efficientnet_lite0", "MODEL2"] == list(private.gains)[2:]
    assert "anna" not in json.dumps(private.to_dict())


def test_nothing_but_the_commonest_class_is_told() -> None:
    commonest = replace(EVALUATION.pixels, linear={"top1": 0.75})
    gains = {"random": EVALUATION.gains["random"], "commonest": {"1": Interval(*LOST), "all": Interval(*UNPROVEN)}}
    told = conclusion(replace(EVALUATION, gains=gains, commonest=commonest))
    assert told[-1] == (
        "With all labels this encoder is not measurably better than always the commonest class, which is right on "
        "75.0 %: look at balanced accuracy and recall."
    )
    assert told[0] == (
        "This encoder gains +12.3 points over random weights with 1 label per class and all labels, but that is not of "
        "use yet."
    )
    assert told[2] == "2.7 passes over the images are few: try --minutes 20."
    gains["commonest"]["all"] = Interval(*PROVEN)
    useful = conclusion(replace(EVALUATION, gains=gains, commonest=commonest))
    assert useful == [
        "Pretraining helps with 1 label per class and all labels: +12.3 points over random weights.",
        told[1],
    ]


def test_figures_that_flatter_say_so_first() -> None:
    notes = ["1440 images are in both train and test, byte for byte; the figures flatter"]
    told = conclusion(replace(EVALUATION, about=replace(EVALUATION.about, notes=notes)))
    assert told == [PIXELS_WIN, FLATTERED, *conclusion(EVALUATION)[1:]]  # only what is better comes before
    even = replace(EVALUATION, gains={"random": EVALUATION.gains["random"]})
    assert conclusion(replace(even, about=replace(even.about, notes=notes)))[0] == FLATTERED


def test_the_label_curve_goes_to_the_right() -> None:
    """433 labels of 16 classes, most of them of one: the mean per class, 27, is fewer than 30, which were drawn."""
    few = {count: Accuracy(0.5, 0.1) for count in ("1", "30", "all")}
    about = replace(EVALUATION.about, train_items=433, classes=[str(i) for i in range(16)])
    figure = label_curve(replace(EVALUATION, encoder=replace(EVALUATION.encoder, few_shot=few), about=about), ROWS)
    assert figure["data"][0]["x"] == [1.0, 30.0, 45.0]
    assert figure["layout"]["xaxis"]["ticktext"][-1] == "all 433"


def test_half_of_the_labels_say_nothing_where_all_do_no_better_than_the_commonest_class() -> None:
    gains = {
        "random": EVALUATION.gains["random"],
        "commonest": {"5": Interval(*PROVEN), "all": Interval(0.0, 0.0, 0.0)},
    }
    blind = replace(EVALUATION, more={"half": Interval(0.0, 0.0, 0.0)}, gains=gains)
    assert enough(blind) == (
        "All 60 labels give, in points: +0.0 [0.0, 0.0] over half of them. They do no better than the commonest class, "
        "so this says nothing of more labels."
    )
    gains["commonest"]["all"] = Interval(*PROVEN)
    assert enough(blind).endswith("over half of them. So as many again would bring little.")


def test_an_evaluation_of_an_older_version_says_that_it_has_no_intervals() -> None:
    older = Evaluation.of({name: value for name, value in MEASURED.items() if name != "gains"})
    assert conclusion(older) == ["This evaluation has no intervals. Measure again to get them."]
    assert gain_table(older).columns == [] and enough(older) == ""


@pytest.mark.parametrize(
    ("half", "word"),
    [
        ((0.028, 0.012, 0.044), "more labels are likely to help"),
        ((0.028, -0.012, 0.044), "whether more would help is not certain"),
        ((0.002, -0.004, 0.008), "as many again would bring little"),
    ],
)
def test_whether_there_are_enough_labels(half: tuple[float, float, float], word: str) -> None:
    more = {"1": Interval(0.35, 0.3, 0.4), "half": Interval(*half)}
    assert enough(replace(EVALUATION, more=more)) == (
        f"All 60 labels give, in points: +35.0 [30.0, 40.0] over 1 label per class, "
        f"{100 * half[0]:+.1f} [{100 * half[1]:.1f}, {100 * half[2]:.1f}] over half of them. So {word}."
    )


def test_where_one_image_or_group_was_tested_nothing_is_concluded() -> None:
    untold = {count: Interval(0.1, None, None) for count in COUNTS}
    assert conclusion(replace(EVALUATION, gains={"random": untold})) == [
        "One test image, or one group of them, cannot tell what pretraining gains. Measure on more."
    ]
    assert enough(replace(EVALUATION, more=untold)) == ""


def test_points_have_a_sign_and_nought_has_none_below() -> None:
    assert points(Interval(0.031, 0.012, 0.05)) == "+3.1 [1.2, 5.0]"
    assert points(Interval(-0.0001, -0.01, 0.01)) == "+0.0 [-1.0, 1.0]"
    assert points(Interval(0.02, None, None)) == "+2.0" and points(Interval(None, None, None)) == "–"


def test_the_best_of_each_column_is_marked_and_what_nobody_has_is_left_out() -> None:
    table = accuracy_table(EVALUATION)
    columns = {title: [row.cells[i] for row in table.rows] for i, title in enumerate(table.columns)}
    assert [cell.good for cell in columns["1/class"]] == [0, 0, 1]
    assert columns["5/class"][0] == Cell("80.0 ± 2.0", 1)
    assert list(columns) == ["k-NN", "linear", "balanced", "macro-F1", "1/class", "5/class", "all labels"]


def test_the_class_that_is_found_least_comes_first() -> None:
    assert [(row.title, *(cell.text for cell in row.cells)) for row in recall_table(EVALUATION).rows] == [
        ("crack", "5", "60.0", "50.0", "40.0"),
        ("good", "15", "95.0", "90.0", "80.0"),
    ]


def test_the_terminal_says_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    show(EVALUATION)
    said = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    accuracies, gains = accuracy_table(EVALUATION), gain_table(EVALUATION)
    for i, title in enumerate(accuracies.columns):
        assert [title, *(row.cells[i].text for row in accuracies.rows)] in lines
    for row in gains.rows:
        assert [row.title, *(cell.text for cell in row.cells)] in lines
    assert len(lines) == len(accuracies.columns) + len(gains.rows)
    assert "+12.3 [10.0, 14.0]" in said
    flowing = " ".join(said.split())
    assert flowing.startswith(PIXELS_WIN)  # before the tables
    for sentence in (
        *conclusion(EVALUATION),
        "Recall: crack 60.0 % (of 5), good 95.0 % (of 15).",
        "Note: a & b.",
    ):
        assert sentence in flowing
