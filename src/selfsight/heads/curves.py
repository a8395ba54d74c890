"""Label curves of several arms: rows measured one by one and kept, then figures made of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from selfsight.console import track
from selfsight.heads.arms import ARMS, LEVEL, Draw, Task
from selfsight.probing.curve import Needed, Point, interval_of, needed, resampled
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import balancing, leading
from selfsight.results import Result

ROWS = "rows.jsonl"
FEW_PASSES = 50  # over the labels, below which a network from scratch has hardly begun


@dataclass(frozen=True)
class Row:
    """One learning of one arm.

    arm: its name. shots: labels per class, or "all". seed: of the draw. of: digest of what it depends on: encoder,
    labels and settings. labels: how many it learnt from. items: how many it was measured on. accuracy: the share that
    was right. hits: which were, bit by bit in base64. passes: over the labels, of a training that has a budget.
    """

    arm: str
    shots: str
    seed: int
    of: str
    labels: int
    items: int
    accuracy: float
    hits: str
    passes: float | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from others."""
        return self.of, self.arm, self.shots, self.seed

    def right(self) -> np.ndarray:
        """[N] bool, which of the test items were right."""
        bits = np.frombuffer(base64.b64decode(self.hits), np.uint8)
        return np.unpackbits(bits, count=self.items).astype(bool)


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with so many labels.

    shots: labels per class as asked for, or "all". labels: of all classes together. per_class: their mean. accuracy:
    with its 95 % interval, over draws and test items. draws: how many there are.
    """

    shots: str
    labels: int
    per_class: float
    accuracy: Interval
    draws: int


@dataclass(frozen=True)
class LabelCurve(Result):
    """Label curves, and the labels that they save.

    model: as it was named. classes: their names. train_items, test_items: with a label. leading: the accuracy that is
    shown: "top1", or "balanced" where the test classes are uneven. level: what supervision from scratch reaches with
    all labels; None if it was not measured. needed: labels with which each arm reaches it, by arm. curves: points by
    arm, fewest labels first. seeds: draws of the labels. minutes: of the supervised training. encoder: its digest.
    labels: theirs. notes: what a reader must know. picture: the PNG.
    """

    model: str
    classes: list[str]
    train_items: int
    test_items: int
    leading: str
    level: Interval | None
    needed: dict[str, Needed]
    curves: dict[str, list[CurvePoint]]
    seeds: int
    minutes: float
    encoder: str
    labels: str
    notes: list[str]
    picture: str


def key_of(task: Task, arm: str) -> str:
    """Digest of all that the hits of an arm depend on, but the draw."""
    facts: list[str | float] = [label_digest(task), task.encoder.digest]
    if name := ARMS[arm].features:  # of the features themselves: the starting weights may be others, or whitened
        facts += [blake2b(part.features.tobytes(), digest_size=8).hexdigest() for part in task.pairs[name]]
    else:
        facts.append(task.minutes)
    return blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def label_digest(task: Task) -> str:
    """Digest of the labels of both sides, and of which items they are."""
    digests = task.train.labels.digest + task.test.labels.digest
    return blake2b(digests.encode(), digest_size=8).hexdigest()


def read_rows(folder: Path) -> list[Row]:
    """The rows of `folder`, each once; what a kill cut is left out."""
    try:
        lines = (folder / ROWS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = {}
    for line in lines:
        with suppress(ValueError, TypeError):
            row = Row(**json.loads(line))
            found[row.key] = row
    return list(found.values())


def measure_rows(task: Task, arms: list[str], counts: list[str], seeds: int, folder: Path) -> list[Row]:
    """The rows of `arms` with these labels per class, those that `folder` has not measured now, one by one; and rows
    that it has of other numbers of labels."""
    keys = {arm: key_of(task, arm) for arm in arms}
    mine = {row.key: row for row in read_rows(folder) if keys.get(row.arm) == row.of and row.seed < seeds}
    wanted = [
        (arm, draw)
        for arm in arms
        for draw in draws_of(["all"] if ARMS[arm].only_all else counts, seeds, int(np.bincount(task.taught).max()))
        if (keys[arm], arm, draw.shots, draw.seed) not in mine
    ]
    file = folder / ROWS
    if wanted and file.exists() and not file.read_bytes().endswith(b"\n"):  # a kill cut the last line
        with file.open("a", encoding="utf-8") as out:
            out.write("\n")
    taught, truth = task.taught, task.truth
    weights = weights_of(truth)
    for arm, draw in track(wanted, "Learning from labels", len(wanted)):
        right, passes = ARMS[arm].learn(task, draw)
        share, bits = float((right * weights).sum() / weights.sum()), base64.b64encode(np.packbits(right).tobytes())
        labels = len(draw.places(taught))
        row = Row(arm, draw.shots, draw.seed, keys[arm], labels, len(truth), share, bits.decode(), passes)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(row)) + "\n")
        mine[row.key] = row
    return list(mine.values())


def hurried(rows: Iterable[Row]) -> list[str]:
    """A note for each training that saw its labels so seldom that more minutes would change the figures."""
    return [
        f"{ARMS[row.arm].title} saw each label {row.passes:.0f} times only, so more --minutes may raise it; the labels "
        "saved flatter"
        for row in rows
        if row.passes is not None and row.passes < FEW_PASSES
    ]


def draws_of(counts: list[str], seeds: int, most: int) -> list[Draw]:
    """The draws of each number of labels per class; "all" is drawn once, and stands for a number that no class has more
    than. most: items of the commonest class."""
    every = any(count == "all" or int(count) >= most for count in counts)
    few = [count for count in counts if count != "all" and int(count) < most]
    return [Draw(count, seed) for count in few for seed in range(seeds)] + ([Draw("all", 0)] if every else [])


def weights_of(truth: np.ndarray) -> np.ndarray:
    """[N] of the test items in the accuracy that leads."""
    return balancing(truth) if leading(truth) == "balanced" else np.ones(len(truth))


def figures(
    rows: Iterable[Row], weights: np.ndarray, groups: list[str | None], classes: int
) -> tuple[dict[str, list[CurvePoint]], Interval | None, dict[str, Needed]]:
    """(points by arm, the level that is to be reached, labels with which each arm reaches it) from rows of the same
    test items. weights: of these. groups: of these. The level is None, and nothing reaches it, without its arm."""
    drawn: dict[tuple[str, int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (list(ARMS).index(row.arm), row.labels, row.seed)):
        drawn.setdefault((row.arm, row.labels, row.shots), []).append(row)
    keys = list(drawn)
    points = [Point(key[1], np.stack([row.right() for row in drawn[key]])) for key in keys]
    values, found = resampled(points, weights, groups)
    curves: dict[str, list[CurvePoint]] = {}
    places: dict[str, list[int]] = {}
    for i, (arm, labels, shots) in enumerate(keys):
        accuracy = interval_of(float(values[i]), found[:, i])
        point = CurvePoint(shots, labels, labels / classes, accuracy, len(drawn[keys[i]]))
        curves.setdefault(arm, []).append(point)
        places.setdefault(arm, []).append(i)
    if LEVEL not in places:
        return curves, None, {}
    top = places.pop(LEVEL)[-1]
    reached = {
        arm: needed([keys[i][1] for i in own], values[own], found[:, own], values[top], found[:, top], keys[top][1])
        for arm, own in places.items()
    }
    return curves, interval_of(float(values[top]), found[:, top]), reached
