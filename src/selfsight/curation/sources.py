"""Which sources (sites, cameras, batches) harm, and which are only different.

Two questions, two axes. *Difference*: how far the features of a source lie from those of the others. A second stain or
camera is far away, and no poison. *Harm*: the part lost of what a source should teach, 0 to 1, by what can be seen
without a trusted set of labels. Nothing is trained; all is computed from `Summary`s, each against the others:

- labels: its labels go with its pictures less well than elsewhere, as told by a probe of the others, in its own
  deviations from its own mean, so that a shift of all its pictures costs nothing. As far as its pictures lie apart from
  the others, what its own labels say of its own items counts too.
- inverted: its images lie on the side of the negatives of the others.
- noise: its pixels are noise for a greater part than those of the others.
- spread: its pictures are so alike that less than half of the others' spread is left.

Each value is compared with how the others differ among themselves, with a spread that is moderated for few sources
(Smyth, "Linear models and empirical Bayes methods for assessing differential expression", 2004), and is sure only where
no honest source would be so far from them, of all sources and questions together. Without labels, pictures of another
kind cannot be told from an honest other kind: then the upper bound of the harm says so.

Souza et al., "Identifying harmful data sources", npj Digital Medicine 8, 2025, gate updates by a labelled set at the
server, and report on the set that they gated by. Here no set is needed, and nothing is chosen on what is reported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from selfsight.curation.summaries import LEAST_ITEMS, Summary
from selfsight.errors import DataError

ERROR_RATE = 0.05  # that any honest source is among those to remove
MATERIAL = 0.25  # of what a source should teach is lost, before it is worth removing
FAR = 4.0  # standard deviations, from which on pictures are of another kind: 2 % of them are nearer to the others
LEAST = 3  # sources: of two, none can say which is at fault
RIDGE = 0.1  # of the mean variance, that is added to that of each direction
MOST_VARIANCE = 100.0  # times the usual, that a summary can have
MOST_SAY = 3.0  # times the usual variance, that a source counts for at most in what is usual
TELLING = 0.1  # correlation, below which the labels of the others say nothing of pictures
PRIOR_WEIGHT = 4  # sources that the usual spread counts for, beside those at hand
VERDICTS = ("remove", "look", "keep")
USUAL = {"labels": 0.07, "inverted": 0.15, "noise": 0.03, "spread": 0.15}  # spreads between honest sources


@dataclass(frozen=True)
class Figure:
    """A value with its bounds of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evidence(Figure):
    """The harm by one question. sure: whether it is further from what the others have than any honest source would be,
    but for the error rate of all questions to all sources."""

    sure: bool


@dataclass(frozen=True)
class Judgement:
    """What is thought of one source.

    source: its name. items, labelled: how many, and how many of them have a label that counts.
    difference: how far its features are from the middle of the others, in standard deviations within a source.
    loss: its self-supervised loss less that of the others, in standard deviations between sources; None without one.
    harm: the part lost of what it should teach, the worst of `evidence`; None where it cannot be told.
    evidence: of labels, inverted, noise and spread, what could be measured.
    gain: what removing it brings to a probe of the others on others, in points of the variance of labels explained.
    verdict: "remove", "look" at it before you decide, or "keep".
    why: the reason, a sentence.
    """

    source: str
    items: int
    labelled: int
    difference: Figure
    loss: Figure | None
    harm: Figure | None
    evidence: dict[str, Evidence]
    gain: Figure | None
    verdict: str
    why: str


def judge(summaries: Sequence[Summary], error_rate: float = ERROR_RATE) -> list[Judgement]:
    """The sources, the most harmful first.

    The worst that is to be removed leaves the reference of the others, until no further one is to be removed, or half
    of them are. error_rate: the chance that an honest source is among those to remove.

    Raises `DataError` for fewer than two sources, two of one name, or summaries of different encoders.
    """
    check_together(summaries)
    level = error_rate / (len(summaries) * len(USUAL))
    kept = list(summaries)
    while True:
        agreements = _agreements(kept)
        found = {one.source: _asked(one, kept, agreements, level) for one in summaries}
        worst = max(kept, key=lambda one: _worst(found[one.source])[1].low)
        if not _to_remove(_worst(found[worst.source])[1]) or 2 * (len(kept) - 1) <= len(summaries):
            break
        kept.remove(worst)
    gains = removal_gains(summaries, kept)
    judged = [_judged(one, kept, found[one.source], gain) for one, gain in zip(summaries, gains, strict=True)]
    return sorted(judged, key=_rank)


def _rank(one: Judgement) -> tuple[int, float, float, str]:
    """Smaller is worse: by the verdict, then by the harm that is there at least, and at most."""
    harm = one.harm or Figure(0.0, 0.0, 0.0)
    return VERDICTS.index(one.verdict), -harm.low, -harm.high, one.source


def check_together(summaries: Sequence[Summary]) -> None:
    """Raise `DataError` unless there are two sources or more, of different names and one encoder."""
    if len(summaries) < 2:
        raise DataError("Sources are compared with each other: two or more are needed.")
    names = [one.source for one in summaries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"Two summaries are of a source {twice!r}. Give each source one, under a name of its own.")
    first = summaries[0]
    for one in summaries[1:]:
        if one.encoder != first.encoder or len(one.mean) != len(first.mean):
            raise DataError(
                f"The summary of {one.source} is of the encoder {one.encoder}, that of {first.source} of "
                f"{first.encoder}. Make all with the same run or encoder folder."
            )


def comparable(summaries: Sequence[Summary]) -> tuple[list[Summary], list[str]]:
    """Those that can be compared, and why the others cannot: of the encoder that more than half have (if one has), of
    a variance that features of it can have beside the others', and each under a name of its own."""
    encoders = Counter((one.encoder, len(one.mean)) for one in summaries)
    usual = next((encoder for encoder, count in encoders.items() if 2 * count > len(summaries)), None)
    most = MOST_VARIANCE * float(np.median([np.trace(one.covariance) for one in summaries] or [0.0]))
    names: dict[str, list[Summary]] = {}
    why = []
    for one in summaries:
        if usual not in (None, (one.encoder, len(one.mean))):
            why.append(f"left out: {one.source} is of the encoder {one.encoder}, which most are not of")
        elif np.trace(one.covariance) > most:
            why.append(f"left out: {one.source} tells of over {MOST_VARIANCE:g} times the usual variance of features")
        else:
            names.setdefault(one.source, []).append(one)
    why += [f"left out: {len(found)} summaries are of a source {name!r}, and nobody knows which is right"
            for name, found in names.items() if len(found) > 1]  # fmt: skip
    return [found[0] for found in names.values() if len(found) == 1], why


# -- one source and the others --


@dataclass(frozen=True)
class _Others:
    """What other sources have in common: their middle [K], their covariance within sources [K, K], and its inverse, a
    little of the mean variance added."""

    members: list[Summary]
    middle: np.ndarray
    within: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(cls, one: Summary, kept: list[Summary]) -> _Others:
        members = [member for member in kept if member is not one]
        within = np.tensordot(_say(members), np.stack([member.covariance for member in members]), 1)
        ridge = RIDGE * np.trace(within) / len(within) + 1e-12
        middle = np.median(np.stack([member.mean for member in members]), 0)
        return cls(members, middle, within, np.linalg.inv(within + ridge * np.eye(len(within))))


def _say(members: Sequence[Summary]) -> np.ndarray:
    """[S] what the covariance within each source counts for: its share of the items; less where it tells of a variance
    beyond `MOST_SAY` times the usual, so that one false summary cannot hide others."""
    items = np.array([member.items - 1 for member in members], dtype=np.float64)
    variances = np.array([np.trace(member.covariance) for member in members])
    counted = np.minimum(1.0, MOST_SAY * float(np.median(variances)) / np.maximum(variances, 1e-12))
    return np.asarray(items / items.sum() * counted)


class _Answer(NamedTuple):
    """harm: of the source. usual: what one like the others has. theirs: [T] of the others. chance: the error of the
    source's by chance. scale: what spreads of `theirs` and `chance` are multiplied by to be those of a harm."""

    harm: float
    usual: float
    theirs: list[float]
    chance: float
    scale: float = 1.0


def _asked(one: Summary, kept: list[Summary], agreements: dict[str, float], level: float) -> dict[str, Evidence]:
    """The evidence of each question that can be asked of a source."""
    there = _Others.of(one, kept)
    if len(there.members) + 1 < LEAST:
        return {}
    answers = {"spread": _spread(one, there), "noise": _noise(one, there), "inverted": _inverted(one, there),
               "labels": _labels(one, there, agreements)}  # fmt: skip
    return {name: _bounded(name, answer, level) for name, answer in answers.items() if answer is not None}


def _bounded(name: str, answer: _Answer, level: float) -> Evidence:
    """The answer with bounds, by the moderated spread of others; sure at this level."""
    theirs = np.array(answer.theirs)
    spread = 1.4826 * float(np.median(np.abs(theirs - np.median(theirs))))
    free = PRIOR_WEIGHT + len(theirs) - 1
    variance = (PRIOR_WEIGHT * USUAL[name] ** 2 + (free - PRIOR_WEIGHT) * spread**2) / free
    error = answer.scale * math.sqrt(
        max(variance, answer.chance**2) * (1.0 + 1.57 / len(theirs))
    )  # of their median too
    reach, far = (float(student.ppf(quantile, free)) * error for quantile in (0.975, 1.0 - level))
    return Evidence(answer.harm, answer.harm - reach, answer.harm + reach, answer.harm - answer.usual > far)


def _spread(one: Summary, there: _Others) -> _Answer:
    usual = float(np.median([np.trace(m.covariance) for m in there.members])) + 1e-12
    theirs = [float(np.trace(m.covariance)) / usual for m in there.members]
    chance = math.sqrt(2.0 * float((there.within**2).sum()) / (one.items - 1)) / max(
        float(np.trace(there.within)), 1e-12
    )
    return _Answer(1.0 - 2.0 * float(np.trace(one.covariance)) / usual, -1.0, theirs, chance, 2.0)


def _noise(one: Summary, there: _Others) -> _Answer | None:
    theirs = [member.noise for member in there.members if member.noise is not None]
    if one.noise is None or not theirs:
        return None
    excess = max(one.noise - float(np.median(theirs)), 0.0)
    return _Answer(math.sqrt(excess), 0.0, [math.sqrt(noise) for noise in theirs], 0.0)


def _inverted(one: Summary, there: _Others) -> _Answer | None:
    """Less the cosine of the way from the negatives of the source's images to the images, with that of the others: -1
    for a source like them, 1 for one of inverted images, about 0 for one of another kind."""
    ways = [member.upside for member in there.members if member.upside is not None]
    if one.upside is None or not ways:
        return None
    usual = np.median(np.stack(ways), 0)
    along = there.inverse @ usual
    lengths = [math.sqrt(max(float(way @ there.inverse @ way), 1e-24)) for way in (usual, one.upside, *ways)]
    theirs = [-float(along @ way) / (lengths[0] * length) for way, length in zip(ways, lengths[2:], strict=True)]
    chance = math.sqrt(2.0 * float(along @ there.within @ along) / one.items) / (lengths[0] * lengths[1])
    return _Answer(-float(along @ one.upside) / (lengths[0] * lengths[1]), float(np.median(theirs)), theirs, chance)


def _difference(one: Summary, there: _Others) -> Figure:
    """The distance of the means, and its bounds."""
    chances = float(np.mean([1.0 / member.items for member in there.members])) / len(there.members)
    error = one.covariance / one.items + 1.57 * chances * there.within
    away = one.mean - there.middle
    pulled, noise = there.inverse @ away, there.inverse @ error
    square = float(away @ pulled - np.trace(noise))
    reach = 1.96 * math.sqrt(max(float(4.0 * pulled @ error @ pulled + 2.0 * np.trace(noise @ noise)), 0.0))
    value, low, high = (math.sqrt(max(each, 0.0)) for each in (square, square - reach, square + reach))
    return Figure(value, low, high)


def _loss(one: Summary, there: _Others) -> Figure | None:
    theirs = np.array([member.loss[1] for member in there.members if member.loss is not None])
    if one.loss is None or len(theirs) < 2:
        return None
    middle = float(np.median(theirs))
    scale = max(1.4826 * float(np.median(np.abs(theirs - middle))), 1e-3 * abs(middle), 1e-9)
    low, value, high = ((each - middle) / scale for each in one.loss)
    return Figure(value, low, high)


def _apart(difference: Figure) -> float:
    """How far pictures at this distance are others: 0 to 1, the total variation between two normal distributions."""
    return math.erf(difference.value / math.sqrt(8.0))


# -- labels --


def _products(one: Summary, names: list[str]) -> np.ndarray:
    """[K, C] sums over its items of (features - their mean) (one-hot labels - their mean)."""
    if not one.labelled:
        return np.zeros((len(one.mean), len(names)))
    middle = sum(c.count * c.mean for c in one.classes.values()) / one.labelled
    columns = [one.classes[n].count * (one.classes[n].mean - middle) if n in one.classes else 0 * middle for n in names]
    return np.stack(columns, 1)


def _counts(one: Summary, names: list[str]) -> np.ndarray:
    return np.array([one.classes[name].count if name in one.classes else 0 for name in names], dtype=np.float64)


def agreement(one: Summary, members: Sequence[Summary], names: list[str]) -> float:
    """The correlation of the source's labels with what a probe of the `members` (ridge regression of one-hot labels)
    makes of its items, both less their means within the source, over the classes that it has."""
    have = [name for name in names if name in one.classes]
    probe = probe_of(members, have)
    guessed = float(np.trace(probe.T @ one.covariance @ probe)) * (one.labelled - 1)
    counts = _counts(one, have)
    truth = one.labelled - float((counts**2).sum()) / one.labelled
    return float((probe * _products(one, have)).sum()) / max(math.sqrt(max(guessed, 0.0) * truth), 1e-12)


def probe_of(members: Sequence[Summary], names: list[str]) -> np.ndarray:
    """[K, C] weights of the ridge regression of one-hot labels on features, each less its mean within its source."""
    scatter = np.sum([m.labelled * m.covariance for m in members], axis=0)
    scatter = scatter + (RIDGE * np.trace(scatter) / len(scatter) + 1e-12) * np.eye(len(scatter))
    return np.asarray(np.linalg.solve(scatter, sum(_products(m, names) for m in members)))


def _tells(one: Summary) -> bool:
    return len(one.classes) > 1 and one.labelled >= LEAST_ITEMS


def _agreements(kept: list[Summary]) -> dict[str, float]:
    """{source: the agreement of its labels with a probe of all others}, of those that have labels."""
    telling = [one for one in kept if _tells(one)]
    names = sorted({name for one in telling for name in one.classes})
    if len(telling) < 2:
        return {}
    return {one.source: agreement(one, [other for other in telling if other is not one], names) for one in telling}


def _labels(one: Summary, there: _Others, agreements: dict[str, float]) -> _Answer | None:
    members = [member for member in there.members if _tells(member)]
    names = sorted({name for member in members for name in member.classes})
    if not _tells(one) or len(members) < 2 or sum(name in names for name in one.classes) < 2:
        return None
    theirs = [agreements[member.source] for member in members]
    usual = float(np.median(theirs))
    if usual < TELLING:
        return None
    apart = _apart(_difference(one, there))
    taught = agreement(one, members, names) + apart * max(one.own or 0.0, 0.0)
    effective = one.labelled**2 / float((_counts(one, list(one.classes)) ** 2).sum())
    chance = 1.0 / math.sqrt(one.labelled * max(effective - 1.0, 0.5))
    return _Answer(1.0 - taught / usual, 0.0, theirs, chance, math.sqrt(1.0 + apart**2) / usual)


def removal_gains(summaries: Sequence[Summary], kept: Sequence[Summary]) -> list[Figure | None]:
    """What removing each source brings to those `kept`: a probe of them but one, with the source and without it, is
    measured on that one, each in turn. In points of the variance of the labels that is explained, with bounds of 95 %
    by the spread over those measured on."""
    names = sorted({name for one in kept if _tells(one) for name in one.classes})
    gains: list[Figure | None] = []
    for one in summaries:
        others = [member for member in kept if _tells(member) and member is not one]
        if not _tells(one) or len(others) < LEAST:
            gains.append(None)
            continue
        gained = []
        for held in others:
            rest = [member for member in others if member is not held]
            without, with_it = (explained(held, members, names) for members in (rest, [*rest, one]))
            gained.append(100.0 * (without - with_it))
        mean, free = float(np.mean(gained)), len(gained) - 1
        reach = float(student.ppf(0.975, free)) * float(np.std(gained, ddof=1)) / math.sqrt(len(gained))
        gains.append(Figure(mean, mean - reach, mean + reach))
    return gains


def explained(one: Summary, members: Sequence[Summary], names: list[str]) -> float:
    """The share of the variance of the source's labels that a probe of the `members` explains: exactly what its items
    would give, less than 0 where the mean explains more. All items count as labelled."""
    have = [name for name in names if name in one.classes]
    probe = probe_of(members, have)
    counts = _counts(one, have)
    truth = one.labelled - float((counts**2).sum()) / one.labelled
    fit = 2.0 * float((probe * _products(one, have)).sum())
    return (fit - float(np.trace(probe.T @ one.covariance @ probe)) * (one.labelled - 1)) / truth


# -- in words --

WHY = {
    "labels": "its labels do not go with its pictures as they do elsewhere",
    "inverted": "its images are inverted: their negatives are like the images of the others",
    "noise": "its pixels are noise for a great part",
    "spread": "its pictures are nearly all alike",
}


def _worst(evidence: dict[str, Evidence]) -> tuple[str, Evidence]:
    """The question with the worst answer: one to remove for first, then by its lower bound."""
    nothing = ("", Evidence(0.0, -math.inf, 0.0, False))
    return max(evidence.items(), key=lambda each: (_to_remove(each[1]), each[1].low), default=nothing)


def _to_remove(evidence: Evidence) -> bool:
    return evidence.sure and evidence.low > 0.0 and evidence.value >= MATERIAL


def _judged(one: Summary, kept: list[Summary], evidence: dict[str, Evidence], gain: Figure | None) -> Judgement:
    """The judgement of a source, with its verdict and the reason."""
    there = _Others.of(one, kept)
    difference = _difference(one, there)
    cause, worst = _worst(evidence)
    far = difference.low > FAR
    unknown = _apart(difference) if far and "labels" not in evidence else 0.0
    harm = Figure(max(worst.value, 0.0), max(worst.low, 0.0), max(worst.high, unknown)) if evidence else None
    if harm is None:
        verdict, why = "keep", "of two sources, none can say which is at fault"
    elif _to_remove(worst):
        verdict, why = "remove", WHY[cause]
    elif worst.value >= MATERIAL:
        verdict, why = "look", f"perhaps {WHY[cause]}, but that may be chance"
    elif unknown:
        verdict, why = "look", "its pictures are of another kind; without labels that tell, it may be honest or harmful"
    else:
        verdict, why = "keep", "different, and no harm is seen" if far else "no harm is seen"
    return Judgement(
        one.source, one.items, one.labelled, difference, _loss(one, there), harm, evidence, gain, verdict, why
    )
