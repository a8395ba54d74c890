"""pretrain: from a folder of images without labels to an encoder."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from selfsight.errors import SelfsightError
from selfsight.results import Result, counted, duration
from selfsight.verbs.arguments import checked
from selfsight.verbs.choices import Choices, spelt_out
from selfsight.verbs.import_ import SetAside

if TYPE_CHECKING:
    from selfsight.data.canvases import Canvases
    from selfsight.data.collection import Collection
    from selfsight.training.interpolation import Kept
    from selfsight.training.loop import Done
    from selfsight.training.run import Run
    from selfsight.training.settle import Settled


@dataclass(frozen=True)
class Evidence:
    """The last figures of a run; None if one was not measured. docs/evidence.md explains them.

    loss: mean over the last steps.
    effective_rank: directions in which embeddings vary.
    centre_norm: length of the mean embedding, 0 to 1.
    spread: 1 where embeddings fill the sphere, 0 where they are all equal.
    agreement: mean cosine of two views of an image.
    contrast: agreement minus the mean cosine of different images.
    knn: accuracy on --probe.
    drift: from the features of the starting weights, 0 to 1.
    """

    loss: float | None
    effective_rank: float | None
    centre_norm: float | None
    spread: float | None
    agreement: float | None
    contrast: float | None
    knn: float | None
    drift: float | None


@dataclass(frozen=True)
class Pretrained(Result):
    """The result of `pretrain`.

    run: its folder.
    steps: that were done.
    seconds: of the whole command, over all its starts.
    items: how many it learnt from.
    set_aside: how many items cannot be read.
    reasons: why, with the number of items for each.
    set_aside_items: which.
    skipped: steps that were not finite.
    alarms: in its log.
    notes: in its log.
    evidence: the last figures.
    starting_weights: where it began; None for random weights.
    licence: of the encoder, inherited from its starting weights; None for random ones.
    kept: of starting weights and trained ones, or what lies between; None for random ones.
    """

    run: str
    steps: int
    seconds: float
    items: int
    set_aside: int
    reasons: dict[str, int]
    set_aside_items: list[SetAside]
    skipped: int
    alarms: list[str]
    notes: list[str]
    evidence: Evidence
    starting_weights: str | None
    licence: str | None
    kept: Kept | None


@checked
@spelt_out
def pretrain(
    source: str,
    *,
    out: str,
    extend: bool = False,
    probe: str | None = None,
    track: str | None = None,
    energy: bool = False,
    strict: bool = False,
    **choices: Unpack[Choices],
) -> Pretrained:
    """Learn an encoder from a folder of images that nobody labelled.

    Everything not given is chosen from the data and the machine; `selfsight plan` shows what, and the reasons are in
    the run's recipe.yaml. The same command again goes on with a run that was stopped.

    Parameters
    ----------
    source
        Folder of images, searched recursively; or a list, table, archive, video, data set or .lance
        collection, see `selfsight import --help`.
    out
        Folder of the run.
    extend
        Train a finished run further, by the budget given here, with a warm-up and an annealing of its own.
    probe
        Labelled images (CLASS/image.jpg), only to show k-NN accuracy on half of them ten times a run.
    track
        Further trackers beside TensorBoard, separated by commas: wandb, mlflow, trackio.
    energy
        Measure the energy it takes (`pip install 'selfsight[energy]'`).
    strict
        Stop at the first file that cannot be read, instead of setting it aside.
    """
    started = time.monotonic()
    from selfsight.data.importers import check_outside, open_source
    from selfsight.distributed import main_first, start_processes
    from selfsight.training.energy import Energy, check_energy
    from selfsight.training.run import Run
    from selfsight.training.session import Session
    from selfsight.training.settle import asked_of, check_enough, check_weights, decided_by, settle, settled_before
    from selfsight.training.trackers import check

    recipe, collection = choices.pop("recipe", None), choices.pop("collection", None)
    choices.pop("device", None)  # of this machine, not of the recipe
    asked = asked_of(dict(choices))
    trackers = [name.strip() for name in (track or "").split(",") if name.strip()]
    check(trackers)
    check_energy(energy)
    run = Run(Path(out))
    if run.path.is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for the run.")
    check_outside(out, str(Path(source).expanduser()))
    accelerator = start_processes()
    with run.machine_errors(), ExitStack() as claimed:
        with main_first(accelerator):
            if accelerator.is_main_process and not run.begun:
                check_weights(asked, recipe)
            items = open_source(source, collection, strict)
            check_outside(out, items.about.location)
            check_enough(source, items)
            watched = open_source(probe) if probe else None  # before anything of the run is changed
            if accelerator.is_main_process:
                claimed.enter_context(run.claimed())
                settled = settle(run, asked, recipe, extend, source, items, accelerator.num_processes)
            else:
                settled = settled_before(run)
            if accelerator.is_main_process:
                _name_weights(run, settled)
            held = _hold(settled, decided_by(items, settled.decided), strict)
        with Energy(run, energy and accelerator.is_main_process):
            session = Session(run, settled, held, accelerator, started, watched)
            done = session.train(trackers)
            session.keep(done)
            return _result(run, done, held)


def _name_weights(run: Run, settled: Settled) -> None:
    """Say, where a run begins with random weights, which others are on this machine."""
    from selfsight.console import console
    from selfsight.encoders.at_hand import at_hand, in_words
    from selfsight.encoders.weights import RANDOM

    if settled.recipe.weights == RANDOM and not run.read_metrics() and (found := at_hand()):
        console().print(in_words(found, settled.recipe.channels), soft_wrap=True)


def _hold(settled: Settled, items: Collection, strict: bool) -> Canvases:
    """The canvases of a run, decoded now or on the way."""
    from selfsight.data.canvases import Resident, Streamed, announce
    from selfsight.machine import usable_cores

    recipe, format = settled.recipe, settled.format
    announce(recipe.canvases, items.usable, format, recipe.canvas_side, recipe.reasons.get("canvases", "as asked"))
    if recipe.canvases == "stream":
        return Streamed(items, format, recipe.canvas_side, max(1, usable_cores() - recipe.threads), strict)
    return Resident(items, format, recipe.canvas_side, strict)


def _result(run: Run, done: Done, canvases: Canvases) -> Pretrained:
    from selfsight.encoders.store import about_of
    from selfsight.training.adaptation import kept_of
    from selfsight.training.session import set_aside

    last = (run.read_metrics() or [{}])[-1]
    reasons = canvases.collection.reasons(canvases.set_aside.values())
    events = run.read_log()
    notes = [event.text for event in events if event.kind == "note"]
    about = about_of(run.path / "encoder")
    return Pretrained(
        run=str(run.path),
        steps=done.step,
        seconds=run.seconds,
        items=len(canvases) - len(canvases.set_aside),
        set_aside=sum(reasons.values()),
        reasons=reasons,
        set_aside_items=[SetAside(item.uri, item.reason) for item in set_aside(canvases)],
        skipped=done.skipped,
        alarms=[event.text for event in events if event.kind == "alarm"],
        notes=list(dict.fromkeys(notes)),  # each end of an extended run has written its own
        evidence=Evidence(**{field.name: last.get(field.name) for field in fields(Evidence)}),
        starting_weights=about.get("starting_weights"),
        licence=about.get("licence"),
        kept=kept_of(run),
    )


def show(result: Pretrained) -> None:
    """Print what was learnt from and what to type next."""
    from selfsight.report.verdict import STEPS_NEEDED

    run, evidence = result.run, result.evidence
    took = f"{duration(result.seconds)}, import and decoding included"
    print(f"{run}: {result.steps:,} steps on {result.items:,} images in {took}.")
    if result.set_aside:
        print(f"{result.set_aside:,} images were set aside ({counted(result.reasons)}); set_aside.json names them.")
    if result.skipped:
        print(f"{result.skipped:,} steps were skipped, as they were not finite; run.log says why.")
    for text in result.alarms:
        print(f"Alarm: {text}")
    for text in result.notes:
        print(f"Note: {text}")
    if result.steps < STEPS_NEEDED:
        print(f"A verdict on training needs {STEPS_NEEDED} steps. Give more minutes, and --extend to go on from here.")
    if evidence.agreement is not None and evidence.contrast is not None and evidence.effective_rank is not None:
        print(
            f"Two views of an image agree by {evidence.agreement:.2f}, views of different images by "
            f"{evidence.agreement - evidence.contrast:.2f}; effective rank {evidence.effective_rank:.0f}."
        )
    if result.starting_weights:
        from selfsight.encoders.licences import concern
        from selfsight.report.tables import drift_in_words

        print(f"It started from {result.starting_weights}; their licence goes with the encoder: {result.licence}.")
        kept = result.kept.why if result.kept else None
        drift = result.kept.drift if result.kept else evidence.drift
        for sentence in (concern(result.licence or "unknown"), kept, drift_in_words(drift)):
            if sentence:
                print(sentence)
    at = shlex.quote(run)
    print(f"Next: selfsight report {at}, or selfsight embed IMAGES --model {at} -o features.parquet")
