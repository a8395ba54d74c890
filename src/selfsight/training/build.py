"""From a recipe to the module that is trained."""

from __future__ import annotations

import torch

from selfsight.data.pixels import PixelFormat
from selfsight.encoders.encoder import Preprocessing
from selfsight.encoders.store import create
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Objective, find
from selfsight.training.recipe import Recipe
from selfsight.views.make import Normalisation


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
