"""evaluate: what frozen features are worth with few labels, beside the controls that must be beaten."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, overload

from selfsight.errors import SelfsightError
from selfsight.probing.evaluation import OWN, About, Evaluation, Interval
from selfsight.probing.shots import parse_shots, short_of
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np

    from selfsight.data.collection import Collection
    from selfsight.data.labels import Labels
    from selfsight.data.pixels import PixelFormat
    from selfsight.data.splits import Side
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.detect_evaluation import DetectEvaluation
    from selfsight.heads.evaluation import HeadEvaluation
    from selfsight.heads.head import Head
    from selfsight.heads.inspect_evaluation import InspectEvaluation
    from selfsight.heads.segment_evaluation import SegmentEvaluation
    from selfsight.probing.controls import Pair
    from selfsight.probing.probes import Labelled

PIXEL_SIDE = 32
PIXEL_DIMENSIONS = 256
LOWEST = 5  # classes whose recall is printed
WORST = 10  # classes of a head that are


@overload
def evaluate(
    model: str | Head, *, test: str, labels: str | None = None, masks: str | None = None, by: str | None = None,
    out: str | None = None, device: str | None = None,
) -> DetectEvaluation | HeadEvaluation | InspectEvaluation | SegmentEvaluation: ...  # fmt: skip
@overload
def evaluate(
    model: str | Encoder, *, train: str, test: str, beside: str | Encoder | Sequence[str | Encoder] | None = None,
    shots: str | int | Sequence[str | int] = ..., seeds: int = 5, out: str | None = None, device: str | None = None,
) -> Evaluation: ...  # fmt: skip
@overload
def evaluate(
    model: str | Encoder, *, data: str, split_by: str, beside: str | Encoder | Sequence[str | Encoder] | None = None,
    shots: str | int | Sequence[str | int] = ..., seeds: int = 5, out: str | None = None, device: str | None = None,
) -> Evaluation: ...  # fmt: skip
@checked
def evaluate(
    model: str | Encoder | Head,
    *,
    train: str | None = None,
    test: str | None = None,
    data: str | None = None,
    split_by: str | None = None,
    beside: str | Encoder | Sequence[str | Encoder] | None = None,
    shots: str | int | Sequence[str | int] = "1,5,30,all",
    seeds: int = 5,
    labels: str | None = None,
    masks: str | None = None,
    by: str | None = None,
    out: str | None = None,
    device: str | None = None,
) -> Evaluation | DetectEvaluation | HeadEvaluation | InspectEvaluation | SegmentEvaluation:
    """Measure an encoder with labels: k-NN, linear and few-shot accuracy, beside controls. Or measure a head.

    A head has learnt already, so it takes --test alone, with --labels, --masks and --by, and gives its metrics with
    intervals.

    For an encoder the controls are the same encoder with random weights (its batch norms with the statistics of the
    data), raw pixels, the commonest class, the starting weights if there were any, and every encoder of --beside.
    Labels are the column `label` of a collection, or else the names of the folders that hold the images; images without
    one are left out, and a note counts them. Where test images are uneven over classes, balanced accuracy leads.

    Parameters
    ----------
    model
        A run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME; or a head.
    train
        Folder of labelled images to learn from: CLASS/image.jpg.
    test
        Folder of labelled images to measure on.
    data
        In place of both: images to be split by --split-by.
    split_by
        Column of --data that makes the split: one that says train and test, such as `split`, or one whose values must
        not be on both sides, such as `group` (a patient, a part): a fifth of the images is then for testing.
    beside
        Further encoders to compare with, separated by commas (in Python also an encoder, or a list): each what MODEL
        takes.
    shots
        Labels per class, separated by commas (in Python also a number or a list); `all` is every label.
    seeds
        Random draws of the labels for each few-shot figure; mean and spread are given.
    labels
        Of a head: a CSV or Parquet with the columns label and path or id, instead of the labels that --test has. Of a
        segmentation: a COCO file, or a folder of masks or LabelMe files. Of a detector: a COCO file, or a folder of
        VOC, YOLO or LabelMe files.
    masks
        Of a head that says where: a folder of masks, each called like its image, such as crack/01.png for crack/01.jpg.
        0 is background.
    by
        Of a head: a column of --test, such as site, for whose values the figures are given apart.
    out
        Folder for evaluation.json and evaluation.csv, or confusion.png and reliability.png of a head; the run's or the
        head's own folder if `model` is one.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.data.canvases import measure_format
    from selfsight.data.labels import caveats, common_classes
    from selfsight.data.splits import Side, open_sides
    from selfsight.encoders.weights import encoder_of
    from selfsight.heads.head import Head, head_folder, load_head
    from selfsight.probing.controls import with_controls
    from selfsight.probing.probes import gains, measure, measure_commonest, more_labels

    if isinstance(model, Head) or head_folder(model) is not None:
        encoder_only = {"--train": train, "--data": data, "--split-by": split_by, "--beside": beside}
        if refused := [name for name, value in encoder_only.items() if value is not None]:
            raise SelfsightError(f"{refused[0]} is for encoders: a head has learnt already. Give --test alone.")
        head = model if isinstance(model, Head) else load_head(str(model))
        return _of_head(head, test, (labels, by, masks), out, head_folder(model))
    of_heads = {"--labels": labels, "--by": by, "--masks": masks}
    if refused := [name for name, value in of_heads.items() if value is not None]:
        raise SelfsightError(f"{refused[0]} is for heads, and {model} is not one.")
    counts = parse_shots(shots)
    if seeds < 1:
        raise SelfsightError(f"--seeds must be at least 1, not {seeds}.")
    if out is not None and Path(out).is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for evaluation.json and evaluation.csv: -o FOLDER")
    sides, notes = open_sides(train, test, data, split_by)
    classes = common_classes(*(side.labels for side in sides))
    format = measure_format(sides[0].items)
    encoder = encoder_of(model, format)
    others = _others(beside, format)
    folder = Path(model) if isinstance(model, str) else None
    notes += caveats(*sides)
    sides = [Side(items, labels.labelled()) for items, labels in sides]
    encoders = with_controls(folder, encoder, sides[0].items, notes) | others
    pairs = _features(encoders, sides, classes, format, notes)
    taught, asked = pairs["encoder"]
    notes += short_of(counts, classes, taught.labels)
    measured = {name: measure(*pair, classes, counts, seeds) for name, pair in pairs.items()}
    commonest = measure_commonest(taught, asked, classes, counts)
    controls = {**measured, "commonest": commonest}
    best, start = controls.pop("encoder"), measured.get("start")
    result = Evaluation(
        encoder=best.probes,
        random=measured["random"].probes,
        start=start.probes if start else None,
        pixels=measured["pixels"].probes,
        about=replace(
            _about(folder, encoder, sides, classes, (taught, asked), seeds, notes),
            beside={name: other.digest for name, other in others.items()},
        ),
        commonest=commonest.probes,
        gains={name: gains(best, each, asked) for name, each in controls.items()},
        more=more_labels(best, taught, asked, seeds),
        beside={name: measured[name].probes for name in others},
    )
    kept = Path(out) if out else folder if folder and (folder / "recipe.yaml").exists() else None
    return result if kept is None else _kept(result, kept)


def _of_head(
    head: Head, test: str | None, asked: tuple[str | None, str | None, str | None], out: str | None, own: Path | None
) -> DetectEvaluation | HeadEvaluation | InspectEvaluation | SegmentEvaluation:
    """The figures of a head, written with their pictures to the folder `out`, or to the head's `own`. asked: labels, by
    and masks, see `Head.evaluate`."""
    import json

    from selfsight.data.importers import check_outside, open_source
    from selfsight.files import write_whole
    from selfsight.heads.evaluation import HeadEvaluation
    from selfsight.machine import best_device
    from selfsight.report.plots import confusion_png, reliability_png

    if test is None:
        raise SelfsightError("--test is missing: labelled items that the head has not learnt from. --test FOLDER")
    head.module.to(best_device())
    items = open_source(test)
    if out is not None:
        check_outside(out, items.about.location)
    result = cast(
        "DetectEvaluation | HeadEvaluation | InspectEvaluation | SegmentEvaluation", head.evaluate(items, *asked)
    )
    if (folder := Path(out) if out else own) is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "evaluation.json", json.dumps(result.to_dict(), indent=2))
        if isinstance(result, HeadEvaluation) and result.confusion:
            write_whole(folder / "confusion.png", confusion_png(result.classes, result.confusion))
            write_whole(folder / "reliability.png", reliability_png(result.reliability))
    return result


def _others(beside: str | Encoder | Sequence[str | Encoder] | None, format: PixelFormat) -> dict[str, Encoder]:
    """The encoders of --beside by name; one that has none is called by its place."""
    from selfsight.encoders.weights import encoder_of

    if beside is None:
        return {}
    given = beside.split(",") if isinstance(beside, str) else beside if isinstance(beside, list | tuple) else [beside]
    found: dict[str, Encoder] = {}
    for place, one in enumerate(given, 1):
        name = one.strip() if isinstance(one, str) else f"Encoder {place}"
        if not name:
            raise SelfsightError(
                "--beside lacks a name. Give encoders separated by commas, such as runs/a,timm:resnet18."
            )
        if name in OWN:
            raise SelfsightError(f"--beside {name} would be taken for a control of every evaluation. Write ./{name}.")
        found[name] = encoder_of(name if isinstance(one, str) else one, format)
    return found


def _features(
    encoders: dict[str, Encoder], sides: list[Side], classes: list[str], format: PixelFormat, notes: list[str]
) -> dict[str, Pair]:
    """Features of train and test by each of `encoders`, and raw pixels, by name."""
    from selfsight.probing.controls import changed, features_of

    train, test = (_pixels(*side, format, classes) for side in sides)
    return features_of(encoders, sides, classes, notes) | {"pixels": changed((train, test), reduced)}


def _about(
    folder: Path | None,
    encoder: Encoder,
    sides: list[Side],
    classes: list[str],
    measured: Pair,
    seeds: int,
    notes: list[str],
) -> About:
    import hashlib

    import numpy as np

    from selfsight.probing.metrics import leading
    from selfsight.training.run import Run

    passes = minutes = None
    if folder and (folder / "recipe.yaml").exists() and (rows := (run := Run.open(folder)).read_metrics()):
        passes, minutes = rows[-1].get("epoch"), run.seconds / 60
    train, test = (len(part.labels) for part in measured)
    sizes = np.bincount(measured[1].labels, minlength=len(classes)).tolist()
    labels = hashlib.blake2b("".join(side.labels.digest for side in sides).encode(), digest_size=16).hexdigest()
    of = dict(zip(classes, sizes, strict=True))
    name = "Encoder" if folder is None else str(folder)
    leads = leading(measured[1].labels)
    return About(name, classes, train, test, seeds, notes, of, passes, minutes, encoder.digest, labels, leads)


def _pixels(collection: Collection, labels: Labels, format: PixelFormat, classes: list[str]) -> Labelled:
    """Raw pixels [N, 32 * 32 * C] as features: the control that needs no network."""
    import numpy as np

    from selfsight.data.geometry import Geometry
    from selfsight.encoders.features import input_batches
    from selfsight.probing.probes import Labelled

    geometry = Geometry(format.channels, PIXEL_SIDE, format.window, (0.0,), (1.0,), format.depth, format.mode)
    out, kept = [], []
    for numbers, pixels, _ in input_batches(collection, labels.rows, geometry, "Pixels"):
        if not numbers:
            continue
        out.append(pixels.reshape(len(numbers), -1).astype(np.float32))
        kept += numbers
    order = np.argsort(kept, kind="stable")  # that of the rows, as features have it: gains compare item by item
    labels = labels.take(np.array(kept)[order])
    return Labelled(np.concatenate(out)[order], labels.numbers(classes), labels.groups)


def reduced(features: list[np.ndarray]) -> list[np.ndarray]:
    """Features of several sets as principal components of the first: same neighbours, quicker probes."""
    from sklearn.decomposition import PCA

    dimensions = min(PIXEL_DIMENSIONS, *features[0].shape)
    pca = PCA(dimensions, svd_solver="randomized", random_state=0).fit(features[0])
    return [pca.transform(some) for some in features]


def _kept(result: Evaluation, folder: Path) -> Evaluation:
    """Written to `folder`, with the earlier figures of the same encoder and labels that are there."""
    import csv
    import io
    import json

    from selfsight.files import read_json, write_whole

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # of no evaluation: it is replaced
        if earlier := read_json(folder / "evaluation.json"):
            result = result.with_earlier(Evaluation.of(earlier))
    write_whole(folder / "evaluation.json", json.dumps(result.to_dict(), indent=2))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["features", "probe", "metric", "value", "spread"])
    for name, probes in result.sides.items():
        for probe, metrics in (("knn", probes.knn), ("linear", probes.linear)):
            writer.writerows([name, probe, metric, value, ""] for metric, value in metrics.items())
        for count, value in probes.few_shot.items():
            drawn = [(which, value.by(which)) for which in ("top1", "balanced", "auroc")]
            writer.writerows(
                [name, f"few_shot {count}", which, draws.mean, draws.std] for which, draws in drawn if draws
            )
    write_whole(folder / "evaluation.csv", text.getvalue())
    return result


def _show_head(result: HeadEvaluation) -> None:
    """Print the figures of a head, by value of the column where one was given, and its surest mistakes."""
    from selfsight.console import results, table
    from selfsight.heads.metrics import number, shown

    console = results(soft_wrap=True)
    table((f"on {result.items:,} items", "value [95 % interval]"), shown(result.metrics))
    if result.recall:
        worst = sorted(result.recall.items(), key=lambda each: each[1]["sensitivity"].value or 0.0)[:WORST]
        rows = [
            (name, *(number(which, found[which]) for which in ("sensitivity", "specificity"))) for name, found in worst
        ]
        heading = "class" if len(rows) == len(result.recall) else f"worst {WORST} of {len(result.recall)} classes"
        table((heading, "sensitivity", "specificity"), rows)
    _show_parts("by", result.by)
    for each in result.mistakes[:LOWEST]:
        sure = "" if each.probability is None else f" ({100 * each.probability:.0f} %)"
        console.print(f"Mistake: {each.uri} is {each.truth}, the answer is {each.answer}{sure}")
    for note in result.notes:
        console.print(f"Note: {note}.")


def _show_inspection(result: InspectEvaluation) -> None:
    """Print the figures of an inspection, by kind of defect, and what it was nearest to being wrong about."""
    from selfsight.console import results, table
    from selfsight.heads.metrics import shown

    console = results(soft_wrap=True)
    table((f"on {result.items:,} parts, {result.good:,} good", "value [95 % interval]"), shown(result.metrics))
    _show_parts("defect", result.defects)
    _show_parts("by", result.by)
    for each in result.missed[:LOWEST]:
        console.print(f"Most normal of the defects: {each.uri} ({each.label}, p {each.p:.3f})")
    for each in result.alarms[:LOWEST]:
        console.print(f"Least normal of the good parts: {each.uri} (p {each.p:.3f})")
    for note in result.notes:
        console.print(f"Note: {note}.")


def _show_segmentation(result: SegmentEvaluation) -> None:
    """Print the figures of a segmentation, by class, and the pictures that it is worst at."""
    from selfsight.console import results, table
    from selfsight.heads.metrics import plainly, shown

    console = results(soft_wrap=True)
    table((f"on {result.items:,} pictures", "value [95 % interval]"), shown(result.metrics))
    table(("class", "intersection over union"), [(name, plainly(found)) for name, found in result.classes.items()])
    _show_parts("by", result.by)
    for each in result.worst[:LOWEST]:
        console.print(f"Worst: {each.uri} ({each.miou:.3f})")
    for note in result.notes:
        console.print(f"Note: {note}.")


def _show_detection(result: DetectEvaluation) -> None:
    """Print the figures of a detector, by class, and the pictures with the most mistakes."""
    from selfsight.console import results, table
    from selfsight.heads.metrics import percent, plainly, shown

    console = results(soft_wrap=True)
    table((f"on {result.items:,} pictures", "value [95 % interval]"), shown(result.metrics))
    head = ("class", "boxes", "AP50", "count off by", "within interval", "false alarms")
    told = []
    for name, one in result.counts.items():
        inside, alarms = (percent(each) if each else "–" for each in (one.inside, one.alarms))
        many, share = f"{result.boxes[name]:,}", f"{alarms} of {one.without:,}" if one.alarms else alarms
        told.append((name, many, plainly(result.classes[name]), plainly(one.error), inside, share))
    table(head, told)
    _show_parts("by", result.by)
    for each in result.worst[:LOWEST]:
        console.print(
            f"Worst: {each.uri} ({each.missed} of {each.objects} missed, {each.false} told that are not there)"
        )
    for note in result.notes:
        console.print(f"Note: {note}.")


def _show_parts(heading: str, parts: dict[str, dict[str, Interval]]) -> None:
    """A row for each of the parts, of which there may be none."""
    from selfsight.console import table
    from selfsight.report.head_worth import by_table

    found = by_table(parts)
    if found.rows:
        table((heading, *found.columns), [(row.title, *(cell.text for cell in row.cells)) for row in found.rows])


def show(result: Evaluation | DetectEvaluation | HeadEvaluation | InspectEvaluation | SegmentEvaluation) -> None:
    """Print the verdict, the accuracies, what pretraining bought and whether there are enough labels."""
    if isinstance(result, Evaluation):
        return _show_encoder(result)
    from selfsight.heads.detect_evaluation import DetectEvaluation
    from selfsight.heads.inspect_evaluation import InspectEvaluation
    from selfsight.heads.segment_evaluation import SegmentEvaluation

    if isinstance(result, SegmentEvaluation):
        return _show_segmentation(result)
    if isinstance(result, DetectEvaluation):
        return _show_detection(result)
    return _show_inspection(result) if isinstance(result, InspectEvaluation) else _show_head(result)


def _show_encoder(result: Evaluation) -> None:
    from rich.table import Table

    from selfsight.console import results
    from selfsight.report.worth import accuracy_table, conclusion, enough, gain_table, recall_table, uneven

    console, about = results(), result.about
    accuracies, gained, recall = accuracy_table(result), gain_table(result), recall_table(result)
    verdict, *rest = conclusion(result)
    for sentence in filter(None, [verdict, uneven(result)]):
        console.print(sentence)
    images = "1 test image" if about.test_items == 1 else f"{about.test_items:,} test images"
    what = "Balanced accuracy" if about.leading == "balanced" else "Accuracy"
    table = Table(title=f"{what} in % on {images}, {len(about.classes)} classes")
    for column in ["", *(row.title for row in accuracies.rows)]:
        table.add_column(column, justify="right" if column else "left")
    for i, title in enumerate(accuracies.columns):
        table.add_row(title, *(row.cells[i].text for row in accuracies.rows))
    console.print(table)
    table = Table("", *gained.columns, title="What pretraining gains, in points [95 % interval]")
    for row in gained.rows:
        table.add_row(row.title, *(cell.text for cell in row.cells))
    console.print(table)
    for sentence in filter(None, [*rest, enough(result)]):
        console.print(sentence)
    tested = [row for row in recall.rows if row.cells[0].text != "0"]
    lowest = [f"{row.title} {row.cells[1].text} % (of {row.cells[0].text})" for row in tested[:LOWEST]]
    if lowest:
        console.print(f"{'Lowest recall' if len(tested) > LOWEST else 'Recall'}: {', '.join(lowest)}.")
    for note in about.notes:
        console.print(f"Note: {note}.")
    first = "Top-1" if about.leading == "balanced" else "Balanced"
    console.print(f"{first} to AUROC, and recall, are of the linear probe with all labels.", style="dim")
    if about.seeds > 1:
        console.print(f"± is the standard deviation over {about.seeds} draws of the labels.", style="dim")
