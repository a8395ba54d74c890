"""train inspect: from good parts alone to a head that says which parts have a defect, and where."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from selfsight.errors import DataError
from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np

    from selfsight.data.labels import Labels
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.inspect_voice import Suspect
    from selfsight.probing.evaluation import Interval


@dataclass(frozen=True)
class Inspection(Result):
    """The result of `train inspect`.

    head: its folder. method: by which patches are compared. size: of the input, px. rule: how a file becomes one. good:
    parts that it learnt from. defects: known ones, which it was chosen by. false_alarms: the share of good parts that
    may be called a defect, as asked. promised: the share that can be promised. metrics: on the known defects, with
    95 % intervals. suspicious: the good parts that look least normal to what did not learn from them, the worst first.
    shifts: {change: share of good parts that would then be called a defect}. tried: {method and size: AUROC}. replaced:
    whether there was a head before, which is kept in FOLDER.before. notes: what a user must know.
    """

    head: str
    method: str
    size: int
    rule: str
    good: int
    defects: int
    false_alarms: float
    promised: float
    metrics: dict[str, Interval]
    suspicious: list[Suspect]
    shifts: dict[str, float]
    tried: dict[str, float]
    replaced: bool
    notes: list[str]


@checked
def inspect(
    source: str,
    *,
    model: str | Encoder,
    out: str,
    labels: str | None = None,
    normal: str | None = None,
    roi: str | None = None,
    false_alarms: float = 0.05,
    method: Literal["memory", "gaussian"] | None = None,
    size: int | None = None,
    rule: Literal["squash", "fit", "tiles"] | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Inspection:
    """Learn from good parts what is normal: a head that says which parts are not, and where.

    Items labelled good, normal or ok, in any case, are good parts, all others have a defect; where no item has a label,
    all are good. It learns from good parts alone. Each is held out once, which sets the limit for the rate of false
    alarms. Known defects, five or more, choose the method and the size of the input. The encoder stays as it is.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME.
    out
        Folder for the head.
    labels
        A CSV or Parquet with the columns label and path or id. If it names defects alone, the other items are good. If
        not given: what `selfsight label` recorded, the column `label`, or else the names of the outermost folders.
    normal
        The class of the good parts, if it is not called good, normal or ok; several with commas between.
    roi
        A mask of the size of the pictures: where it is not 0 is looked at.
    false_alarms
        Share of the good parts that may be called a defect.
    method
        memory: the distance to the nearest remembered patch. gaussian: to the mean of all, for fast lines. memory, if
        not given and no defect is known.
    size
        Side of the input in px; 1, 2 or 4 times that of training if not given.
    rule
        How a file becomes an input. squash: both sides to the size. fit: the longer side to it. tiles: parts of the
        file at its own scale, for large pictures. If not given: fit, and tiles for files above 4 times the training
        size.
    seed
        Of what is held out, and of the patches that are remembered.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.data.canvases import measure_format
    from selfsight.data.labels import Labels
    from selfsight.data.masks import roi_of
    from selfsight.data.written import note
    from selfsight.encoders.weights import encoder_of
    from selfsight.heads.head import save_head
    from selfsight.heads.inspect import Wish, learn
    from selfsight.heads.inspect_head import InspectHead, about_of, items_of, state_of, suspects
    from selfsight.heads.lineage import lineage_of
    from selfsight.heads.parts import parts_of
    from selfsight.heads.reference import with_features
    from selfsight.heads.shifts import shifted, shifts_said
    from selfsight.heads.succession import opened

    items, folder, before = opened(source, out, InspectHead)
    names = tuple(name.strip() for name in (normal or "").split(",") if name.strip())
    known = Labels.of(items, path=labels)
    parts = parts_of(known, names, labels is not None)
    looked = None if roi is None else roi_of(roi)
    if looked is not None:
        check_size(looked, roi or "", parts.good)
    encoder = encoder_of(model, measure_format(items))
    learnt = learn(encoder, items, parts, Wish(false_alarms, method, size, rule, seed), looked)
    shifts = shifted(learnt, items)
    notes = [known.doubt] if known.doubt and known.kind != "none" else []
    notes += [shifts_said(shifts)] if shifts else []
    if parts.unlabelled:
        notes.append(f"{parts.unlabelled:,} items without a label are left out")
    notes += [f"{items.uri_of(item)} {reason}" for item, reason in sorted(learnt.bad.items())]
    about = about_of(learnt, names, false_alarms, shifts, looked, notes)
    lineage = lineage_of(items, learnt.good, encoder, model, seed, before)
    view = learnt.view
    table = with_features(items_of(learnt), len(learnt.good), view.encoder, items, view.stride, looked)
    save_head(folder, about, state_of(learnt, looked), view.encoder, table, lineage)
    note("head", folder, items.path)
    geometry = view.encoder.geometry
    return Inspection(
        str(folder), f"{about.method}, {about.setting}", geometry.size, geometry.rule, about.good, about.defects,
        false_alarms, about.promised, learnt.metrics, suspects(learnt), shifts, learnt.tried, before is not None,
        about.notes,
    )  # fmt: skip


def check_size(looked: np.ndarray, path: str, good: Labels) -> None:
    """Raise `DataError` where the mask has the size of none of the good parts."""
    sizes = set(zip(good.rows["width"].to_pylist(), good.rows["height"].to_pylist(), strict=True))
    have = (looked.shape[1], looked.shape[0])
    if sizes and have not in sizes:
        width, height = min(sizes)
        raise DataError(
            f"The mask {path} of --roi is {have[0]} x {have[1]} px, and the pictures of {good.location} are "
            f"{width} x {height} px. Give one of their size."
        )


def show(result: Inspection) -> None:
    """Print what was learnt, what is promised, which good parts look odd, and what to do next."""
    from selfsight.console import results, table
    from selfsight.heads.metrics import shown

    console = results(soft_wrap=True)
    way = {"squash": "squashed to", "fit": "fitted into", "tiles": "in tiles of"}[result.rule]
    console.print(f"Learnt from {result.good:,} good parts by {result.method}; pictures {way} {result.size} px.")
    console.print(f"Promised: at most {100 * result.promised:.3g} % of good parts are called a defect.")
    if result.metrics:
        table((f"on {result.defects:,} known defects", "value [95 % interval]"), shown(result.metrics))
    console.print("The good parts that look least normal, for you to look at:")
    for each in result.suspicious:
        console.print(f"  {each.score:.3f}  p {each.p:.3f}  {each.uri}")
    for text in result.notes:
        console.print(f"Note: {text}.")
    where = shlex.quote(result.head)
    if result.replaced:
        console.print(f"It took the place of the head that was there, now in {where}.before.")
    console.print(f"Next: selfsight predict NEW/ --head {where} -o found/")
