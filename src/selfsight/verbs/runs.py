"""runs: what pretrainings and heads there are, and removing one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from selfsight.errors import SelfsightError
from selfsight.results import Result, duration
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.training.run import Run

HOMES = ("runs", "heads")  # where `list` looks, if it is not told


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
class DescribedHead(Result):
    """A head. Of a damaged head, the fields after `state` are None.

    head: its folder.
    bytes: its size.
    state: ready or damaged.
    task: that it does.
    kind: of its labels; None where it has no kinds.
    method: that scores features.
    classes: that it tells apart, none of a number, None where it names none.
    items: labelled ones that it learnt from.
    licence: of its encoder, which holds for the head.
    """

    if_any: ClassVar = ("task", "kind", "method", "classes", "items", "licence")
    head: str
    bytes: int
    state: str
    task: str | None = None
    kind: str | None = None
    method: str | None = None
    classes: list[str] | None = None
    items: int | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Runs(Result):
    """The result of `runs`.

    runs: that `list` found.
    removed: runs that `remove` deleted, as they were.
    heads: that `list` found.
    removed_heads: that `remove` deleted, if it did.
    """

    if_any: ClassVar = ("runs", "removed", "heads", "removed_heads")
    runs: list[Described] | None = None
    removed: list[Described] | None = None
    heads: list[DescribedHead] | None = None
    removed_heads: list[DescribedHead] | None = None


@checked
def runs(action: Literal["list", "remove"] = "list", *paths: str) -> Runs:
    """List the runs and the heads in a folder, or remove some.

    The command line asks before it removes anything; in Python the call is the answer.

    Parameters
    ----------
    action
        What to do:

        - list: every run and head in the folders given, or in runs/ and heads/.
        - remove: delete the runs and heads given, for good.

    paths
        Folders to search, or runs and heads to remove.
    """
    if action == "list":
        return _found([Path(path) for path in paths] or [Path(name) for name in HOMES if Path(name).is_dir()])
    if not paths:
        raise SelfsightError("Say which run or head to remove: selfsight runs remove runs/first")
    from selfsight.data.manifest import walk_of

    opened, heads = _opened(paths)
    described, described_heads = [_describe(run.path) for run in opened], [_describe_head(head) for head in heads]
    with ExitStack() as claims:
        for run in opened:  # nobody trains it, nor will
            claims.enter_context(run.claimed())
        for path in [*(run.path for run in opened), *heads]:
            shutil.rmtree(path)
    for path in heads:
        if (walk_of(path) / "state.safetensors").exists():  # where adapt led it along a stream
            shutil.rmtree(walk_of(path))
    return Runs(removed=described, removed_heads=described_heads or None)


def _found(folders: list[Path]) -> Runs:
    for folder in folders or [Path(HOMES[0])]:
        if not folder.is_dir():
            raise SelfsightError(f"{folder} is not a folder. Give the folder that holds your runs.")
    files = {file for folder in folders for file in folder.rglob("recipe.yaml")}
    found = sorted(file.parent for file in files if "resolved" not in file.read_text("utf-8", "replace")[:9])
    heads = sorted({file.parent for folder in folders for file in folder.rglob("head.json")})
    return Runs([_describe(path) for path in found], heads=[_describe_head(path) for path in heads])


def removes(action: str = "list", *paths: str) -> str:
    """What `runs` with these arguments removes, in words; nothing if it removes nothing."""
    if action != "remove":
        return ""
    opened, heads = _opened(paths)
    rows = [f"{row.run} ({row.state}, {_size(row)})" for row in (_describe(run.path) for run in opened)]
    rows += [f"{row.head} (a head, {_size(row)})" for row in map(_describe_head, heads)]
    return " and ".join(rows)


def _size(row: Described | DescribedHead) -> str:
    return f"{row.bytes / 1e6:,.1f} MB"


def _opened(paths: Sequence[str]) -> tuple[list[Run], list[Path]]:
    """The runs and the heads to be removed, all of them or none. Raises `SelfsightError`."""
    from selfsight.data.manifest import HEAD, RUN
    from selfsight.heads.head import head_folder
    from selfsight.training.run import Run

    given = {Path(path).resolve(): path for path in paths}.values()
    heads = [folder for path in given if (folder := head_folder(path)) is not None]
    runs = [Run.open(path) for path in given if head_folder(path) is None]
    for run in runs:
        _check_only(run.path, "a run's", RUN)
    for head in heads:
        _check_only(head, "a head's", HEAD)
    return runs, heads


def _check_only(folder: Path, whose: str, parts: Mapping[str, str]) -> None:
    from selfsight.data.manifest import strangers

    more = strangers(folder, parts)
    if more:
        raise SelfsightError(
            f"{folder} also holds files that are not {whose}: {', '.join(more[:3])}{', …' if len(more) > 3 else ''}. "
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


def _describe_head(path: Path) -> DescribedHead:
    from selfsight.files import bytes_in, read_json
    from selfsight.heads.classify_voice import ClassifyAbout
    from selfsight.heads.tasks import read_about

    size = bytes_in(path)
    try:
        about = read_about(read_json(path / "head.json") or {})
    except (KeyError, TypeError, ValueError, SelfsightError):
        return DescribedHead(str(path), size, "damaged")
    method = f"{about.method} {about.setting}".strip()
    kind, classes = (about.kind, list(about.classes)) if isinstance(about, ClassifyAbout) else (None, None)
    return DescribedHead(str(path), size, "ready", about.task, kind, method, classes, about.items, about.licence)


def show(result: Runs) -> None:
    """Print a table of the runs and one of the heads, or what was removed."""
    from selfsight.console import results

    console = results(soft_wrap=True)
    if result.runs is None:
        for row in result.removed or []:
            console.print(f"Removed {row.run}, {_size(row)}.", highlight=False)
        for head in result.removed_heads or []:
            console.print(f"Removed {head.head}, {_size(head)}.", highlight=False)
        return
    if not result.runs and not result.heads:
        console.print("No runs here. Make one: selfsight pretrain photos/ -o runs/first")
    if result.runs:
        _show_runs(result.runs)
    if result.heads:
        _show_heads(result.heads)


def _show_runs(runs: list[Described]) -> None:
    from selfsight.console import table

    rows = []
    for row in runs:
        numbers = [f"{row.items or 0:,}", f"{row.steps or 0:,}", duration(row.seconds or 0)]
        start = f" (from {row.weights}: {row.licence or 'not ended'})" if row.weights not in (None, "random") else ""
        known = [row.state, row.objective or "", row.encoder or ""]
        rows.append([*known, *numbers, f"{row.bytes / 1e6:,.1f}", f"{row.run}{start}"])
    table(("state", "objective", "encoder", "items", "steps", "time", "MB", "run"), rows)


def _show_heads(heads: list[DescribedHead]) -> None:
    from selfsight.console import table
    from selfsight.encoders.licences import NONE
    from selfsight.heads.tasks import head_type

    rows = []
    for row in heads:
        if row.state == "damaged":
            rows.append(["damaged", "", "", "0", f"{row.bytes / 1e6:,.1f}", row.head])
            continue
        count = f"{len(row.classes or []):,}"
        told = {"number": "a number", "grade": f"{count} grades"}.get(row.kind or "", f"{count} classes")
        told = told if row.kind else head_type(row.task or "").gives
        known = [row.task or "", told, row.method or "", f"{row.items or 0:,}"]
        licence = "" if row.licence == NONE else f" (licence: {row.licence})"
        rows.append([*known, f"{row.bytes / 1e6:,.1f}", f"{row.head}{licence}"])
    table(("task", "answers", "method", "items", "MB", "head"), rows)
