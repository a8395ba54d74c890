"""label-curve: how many labels pretraining saves, against supervision from scratch with all of them."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.errors import SelfsightError, meant
from selfsight.probing.shots import parse_shots, short_of
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.data.splits import Side
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.arms import Task
    from selfsight.heads.curves import LabelCurve
    from selfsight.views.plan import ViewGroup


@checked
def label_curve(
    model: str | Encoder,
    *,
    out: str,
    train: str | None = None,
    test: str | None = None,
    data: str | None = None,
    split_by: str | None = None,
    shots: str | int | Sequence[str | int] = "1,2,5,10,30,100,all",
    seeds: int = 5,
    arms: str | Sequence[str] = "frozen,selected,random,start,scratch",
    scratch_shots: str | int | Sequence[str | int] = "all",
    minutes: float = 5.0,
    device: str | None = None,
) -> LabelCurve:
    """Measure the labels that pretraining saves: those needed to reach what supervision from scratch reaches with all.

    Each arm learns from a few labels up to all of them and is measured on the test images. Where these are uneven over
    classes, balanced accuracy leads. What was measured is kept in -o; the same command goes on after a stop, and adds
    further --shots.

    Parameters
    ----------
    model
        A run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME.
    out
        Folder for curve.png, curve.json, curve.csv and what is measured.
    train
        Folder of labelled images to learn from: CLASS/image.jpg.
    test
        Folder of labelled images to measure on.
    data
        In place of both: images to be split by --split-by.
    split_by
        Column of --data that makes the split: one that says train and test, such as `split`, or one whose values must
        not be on both sides, such as `group` (a patient, a part): a fifth of the images is then for testing.
    shots
        Labels per class, separated by commas (in Python also a number or a list); `all` is every label.
    seeds
        Random draws of the labels for each number of them.
    arms
        Ways to learn, separated by commas (in Python also a list). frozen: a linear head on the encoder's features.
        selected: the same, with labels for images that `select` chooses. selftrained: the same, and the other labels
        are guessed. finetuned: all weights of the encoder are tuned, by the labels of --scratch-shots.
        random: the same with random weights. start: with the run's starting weights. scratch: the same network
        supervised from random weights.
    scratch_shots
        Labels per class of the trainings that take minutes each: scratch and finetuned.
    minutes
        Of a supervised training from scratch. What it does best with is tried for as long before it.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.data.importers import check_outside
    from selfsight.data.splits import open_sides
    from selfsight.heads.curves import LabelCurve, figures, hurried, label_digest, measure_rows, weights_of
    from selfsight.probing.metrics import leading

    counts, slow, chosen, folder = parse_shots(shots), parse_shots(scratch_shots), parse_arms(arms), Path(out)
    if seeds < 1:
        raise SelfsightError(f"--seeds must be at least 1, not {seeds}.")
    if not minutes > 0:
        raise SelfsightError(f"--minutes must be above 0, not {minutes:g}.")
    if folder.is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for curve.png, curve.json and curve.csv: -o FOLDER")
    sides, notes = open_sides(train, test, data, split_by)
    for side in sides:
        check_outside(out, side.items.about.location)
    task = _task(model, sides, chosen, minutes, notes)
    notes += short_of(counts, task.classes, task.taught)
    chosen = [arm for arm in chosen if arm != "start" or "start" in task.pairs]
    folder.mkdir(parents=True, exist_ok=True)
    rows = measure_rows(task, chosen, counts, seeds, folder, slow)
    notes += hurried(rows)
    curves, level, reached = figures(rows, weights_of(task.truth), task.test.labels.groups, len(task.classes))
    name = str(model) if isinstance(model, str) else "Encoder"
    result = LabelCurve(
        name, task.classes, len(task.taught), len(task.truth), leading(task.truth), level, reached, curves, seeds,
        minutes, task.encoder.digest, label_digest(task), notes, str(folder / "curve.png"),
    )  # fmt: skip
    _write(result, folder)
    return result


def parse_arms(arms: str | Sequence[str]) -> list[str]:
    """`frozen,scratch` or a list of names, in the order of the table. Raises `SelfsightError` for another name."""
    from selfsight.heads.arms import ARMS

    given = [arm.strip() for arm in (arms.split(",") if isinstance(arms, str) else arms) if arm.strip()]
    for arm in given:
        if arm not in ARMS:
            raise SelfsightError(f"There is no arm {arm!r}. Choose among {', '.join(ARMS)}.{meant(arm, ARMS)}")
    if not given:
        raise SelfsightError("--arms is empty. Give for example frozen,scratch.")
    return [arm for arm in ARMS if arm in given]


def _task(model: str | Encoder, sides: Sequence[Side], arms: list[str], minutes: float, notes: list[str]) -> Task:
    """What the arms learn from: the sides with a label, and the features that the arms need."""
    from selfsight.data.canvases import measure_format
    from selfsight.data.labels import caveats, common_classes
    from selfsight.data.splits import Side
    from selfsight.encoders.weights import encoder_of
    from selfsight.heads.arms import ARMS, Task
    from selfsight.probing.controls import features_of, readable, with_controls

    classes = common_classes(*(side.labels for side in sides))
    encoder = encoder_of(model, measure_format(sides[0].items))
    notes += caveats(*sides)
    labelled = [Side(items, labels.labelled()) for items, labels in sides]
    train, test = readable(encoder, labelled, notes)
    common_classes(train.labels, test.labels)
    folder = Path(model) if isinstance(model, str) else None
    encoders = with_controls(folder, encoder, train.items, notes)
    used = {"encoder", *(ARMS[arm].features for arm in arms)}
    pairs = features_of({name: encoders[name] for name in encoders if name in used}, (train, test), classes, notes)
    return Task(train, test, classes, encoder, pairs, minutes, _view(folder))


def _view(folder: Path | None) -> ViewGroup | None:
    """The first kind of view that a run was trained on."""
    from selfsight.training.run import Run

    if folder is None or not (folder / "recipe.yaml").exists():
        return None
    _, recipe, _ = Run.open(folder).read_recipe()
    return recipe.views.groups[0]


def _write(result: LabelCurve, folder: Path) -> None:
    """The picture, the figures as JSON, and the table as CSV, each whole."""
    from selfsight.files import write_whole
    from selfsight.report.plots import curve_png

    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["arm", "shots", "labels", "labels_per_class", "accuracy", "low", "high", "draws"])
    for arm, points in result.curves.items():
        for p in points:
            ends = p.accuracy.value, p.accuracy.low, p.accuracy.high
            table.writerow([arm, p.shots, p.labels, p.per_class, *ends, p.draws])
    write_whole(folder / "curve.csv", text.getvalue())
    write_whole(folder / "curve.json", json.dumps(result.to_dict(), indent=2))
    write_whole(folder / "curve.png", curve_png(result))


def show(result: LabelCurve) -> None:
    """Print the labels that are saved, then the curves as a table."""
    from selfsight.console import results, table
    from selfsight.heads.arms import ARMS, LEVEL
    from selfsight.report.savings import labels_said, saved_said, shown, verdict

    console = results(soft_wrap=True)
    console.print(verdict(result))
    what = "Balanced accuracy" if result.leading == "balanced" else "Accuracy"
    console.print(f"{what} in % on {result.test_items:,} test images [95 % interval]:")
    cells = {(arm, p.shots): shown(p.accuracy) for arm, points in result.curves.items() for p in points}
    sizes = {p.shots: p.labels for points in result.curves.values() for p in points}
    counts = sorted(sizes, key=lambda count: (count == "all", sizes[count]))
    rows = [[count, *(cells.get((arm, count), "–") for arm in result.curves)] for count in counts]
    table(("labels per class", *result.curves), rows)
    if result.needed:
        console.print(f"To reach {ARMS[LEVEL].title} with all labels:")
        needed = [(ARMS[arm].title, labels_said(each), saved_said(each)) for arm, each in result.needed.items()]
        table(("", "labels needed", "labels saved"), needed)
    for note in result.notes:
        console.print(f"Note: {note}.")
    console.print(f"The curves are drawn in {shlex.quote(result.picture)}.")
