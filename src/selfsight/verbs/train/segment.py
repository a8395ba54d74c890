"""train segment: from the masks of a few pictures, or of many, to a head that says what is where."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.encoders.encoder import Encoder
    from selfsight.probing.evaluation import Interval

SHOWN = 3  # masks set aside that are printed


@dataclass(frozen=True)
class Segmentation(Result):
    """The result of `train segment`.

    head: its folder. method: how scores are made. size: of the input, px. rule: how a file becomes one. masks: that it
    learnt from. classes: their names, first the background. told_apart: whether objects that touch are told apart.
    metrics: on pictures while they were held out, with 95 % intervals. tried: {setting: mIoU}. set_aside: {which mask:
    why it is not used}. replaced: whether there was a head before, which is kept in FOLDER.before. notes: what a user
    must know.
    """

    head: str
    method: str
    size: int
    rule: str
    masks: int
    classes: list[str]
    told_apart: bool
    metrics: dict[str, Interval]
    tried: dict[str, float]
    set_aside: dict[str, str]
    replaced: bool
    notes: list[str]


@checked
def segment(
    source: str,
    *,
    model: str | Encoder,
    out: str,
    labels: str | None = None,
    objects: bool | None = None,
    roi: str | None = None,
    method: Literal["linear", "decoder"] | None = None,
    size: int | None = None,
    rule: Literal["squash", "fit", "tiles"] | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Segmentation:
    """Learn from masks what is where: a head that gives every pixel a class, and counts objects.

    Masks are those of --labels, else of the column `mask`; pictures without one are left out. One mask is enough to
    begin, five show how good it is. Where masks tell objects apart (COCO, LabelMe, numbers of objects), so does the
    head, also where they touch. The size of the input and the method are chosen by cross-validation on the masks; the
    encoder stays as it is.

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
        A COCO file, or a folder of masks or of LabelMe files, each named like its image. Each number in a mask is a
        class, 0 is the background; 255 is left out where a mask has a palette.
    objects
        The numbers in masks are of objects, all of one class; `--no-objects`: of classes, whatever they look like.
    roi
        A mask of the size of the pictures: where it is 0 nothing is learnt, and all is background.
    method
        linear: from all levels of the encoder at once. decoder: a small network on them, for a dozen masks or more.
    size
        Side of the input in px; 1, 2 or 4 times that of training if not given.
    rule
        How a file becomes an input. squash: both sides to the size. fit: the longer side to it. tiles: parts of the
        file at its own scale, for large pictures. If not given: fit, and tiles for files above 4 times the training
        size.
    seed
        Of what is held out, and of the pixels that are learnt from.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.data.canvases import measure_format
    from selfsight.data.labels import Labels
    from selfsight.data.masks import Masks, roi_of
    from selfsight.data.written import note
    from selfsight.encoders.weights import encoder_of
    from selfsight.heads.head import save_head
    from selfsight.heads.lineage import lineage_of
    from selfsight.heads.reference import with_features
    from selfsight.heads.segment import Wish, learn
    from selfsight.heads.segment_head import SegmentHead, about_of, items_of, state_of
    from selfsight.heads.succession import opened

    items, folder, before = opened(source, out, SegmentHead)
    known = Labels.of(items, path=labels, kind="masks")
    masks = Masks.of(items, known, objects, None if roi is None else roi_of(roi))
    encoder = encoder_of(model, measure_format(items))
    learnt = learn(encoder, items, masks, Wish(method, size, rule, seed))
    notes = [known.doubt] if known.doubt else []
    notes += [f"{items.uri_of(item)} {reason}" for item, reason in sorted(learnt.bad.items())]
    about = about_of(learnt, notes)
    lineage = lineage_of(items, masks.labels, encoder, model, seed, before)
    lineage["masks"] = str(Path(labels).expanduser().resolve()) if labels else ""
    sight = learnt.sight
    table = with_features(items_of(learnt), len(masks), sight.encoder, items, sight.stride, masks.roi)
    save_head(folder, about, state_of(learnt), sight.encoder, table, lineage)
    note("head", folder, items.path)
    geometry = sight.encoder.geometry
    return Segmentation(
        str(folder), about.setting, geometry.size, geometry.rule, about.items, about.classes, about.told_apart,
        learnt.metrics, about.tried, about.unusable, before is not None, about.notes,
    )  # fmt: skip


def show(result: Segmentation) -> None:
    """Print what was learnt, how good it is, what was left out, and what to do next."""
    from selfsight.console import results, table
    from selfsight.heads.metrics import shown

    console = results(soft_wrap=True)
    way = {"squash": "squashed to", "fit": "fitted into", "tiles": "in tiles of"}[result.rule]
    masks = "1 mask" if result.masks == 1 else f"{result.masks:,} masks"
    console.print(
        f"Learnt from {masks} of {', '.join(result.classes)}: {result.method}; pictures {way} {result.size} px."
    )
    console.print(f"Objects that touch are {'told apart' if result.told_apart else 'not told apart'}.")
    if result.metrics:
        table(("on pictures held out", "value [95 % interval]"), shown(result.metrics))
    for where, reason in list(result.set_aside.items())[:SHOWN]:
        console.print(f"Set aside: {where}: {reason}")
    if len(result.set_aside) > SHOWN:
        console.print(f"and {len(result.set_aside) - SHOWN:,} more; --json names them all")
    for text in result.notes:
        console.print(f"Note: {text}.")
    where = shlex.quote(result.head)
    if result.replaced:
        console.print(f"It took the place of the head that was there, now in {where}.before.")
    console.print(f"Next: selfsight predict NEW/ --head {where} -o found/")
