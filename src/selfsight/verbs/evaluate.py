"""evaluate: what frozen features are worth with few labels, beside the controls that must be beaten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from selfsight.errors import SelfsightError
from selfsight.probing.evaluation import About, Accuracy, Evaluation, Probes
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np

    from selfsight.data.collection import Collection
    from selfsight.data.labels import Labels
    from selfsight.data.pixels import PixelFormat
    from selfsight.encoders.encoder import Encoder

PIXEL_SIDE = 32
PIXEL_DIMENSIONS = 256


class Labelled(NamedTuple):
    """features [N, D] of items, their class numbers [N], and the group of each, None for one that is alone."""

    features: np.ndarray
    labels: np.ndarray
    groups: list[str | None]


@checked
def evaluate(
    model: str,
    *,
    train: str,
    test: str,
    shots: str = "1,5,30,all",
    seeds: int = 5,
    out: str | None = None,
    device: str | None = None,
) -> Evaluation:
    """Measure an encoder with labels: k-NN, linear and few-shot accuracy, beside controls.

    The controls are the same encoder with random weights (its batch norms with the statistics of the data), raw
    pixels, and the starting weights if there were any. Labels are the column `label` of a collection, or else the names
    of the folders that hold the images; images without one are left out, and a note counts them.

    Parameters
    ----------
    model
        A run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME.
    train
        Folder of labelled images to learn from: CLASS/image.jpg.
    test
        Folder of labelled images to measure on.
    shots
        Labels per class, separated by commas; `all` is every label.
    seeds
        Random draws of the labels for each few-shot figure; mean and spread are given.
    out
        Folder for evaluation.json and evaluation.csv; the run's own folder if `model` is a run.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    import numpy as np

    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import open_source
    from selfsight.data.labels import Labels, caveats, common_classes
    from selfsight.encoders.statistics import measure_batch_norm, some_inputs
    from selfsight.encoders.store import random_like, read_folder
    from selfsight.encoders.weights import load
    from selfsight.encoders.whitening import whitened
    from selfsight.machine import best_device

    counts = parse_shots(shots)
    if seeds < 1:
        raise SelfsightError(f"--seeds must be at least 1, not {seeds}.")
    collections = open_source(train), open_source(test)
    sides = [Labels.of(collection) for collection in collections]
    classes = common_classes(*sides)
    format = measure_format(collections[0])
    encoder = load(model, format)
    device = best_device()
    encoders: dict[str, Encoder] = {"encoder": encoder.to(device), "random": random_like(encoder).to(device)}
    measure_batch_norm(encoders["random"], some_inputs(collections[0], encoder.geometry))
    notes = caveats(*zip(collections, sides, strict=True))
    sides = [labels.labelled() for labels in sides]
    if (Path(model) / "start" / "config.json").exists():
        encoders["start"] = read_folder(Path(model) / "start").to(device)
    elif encoder.about.get("starting_weights") and "view_size" in encoder.about:  # untrained, it is its own start
        notes.append(f"{model} has no folder start, so its starting weights are not among the controls")
    measured: dict[str, Probes] = {}
    for name, candidate in encoders.items():
        data = [_labelled(candidate, *side, classes, notes) for side in zip(collections, sides, strict=True)]
        if name != "encoder" and encoder.net.num_classes:
            data = _changed(data, whitened)
        measured[name] = _probe(data, len(classes), counts, seeds)
    pixels = [_pixels(*side, format, classes) for side in zip(collections, sides, strict=True)]
    measured["pixels"] = _probe(_changed(pixels, reduced), len(classes), counts, seeds)
    sizes = np.bincount(data[0].labels, minlength=len(classes))
    for count in counts:
        if count != "all" and int(count) > sizes.min():
            small = [c for c, size in zip(classes, sizes, strict=True) if size < int(count)]
            notes.append(f"{count} labels per class: {', '.join(small)} has fewer, all of its labels are used")
    about = About(str(model), classes, len(data[0].labels), len(data[1].labels), seeds, notes)
    result = Evaluation(measured["encoder"], measured["random"], measured.get("start"), measured["pixels"], about)
    folder = Path(out) if out else Path(model) if (Path(model) / "recipe.yaml").exists() else None
    if folder is not None:
        _write(result, folder)
    return result


def parse_shots(text: str) -> list[str]:
    """`1,5,all` to ["1", "5", "all"]. Raises `SelfsightError` for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part != "all" and not (part.isascii() and part.isdecimal() and int(part) > 0):
            raise SelfsightError(f"--shots takes numbers above 0 and `all`, separated by commas, not {part!r}.")
    if not parts:
        raise SelfsightError("--shots is empty. Give for example 1,5,30,all.")
    return parts


def _labelled(
    encoder: Encoder, collection: Collection, labels: Labels, classes: list[str], notes: list[str]
) -> Labelled:
    """Features and classes of labelled items; what fails to decode is noted, once."""
    from selfsight.encoders.features import pooled_labelled

    labels, features, bad = pooled_labelled(encoder, collection, labels)
    for note in sorted(
        f"{collection.about.location}: {collection.uri_of(item)} {reason}" for item, reason in bad.items()
    ):
        if note not in notes:
            notes.append(note)
    return Labelled(features, labels.numbers(classes), labels.groups)


def _pixels(collection: Collection, labels: Labels, format: PixelFormat, classes: list[str]) -> Labelled:
    """Raw pixels [N, 32 * 32 * C] as features: the control that needs no network."""
    import numpy as np

    from selfsight.data.geometry import Geometry
    from selfsight.encoders.features import input_batches

    geometry = Geometry(format.channels, PIXEL_SIDE, format.window, (0.0,), (1.0,), format.depth, format.mode)
    out, kept = [], []
    for numbers, pixels, _ in input_batches(collection, labels.rows, geometry, "Pixels"):
        if not numbers:
            continue
        out.append(pixels.reshape(len(numbers), -1).astype(np.float32))
        kept += numbers
    labels = labels.take(kept)
    return Labelled(np.concatenate(out), labels.numbers(classes), labels.groups)


def _changed(data: list[Labelled], change: Callable[[list[np.ndarray]], list[np.ndarray]]) -> list[Labelled]:
    """Train and test with other features of the same items."""
    features = change([part.features for part in data])
    return [part._replace(features=some) for part, some in zip(data, features, strict=True)]


def reduced(features: list[np.ndarray]) -> list[np.ndarray]:
    """Features of several sets as principal components of the first: same neighbours, quicker probes."""
    from sklearn.decomposition import PCA

    dimensions = min(PIXEL_DIMENSIONS, *features[0].shape)
    pca = PCA(dimensions, svd_solver="randomized", random_state=0).fit(features[0])
    return [pca.transform(some) for some in features]


def _probe(
    data: list[Labelled],
    classes: int,
    counts: list[str],
    seeds: int,
) -> Probes:
    """All probes of one set of features."""
    import numpy as np

    from selfsight.probing.linear import fit_few_shot, fit_linear
    from selfsight.probing.metrics import metrics
    from selfsight.probing.neighbours import fit_knn

    (train, labels, groups), (test, truth, _) = data
    probe = fit_linear(train, labels, classes, groups=groups)
    scores = probe.scores(test)
    few: dict[str, Accuracy] = {}
    for count in counts:
        if count == "all":
            few[count] = Accuracy(_top1(scores, truth), 0.0)
            continue
        runs = [
            _top1(fit_few_shot(train, labels, classes, int(count), seed).scores(test), truth) for seed in range(seeds)
        ]
        few[count] = Accuracy(float(np.mean(runs)), float(np.std(runs, ddof=1)) if seeds > 1 else 0.0)
    knn = metrics(fit_knn(train, labels, classes).scores(test), truth)
    return Probes(knn, metrics(scores, truth) | {"C": probe.strength}, few)


def _top1(scores: np.ndarray, truth: np.ndarray) -> float:
    return float((scores.argmax(1) == truth).mean())


def _write(result: Evaluation, folder: Path) -> None:
    import csv
    import io
    import json

    from selfsight.files import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "evaluation.json", json.dumps(result.to_dict(), indent=2))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["features", "probe", "metric", "value", "spread"])
    for name, probes in result.sides.items():
        for probe, metrics in (("knn", probes.knn), ("linear", probes.linear)):
            writer.writerows([name, probe, metric, value, ""] for metric, value in metrics.items())
        for count, value in probes.few_shot.items():
            writer.writerow([name, f"few_shot {count}", "top1", value.mean, value.std])
    write_whole(folder / "evaluation.csv", text.getvalue())


def show(result: Evaluation) -> None:
    """Print the table and what pretraining bought."""
    from rich.table import Table

    from selfsight.console import results
    from selfsight.report.tables import evaluation_table, gains

    console = results()
    about, content = result.about, evaluation_table(result)
    table = Table(title=f"Accuracy in % on {about.test_items:,} test images, {len(about.classes)} classes")
    for column in ["", *(row.title for row in content.rows)]:
        table.add_column(column, justify="right" if column else "left")
    for i, title in enumerate(content.columns):
        table.add_row(title, *(row.cells[i].text for row in content.rows))
    console.print(table)
    for gain in gains(result):
        console.print(f"Pretraining bought {gain.points} {gain.text}.")
    for note in about.notes:
        console.print(f"Note: {note}.")
    console.print("Balanced to AUROC are of the linear probe.", style="dim")
    console.print(f"± is the standard deviation over {about.seeds} draws of the labels.", style="dim")
