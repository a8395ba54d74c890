"""train detect: from the boxes of a few pictures, or of many, to a head that finds and counts objects."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.encoders.encoder import Encoder
    from selfsight.probing.evaluation import Interval
    from selfsight.training.recipe import Budget

SHOWN = 3  # boxes set aside that are printed


@dataclass(frozen=True)
class Detection(Result):
    """The result of `train detect`.

    head: its folder. method: how objects are found. size: of the input, px. rule: how a file becomes one. pictures:
    that it learnt from. boxes: {class: how many}. metrics: on pictures while they were held out, with 95 % intervals.
    classes: {class: AP50}. tried: {method: AP50}. set_aside: [which box, why it is not used]. replaced: whether there
    was a head before, which is kept in FOLDER.before. notes: what a user must know.
    """

    head: str
    method: str
    size: int
    rule: str
    pictures: int
    boxes: dict[str, int]
    metrics: dict[str, Interval]
    classes: dict[str, Interval]
    tried: dict[str, float]
    set_aside: list[tuple[str, str]]
    replaced: bool
    notes: list[str]


@checked
def detect(
    source: str,
    *,
    model: str | Encoder,
    out: str,
    labels: str | None = None,
    shots: int | None = None,
    method: Literal["prototypes", "centres", "finetune"] | None = None,
    self_train: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    size: int | None = None,
    rule: Literal["squash", "fit", "tiles"] | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Detection:
    """Learn from boxes what is where: a head that finds objects, and counts them.

    Boxes are those of --labels, else of the column `boxes`. Five of each class are enough to begin. In a picture with
    boxes every object has one, as what has none is learnt to be background; pictures that nobody looked at are left
    out, unless --self-train guesses what is in them. The encoder stays as it is, unless --method tunes it. Scores are
    calibrated, and how sure an object of each class must be is chosen, on pictures that were held out.

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
        A COCO file, or a folder of VOC, YOLO or LabelMe files, each named like its image.
    shots
        Learn from few: whole pictures are drawn until each class has this many boxes, and all of their boxes count.
    method
        prototypes: what regions of each class look like beside the background. centres: a small network that finds the
        centre of each object and its size. Both are tried, and the one that finds more in held-out pictures is taken.
        finetune, only if asked for, and for minutes: the encoder learns too; where that finds no more in held-out
        pictures, it stays as it was.
    self_train
        Guess the objects of pictures without boxes, or not drawn by --shots, and learn from those that are seen to be
        right; nothing is learnt from guesses that do not help.
    minutes
        Of the whole command, with finetune. Ctrl-C saves, and the same command goes on.
    steps
        Of tuning, in place of minutes; if neither is given, a number that fits the pictures.
    size
        Side of the input in px; 1, 2 or 4 times that of training if not given, by how small the objects are.
    rule
        How a file becomes an input. squash: both sides to the size. fit: the longer side to it. tiles: parts of the
        file at its own scale, for large pictures. If not given: fit, and tiles for files above 4 times the training
        size.
    seed
        Of the pictures that are drawn, of what is held out, and of what is learnt.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    started = time.monotonic()
    import shutil

    from selfsight.data.boxed import Boxed
    from selfsight.data.canvases import measure_format
    from selfsight.data.labels import Labels
    from selfsight.data.written import note
    from selfsight.encoders.weights import encoder_of
    from selfsight.errors import SelfsightError
    from selfsight.heads.detect import Wish, learn
    from selfsight.heads.detect_head import DetectHead, about_of, items_of, state_of
    from selfsight.heads.detect_metrics import check_installed
    from selfsight.heads.head import save_head
    from selfsight.heads.lineage import lineage_of
    from selfsight.heads.reference import with_features
    from selfsight.heads.succession import opened

    check_installed()
    budget = _budget(method, self_train, minutes, steps)
    if shots is not None and shots < 1:
        raise SelfsightError(f"--shots is how many boxes of each class are learnt from, 1 or more, not {shots}.")
    items, folder, before = opened(source, out, DetectHead)
    known = Labels.of(items, path=labels, kind="boxes")
    boxed = Boxed.of(known)
    boxed = boxed if shots is None else boxed.shots(shots, seed)
    encoder = encoder_of(model, measure_format(items))
    tuning = folder.with_name(f"{folder.name}.tuning")
    wish = Wish(method, size, rule, seed, budget, tuning, started)
    learnt = learn(encoder, items, boxed, wish, boxed.rest_of(known) if self_train else None)
    notes = [known.doubt] if known.doubt else []
    notes += [f"{items.uri_of(item)} {reason}" for item, reason in sorted(learnt.bad.items())]
    about = about_of(learnt, notes)
    lineage = lineage_of(items, learnt.boxed.labels, encoder, model, seed, before)
    lineage |= {"tuned_from": encoder.digest} if learnt.method == "finetune" else {}
    lineage["boxes"] = str(Path(labels).expanduser().resolve()) if labels else ""
    sight = learnt.sight
    table = with_features(items_of(learnt), len(learnt.boxed), sight.encoder, items, sight.stride, None)
    save_head(folder, about, state_of(learnt), sight.encoder, table, lineage)
    note("head", folder, items.path)
    shutil.rmtree(tuning, ignore_errors=True)
    geometry = learnt.sight.encoder.geometry
    return Detection(
        str(folder), about.method, geometry.size, geometry.rule, about.items, about.boxes, learnt.metrics,
        learnt.classes, about.tried, about.unusable, before is not None, about.notes,
    )  # fmt: skip


def _budget(method: str | None, self_train: bool, minutes: float | None, steps: int | None) -> Budget | None:
    """The budget that was given. Raises `SelfsightError` for options that do not go together."""
    from selfsight.errors import SelfsightError
    from selfsight.training.recipe import Budget

    if method != "finetune" and (minutes is not None or steps is not None):
        asked = "--steps" if minutes is None else "--minutes"
        raise SelfsightError(f"{asked} is for --method finetune. Others take as long as they need.")
    if self_train and method == "finetune":
        raise SelfsightError("--self-train does not go with --method finetune. Leave one of them out.")
    return None if minutes is None and steps is None else Budget(minutes=minutes, steps=steps)


def show(result: Detection) -> None:
    """Print what was learnt, how good it is, what was left out, and what to do next."""
    from selfsight.console import results, table
    from selfsight.heads.metrics import plainly, shown

    console = results(soft_wrap=True)
    way = {"squash": "squashed to", "fit": "fitted into", "tiles": "in tiles of"}[result.rule]
    pictures = "1 picture" if result.pictures == 1 else f"{result.pictures:,} pictures"
    boxes = ", ".join(f"{count:,} {name}" for name, count in result.boxes.items())
    console.print(f"Learnt from {pictures} with boxes of {boxes}: {result.method}; pictures {way} {result.size} px.")
    if result.metrics:
        table(("on pictures held out", "value [95 % interval]"), shown(result.metrics))
        table(("class", "objects found (AP50)"), [(name, plainly(one)) for name, one in result.classes.items()])
    for where, reason in result.set_aside[:SHOWN]:
        console.print(f"Set aside: {where}: {reason}")
    if len(result.set_aside) > SHOWN:
        console.print(f"and {len(result.set_aside) - SHOWN:,} more; --json names them all")
    for text in result.notes:
        console.print(f"Note: {text}.")
    where = shlex.quote(result.head)
    if result.replaced:
        console.print(f"It took the place of the head that was there, now in {where}.before.")
    console.print(f"Next: selfsight predict NEW/ --head {where} -o found/")
