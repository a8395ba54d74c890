"""What is fitted to frozen features, against slow references and closed forms."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import normalize

from selfsight.heads.calibration import probabilities
from selfsight.heads.fits import (
    Targets,
    cross_fitted,
    fit_linear,
    fit_nearest,
    fit_number,
    fit_ordinal,
    fit_prototypes,
    fit_several,
    scored,
)


def one_hot(numbers: np.ndarray, count: int) -> Targets:
    return Targets("class", tuple("abcdefgh"[:count]), np.eye(count, dtype=np.float32)[numbers])


@pytest.fixture
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Features [90, 6] of three classes of uneven size, and their numbers."""
    rng = np.random.default_rng(0)
    numbers = np.repeat([0, 1, 2], [50, 30, 10])
    return (rng.normal(size=(3, 6))[numbers] * 2 + rng.normal(size=(90, 6))).astype(np.float32), numbers


def test_prototypes_choose_the_nearest_mean(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, numbers = blobs
    unit = normalize(features)
    means = np.stack([unit[numbers == c].mean(0) for c in range(3)])
    nearest = np.array([np.argmin([((x - m) ** 2).sum() for m in means]) for x in unit])
    assert (scored(fit_prototypes(features, one_hot(numbers, 3)), features).argmax(1) == nearest).all()


def test_a_class_without_examples_has_no_probability(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, numbers = blobs
    for fit in (fit_prototypes, lambda f, t: fit_linear(f, t, 10.0)):
        p = probabilities("class", scored(fit(features, one_hot(numbers, 4)), features))
        assert (p[:, 3] == 0).all() and np.allclose(p.sum(1), 1)


def test_linear_is_scikit_learns(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, numbers = blobs
    reference = LogisticRegression(C=10.0, max_iter=5000, tol=1e-10).fit(normalize(features), numbers)
    p = probabilities("class", scored(fit_linear(features, one_hot(numbers, 3), 10.0), features))
    assert np.abs(p - reference.predict_proba(normalize(features))).max() < 0.03  # it stops at a gradient of 1e-3


def test_several_classes_are_each_their_own_regression() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(80, 5)).astype(np.float32)
    values = (features[:, :2] > 0).astype(np.float32)
    values = np.concatenate([values, np.ones((80, 1), np.float32)], 1)  # and one that all have
    p = probabilities(
        "classes", scored(fit_several(features, Targets("classes", ("a", "b", "c"), values), 100.0), features)
    )
    for column in (0, 1):
        reference = LogisticRegression(C=100.0, max_iter=5000, tol=1e-10).fit(normalize(features), values[:, column])
        assert (
            np.abs(p[:, column] - reference.predict_proba(normalize(features))[:, 1]).max() < 0.03
        )  # it stops at a gradient of 1e-3
    assert np.allclose(p[:, 2], 80.5 / 81)  # (80 + 1/2) / (80 + 1), whatever the features


def test_number_is_ridge_regression() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(60, 4)).astype(np.float32)
    truth = (1000 + 50 * normalize(features)[:, 0]).astype(np.float32)
    found = scored(fit_number(features, Targets("number", (), truth[:, None]), 1000.0), features)[:, 0]
    middle, scale = truth.mean(), truth.std()
    reference = Ridge(alpha=1e-3).fit(normalize(features), (truth - middle) / scale)
    assert np.abs(found - (middle + scale * reference.predict(normalize(features)))).max() < 0.01
    assert np.abs(found - truth).max() < 0.1


def test_ordinal_is_the_minimum_of_its_own_loss() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(120, 3)).astype(np.float32)
    unit = normalize(features)
    along = 4 * unit[:, 0] + rng.logistic(size=120)
    numbers = np.digitize(along, [-2.0, 1.0])  # three grades
    targets = Targets("grade", ("0", "1", "2"), np.eye(3, dtype=np.float32)[numbers])
    strength = 10.0

    def loss(at: np.ndarray) -> float:
        cuts = np.array([at[3], at[3] + np.exp(at[4])])
        below = 1 / (1 + np.exp(-(cuts - (unit @ at[:3])[:, None])))
        p = np.diff(np.concatenate([np.zeros((120, 1)), below, np.ones((120, 1))], 1))
        return -np.log(p[np.arange(120), numbers]).sum() + (at[:3] ** 2).sum() / (2 * strength)

    fitted = fit_ordinal(features, targets, strength)
    best = minimize(loss, np.zeros(5), method="Nelder-Mead", options={"maxiter": 20000, "xatol": 1e-8, "fatol": 1e-10})
    assert np.abs(fitted.weight.numpy() - best.x[:3]).max() < 0.01
    assert np.abs(fitted.cuts.numpy() - [best.x[3], best.x[3] + np.exp(best.x[4])]).max() < 0.01
    p = probabilities("grade", scored(fitted, features))
    assert np.allclose(p.sum(1), 1) and (np.abs(p.mean(0) - targets.values.mean(0)) < 0.03).all()


@pytest.mark.parametrize("kind", ["class", "classes", "number"])
def test_nearest_is_a_vote_counted_slowly(kind: str) -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(30, 4)).astype(np.float32)
    values = {
        "class": np.eye(3)[rng.integers(0, 3, 30)],
        "classes": rng.integers(0, 2, (30, 3)),
        "number": rng.normal(size=(30, 1)),
    }[kind].astype(np.float32)
    asked = rng.normal(size=(7, 4)).astype(np.float32)
    found = scored(fit_nearest(features, Targets(kind, ("a", "b", "c")[: values.shape[1]], values), 5), asked)
    unit, ask = normalize(features), normalize(asked)
    for i in range(7):
        cosines = [float(ask[i] @ row) for row in unit]
        nearest = sorted(range(30), key=lambda j: -cosines[j])[:5]
        weights = np.exp([(cosines[j] - 1) / 0.07 for j in nearest])
        share = (weights[:, None] * values[nearest]).sum(0) / weights.sum()
        if kind == "number":
            assert found[i] == pytest.approx(share, abs=1e-5)
        elif kind == "classes":
            assert 1 / (1 + np.exp(-found[i])) == pytest.approx(share.clip(1e-4, 1 - 1e-4), abs=1e-5)
        else:
            assert np.exp(found[i]) == pytest.approx(share.clip(1e-4), abs=1e-5)


def test_cross_fitting_never_shows_an_item_its_own_label() -> None:
    """With labels that are noise, held-out accuracy is chance; a fit that saw them is right on all."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(200, 300)).astype(np.float32)
    targets = one_hot(rng.integers(0, 2, 200), 2)
    fit = lambda f, t: fit_linear(f, t, 1000.0)  # noqa: E731
    held = cross_fitted(fit, features, targets, np.arange(200) % 10)
    assert abs((held.argmax(1) == targets.numbers).mean() - 0.5) < 0.11  # three standard errors
    assert (scored(fit(features, targets), features).argmax(1) == targets.numbers).all()


def test_scores_are_differentiable() -> None:
    features = torch.randn(3, 6, requires_grad=True)
    numbers = np.array([0, 1, 2, 0, 1, 2])
    bank = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    for scorer in (fit_prototypes(bank, one_hot(numbers, 3)), fit_nearest(bank, one_hot(numbers, 3), 4)):
        (gradient,) = torch.autograd.grad(scorer(features)[:, 0].sum(), features)
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_a_weight_of_two_is_an_item_twice(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, numbers = blobs
    twice = np.arange(90) % 3 == 0
    both, names = np.concatenate([features, features[twice]]), np.concatenate([numbers, numbers[twice]])
    for fit in (fit_prototypes, partial(fit_linear, strength=1.0), partial(fit_ordinal, strength=1.0)):
        weighted = scored(fit(features, one_hot(numbers, 3), weights=1.0 + twice), features)
        assert np.abs(weighted - scored(fit(both, one_hot(names, 3)), features)).max() < 0.02
