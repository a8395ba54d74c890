"""All probes of one set of features, and the gains of one set over another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from selfsight.probing.evaluation import Accuracy, Draws, Interval, Probes
from selfsight.probing.linear import LinearProbe, draw_half, fit_few_shot, fit_linear
from selfsight.probing.metrics import balancing, leading, metrics, paired_gain, sensitivity
from selfsight.probing.neighbours import fit_knn

SURE_ITEMS = 5000  # with so many labels one half of them is like another


class Labelled(NamedTuple):
    """Items with labels.

    features: [N, D].
    labels: class numbers [N].
    groups: of each item, None for an item that is alone.
    """

    features: np.ndarray
    labels: np.ndarray
    groups: list[str | None]


class Measured(NamedTuple):
    """The probes of one set of features.

    probes: their figures.
    hits: by "knn", labels per class or "half": whether each test item was classified correctly, [S, N] bool for S draws
        of the labels.
    linear: the linear probe of all labels, if there is one.
    """

    probes: Probes
    hits: dict[str, np.ndarray]
    linear: LinearProbe | None = None


def measure(train: Labelled, test: Labelled, classes: list[str], counts: list[str], seeds: int) -> Measured:
    """The k-NN probe, the linear probe and few-shot probes, fitted to `train` and measured on `test`.

    counts: labels per class of the few-shot probes; "all" for every label.
    seeds: draws of the labels for each count.
    """
    features, labels, groups = train
    probe = fit_linear(features, labels, len(classes), groups=groups)
    scores, truth = probe.scores(test.features), test.labels
    neighbours = fit_knn(features, labels, len(classes), whitening=None, groups=groups)
    votes = neighbours.scores(test.features)
    hits, few = {"knn": _hits(votes, truth)}, {}
    for count in counts:
        draws = [scores] if count == "all" else [
            fit_few_shot(features, labels, len(classes), int(count), seed).scores(test.features)
            for seed in range(seeds)
        ]  # fmt: skip
        hits[count] = np.concatenate([_hits(some, truth) for some in draws])
        few[count] = _accuracy([metrics(some, truth) for some in draws])
    knn = metrics(votes, truth) | {"whitening": neighbours.whitening}
    linear = metrics(scores, truth) | {"C": probe.strength}
    return Measured(Probes(knn, linear, few, _recall(scores, truth, classes)), hits, probe)


def measure_commonest(train: Labelled, test: Labelled, classes: list[str], counts: list[str]) -> Measured:
    """The figures of always answering the commonest class of `train`; for top-2, its two commonest."""
    shares = np.bincount(train.labels, minlength=len(classes)) / len(train.labels)
    scores = np.tile(shares, (len(test.labels), 1))
    hits, found = {count: _hits(scores, test.labels) for count in counts}, metrics(scores, test.labels)
    few = dict.fromkeys(counts, _accuracy([found]))
    return Measured(Probes({}, found, few, _recall(scores, test.labels, classes)), hits)


def gains(encoder: Measured, control: Measured, test: Labelled) -> dict[str, Interval]:
    """How much more accurate `encoder` is than `control` on `test`, by "knn" and labels per class; in balanced accuracy
    where the classes of `test` are uneven."""
    shared = [count for count in encoder.hits if count in control.hits]
    return {count: _gain(encoder.hits[count], control.hits[count], test) for count in shared}


def more_labels(encoder: Measured, train: Labelled, test: Labelled, seeds: int) -> dict[str, Interval]:
    """How much more accurate the encoder is with all labels than with fewer, by labels per class and "half"; in
    balanced accuracy where the classes of `test` are uneven."""
    features, labels, _ = train
    probe = encoder.linear
    if probe is None:
        return {}
    every = _hits(probe.scores(test.features), test.labels)
    fewer = {count: hits for count, hits in encoder.hits.items() if count not in ("knn", "all")}
    halves = [draw_half(labels, seed) for seed in range(seeds if len(labels) <= SURE_ITEMS else 1)]
    if len(halves[0]) < len(labels):
        fits = [fit_linear(features[half], labels[half], len(probe.weight), probe.strength) for half in halves]
        fewer["half"] = np.concatenate([_hits(fit.scores(test.features), test.labels) for fit in fits])
    return {count: _gain(every, hits, test) for count, hits in fewer.items()}


def _gain(one: np.ndarray, other: np.ndarray, test: Labelled) -> Interval:
    weights = balancing(test.labels) if leading(test.labels) == "balanced" else None
    return paired_gain(one, other, test.groups, weights=weights)


def _hits(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[1, N] bool, whether the likeliest class is the true one."""
    return np.asarray(scores.argmax(1) == truth)[None]


def _accuracy(draws: list[dict[str, float | None]]) -> Accuracy:
    """The figures over draws of the labels, from the metrics of each."""

    def over(name: str) -> Draws | None:
        values = np.array([value for draw in draws if (value := draw[name]) is not None])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return Draws(float(values.mean()), spread) if len(values) else None

    top1 = over("top1")
    assert top1 is not None  # which every draw has
    return Accuracy(top1.mean, top1.std, over("balanced"), over("auroc"))


def _recall(scores: np.ndarray, truth: np.ndarray, classes: list[str]) -> dict[str, float | None]:
    found = sensitivity(scores, truth).tolist()
    return {name: None if np.isnan(share) else share for name, share in zip(classes, found, strict=True)}
