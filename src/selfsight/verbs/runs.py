"""runs: what pretrainings there are, and removing one."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsight.errors import SelfsightError

if TYPE_CHECKING:
    from selfsight.training.run import Run


def runs(action: Literal["list", "remove"] = "list", *paths: str) -> dict[str, Any]:
    """List the runs in a folder, or remove some.

    Parameters
    ----------
    action
        list: every run in the folders given, or in runs/. remove: delete the runs given, for good.
    paths
        Folders to search, or runs to remove.

    Returns
    -------
    dict
        runs, or removed: [{run, state, objective, encoder, weights, licence, items, steps, seconds, bytes}]; a run
        whose state is "damaged" has only run, state and bytes. weights: "random", or what it started from; licence:
        theirs, which is the encoder's too, None where it is not known yet.
    """
    from selfsight.training.run import Run

    if action == "list":
        folders = [Path(path) for path in paths or ("runs",)]
        for folder in folders:
            if not folder.is_dir():
                raise SelfsightError(f"{folder} is not a folder. Give the folder that holds your runs.")
        files = {file for folder in folders for file in folder.rglob("recipe.yaml")}
        found = sorted(file.parent for file in files if "resolved" not in file.read_text("utf-8", "replace")[:9])
        return {"runs": [_describe(path) for path in found]}
    if not paths:
        raise SelfsightError("Say which run to remove: selfsight runs remove runs/first")
    opened = [Run.open(path) for path in {Path(path).resolve(): path for path in paths}.values()]
    for run in opened:  # all are removed, or none
        _check_only_a_run(run)
    described = [_describe(run.path) for run in opened]
    with ExitStack() as claims:
        for run in opened:  # nobody trains it, nor will
            claims.enter_context(run.claimed())
        for run in opened:
            shutil.rmtree(run.path)
    return {"removed": described}


def _check_only_a_run(run: Run) -> None:
    from selfsight.data.manifest import RUN, strangers

    more = strangers(run.path, RUN)
    if more:
        raise SelfsightError(
            f"{run.path} also holds {', '.join(more[:3])}{', …' if len(more) > 3 else ''}, which no run writes. "
            "Nothing was removed: move that away first, or delete the folder yourself."
        )


def _describe(path: Path) -> dict[str, Any]:
    from selfsight.encoders.store import about_of
    from selfsight.files import bytes_in
    from selfsight.training.run import Run

    run = Run(path)
    row: dict[str, Any] = {"run": str(path), "bytes": bytes_in(path)}
    try:
        _, recipe, data = run.read_recipe()
        last = (run.read_metrics() or [{}])[-1]
    except (SelfsightError, ValueError):
        return row | {"state": "damaged"}
    state = "finished" if run.finished else "training" if run.in_use else "stopped"
    row |= {"state": state, "objective": recipe.objective, "encoder": recipe.encoder, "items": data.get("items", 0)}
    row |= {"weights": recipe.weights, "licence": about_of(path / "encoder").get("licence")}
    return row | {"steps": last.get("step", 0), "seconds": last.get("seconds", 0.0)}


def show(result: dict[str, Any]) -> None:
    """Print a table of the runs, or what was removed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if "removed" in result:
        for row in result["removed"]:
            console.print(f"Removed {escape(row['run'])}, {row['bytes'] / 1e6:,.1f} MB.", highlight=False)
        return
    if not result["runs"]:
        console.print("No runs here. Make one: selfsight pretrain photos/ -o runs/first")
        return
    table = Table("run", "state", "objective", "encoder", "items", "steps", "minutes", "MB", box=None)
    for row in result["runs"]:
        numbers = [f"{row.get('items', 0):,}", f"{row.get('steps', 0):,}", f"{row.get('seconds', 0) / 60:.1f}"]
        encoder = row.get("encoder", "")
        if row.get("weights", "random") != "random":
            encoder += f" from {row['weights']} ({row['licence'] or 'not ended'})"
        words = [row["run"], row["state"], row.get("objective", ""), encoder]
        table.add_row(*map(escape, words), *numbers, f"{row['bytes'] / 1e6:,.1f}")
    console.print(table)
