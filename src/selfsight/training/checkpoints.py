"""Checkpoints: safetensors and JSON, written whole or not at all, with checksums. The last two are kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfsight.errors import DataError, first_line

KEPT = 2
TENSORS = ("module.safetensors", "optimiser.safetensors")


class Sums(TypedDict, total=False):
    """Figures of some steps, added up.

    count: of steps.
    sums: of each figure.
    """

    count: int
    sums: dict[str, float]


class Saved(TypedDict, total=False):
    """The state of a training in a checkpoint.

    step: steps done.
    seconds: active ones.
    skipped: steps skipped.
    bad: steps in a row up to now that were not finite.
    means: since the last row of metrics.
    checksums: of the files of tensors, by name.
    """

    step: int
    seconds: float
    skipped: int
    bad: int
    means: Sums
    checksums: dict[str, str]


def save_checkpoint(
    folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer, state: Mapping[str, object]
) -> None:
    """Write `folder`/step-XXXXXXXX. `state` is JSON and holds at least "step"."""
    final = folder / f"step-{state['step']:08d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, module, optimiser, state)
    except (OSError, SafetensorError):
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk it only takes room
        raise
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in sorted(folder.glob("step-*[0-9]"))[:-KEPT]:
        shutil.rmtree(old)


def _write(partial: Path, module: nn.Module, optimiser: torch.optim.Optimizer, state: Mapping[str, object]) -> None:
    """Write the files of a checkpoint, on disk when this returns. The state holds the checksums of the others."""
    partial.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in _unshared(module).items()}, partial / TENSORS[0])
    save_file(_optimiser_tensors(optimiser), partial / TENSORS[1])
    sums = {name: _checksum(partial / name) for name in TENSORS}
    (partial / "state.json").write_text(json.dumps({**state, "checksums": sums}))
    for file in partial.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())


def load_checkpoint(
    folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[Saved | None, list[str]]:
    """Restore the newest undamaged checkpoint into `module` and `optimiser`.

    Returns (its state, None if there is none; a sentence for each newer, damaged one that was passed over). Raises
    `SelfsightError` for a checkpoint of a module with other parts.
    """
    state, weights, tensors, damaged = read_checkpoint(folder)
    if state is not None:
        if odd := set(weights) ^ set(_unshared(module)):
            raise DataError(
                f"The checkpoints in {folder} are of another version of selfsight, with other parts of the module: "
                f"{', '.join(sorted(odd)[:3])}. Start in another -o, or go on with that version."
            )
        module.load_state_dict(weights, strict=False)  # without the second names of shared tensors
        _restore_optimiser(optimiser, tensors)
    return state, damaged


def read_checkpoint(
    folder: Path,
) -> tuple[Saved | None, dict[str, Tensor], dict[str, Tensor], list[str]]:
    """(state, tensors of the module, tensors of the optimiser, sentences) of the newest undamaged checkpoint. The state
    is None if there is none. There is a sentence for each newer, damaged one."""
    damaged: list[str] = []
    for path in sorted(folder.glob("step-*[0-9]"), reverse=True):
        try:
            state: Saved = json.loads((path / "state.json").read_text())
            for name, checksum in state.pop("checksums", {}).items():
                if _checksum(path / name) != checksum:
                    raise ValueError(f"the checksum of {name} does not fit")
            return state, load_file(path / TENSORS[0]), load_file(path / TENSORS[1]), damaged
        except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            damaged.append(f"{path.name} is damaged: {first_line(error)}")
    return None, {}, {}, damaged


def remove_after(folder: Path, step: int) -> None:
    """Remove the checkpoints after `step`: they are damaged if a run resumes from it."""
    for path in folder.glob("step-*[0-9]"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _unshared(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors by name, each once: a joint objective has several names for its encoder's."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    out = {}
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            continue
        seen[key] = name
        out[name] = tensor
    return out


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state by parameter number and name: `12.exp_avg`."""
    tensors = {}
    for number, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                tensors[f"{number}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    return tensors


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        if number.isdigit():  # the first version kept random states here too
            state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
