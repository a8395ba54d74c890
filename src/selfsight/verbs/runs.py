"""runs: what pretrainings there are, and removing one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from selfsight.errors import SelfsightError


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
        runs: [{run, state, objective, encoder, items, steps, seconds, bytes}]; removed: their paths.
    """
    from selfsight.training.run import Run

    if action == "list":
        folders = [Path(path) for path in paths or ("runs",)]
        for folder in folders:
            if not folder.is_dir():
                raise SelfsightError(f"{folder} is not a folder. Give the folder that holds your runs.")
        found = sorted({file.parent for folder in folders for file in folder.rglob("recipe.yaml")})
        return {"runs": [_describe(path) for path in found]}
    if not paths:
        raise SelfsightError("Say which run to remove: selfsight runs remove runs/first")
    opened = [Run.open(path) for path in paths]  # all are runs, or none is removed
    for run in opened:
        with run.claimed():  # nobody trains it
            pass
    described = [_describe(run.path) for run in opened]
    for run in opened:
        shutil.rmtree(run.path)
    return {"removed": described}


def _describe(path: Path) -> dict[str, Any]:
    from selfsight.data.cache import bytes_in
    from selfsight.training.run import Run

    run = Run(path)
    row: dict[str, Any] = {"run": str(path), "bytes": bytes_in(path)}
    try:
        _, recipe, data = run.read_recipe()
    except SelfsightError:
        return row | {"state": "damaged"}
    last = (run.read_metrics() or [{}])[-1]
    state = "finished" if run.finished else "training" if run.in_use else "stopped"
    row |= {"state": state, "objective": recipe.objective, "encoder": recipe.encoder, "items": data["items"]}
    return row | {"steps": last.get("step", 0), "seconds": last.get("seconds", 0.0)}


def show(result: dict[str, Any]) -> None:
    """Print a table of the runs, or what was removed."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if "removed" in result:
        for row in result["removed"]:
            console.print(f"Removed {row['run']}, {row['bytes'] / 1e6:,.1f} MB.", highlight=False)
        return
    if not result["runs"]:
        console.print("No runs here. Make one: selfsight pretrain photos/ -o runs/first")
        return
    table = Table("run", "state", "objective", "encoder", "items", "steps", "minutes", "MB", box=None)
    for row in result["runs"]:
        numbers = [f"{row.get('items', 0):,}", f"{row.get('steps', 0):,}", f"{row.get('seconds', 0) / 60:.1f}"]
        words = [row["run"], row["state"], row.get("objective", ""), row.get("encoder", "")]
        table.add_row(*words, *numbers, f"{row['bytes'] / 1e6:,.1f}")
    console.print(table)
