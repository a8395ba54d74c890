"""What a head on frozen features can be: prototypes, linear, ordinal, nearest neighbours; each fitted in seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.heads.modules import Linear, Nearest
from selfsight.heads.targets import Targets
from selfsight.probing.linear import unit_rows

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # inverse L2 strengths C on features of unit length
NEIGHBOURS = (5, 20)
MOST_NEIGHBOURS = 20_000  # labels, above which neighbours are too slow and too large to keep
SHARPNESS = 10.0  # of prototypes, whose cosines are else too near each other for probabilities
LEAST = 1e-7  # probability of a grade


Fit = Callable[..., nn.Module]  # (features [N, D], targets, weights=[N] of the items) to the module that scores


@dataclass(frozen=True)
class More:
    """What a fit learns from beside the labels, each item at less than their weight of 1.

    features: [P, D]. targets: of P items. weights: [P].
    """

    features: np.ndarray
    targets: Targets
    weights: np.ndarray


def methods(kind: str, items: int) -> dict[str, dict[str, Fit]]:
    """What can be fitted to labels of a kind, by method and setting, the simplest first."""
    linear: Callable[..., nn.Module] = {
        "class": fit_linear, "grade": fit_linear, "classes": fit_several, "number": fit_number,
    }[kind]  # fmt: skip
    found: dict[str, dict[str, Fit]] = {}
    if kind in ("class", "grade"):
        found["prototypes"] = {"": fit_prototypes}
    found["linear"] = {f"C={strength:g}": partial(linear, strength=strength) for strength in STRENGTHS}
    if kind == "grade":
        found["ordinal"] = {f"C={strength:g}": partial(fit_ordinal, strength=strength) for strength in STRENGTHS}
    if items <= MOST_NEIGHBOURS:
        found["knn"] = {f"k={k}": partial(fit_nearest, k=k) for k in NEIGHBOURS}
    return found


def fit_prototypes(features: np.ndarray, targets: Targets, weights: np.ndarray | None = None) -> Linear:
    """The class whose mean is nearest: 10 (2 m·x - m·m) for the mean m of the class. Snell et al., "Prototypical
    Networks for Few-shot Learning", NeurIPS 2017."""
    unit = _unit(features)
    values = targets.values if weights is None else targets.values * weights[:, None].astype(np.float32)
    counts = values.sum(0)
    means = (values.T @ unit) / np.where(counts > 0, counts, 1.0)[:, None]  # [K, D]
    bias = np.where(counts > 0, -SHARPNESS * (means**2).sum(1), -np.inf)
    return _linear(2.0 * SHARPNESS * means, bias)


def fit_linear(features: np.ndarray, targets: Targets, strength: float, weights: np.ndarray | None = None) -> Linear:
    """Logistic regression; a class without examples has a probability of 0."""
    from selfsight.probing import linear

    numbers, classes = targets.numbers, len(targets.classes)
    if len(there := np.unique(numbers)) < 2:  # one class only, which is then certain
        bias = np.full(classes, -np.inf)
        bias[there] = 0.0
        return _linear(np.zeros((classes, features.shape[1])), bias)
    probe = linear.fit_linear(features, numbers, classes, strength, weights=weights)
    return _linear(probe.weight, probe.bias)


def fit_several(features: np.ndarray, targets: Targets, strength: float) -> Linear:
    """A logistic regression for each class by itself. One that all items have, or none, has log-odds that do not depend
    on the features."""
    from sklearn.linear_model import LogisticRegression

    unit, count = _unit(features), len(targets)
    weight = np.zeros((len(targets.classes), features.shape[1]))
    share = (targets.values.sum(0) + 0.5) / (count + 1.0)
    bias = np.log(share / (1.0 - share))
    for column, truth in enumerate(targets.values.T):
        if 0 < truth.sum() < count:
            model = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # reaching the iteration limit moves no digit that is shown
                model.fit(unit, truth)
            weight[column], bias[column] = model.coef_[0], model.intercept_[0]
    return _linear(weight, bias)


def fit_number(features: np.ndarray, targets: Targets, strength: float) -> Linear:
    """Ridge regression of the number."""
    from sklearn.linear_model import Ridge

    truth = targets.values[:, 0].astype(np.float64)
    middle, scale = truth.mean(), truth.std() or 1.0
    model = Ridge(alpha=1.0 / strength).fit(_unit(features), (truth - middle) / scale)
    return _linear(scale * model.coef_[None], np.array([middle + scale * model.intercept_]))


def fit_nearest(features: np.ndarray, targets: Targets, k: int) -> Nearest:
    """The k nearest labelled items vote."""
    bank, values = torch.from_numpy(_unit(features)), torch.from_numpy(targets.values)
    return Nearest(bank, values, targets.kind, k)


class Ordinal(nn.Module):
    """Log-probabilities [B, K] of ordered grades by the proportional-odds model, P(grade <= k) = sigmoid(t_k - w·x),
    of features of unit length. weight [D], cuts t [K - 1] ascending. McCullagh, "Regression Models for Ordinal Data",
    JRSS B 1980."""

    weight: Tensor
    cuts: Tensor

    def __init__(self, weight: Tensor, cuts: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("cuts", cuts)

    def forward(self, features: Tensor) -> Tensor:
        return _grades(F.normalize(features, dim=1) @ self.weight, self.cuts).clamp_min(LEAST).log()


def _grades(along: Tensor, cuts: Tensor) -> Tensor:
    """Probabilities [B, K] of grades where items lie `along` [B] one line."""
    below = torch.sigmoid(cuts - along[:, None])  # [B, K - 1]
    return torch.diff(below, dim=1, prepend=torch.zeros_like(below[:, :1]), append=torch.ones_like(below[:, :1]))


def fit_ordinal(features: np.ndarray, targets: Targets, strength: float, weights: np.ndarray | None = None) -> Ordinal:
    """The proportional-odds model with the L2 penalty |w|^2 / (2 C) on the sum over items, by L-BFGS."""
    unit = torch.from_numpy(_unit(features)).double()
    truth = torch.from_numpy(targets.numbers)
    counts = torch.ones(len(truth)) if weights is None else torch.from_numpy(weights)
    weight = torch.zeros(unit.shape[1], dtype=torch.float64, requires_grad=True)
    shares = np.clip(np.cumsum(targets.values.mean(0))[:-1], 0.01, 0.99)
    first = torch.tensor([np.log(shares[0] / (1 - shares[0]))], requires_grad=True)
    # Gaps between cuts stay positive as exponentials of what is fitted.
    gaps = torch.tensor(np.log(np.maximum(np.diff(np.log(shares / (1 - shares))), 0.1)), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, first, gaps], max_iter=200, line_search_fn="strong_wolfe")

    def cuts() -> Tensor:
        return torch.cumsum(torch.cat([first, gaps.exp()]), 0)

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = _grades(unit @ weight, cuts()).clamp_min(LEAST)
        total = -(counts * found.gather(1, truth[:, None])[:, 0].log()).sum() + weight.square().sum() / (2.0 * strength)
        total.backward()
        return total

    optimiser.step(loss)
    return Ordinal(weight.detach().float(), cuts().detach().float())


def _linear(weight: np.ndarray, bias: np.ndarray) -> Linear:
    return Linear(torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(bias.astype(np.float32)))


def _unit(features: np.ndarray) -> np.ndarray:
    return np.asarray(unit_rows(features), np.float32)


def fitted(fit: Fit, features: np.ndarray, targets: Targets, more: More | None = None) -> nn.Module:
    """What is fitted to items with a label, and to `more`."""
    if more is None or not len(more.weights):
        return fit(features, targets)
    values = np.concatenate([targets.values, more.targets.values])
    weights = np.concatenate([np.ones(len(targets)), more.weights])
    return fit(np.concatenate([features, more.features]), replace(targets, values=values), weights=weights)


def cross_fitted(
    fit: Fit, features: np.ndarray, targets: Targets, folds: np.ndarray, more: Callable[[int], More] | None = None
) -> np.ndarray:
    """Scores [N, K] of each item by what was fitted to all but its fold; 0 for an item that is in none.

    folds: of each item, [N]; -1 for one that is never held out. more: what else is learnt from without a fold.
    """
    out = np.zeros_like(targets.values)
    for fold in np.unique(folds[folds >= 0]).tolist():
        held = np.flatnonzero(folds == fold)
        kept = np.flatnonzero(folds != fold)
        scorer = fitted(fit, features[kept], targets.take(kept), more(fold) if more else None)
        out[held] = scored(scorer, features[held])
    return out


def scored(scorer: nn.Module, features: np.ndarray) -> np.ndarray:
    """Scores [N, K] of features [N, D], a piece at a time."""
    with torch.inference_mode():
        parts = [scorer(part) for part in torch.from_numpy(np.ascontiguousarray(features)).split(4096)]
        return np.asarray(torch.cat(parts).numpy())
