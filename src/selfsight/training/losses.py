"""The loss of a run's objective on images that it may never have seen: in eval mode, nothing trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from selfsight.data.batches import Batches
from selfsight.data.canvases import Streamed
from selfsight.data.collection import Collection
from selfsight.data.pixels import PixelFormat
from selfsight.encoders.levels import evaluating
from selfsight.machine import best_device, usable_cores
from selfsight.training.build import build, starting_encoder
from selfsight.training.checkpoints import read_checkpoint
from selfsight.training.run import Run
from selfsight.views.make import make_views

BATCH = 8  # items, whose one loss counts as one: most objectives compare the items of a batch
LEAST_BATCHES = 2


class RunLoss:
    """The objective of a run, with the weights of its last checkpoint."""

    def __init__(self, path: Path, format: PixelFormat, collection: Collection) -> None:
        """format: of the run's images. Raises `SelfsightError` where `path` is no run, and `LookupError` for one that
        keeps no checkpoint."""
        run = Run.open(path)
        _, self.recipe, _ = run.read_recipe()
        kept = run.read_normalisation()
        state, weights, _, _ = read_checkpoint(run.checkpoints)
        if state is None or kept is None:
            raise LookupError(f"{path} has no checkpoint")
        self.collection, self.format = collection, format
        canvases = self._canvases(collection.usable)
        self.normalise = canvases.geometry(kept["mean"], kept["std"])
        start = starting_encoder(self.recipe, format, self.normalise, run.start)
        self.objective = build(self.recipe, format, self.normalise, start).to(best_device())
        if self.objective.load_state_dict(weights, strict=False).unexpected_keys:
            raise LookupError(f"the checkpoints of {path} are of another version")

    def of(self, rows: pa.Table) -> np.ndarray:
        """The losses [M] of batches of 8 of these items, by the views of the run; none for fewer than 16 items."""
        batches = Batches(self._canvases(rows), BATCH, self.recipe.seed, self.recipe.views.companion)
        if batches.steps_per_epoch < LEAST_BATCHES:
            return np.empty(0)
        losses = []
        with evaluating(self.objective), torch.inference_mode():
            for step in range(batches.steps_per_epoch):
                batch = batches.gather(np.arange(step * BATCH, (step + 1) * BATCH), 0)
                views = make_views(batch, self.objective.views, self.normalise, self.recipe.seed, best_device())
                losses.append(float(self.objective(views, 1.0).total))
        return np.array(losses)

    def _canvases(self, rows: pa.Table) -> Streamed:
        return Streamed(self.collection, self.format, self.recipe.canvas_side, usable_cores(), rows=rows)
