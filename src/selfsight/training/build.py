"""From a recipe to the module that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfsight.data.canvases import Canvases
from selfsight.data.geometry import Geometry
from selfsight.data.pixels import PixelFormat
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import create, read_folder, save, takes_any_size
from selfsight.encoders.weights import RANDOM, begin, find_weights
from selfsight.errors import SelfsightError, first_line
from selfsight.objectives.objective import Objective, find
from selfsight.objectives.patches import patch_side
from selfsight.training.measure import measure_normalisation
from selfsight.training.recipe import Recipe

FEW_PATCHES = 144  # of a view, up to which attention on a CPU in bf16 is not fused


@contextmanager
def computing(precision: str, device: str | torch.device, patches: int = 0) -> Iterator[None]:
    """Context for a forward pass.

    precision: "bf16" or "no".
    patches: most patches in a view, for a ViT; else 0.

    On a CPU in bf16, attention over few patches is computed as plain matrix products: the backward pass of PyTorch's
    fused kernel is so slow there that it took half of a ViT's step (measured, benchmarks/README.md). Products keep the
    square of the patches for the backward pass. From 197 tokens on they are not faster.
    """
    kind, low = torch.device(device).type, precision == "bf16"
    few = low and kind == "cpu" and 0 < patches <= FEW_PATCHES
    with sdpa_kernel(SDPBackend.MATH) if few else nullcontext(), torch.autocast(kind, torch.bfloat16, enabled=low):
        yield


def most_patches(recipe: Recipe) -> int:
    """Most patches in a view of the recipe, for a ViT; 0 for other encoders."""
    if not takes_any_size(recipe.encoder):
        return 0
    side = recipe.views.largest // patch_side({"encoder": recipe.encoder, "encoder_args": recipe.encoder_args})
    return int(side**2)


def check_sizes(recipe: Recipe) -> None:
    """Raise `SelfsightError` if the encoder cannot take images of the recipe's sizes, in training or in use. One image
    of each size is tried, with random weights."""
    flat = (0.0,) * recipe.channels
    geometry = Geometry(recipe.channels, recipe.size, (0.0, 1.0), flat, (1.0,) * recipe.channels)
    with torch.random.fork_rng(devices=[]):
        encoder = create(recipe.encoder, geometry, recipe.encoder_args).eval()
    parts = find(recipe.objective).part_sizes(recipe.objective_options)
    sizes = {recipe.size, *(group.size for group in recipe.views.groups)}
    for size in sorted(sizes | parts.keys()):
        try:
            with torch.inference_mode():
                encoder(torch.zeros(1, recipe.channels, size, size))
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            remedy = "another --size, for ViTs a multiple of twice the patch size, or another --encoder"
            if size not in sizes:
                remedy = f"another value of the option {parts[size]}, for ViTs a multiple of the patch size"
            said = first_line(error).rstrip(".")
            raise SelfsightError(f"{recipe.encoder} cannot take images of {size} px: {said}. Give {remedy}.") from None


def build(recipe: Recipe, format: PixelFormat, normalise: Geometry, start: Encoder | None = None) -> Objective:
    """The recipe's objective around the encoder `start` (see `starting_encoder`), or around one with random weights.
    Random weights are drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    encoder = start or create(
        recipe.encoder, geometry_of(recipe, format, normalise.mean, normalise.std), recipe.encoder_args
    )
    encoder.about["view_size"] = recipe.views.largest
    try:
        return find(recipe.objective)(encoder, recipe.views, **recipe.objective_options)
    except TypeError as error:
        raise SelfsightError(f"{recipe.objective} does not take these options: {error}.") from None


def normalisation_of(recipe: Recipe, canvases: Canvases) -> Geometry:
    """The normalisation of the recipe's starting weights, as their features need it; for random weights, measured."""
    if recipe.weights == RANDOM:
        return measure_normalisation(canvases)
    mean, std = find_weights(recipe.weights, recipe.encoder).statistics(recipe.channels)
    return canvases.geometry(mean, std)


def starting_encoder(
    recipe: Recipe, format: PixelFormat, normalise: Geometry, folder: Path | None = None
) -> Encoder | None:
    """The encoder with the recipe's starting weights; None if they are random.

    It is saved in `folder` and read from there the next time, when nothing else is needed.
    """
    if recipe.weights == RANDOM:
        return None
    if folder is not None and (folder / "config.json").exists():
        return read_folder(folder)
    weights = find_weights(recipe.weights, recipe.encoder)
    encoder = begin(weights, geometry_of(recipe, format, normalise.mean, normalise.std), recipe.encoder_args)
    if folder is None:
        return encoder
    save(encoder, folder)
    return read_folder(folder)


def geometry_of(recipe: Recipe, format: PixelFormat, mean: tuple[float, ...], std: tuple[float, ...]) -> Geometry:
    """The encoder's geometry: the recipe's size, the images' format, and what normalises each channel."""
    return Geometry(recipe.channels, recipe.size, format.window, mean, std, format.depth, format.mode)
