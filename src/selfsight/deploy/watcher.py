"""A head whose stream is watched, window by window: how far it has drifted. The head stays as it is; `adapting.py` has
one that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.data.collection import Collection
from selfsight.deploy.drift import Distance, Drift
from selfsight.deploy.refit import Returned, Said
from selfsight.deploy.running import Running
from selfsight.encoders.features import gathered, item_features
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.head import Head
from selfsight.heads.reference import pooled_where
from selfsight.probing.linear import unit_rows


class Told(NamedTuple):
    """What a window came to.

    drift: how far it is. undone: length of the shift that is taken away. did: in words. Of a head that adapts also
    answers: class numbers [W] of the head that has seen the window; before: of the head that had not; shadow: of the
    head that does not adapt.
    """

    drift: Distance
    undone: float
    did: list[str]
    answers: np.ndarray
    before: np.ndarray
    shadow: np.ndarray


@dataclass
class Counts:
    """How often what happened: windows, pictures, windows with drift, and how often the head went back.

    gained, lost: labels that the head alone knew, and that the shadow alone knew, since then.
    """

    windows: int = 0
    images: int = 0
    alarms: int = 0
    rollbacks: int = 0
    gained: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)


class Watcher:
    """A head that is watched. Raises `SelfsightError` for one that keeps too few items to be compared with.

    adapts: whether the head follows. running, labels: of one that does; nothing here.
    """

    adapts: ClassVar[bool] = False

    def __init__(self, head: Head, false_alarms: float = 0.01) -> None:
        self.head: Head = head
        self.drift, self.counts = Drift.of(head, false_alarms), Counts()
        self.running = Running.nothing(1, self.drift.features.shape[1])
        self.labels: list[Returned] = []

    @property
    def fitted(self) -> bool:
        """Whether it has learnt from labels that came back."""
        return False

    @property
    def notes(self) -> list[str]:
        """What a user must know."""
        kind = getattr(self.head.about, "kind", "")
        what = f"for the task {self.head.about.task}{f' of the kind {kind}' if kind else ''}"
        return [f"heads {what} are watched, not adapted; train it again with pictures of the stream if it drifts"]

    def features_of(self, items: Collection, rows: pa.Table) -> tuple[list[int], np.ndarray, int]:
        """(numbers of those of `rows` that can be read, their features [N, D], how many others there are)."""
        if isinstance(self.head, ClassifyHead):
            places, features, bad = gathered(item_features(self.head.encoder, items, rows), rows)
            return places.tolist(), features, len(bad)
        head = self.head
        numbers, features, unread = pooled_where(head.encoder, items, rows, head.stride, head.roi, "Reading")
        return numbers, features, len(unread)

    def window(self, features: np.ndarray) -> Told:
        """Compare a window of features [W, D] of the stream."""
        unit, nobody = unit_rows(np.asarray(features, np.float32)), np.zeros(0, int)
        found, drifted = self.drift.far(unit, np.zeros(len(unit), int)), self.running.drifts
        self.count(len(unit), found)
        self.running = replace(self.running, drifts=found.alarm)
        did = ["drift"] if found.alarm and not drifted else ["the drift is over"] if drifted and not found.alarm else []
        return Told(found, 0.0, did, nobody, nobody, nobody)

    def count(self, images: int, found: Distance) -> None:
        """A window of so many was compared."""
        counts = self.counts
        counts.windows, counts.images = counts.windows + 1, counts.images + images
        counts.alarms += found.alarm

    def learn(self, said: Sequence[Said], features: np.ndarray, shifts: np.ndarray | None = None) -> list[str]:
        """Learn from labels; see `Adapter.learn`. Here nothing is learnt."""
        return []

    def unlearn(self, ids: set[str]) -> list[str]:
        """Forget labels that were taken back; see `Adapter.unlearn`."""
        return []

    def restore(self, running: Running, labels: list[Returned], counts: Counts) -> None:
        """Go on from what one of the same head had come to."""
        self.running, self.labels, self.counts = running, labels, counts
