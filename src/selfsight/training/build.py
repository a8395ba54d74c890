"""From a recipe to the module that is trained."""

from __future__ import annotations

import torch

from selfsight.data.pixels import PixelFormat
from selfsight.encoders.encoder import Preprocessing
from selfsight.encoders.store import create
from selfsight.errors import SelfsightError, first_line
from selfsight.objectives.objective import Objective, find
from selfsight.training.recipe import Recipe
from selfsight.views.make import Normalisation


def check_sizes(recipe: Recipe) -> None:
    """Raise `SelfsightError` if the encoder cannot take images of the sizes that it is given, in training or in use:
    one image of each is tried, with random weights."""
    flat = (0.0,) * recipe.channels
    preprocessing = Preprocessing(recipe.channels, recipe.size, (0.0, 1.0), flat, (1.0,) * recipe.channels)
    with torch.random.fork_rng(devices=[]):
        encoder = create(recipe.encoder, preprocessing, recipe.encoder_args).eval()
    for size in sorted({recipe.size, *(group.size for group in recipe.views.groups)}):
        try:
            with torch.inference_mode():
                encoder(torch.zeros(1, recipe.channels, size, size))
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            raise SelfsightError(
                f"{recipe.encoder} cannot take images of {size} px: {first_line(error)}. Give another --size, for "
                "ViTs a multiple of twice the patch size, or another --encoder."
            ) from None


def build(recipe: Recipe, format: PixelFormat, normalise: Normalisation) -> Objective:
    """The objective of a recipe around its encoder, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    preprocessing = Preprocessing(
        recipe.channels, recipe.size, format.window, normalise.mean, normalise.std, format.depth, format.mode
    )
    encoder = create(recipe.encoder, preprocessing, recipe.encoder_args, recipe.pretrained)
    encoder.about["view_size"] = recipe.views.largest
    try:
        return find(recipe.objective)(encoder, recipe.views, **recipe.objective_options)
    except TypeError as error:
        raise SelfsightError(f"{recipe.objective} does not take these options: {error}.") from None
