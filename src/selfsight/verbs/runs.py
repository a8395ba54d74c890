"""runs: what pretrainings there are, and removing one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from selfsight.errors import SelfsightError
from selfsight.results import Result, duration
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.training.run import Run


@dataclass(frozen=True)
class Described(Result):
    """A run. Of a damaged run, the fields after `state` are None.

    run: its folder.
    bytes: its size.
    state: finished, training, stopped or damaged.
    objective: its pretext task.
    encoder: timm's name.
    items: how many it learns from.
    weights: that it started from, or "random".
    licence: of these weights, and so of the encoder; None if it is not known yet.
    steps: that were done.
    seconds: of the whole command, over all its starts.
    """

    run: str
    bytes: int
    state: str
    objective: str | None = None
    encoder: str | None = None
    items: int | None = None
    weights: str | None = None
    licence: str | None = None
    steps: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return {k: values[k] for k in ("run", "bytes", "state")} if self.state == "damaged" else values


@dataclass(frozen=True)
class Runs(Result):
    """The result of `runs`.

    runs: that `list` found.
    removed: that `remove` deleted, as they were.
    """

    if_any: ClassVar = ("runs", "removed")
    runs: list[Described] | None = None
    removed: list[Described] | None = None


@checked
def runs(action: Literal["list", "remove"] = "list", *paths: str) -> Runs:
    """List the runs in a folder, or remove some.

    The command line asks before it removes anything; in Python the call is the answer.

    Parameters
    ----------
    action
        What to do:

        - list: every run in the folders given, or in runs/.
        - remove: delete the runs given, for good.

    paths
        Folders to search, or runs to remove.
    """
    if action == "list":
        folders = [Path(path) for path in paths or ("runs",)]
        for folder in folders:
            if not folder.is_dir():
                raise SelfsightError(f"{folder} is not a folder. Give the folder that holds your runs.")
        files = {file for folder in folders for file in folder.rglob("recipe.yaml")}
        found = sorted(file.parent for file in files if "resolved" not in file.read_text("utf-8", "replace")[:9])
        return Runs([_describe(path) for path in found])
    if not paths:
        raise SelfsightError("Say which run to remove: selfsight runs remove runs/first")
    opened = _opened(paths)
    described = [_describe(run.path) for run in opened]
    with ExitStack() as claims:
        for run in opened:  # nobody trains it, nor will
            claims.enter_context(run.claimed())
        for run in opened:
            shutil.rmtree(run.path)
    return Runs(removed=described)


def removes(action: str = "list", *paths: str) -> str:
    """What `runs` with these arguments removes, in words; nothing if it removes nothing."""
    if action != "remove":
        return ""
    rows = [_describe(run.path) for run in _opened(paths)]
    return " and ".join(f"{row.run} ({row.state}, {row.bytes / 1e6:,.1f} MB)" for row in rows)


def _opened(paths: Sequence[str]) -> list[Run]:
    """The runs to be removed, all of them or none. Raises `SelfsightError`."""
    from selfsight.training.run import Run

    opened = [Run.open(path) for path in {Path(path).resolve(): path for path in paths}.values()]
    for run in opened:
        _check_only_a_run(run)
    return opened


def _check_only_a_run(run: Run) -> None:
    from selfsight.data.manifest import RUN, strangers

    more = strangers(run.path, RUN)
    if more:
        raise SelfsightError(
            f"{run.path} also holds files that are not a run's: {', '.join(more[:3])}{', …' if len(more) > 3 else ''}. "
            "Nothing was removed: move them away first, or delete the folder yourself."
        )


def _describe(path: Path) -> Described:
    from selfsight.encoders.store import about_of
    from selfsight.files import bytes_in
    from selfsight.training.run import Run

    run, size = Run(path), bytes_in(path)
    try:
        _, recipe, data = run.read_recipe()
        last = (run.read_metrics() or [{}])[-1]
    except (SelfsightError, ValueError):
        return Described(str(path), size, "damaged")
    state = "finished" if run.finished else "training" if run.in_use else "stopped"
    licence = about_of(path / "encoder").get("licence")
    steps = int(last.get("step", 0))
    return Described(
        str(path), size, state, recipe.objective, recipe.encoder, data.get("items", 0), recipe.weights, licence, steps,
        run.seconds,
    )  # fmt: skip


def show(result: Runs) -> None:
    """Print a table of the runs, or what was removed."""
    from selfsight.console import results, table

    console = results(soft_wrap=True)
    if result.runs is None:
        for row in result.removed or []:
            console.print(f"Removed {row.run}, {row.bytes / 1e6:,.1f} MB.", highlight=False)
        return
    if not result.runs:
        console.print("No runs here. Make one: selfsight pretrain photos/ -o runs/first")
        return
    rows = []
    for row in result.runs:
        numbers = [f"{row.items or 0:,}", f"{row.steps or 0:,}", duration(row.seconds or 0)]
        start = f" (from {row.weights}: {row.licence or 'not ended'})" if row.weights not in (None, "random") else ""
        known = [row.state, row.objective or "", row.encoder or ""]
        rows.append([*known, *numbers, f"{row.bytes / 1e6:,.1f}", f"{row.run}{start}"])
    table(("state", "objective", "encoder", "items", "steps", "time", "MB", "run"), rows)
