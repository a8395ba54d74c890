"""From a user's request to the recipe of a run: chosen now, or as the run was begun."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from selfsight.console import console
from selfsight.data.batches import check_share
from selfsight.data.canvases import measure_format
from selfsight.data.collection import Collection
from selfsight.data.formats.format import usual_mode
from selfsight.data.pixels import PixelFormat
from selfsight.data.written import note
from selfsight.encoders.store import check_name
from selfsight.encoders.weights import RANDOM, Weights, find_weights, read
from selfsight.errors import DataError, SelfsightError
from selfsight.files import write_whole
from selfsight.objectives.objective import find
from selfsight.training.build import check_sizes
from selfsight.training.checkpoints import read_checkpoint
from selfsight.training.optimisers import check_optimiser
from selfsight.training.recipe import RENAMED, Budget, Recipe, plain, renamed, typed
from selfsight.training.rules import facts_of, resolve
from selfsight.training.run import Run

# Values of a recipe that are chosen again where another one is overridden: the first ones always, as they mean nothing
# without it; the second ones only if rules chose them, not a person.
_PARTS = ("encoder", "encoder_args", "size", "views", "canvas_side", "objective_options")
_STEPS = ("batch_size", "optimiser", "learning_rate", "weight_decay")
DEPENDENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "weights": (
        ("encoder", "encoder_args"),
        (*_PARTS, *_STEPS, "channels", "freeze_fraction", "encoder_lr_scale", "batch_norm_policy"),
    ),
    "objective": (("objective_options", "views"), (*_PARTS, *_STEPS, "clip")),
    "encoder": (("encoder_args",), _PARTS[1:]),
    "size": (("views",), _PARTS),
    "optimiser": (("learning_rate", "weight_decay"), ()),
    "budget": ((), ("size", *_PARTS[3:], "encoder_args", "canvases")),
    "batch_size": (("learning_rate",), ("objective_options",)),
}
INHERITED = "of the recipe that was given: "  # before a reason
OPAQUE = {"LA": "L", "RGBA": "RGB"}


@dataclass(frozen=True)
class Settled:
    """A settled recipe.

    recipe: of the run.
    format: of its pixels.
    first_step: step at which the budget begins: 0, or the end of the run that `--extend` continues.
    first_seconds: active seconds at that step.
    decided: up to when decisions about the items count.
    """

    recipe: Recipe
    format: PixelFormat
    first_step: int = 0
    first_seconds: float = 0.0
    decided: float = 0.0


def asked_of(choices: Mapping[str, object]) -> dict[str, object]:
    """The choices that a user made, with minutes, epochs and steps as one budget. Raises `SelfsightError` for an
    unknown name, before any image is read."""
    asked: dict[str, Any] = {k: v for k, v in choices.items() if v is not None}
    if "objective" in asked:
        find(asked["objective"])
    if "optimiser" in asked:
        check_optimiser(asked["optimiser"])
    if "encoder" in asked:
        check_name(asked["encoder"])
    budget = {k: asked.pop(k, None) for k in ("minutes", "epochs", "steps")}
    return asked | ({"budget": Budget(**budget)} if any(v is not None for v in budget.values()) else {})


def check_enough(source: str, items: Collection) -> None:
    """Raise `SelfsightError` where there are too few images to learn from."""
    if len(items.usable) < 2:
        raise DataError(f"{source} holds one image that can be read. Learning compares images: give two or more.")


def check_weights(asked: Mapping[str, object], recipe_file: str | None = None) -> None:
    """Read the weights that were asked for, or that the recipe file names, and discard them. Raises `SelfsightError` if
    they cannot be read, before any image is."""
    if weights := _start({**_left_of(recipe_file, asked)[0], **asked}):
        read(weights)


def _start(asked: dict[str, Any]) -> Weights | None:
    """The weights that `asked`, values of a recipe, names; None if it names none, or random ones."""
    source = asked.get("weights") or RANDOM
    return None if source == RANDOM else find_weights(str(source), asked.get("encoder"))


def choose(
    asked: Mapping[str, object], recipe_file: str | None, items: Collection, processes: int = 1
) -> tuple[Recipe, PixelFormat]:
    """(recipe, pixel format) for a collection. Each value is as asked, else from the recipe file, else from the
    rules."""
    given, reasons = _left_of(recipe_file, asked)
    reasons = {k: INHERITED + v.removeprefix(INHERITED) for k, v in reasons.items() if k in given.keys() - asked.keys()}
    values: dict[str, Any] = {**given, **asked}
    if isinstance(values.get("views"), str):
        values["view_style"] = values.pop("views")
        values |= {"views": given["views"]} if "views" in given else {}
    if values.get("positives") == "group" and items.usable["group"].null_count == len(items.usable):
        raise DataError(
            f"--positives group needs to know which images belong together, and no item of {items.about.location} "
            "has a group. Name it: selfsight import --columns group=COLUMN"
        )
    start, format = _start(values), measure_format(items)
    if start is not None and "channels" not in values and format.mode in OPAQUE:  # they know nothing of transparency
        format = replace(format, mode=OPAQUE[format.mode])
    channels = values.get("channels", format.channels)
    if channels != format.channels:  # a recipe of other data
        format = PixelFormat(usual_mode(channels), format.depth, format.window)
    recipe = resolve(values, facts_of(items, format, processes, start))
    recipe = replace(recipe, reasons=reasons | recipe.reasons)
    objective = find(recipe.objective)
    objective.check(recipe.encoder, recipe.channels, recipe.views)
    if not isinstance(recipe.objective_options, dict):
        raise SelfsightError(f"objective_options are lines of NAME: VALUE, not {recipe.objective_options!r}.")
    objective.check_options(recipe.objective_options)
    check_sizes(recipe)
    usable = len(items.usable)
    check_share(min(recipe.batch_size, usable), usable, processes)
    return recipe, format


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Save a recipe for `--recipe`, with its reasons."""
    values = recipe.to_dict()
    reasons = values.pop("reasons")
    write_whole(path, yaml.safe_dump({"resolved": values, "reasons": reasons}, sort_keys=False))


def settle(
    run: Run,
    asked: Mapping[str, object],
    recipe_file: str | None,
    extend: bool,
    source: str,
    items: Collection,
    processes: int,
) -> Settled:
    """The recipe of `run`: the stored one if the run was begun, else chosen now and stored.

    Raises `SelfsightError` if the run is finished and not to be extended, or was begun with another request, other
    images or another number of processes.
    """
    wanted = plain({k: asdict(v) if isinstance(v, Budget) else v for k, v in asked.items()} | {"recipe": recipe_file})
    if recipe_file:
        wanted["recipe_digest"] = _digest(_given(recipe_file)[0])
    wanted |= {"extend": True} if extend else {}
    items = as_begun(run, items)
    data: dict[str, object] = {"source": str(source), "collection": str(items.path), "version": items.version}
    data |= {"items": len(items.usable), "id_hash": items.id_hash(), "processes": processes}
    data |= {"decided": items.decided}
    note("run", run.path, items.path)
    if run.begun:
        if not run.recipe_file.exists():
            raise DataError(f"{run.path} has checkpoints but no recipe.yaml. Give another -o, or remove the folder.")
        return _go_on(run, asked, wanted, data, extend)
    if extend:
        raise SelfsightError(f"{run.path} is not a finished run, so there is nothing to extend. Leave --extend out.")
    recipe, format = choose(asked, recipe_file, items, processes)
    run.clear()
    run.write_recipe(wanted, recipe, data | {"format": plain(asdict(format))})
    return Settled(recipe, format, decided=items.decided)


def as_begun(run: Run, items: Collection) -> Collection:
    """`items` with the decisions that were made before the run was begun: what it learns from does not change under it.
    A run of an older version knew of none."""
    if not run.begun or not run.recipe_file.exists():
        return items
    pinned = run.read_recipe()[2]
    before = decided_by(items, pinned.get("decided", 0.0))
    if before.id_hash() != items.id_hash() and before.id_hash() == pinned["id_hash"]:
        console().print(
            f"Items were dropped or taken back since {run.path} was begun; it goes on with those that it had. "
            "Give another -o to learn from those of now.",
            soft_wrap=True,
        )
    return before


def decided_by(items: Collection, time: float) -> Collection:
    """`items` with the decisions that were made up to this time."""
    return items.deciding(lambda decision: decision.time <= time)


def _digest(given: Mapping[str, object]) -> str:
    """Hash of a recipe file's values. It uses the names of format 3, so that older runs go on."""
    first = {today: before for before, today in RENAMED.items()}
    values = {first.get(name, name): value for name, value in given.items()}
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def settled_before(run: Run) -> Settled:
    """The result of `settle` in another process, from the run's folder."""
    _, recipe, data = Run.open(run.path).read_recipe()
    kept, begin = data["format"], data.get("begin", {})
    format = PixelFormat(kept["mode"], kept["depth"], tuple(kept["window"]))
    return Settled(recipe, format, begin.get("step", 0), begin.get("seconds", 0.0), data.get("decided", 0.0))


def differing(before: Mapping[str, object], now: Mapping[str, object], apart: Set[str] = frozenset()) -> list[str]:
    """The sorted names whose values differ between two requests. None counts as not asked. Names in `apart` may
    differ."""
    return sorted(k for k in (before.keys() | now.keys()) - apart if before.get(k) != now.get(k))


def _go_on(
    run: Run, asked: Mapping[str, Any], wanted: Mapping[str, object], data: Mapping[str, object], extend: bool
) -> Settled:
    """The stored recipe of a run that was begun, if the request, the images and the processes are the same."""
    before, recipe, pinned = run.read_recipe()
    extending = extend and run.finished
    apart = {"budget", "extend"} if extending else set()
    if "recipe_digest" in before:  # what the file says counts, not what it is called
        apart |= {"recipe"}
    differ = differing(before, wanted, apart)
    if differ == ["budget"] and run.finished:
        spent = " ".join(f"--{name} {value:g}" for name, value in asdict(recipe.budget).items() if value is not None)
        raise SelfsightError(f"{run.path} is finished ({spent}). Give --extend to train it further, or another -o.")
    if differ:
        raise SelfsightError(
            f"{run.path} was started with other values of {', '.join(differ)}. "
            "Give the same command to go on with it, or another -o for a new run."
        )
    if pinned["id_hash"] != data["id_hash"]:
        raise DataError(f"The images of {data['source']} changed since {run.path} was started. Give another -o.")
    if pinned.get("processes", 1) != data["processes"]:
        raise SelfsightError(
            f"{run.path} was started with {pinned.get('processes', 1)} processes and cannot go on with "
            f"{data['processes']}: torchrun --nproc-per-node says how many."
        )
    if extending:
        _extend(run, wanted, replace(recipe, budget=asked.get("budget", recipe.budget)), pinned)
    elif run.finished:
        raise SelfsightError(
            f"{run.path} is finished. Give another -o, or --extend to train it further, or use it: "
            f"selfsight embed IMAGES --model {run.path}"
        )
    return settled_before(run)


def _extend(run: Run, wanted: Mapping[str, object], recipe: Recipe, pinned: Mapping[str, object]) -> None:
    """Turn a finished run into an unfinished one, with a budget that begins where it ended. A kill in between leaves a
    run that ends at once."""
    state, *_ = read_checkpoint(run.checkpoints)
    if state is None:
        raise DataError(f"No checkpoint of {run.path} can be read. Start in another -o.")
    begin = {"step": state["step"], "seconds": state["seconds"]}
    shutil.rmtree(run.path / "encoder.before", ignore_errors=True)
    os.replace(run.path / "encoder", run.path / "encoder.before")
    run.write_recipe(wanted, recipe, {**pinned, "begin": begin})
    run.log("extended", f"by {recipe.budget}", state["step"])


def _left_of(recipe_file: str | None, asked: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, str]]:
    """(values of a recipe file, reasons of the values that rules chose). Values chosen to fit another value that the
    user now overrides are left out."""
    given, reasons = _given(recipe_file) if recipe_file else ({}, {})
    chosen_by_rules = set(reasons)
    by_hand = "encoder_args" in given and "encoder_args" not in reasons
    if by_hand or asked.get("weights", given.get("weights")) == given.get("weights", RANDOM) != RANDOM:
        chosen_by_rules -= {"encoder", "encoder_args"}  # arguments and weights are of one encoder
    left = dict(given)
    for name, (meaningless, chosen) in DEPENDENTS.items():
        if name in given and asked.get(name, given[name]) != given[name]:
            gone = {*meaningless, *chosen_by_rules.intersection(chosen)}
            left = {k: v for k, v in left.items() if k not in gone}
    return left, reasons


def _given(recipe_file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(values, reasons) of a recipe file, from a run, from `plan` or written by hand. Reasons may be empty."""
    try:
        content = yaml.safe_load(Path(recipe_file).read_text(encoding="utf-8"))
        reasons = renamed(content.get("reasons") or {})
        return typed(content["resolved"]), {str(name): str(reason) for name, reason in reasons.items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{recipe_file} is not a recipe.yaml of a run ({type(error).__name__}).") from None
