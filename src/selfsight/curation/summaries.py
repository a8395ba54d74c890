"""What a source (a site, a camera, a batch) tells of itself where its data is: a few sums, no item, no name of one.

All that `curation.sources` ranks by is in a `Summary`, whether the data lies in one place or each summary came as a
JSON file from another. Features are told along 128 directions only, random signs that the encoder's digest decides, so
that every source takes the same without talking to the others (Achlioptas, "Database-friendly random projections", PODS
2001).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from selfsight.errors import DataError, check_version

FORMAT, FORMAT_VERSION = "selfsight source summary", 1
DIRECTIONS = 128
LEAST_ITEMS = 20  # of a source; of fewer, sums say too much of each
LEAST_OF_CLASS = 5  # smaller classes are left out of a summary, with their labels
DIGITS = 6  # of numbers in a file
MOST_BYTES = 64 << 20  # of a file: some 40,000 classes
STIFFNESS = 1.0  # of the probe within a source, times the usual variance of a direction and the number of items
T = TypeVar("T")


@dataclass(frozen=True)
class ClassSummary:
    """The items of one class. mean: of their features along the directions, [K]."""

    count: int
    mean: np.ndarray


@dataclass(frozen=True)
class Summary:
    """What a source tells of itself.

    source: its name. encoder: the digest of the encoder that the features are of. items: how many are summed up.
    mean, covariance: of the features along the directions, [K] and [K, K].
    upside: [K] mean of the features of the images less those of their negatives; None if it was not measured.
    noise: the usual share of the variance of an image's pixels that is noise, 0 to 1; None if it was not measured.
    loss: quartiles of the self-supervised loss over batches of the source; None where the model has no objective.
    classes: by name, those of at least `LEAST_OF_CLASS` items.
    own: how well a probe of the source's own labels finds those of its other items: a correlation; None without labels.
    """

    source: str
    encoder: str
    items: int
    mean: np.ndarray
    covariance: np.ndarray
    upside: np.ndarray | None = None
    noise: float | None = None
    loss: tuple[float, float, float] | None = None
    classes: dict[str, ClassSummary] = field(default_factory=dict)
    own: float | None = None

    @property
    def labelled(self) -> int:
        """Items of the classes that are told."""
        return sum(one.count for one in self.classes.values())


def directions(encoder: str, dim: int) -> np.ndarray:
    """[D, K] that features [D] of the encoder of this digest are multiplied by: ±1 / sqrt(K), from the bits of
    SHAKE-256 of the digest; features of at most 128 numbers stay as they are."""
    if dim <= DIRECTIONS:
        return np.eye(dim)
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(encoder.encode()).digest(dim * DIRECTIONS // 8), np.uint8))
    return np.asarray((2.0 * bits.reshape(dim, DIRECTIONS) - 1.0) / math.sqrt(DIRECTIONS))


def summarise(
    source: str,
    encoder: str,
    features: np.ndarray,
    labels: Sequence[str | None] | None = None,
    upright: tuple[np.ndarray, np.ndarray] | None = None,
    noise: np.ndarray | None = None,
    losses: np.ndarray | None = None,
) -> Summary:
    """The summary of one source.

    features: [N, D] of its items. labels: the class of each, None where there is none.
    upright: features [M, D] of some of the images, and of the negatives of the same.
    noise: share of noise of some of the images, [M]. losses: the self-supervised loss of batches of them.

    Raises `DataError` for a source of fewer than 20 items.
    """
    if len(features) < LEAST_ITEMS:
        raise DataError(f"{source} has {len(features)} items; a summary is made of {LEAST_ITEMS} or more.")
    onto = directions(encoder, features.shape[1])
    x = features.astype(np.float64) @ onto
    named = np.array([name or "" for name in labels or [None] * len(x)])
    counts = {name: int((named == name).sum()) for name in sorted(set(named.tolist()) - {""})}
    classes = {name: ClassSummary(n, x[named == name].mean(0)) for name, n in counts.items() if n >= LEAST_OF_CLASS}
    told = np.isin(named, list(classes))
    quartiles = None if losses is None or not len(losses) else np.quantile(losses, (0.25, 0.5, 0.75)).tolist()
    return Summary(
        source,
        encoder,
        len(x),
        x.mean(0),
        np.cov(x.T),
        None if upright is None else (upright[0].astype(np.float64) - upright[1]).mean(0) @ onto,
        None if noise is None or not len(noise) else float(np.median(noise)),
        None if quartiles is None else (quartiles[0], quartiles[1], quartiles[2]),
        classes,
        _own_agreement(x[told], named[told]) if len(classes) > 1 and told.sum() >= LEAST_ITEMS else None,
    )


def _own_agreement(x: np.ndarray, named: np.ndarray) -> float:
    """The correlation of one-hot labels with what a ridge regression of all other items, [N, K] `x`, makes of each.

    Left out one by one in closed form: the residual of an item over one less its leverage (Allen, 1974).
    """
    y = (named[:, None] == np.unique(named)).astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    strength = STIFFNESS * (x**2).sum() / len(x) + 1e-12
    weights = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T)  # [K, N]
    leverage = (x * weights.T).sum(1) + 1.0 / len(x)
    guessed = y - (y - x @ (weights @ y)) / (1.0 - leverage)[:, None]
    guessed -= guessed.mean(0)
    return float((guessed * y).sum() / max(math.sqrt((guessed**2).sum() * (y**2).sum()), 1e-12))


# -- as a file --


def to_json(summary: Summary) -> str:
    """The summary as the text of a file, which docs/sources.md describes."""
    upper = np.triu_indices(len(summary.mean))
    told: dict[str, object] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": summary.source,
        "encoder": summary.encoder,
        "items": summary.items,
        "mean": _rounded(summary.mean),
        "covariance": _rounded(summary.covariance[upper]),
        "upside": None if summary.upside is None else _rounded(summary.upside),
        "noise": summary.noise,
        "loss": summary.loss,
        "own": summary.own,
        "least_of_class": LEAST_OF_CLASS,
        "classes": {name: {"count": one.count, "mean": _rounded(one.mean)} for name, one in summary.classes.items()},
    }
    return json.dumps(told) + "\n"


def from_json(text: str | bytes, file: object) -> Summary:
    """The summary that a file holds. Raises `DataError` for anything that is no summary, or says what cannot be."""
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        told = json.loads(text, parse_constant=_refuse)
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise ValueError("it does not say that it is one")
        check_version(int(told["format_version"]), FORMAT_VERSION, file)
        return _checked(told)
    except DataError:
        raise
    except KeyError as error:
        reason = f"it has no {error.args[0]}"
    except RecursionError:
        reason = "it is nested too deeply"
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error)
    raise DataError(f"{file} is no summary of a source: {reason}. Write it again with selfsight curate --summary.")


def _checked(told: dict[str, Any]) -> Summary:
    """The summary of what a file says. Raises `ValueError` or `KeyError` for what cannot be."""
    size = len(told["mean"]) if isinstance(told["mean"], list) else 0
    if not 0 < size <= DIRECTIONS:
        raise ValueError(f"its mean has {size} numbers, not 1 to {DIRECTIONS}")
    packed, upper = _vector(told, "covariance", size * (size + 1) // 2), np.triu_indices(size)
    covariance = np.zeros((size, size))
    covariance[upper] = packed
    covariance += np.triu(covariance, 1).T
    if np.linalg.eigvalsh(covariance)[0] < -1e-4 * max(np.trace(covariance), 1e-12):
        raise ValueError("its covariance is none: a variance is negative")
    items = _count(told, "items", LEAST_ITEMS)
    classes = {
        str(name): ClassSummary(_count(one, "count", LEAST_OF_CLASS), _vector(one, "mean", size))
        for name, one in told["classes"].items()
    }
    if sum(one.count for one in classes.values()) > items:
        raise ValueError(f"its classes have more items than the {items} that it has")
    mean = _vector(told, "mean", size)
    between = sum(one.count * float(((one.mean - mean) ** 2).sum()) for one in classes.values())
    if between > 1.001 * (items - 1) * np.trace(covariance) + 1e-5 * items * float((mean**2).sum()):  # of all items
        raise ValueError("its classes lie further apart than its items do")
    return Summary(
        _text(told, "source"),
        _text(told, "encoder"),
        items,
        mean,
        covariance,
        _if_any(told, "upside", lambda: _vector(told, "upside", size)),
        _if_any(told, "noise", lambda: _within(told, "noise", 0.0, 1.0)),
        _if_any(told, "loss", lambda: tuple(_vector(told, "loss", 3).tolist())),  # type: ignore[arg-type]
        classes,
        _if_any(told, "own", lambda: _within(told, "own", -1.0, 1.0)),
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}")


def _if_any(told: dict[str, Any], name: str, read: Callable[[], T]) -> T | None:
    return None if told.get(name) is None else read()


def _text(told: dict[str, Any], name: str) -> str:
    value = told[name]
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
        raise ValueError(f"its {name} is not a text of 1 to 200 letters")
    return value


def _count(told: dict[str, Any], name: str, least: int) -> int:
    value = told[name]
    if type(value) is not int or not least <= value < 10**12:
        raise ValueError(f"its {name} is {value!r}, not a whole number from {least} on")
    return value


def _within(told: dict[str, Any], name: str, low: float, high: float) -> float:
    value = told[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"its {name} is {value!r}, not a number from {low:g} to {high:g}")
    return float(value)


def _vector(told: dict[str, Any], name: str, size: int) -> np.ndarray:
    values = told[name]
    if not isinstance(values, list) or len(values) != size:
        found = len(values) if isinstance(values, list) else "no"
        raise ValueError(f"its {name} has {found} numbers, not {size}")
    if not all(type(value) in (int, float) and abs(value) < 1e30 for value in values):
        raise ValueError(f"its {name} holds what is not a finite number")
    return np.array(values, dtype=np.float64)
