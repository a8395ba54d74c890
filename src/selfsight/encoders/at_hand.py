"""Weights that are on this machine already: packages, and what timm and torchvision once downloaded.

Only names of files are looked at. Nothing is read, asked for or downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from selfsight.encoders.weights import PACKAGES, TORCHVISION, find_weights, package_file

OF_IMAGENET = ("in1k", "in12k", "in21k", "in22k", "IMAGENET1K", "package:efficientnet_lite0")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # that timm asks the hub for


MOST_SHOWN = 5
# What ImageNet's weights brought beside eight minutes from scratch on one core: docs/weights.md has the table.
BROUGHT_IN_COLOUR = (
    "In our tests ImageNet's beat eight minutes from scratch (by the default before Muon) by 45 points of k-NN on "
    "photographs of things, and by 5 on aerial photographs."
)
BROUGHT_ELSE = (
    "In our tests ImageNet's were no better than eight minutes from scratch (by the default before Muon) on grey "
    "pictures with small defects."
)


@dataclass(frozen=True)
class AtHand:
    """Weights that need no download.

    weights: as `--weights` takes them.
    licence: of the weights, or "unknown".
    architecture: timm's name.
    """

    weights: str
    licence: str
    architecture: str


def at_hand() -> list[AtHand]:
    """The weights on this machine: of installed packages, in the hub's cache and in torch's, in this order. A cache
    that is missing or cannot be read holds none."""
    found: list[AtHand] = []
    for name in dict.fromkeys((*_of_packages(), *_of_hub(), *_of_torch())):
        weights = find_weights(name)
        found.append(AtHand(name, weights.licence, weights.architecture))
    return found


def in_words(found: list[AtHand], channels: int) -> str:
    """What is at hand, with its licence, and what such weights brought in our tests for images of `channels`."""
    shown = ", ".join(f"{one.weights} ({one.licence.partition(':')[0]})" for one in found[:MOST_SHOWN])
    more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    known = any(part in one.weights for one in found for part in OF_IMAGENET)
    brought = f" {BROUGHT_IN_COLOUR if channels == 3 else BROUGHT_ELSE}" if known else ""
    return f"On this machine: {shown}{more}. --weights NAME starts from them, and inherits their licence.{brought}"


def _of_packages() -> Iterator[str]:
    for name in PACKAGES:
        file = package_file(name)
        if file is not None and file.is_file():
            yield f"package:{name}"


def _of_hub() -> Iterator[str]:
    """timm's names of the weights in the hub's cache, in the revision that timm would load."""
    from huggingface_hub import constants, try_to_load_from_cache

    folders = {folder.name for folder in _listed(Path(constants.HF_HUB_CACHE))}
    if not any(name.startswith("models--") for name in folders):
        return
    for name in timm.list_pretrained():
        cfg: Any = timm.get_pretrained_cfg(name)
        repository = str(cfg.hf_hub_id or "")
        there = f"models--{repository.replace('/', '--')}" in folders
        if there and any(isinstance(try_to_load_from_cache(repository, file), str) for file in HUB_FILES):
            yield f"timm:{name}"


def _of_torch() -> Iterator[str]:
    """torchvision's names of the weights in torch's cache, and timm's of those that are not on the hub."""
    import torch

    files = {file.name for file in _listed(Path(torch.hub.get_dir()) / "checkpoints")}
    if not files:
        return
    from torchvision import models

    for name in TORCHVISION:
        for one in models.get_model_weights(name):
            if Path(one.url).name in files:
                yield f"torchvision:{name}.{one.name}"
    for name in timm.list_pretrained():
        cfg: Any = timm.get_pretrained_cfg(name)
        if cfg.url and not cfg.hf_hub_id and Path(cfg.url).name in files:
            yield f"timm:{name}"


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
