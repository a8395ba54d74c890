"""pretrain: from a folder of images without labels to an encoder."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsight.errors import SelfsightError, in_words

if TYPE_CHECKING:
    from selfsight.data.canvases import Canvases
    from selfsight.data.collection import Collection
    from selfsight.data.pixels import PixelFormat
    from selfsight.training.recipe import Recipe
    from selfsight.training.run import Run
    from selfsight.views.make import Normalisation


def pretrain(
    source: str,
    *,
    out: str,
    minutes: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    objective: str | None = None,
    encoder: str | None = None,
    pretrained: bool | None = None,
    size: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    optimiser: str | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    seed: int | None = None,
    recipe: str | None = None,
    collection: str | None = None,
    canvases: Literal["resident", "stream"] | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Learn an encoder from a folder of images that nobody labelled.

    Everything not given is chosen from the data and the machine; the reasons are in the run's
    recipe.yaml. The same command again goes on with a run that was stopped.

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
        Pretext task: simclr or vicreg.
    encoder
        Any timm model name.
    pretrained
        Start from timm's weights of that model (downloads them).
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
    recipe
        A recipe.yaml, of another run or written by hand, to take values from that are not given here.
    collection
        Where to keep the table of items, instead of the cache folder.
    canvases
        resident: decode every image once beforehand, into the cache folder. stream: decode on the way.
    strict
        Stop at the first file that cannot be read, instead of setting it aside.
    """
    started = time.monotonic()
    from safetensors import SafetensorError

    from selfsight.data.importers import check_outside, open_source
    from selfsight.training.recipe import Budget
    from selfsight.training.run import Run

    asked: dict[str, Any] = {
        "objective": objective, "encoder": encoder, "pretrained": pretrained, "size": size, "batch_size": batch_size,
        "accumulate": accumulate, "optimiser": optimiser, "learning_rate": learning_rate,
        "weight_decay": weight_decay, "seed": seed, "canvases": canvases,
    }  # fmt: skip
    if (minutes, epochs, steps) != (None, None, None):
        asked["budget"] = Budget(minutes, epochs, steps)
    asked = {k: v for k, v in asked.items() if v is not None}
    run = Run(Path(out))
    if run.path.is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for the run.")
    check_outside(out, str(Path(source).expanduser()))
    items = open_source(source, collection, strict)
    check_outside(out, items.about.location)
    if len(items.usable) < 2:
        raise SelfsightError(f"{source} holds one image that can be read. Learning compares images: give two or more.")
    chosen, format = _settle(run, asked, recipe, source, items)
    try:
        with run.claimed():
            return _pretrain(run, chosen, format, items, started, strict)
    except (OSError, SafetensorError) as error:
        raise SelfsightError(
            f"{in_words(error)}. The run in {run.path} is kept up to its last checkpoint: mend that, and give the same "
            "command to go on."
        ) from None


def _pretrain(
    run: Run, chosen: Recipe, format: PixelFormat, items: Collection, started: float, strict: bool
) -> dict[str, Any]:
    """What is left of a claimed run."""
    from selfsight.data.canvases import Resident, Streamed, announce
    from selfsight.training.run import usable_cores

    if run.finished:
        raise SelfsightError(
            f"{run.path} is finished. Give another -o, or use it: selfsight embed IMAGES --model {run.path}"
        )
    announce(chosen.canvases, items.usable, format, chosen.canvas_side, chosen.reasons.get("canvases", "as asked"))
    canvases: Canvases
    if chosen.canvases == "stream":
        canvases = Streamed(items, format, chosen.canvas_side, max(1, usable_cores() - chosen.threads), strict)
    else:
        canvases = Resident(items, format, chosen.canvas_side, strict)
    return _train(run, chosen, items, canvases, started)


def _settle(
    run: Run, asked: dict[str, Any], recipe_file: str | None, source: str, items: Collection
) -> tuple[Recipe, PixelFormat]:
    """The recipe and the form of the pixels: of a run that was started before, else resolved now and written."""
    import yaml

    from selfsight.data.canvases import measure_format
    from selfsight.data.formats.format import usual_mode
    from selfsight.data.pixels import PixelFormat
    from selfsight.training.plan import facts_of, resolve
    from selfsight.training.recipe import plain, typed
    from selfsight.training.run import Run

    data: dict[str, Any] = {"source": str(source), "collection": str(items.path), "version": items.version}
    data |= {"items": len(items.usable), "id_hash": items.id_hash()}
    wanted = plain({k: v.__dict__ if k == "budget" else v for k, v in asked.items()} | {"recipe": recipe_file})
    begun = run.finished or any(run.checkpoints.glob("step-*"))
    if begun and not run.recipe_file.exists():
        raise SelfsightError(f"{run.path} has checkpoints but no recipe.yaml. Give another -o, or remove the folder.")
    if begun:
        before, chosen, pinned = Run.open(run.path).read_recipe()
        differ = sorted(k for k in before.keys() | wanted.keys() if before.get(k) != wanted.get(k))
        if differ:
            raise SelfsightError(
                f"{run.path} was started with other values of {', '.join(differ)}. "
                "Give the same command to go on with it, or another -o to start anew."
            )
        if pinned["id_hash"] != data["id_hash"]:
            raise SelfsightError(
                f"The images in {items.about.location} changed since {run.path} was started. Give another -o."
            )
        kept = pinned["format"]
        return chosen, PixelFormat(kept["mode"], kept["depth"], tuple(kept["window"]))
    if recipe_file is not None:
        try:
            given = typed(yaml.safe_load(Path(recipe_file).read_text(encoding="utf-8"))["resolved"])
        except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise SelfsightError(f"{recipe_file} is not a recipe.yaml of a run ({type(error).__name__}).") from None
        asked = given | asked
    format = measure_format(items)
    channels = asked.get("channels", format.channels)
    if channels != format.channels:  # a recipe of other data
        format = PixelFormat(usual_mode(channels), format.depth, format.window)
    chosen = resolve(asked, facts_of(items, format))
    run.write_recipe(wanted, chosen, data | {"format": plain(asdict(format))})
    return chosen, format


def _train(run: Run, recipe: Recipe, items: Collection, canvases: Canvases, started: float) -> dict[str, Any]:
    import torch
    from accelerate import Accelerator

    from selfsight.data.batches import Batches
    from selfsight.encoders.encoder import Preprocessing
    from selfsight.encoders.store import create, save
    from selfsight.encoders.whitening import whiten
    from selfsight.objectives.objective import find
    from selfsight.training.loop import Clock, Stopped, fit
    from selfsight.training.measure import canvas_features, seconds_to_whiten
    from selfsight.training.pictures import contact_sheet
    from selfsight.training.run import environment, write_whole
    from selfsight.training.show import Show

    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    accelerator = Accelerator(mixed_precision="no")  # fit() sets the precision: Accelerate's is for a whole process
    if accelerator.num_processes > 1:
        raise SelfsightError("This version trains in one process only. Start it without torchrun or accelerate launch.")
    write_whole(run.path / "environment.json", json.dumps(environment(str(accelerator.device)), indent=2))
    normalise, format = _normalisation(run, canvases), canvases.format
    preprocessing = Preprocessing(
        recipe.channels, recipe.size, format.window, normalise.mean, normalise.std, format.depth, format.mode
    )
    encoder = create(recipe.encoder, preprocessing, recipe.encoder_args, recipe.pretrained)
    encoder.about["view_size"] = recipe.views.largest
    try:
        task = find(recipe.objective)(encoder, recipe.views, **recipe.objective_options)
    except TypeError as error:
        raise SelfsightError(f"{recipe.objective} does not take these options: {error}.") from None
    batches = Batches(canvases, recipe.batch_size, recipe.seed, recipe.views.companion)
    contact_sheet(batches, task.views, normalise, recipe.seed, run.path / "views.png")
    clock = Clock(recipe, started, batches.steps_per_epoch)
    if recipe.budget.minutes is not None:
        clock.reserve = seconds_to_whiten(encoder.to(accelerator.device), batches, normalise)
    with Show(run, recipe) as show:
        try:
            write_whole(run.set_aside_file, json.dumps(canvases.set_aside))
            step = fit(task, batches, normalise, recipe, run, clock, accelerator, show)
        except Stopped:
            raise Stopped(f"Stopped and saved in {run.path}. The same command goes on from here.") from None
        finally:
            write_whole(run.set_aside_file, json.dumps(canvases.set_aside))
    if step == 0:
        raise SelfsightError(
            f"{recipe.budget.minutes:g} minutes were over before the first step: reading the images took them, "
            "which is not needed again. Give another -o, and more --minutes."
        )
    whiten(encoder, canvas_features(encoder, batches, normalise))
    write_whole(run.set_aside_file, json.dumps(canvases.set_aside))  # whitening may be the first to read an item
    save(encoder, run.path / "encoder")
    seconds = clock.seconds
    run.log(f"finished after {step} steps and {seconds:.0f} s")
    last = (run.read_metrics() or [{}])[-1]
    result = {"run": str(run.path), "steps": step, "seconds": seconds}
    result["items"] = len(canvases) - len(canvases.set_aside)
    reasons = Counter([*items.set_aside["reason"].to_pylist(), *canvases.set_aside.values()])
    result |= {"set_aside": reasons.total(), "reasons": dict(reasons.most_common())}
    result["evidence"] = {
        k: last.get(k) for k in ("loss", "effective_rank", "centre_norm", "spread", "agreement", "contrast")
    }
    return result


def _normalisation(run: Run, canvases: Canvases) -> Normalisation:
    """Measured at the first start and kept, so that a resumed run sees the very same numbers."""
    from selfsight.training.measure import measure_normalisation
    from selfsight.training.run import write_whole
    from selfsight.views.make import Normalisation

    file = run.path / "normalisation.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Normalisation(**{name: tuple(values) for name, values in kept.items()})
    normalise = measure_normalisation(canvases)
    write_whole(file, json.dumps(asdict(normalise)))
    return normalise


def show(result: dict[str, Any]) -> None:
    """Print what was learnt from and what to type next."""
    run, evidence = result["run"], result["evidence"]
    print(f"{run}: {result['steps']:,} steps on {result['items']:,} images in {result['seconds']:.0f} s.")
    if result["set_aside"]:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in result["reasons"].items())
        print(f"{result['set_aside']:,} images were set aside ({reasons}); the report names them.")
    if evidence["agreement"] is not None:
        print(
            f"Two views of an image agree by {evidence['agreement']:.2f}, views of different images by "
            f"{evidence['agreement'] - evidence['contrast']:.2f}; effective rank {evidence['effective_rank']:.0f}."
        )
    print(f"Next: selfsight report {run}, or selfsight embed IMAGES --model {run} -o features.parquet")
