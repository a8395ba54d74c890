"""Starting from weights: the encoder held still while the heads around it warm up, how far its features drift, and what
is kept of it in the end."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.data.batches import Batches
from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.files import read_json, write_whole
from selfsight.training.build import computing
from selfsight.training.interpolation import SHARES, Kept, Tried, chosen, interpolated
from selfsight.training.measure import canvas_features, view_features
from selfsight.training.monitors import effective_rank, shared_neighbours
from selfsight.training.run import Run
from selfsight.training.watch import is_due

CANVASES = 256  # at most: then measuring costs a third of a step of four quarters, forward and back
FEWEST = 4  # of which the unbiased estimate is defined


class Frozen:
    """Freezes the encoders of `module` while progress is below `until`: the trained one and its teachers' copies.

    Their weights get no gradient, so no optimiser moves, decays or remembers them, and eval mode keeps their running
    statistics. Gradients are computed as usual and then dropped, so nothing changes for processes that average them.

    until: progress at which freezing ends; 0 freezes nothing.
    keep_statistics: whether batch norms keep and use their running statistics throughout, as they do in use.
    """

    def __init__(self, encoder: Encoder, module: nn.Module, until: float, keep_statistics: bool = False) -> None:
        self.until = until
        self.parameters = list(encoder.parameters())
        self.encoders = [each for each in module.modules() if isinstance(each, Encoder)]
        self.norms = [
            norm
            for each in self.encoders
            for norm in each.modules()
            if keep_statistics and isinstance(norm, nn.modules.batchnorm._BatchNorm)
        ]

    def before(self, progress: float) -> None:
        """Set the modes; called before a step."""
        if self.until > 0.0:
            for encoder in self.encoders:
                encoder.train(progress >= self.until)
        for norm in self.norms:
            norm.eval()

    def drop_gradients(self, progress: float) -> None:
        """Drop the encoders' gradients while frozen; called before the optimiser's step."""
        if progress < self.until:
            for parameter in self.parameters:
                parameter.grad = None


def drift(start: Tensor, now: Tensor) -> float:
    """1 - linear CKA of features `start` [N, D] and `now` [N, E] of the same N images.

    0: images lie to each other as before, up to turning and scaling. About 1: nothing of that is left. White noise as
    strong as the signal gives 0.5. Features that are all equal have drifted by 1.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3, with the unbiased
    estimate of HSIC (Song et al., JMLR 2012, equation 5; Nguyen et al., ICLR 2021, equation 3). The biased estimate
    finds unrelated features similar unless D is much smaller than N. Raises `ValueError` for fewer than four images.
    """
    if len(start) < FEWEST:
        raise ValueError("drift needs at least four images")
    one, two = (_similarities(features) for features in (start, now))
    own = _hsic(one, one) * _hsic(two, two)
    if not own > 0.0:
        return 1.0
    return min(1.0, max(0.0, 1.0 - _hsic(one, two) / math.sqrt(own)))


def _similarities(features: Tensor) -> Tensor:
    """Similarities [N, N], float64, of centred features of unit mean square, with zeros on the diagonal."""
    x = features.double()
    x = x - x.mean(0)
    scale = x.square().sum(1).mean().sqrt()
    if not scale > 1e-9 * features.double().norm(dim=1).mean():  # all the same, but for rounding
        return torch.zeros(len(x), len(x), dtype=torch.float64)
    return ((x / scale) @ (x / scale).T).fill_diagonal_(0.0)


def _hsic(k: Tensor, h: Tensor) -> float:
    """Song et al. 2012, equation 5, without its constant factor, for matrices [N, N] with zeros on the diagonal."""
    n = len(k)
    total = (k * h).sum() + k.sum() * h.sum() / ((n - 1) * (n - 2)) - 2.0 * (k.sum(0) @ h.sum(0)) / (n - 2)
    return float(total)


class Adaptation:
    """How the features change from the starting weights on, on the same images throughout, and what is kept in the end.

    precision: in which features are computed, "bf16" or "no".
    seconds: that the figures of one encoder take.
    """

    def __init__(
        self, start: Encoder, encoder: Encoder, batches: Batches, normalise: Geometry, precision: str = "no"
    ) -> None:
        self.start, self.encoder = start.to(memory_format=torch.channels_last), encoder
        self.batches, self.normalise, self.precision = batches, normalise, precision
        self.reference, self.view = self._features(start), self._views(start)[0]
        began = time.monotonic()
        self.before = self._tried(start, 0.0)
        self.seconds = time.monotonic() - began

    def measure(self, progress: float, before: float) -> dict[str, float]:
        """{"drift": …} after the first row and each tenth of the run, else {}. before: progress of the row before."""
        if len(self.reference) < FEWEST or not is_due(progress, before):
            return {}
        return {"drift": drift(self.reference, self._features(self.encoder))}

    @property
    def seconds_to_keep(self) -> float:
        """Seconds that `keep` will take."""
        return self.seconds * (len(SHARES) - 1)

    def keep(self, run: Run, step: int) -> Encoder:
        """The encoder to keep: the start, the trained one, or one between them, by `chosen`. Writes `adaptation.json`,
        {images, before, after, kept}, and a line of the log. The encoder must not be whitened yet. One whose features
        are not finite is given back as it is."""
        if not torch.isfinite(self._features(self.encoder)).all():
            return self.encoder
        tried = [self.before]
        tried += [self._tried(interpolated(self.start, self.encoder, share), share) for share in SHARES[1:]]
        figures = [one for one, _ in tried]
        kept = chosen(figures, [agreement for _, agreement in tried])
        content: dict[str, object] = {"images": len(self.reference), "before": figures[0].figures()}
        content |= {"after": figures[SHARES.index(kept.share)].figures(), "kept": asdict(kept)}
        write_whole(run.adaptation_file, json.dumps(content, indent=2))
        run.log("kept", kept.why, step)
        return interpolated(self.start, self.encoder, kept.share)

    def _features(self, encoder: Encoder) -> Tensor:
        with computing(self.precision, encoder.device):
            return canvas_features(encoder, self.batches, self.normalise, CANVASES)

    def _views(self, encoder: Encoder) -> Tensor:
        """Features [2, N, D] of two views of each image."""
        places = np.arange(min(CANVASES, len(self.batches.ids)))
        with computing(self.precision, encoder.device):
            return view_features(encoder, self.batches, self.normalise, 2, places, CANVASES)

    def _tried(self, encoder: Encoder, share: float) -> tuple[Tried, Tensor]:
        """The figures of an encoder, from one view of each image and from two, and how far these agree on the
        neighbours of each image [N]."""
        one, two = self._views(encoder)
        agreement, stability, far = torch.zeros(len(one)), None, None
        if len(one) > 2:
            agreement = shared_neighbours(F.normalize(one, dim=1), F.normalize(two, dim=1))
            stability = float(agreement.mean())
        if len(one) >= FEWEST:
            far = drift(self.view, one) if share else 0.0
        return Tried(share, effective_rank(one), stability, far), agreement


def kept_of(run: Run) -> Kept | None:
    """What the run kept; None for one from random weights, or of an older version."""
    kept: Any = (read_adaptation(run) or {}).get("kept")
    return Kept(kept["share"], kept["why"], [Tried(**one) for one in kept["tried"]]) if kept else None


def read_adaptation(run: Run) -> dict[str, object] | None:
    """The content of `adaptation.json`; None if it is missing or cannot be read."""
    content = read_json(run.adaptation_file)
    return content if content and {"before", "after"} <= content.keys() else None
