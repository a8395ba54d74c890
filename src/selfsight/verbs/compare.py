"""compare: which run to use, without labels; or which of two heads, on labelled items."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, overload

from selfsight.errors import DataError, SelfsightError
from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np

    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.comparison import HeadComparison

ITEMS, VIEWS, BATCH = 512, 8, 64
# criterion: the larger (1), the smaller (-1), or the nearer to 1 (0), the better
CRITERIA = {"rankme": 1, "lidar": 1, "alpha_req": 0, "neighbour_stability": 1}


@dataclass(frozen=True)
class Compared(Result):
    """A run and its criteria.

    run: as it was given.
    rankme: in how many directions features vary.
    lidar: in how many directions features tell images apart.
    alpha_req: how fast the spectrum falls; best near 1.
    neighbour_stability: how far two views agree on the nearest images, 0 to 1.
    knn: k-NN accuracy on the probe; None without one.
    mean_rank: over the criteria; 1 for the best.
    """

    if_any: ClassVar = ("knn",)
    run: str
    rankme: float
    lidar: float
    alpha_req: float
    neighbour_stability: float
    knn: float | None
    mean_rank: float


@dataclass(frozen=True)
class Comparison(Result):
    """A ranking of runs.

    images: where they are.
    runs: best first.
    correlations: of each criterion, and of the mean rank, with k-NN; None without a probe or with two runs.
    """

    if_any: ClassVar = ("correlations",)
    images: str
    runs: list[Compared]
    correlations: dict[str, float] | None


@overload
def compare(
    *runs: str, test: str, labels: str | None = None, masks: str | None = None, device: str | None = None
) -> HeadComparison: ...
@overload
def compare(
    *runs: str, images: str | None = None, probe: str | None = None, device: str | None = None
) -> Comparison: ...
@checked
def compare(
    *runs: str,
    images: str | None = None,
    probe: str | None = None,
    test: str | None = None,
    labels: str | None = None,
    masks: str | None = None,
    device: str | None = None,
) -> Comparison | HeadComparison:
    """Rank runs and checkpoints by four criteria that need no labels, all on the same images and the same views.
    Or say which of two heads is better.

    RankMe: in how many directions the features vary. LiDAR: in how many they tell images apart, measured against how
    much views of one image differ. alpha-ReQ: how fast the spectrum falls, best near 1. Neighbour stability: how many
    nearest images two views have in common. With --probe the k-NN accuracy on labelled images is beside them, and how
    well each criterion would have ranked (Spearman's rank correlation). All of features before whitening.

    Two heads of one task, classifications and segmentations of the same classes, answer for the items of --test, and
    each metric's difference is given with its paired 95 % interval.

    Parameters
    ----------
    runs
        Each a run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME; or a checkpoint such as runs/first/checkpoints/step-00001000. Or two heads.
    images
        Images to compare on, if not those of the first run.
    probe
        Labelled images (CLASS/image.jpg), only to show k-NN accuracy; nothing learns from them.
    test
        Of heads: labelled items that neither has learnt from.
    labels
        Of heads: a CSV or Parquet with the columns label and path or id, instead of the labels that --test has. Of
        segmentations: a COCO file, or a folder of masks or LabelMe files.
    masks
        Of heads that say where: a folder of masks, each called like its image.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.heads.head import head_folder

    if len(runs) < 2:
        raise SelfsightError("Give two or more runs to compare: selfsight compare runs/first runs/second")
    if any(head_folder(run) for run in runs):
        return _heads(runs, {"--images": images, "--probe": probe}, test, labels, masks)
    for option, value in {"test": test, "labels": labels, "masks": masks}.items():
        if value is not None:
            raise SelfsightError(f"--{option} is for heads, and {runs[0]} is not one.")
    return _runs(runs, images, probe)


def _heads(
    heads: tuple[str, ...], of_runs: dict[str, str | None], test: str | None, labels: str | None, masks: str | None
) -> HeadComparison:
    from selfsight.data.importers import open_source
    from selfsight.data.labels import Labels
    from selfsight.heads.classify_head import ClassifyHead
    from selfsight.heads.comparison import check_alike, compare_heads
    from selfsight.heads.comparison_where import compare_inspections, compare_segmentations
    from selfsight.heads.head import load_head
    from selfsight.heads.inspect_head import InspectHead
    from selfsight.heads.segment_head import SegmentHead
    from selfsight.machine import best_device

    if len(heads) != 2:
        raise SelfsightError(f"Heads are compared in pairs, not {len(heads)} at a time.")
    if refused := [name for name, value in of_runs.items() if value is not None]:
        raise SelfsightError(f"{refused[0]} is for runs: heads are compared on labelled items. Give --test.")
    names = (heads[0], heads[1])
    one, other = load_head(heads[0]), load_head(heads[1])
    if one.about.task != other.about.task:
        raise SelfsightError(
            f"{names[0]} is a head of the task {one.about.task}, {names[1]} of {other.about.task}. Compare heads of "
            "one task."
        )
    if isinstance(one, ClassifyHead) and isinstance(other, ClassifyHead):
        check_alike((one, other), names)
        if masks is not None:
            raise SelfsightError("--masks is for heads that say where, and these name classes. Leave it out.")
    if labels is not None and masks is not None and isinstance(one, SegmentHead):
        raise SelfsightError("--labels and --masks both name the true masks. Give one of them.")
    if test is None:
        raise SelfsightError("--test is missing: labelled items that neither head has learnt from. --test FOLDER")
    for head in (one, other):
        head.module.to(best_device())
    items = open_source(test)
    if isinstance(one, InspectHead) and isinstance(other, InspectHead):
        return compare_inspections((one, other), names, items, labels, masks)
    if isinstance(one, SegmentHead) and isinstance(other, SegmentHead):
        return compare_segmentations((one, other), names, items, labels or masks)
    if not isinstance(one, ClassifyHead) or not isinstance(other, ClassifyHead):
        raise SelfsightError(
            f"Heads of the task {one.about.task} are not compared. Measure each: selfsight evaluate {names[0]} --test "
            "LABELLED"
        )
    return compare_heads((one, other), names, items, Labels.of(items, path=labels, kind=one.about.kind))


def _runs(runs: tuple[str, ...], images: str | None, probe: str | None) -> Comparison:
    import numpy as np
    from scipy.stats import rankdata, spearmanr

    from selfsight.console import track
    from selfsight.data.importers import open_source
    from selfsight.encoders.whitening import unwhitened
    from selfsight.machine import best_device

    items = open_source(images if images is not None else _images_of(runs[0]))
    labelled = open_source(probe) if probe else None
    measured: list[dict[str, float]] = []
    accuracies: list[float] = []
    for run in track(list(runs), "Comparing", len(runs)):
        encoder = unwhitened(_encoder(run, items)).to(best_device())
        measured.append(_criteria(_features(encoder, items)))
        if labelled is not None:
            accuracies.append(_knn(encoder, labelled))
    ranks = {}
    for name, best in CRITERIA.items():
        worth = [best * row[name] if best else -abs(row[name] - 1.0) for row in measured]
        ranks[name] = rankdata([-value for value in worth])
    ranks["mean_rank"] = np.mean(list(ranks.values()), axis=0)
    rows = [
        Compared(run, **row, knn=knn, mean_rank=float(rank))
        for run, row, knn, rank in zip_longest(runs, measured, accuracies, ranks["mean_rank"])
    ]
    correlations = None
    if labelled is not None and len(rows) > 2:
        correlations = {name: -float(spearmanr(rank, accuracies).statistic) for name, rank in ranks.items()}
    return Comparison(items.about.location, sorted(rows, key=lambda row: row.mean_rank), correlations)


def _images_of(run: str) -> str:
    """Where the images of a run, or of one of its checkpoints, are."""
    from selfsight.training.run import Run

    folder = Path(run)
    folder = folder.parent.parent if (folder / "state.json").exists() else folder
    if not (folder / "recipe.yaml").exists():
        raise SelfsightError(f"{run} is not a run, so it does not say which images to compare on. Name them: --images")
    return str(Run.open(folder).read_recipe()[2]["collection"])


def _encoder(run: str, items: Collection) -> Encoder:
    """The encoder of a checkpoint, or of whatever `load` takes."""
    from safetensors.torch import load_file

    from selfsight.encoders.weights import load
    from selfsight.training.build import build, geometry_of
    from selfsight.training.run import Run
    from selfsight.training.settle import settled_before

    folder = Path(run)
    if not (folder / "state.json").exists():
        return load(run, items.pixel_format)
    of = Run.open(folder.parent.parent)
    settled, kept = settled_before(of), of.read_normalisation()
    if kept is None:
        raise DataError(f"{of.path} has no normalisation.json, without which its checkpoints cannot be used.")
    geometry = geometry_of(settled.recipe, settled.format, kept["mean"], kept["std"])
    task = build(settled.recipe, settled.format, geometry)
    task.load_state_dict(load_file(folder / "module.safetensors"), strict=False)
    return task.trained.eval()


def _features(encoder: Encoder, items: Collection) -> np.ndarray:
    """Pooled features [V, N, D] of views of up to `ITEMS` items, spread evenly."""
    from selfsight.data.batches import Batches
    from selfsight.data.canvases import Streamed
    from selfsight.data.spread import spread
    from selfsight.training.measure import view_features

    p = encoder.geometry
    canvases = Streamed(items, p.format, 2 * p.size, 2)
    batches = Batches(canvases, min(BATCH, len(canvases)), 0, None)
    chosen = spread(len(canvases), ITEMS)
    return view_features(encoder, batches, canvases.geometry(p.mean, p.std), VIEWS, chosen, BATCH).numpy()


def _criteria(features: np.ndarray) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    from selfsight.probing.criteria import alpha_req, lidar, rankme
    from selfsight.training.monitors import neighbour_stability

    one, two = F.normalize(torch.from_numpy(features[:2]), dim=2)
    return {
        "rankme": rankme(features[0]),
        "lidar": lidar(features),
        "alpha_req": alpha_req(features[0]),
        "neighbour_stability": neighbour_stability(one, two),
    }


def _knn(encoder: Encoder, labelled: Collection) -> float:
    from selfsight.training.watch import online_knn

    return online_knn(encoder, labelled)(0.0, -1.0)["knn"]


def show(result: Comparison | HeadComparison) -> None:
    """Print the ranking; of heads which is better, and by how much."""
    if isinstance(result, Comparison):
        return _show_runs(result)
    return _show_heads(result)


def _show_heads(result: HeadComparison) -> None:
    from selfsight.console import results, table
    from selfsight.heads.metrics import TITLES
    from selfsight.report.head_worth import alone, difference, preferred

    console = results(soft_wrap=True)
    console.print(preferred(result))
    rows = [
        (TITLES[name], *(alone(name, side[name]) for side in result.metrics), difference(name, gap))
        for name, gap in result.difference.items()
        if gap.value is not None
    ]
    table((f"on {result.items:,} items", "first", "second", "first over second [95 % interval]"), rows)
    for note in result.notes:
        console.print(f"Note: {note}.")


def _show_runs(result: Comparison) -> None:
    from selfsight.console import results, table

    console = results(soft_wrap=True)
    knn = ["k-NN, %"] if result.runs[0].knn is not None else []
    rows = []
    for row in result.runs:
        figures = [f"{row.rankme:.1f}", f"{row.lidar:.1f}", f"{row.alpha_req:.2f}"]
        figures += [f"{row.neighbour_stability:.2f}", f"{row.mean_rank:.2f}"]
        rows.append([*figures, *([] if row.knn is None else [f"{100 * row.knn:.1f}"]), row.run])
    table(("RankMe", "LiDAR", "alpha-ReQ", "stability", "mean rank", *knn, "run"), rows)
    for name, value in (result.correlations or {}).items():
        console.print(
            f"{name.replace('_', ' ')} ranks as k-NN does by {value:+.2f} (1 the same, 0 unrelated, -1 reversed)"
        )
    console.print(f"Next: selfsight report {shlex.quote(result.runs[0].run)}")
