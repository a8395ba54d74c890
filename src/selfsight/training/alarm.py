"""The collapse alarm: names what is going wrong while a run could still be saved, and stays silent otherwise.

It looks at the rows of metrics one after another and remembers a few of them, so that a resumed run, which shows it
its old rows again, goes on as if it had not stopped. The thresholds were chosen on one half of the runs of
`benchmarks/alarm.py` and tested on the other; docs/evidence.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

ROWS = 3  # a level is the median of so many rows: one batch decides nothing
FIRST_STEP = 40  # a random network may look collapsed, and the first steps may widen it
SPREAD = 0.12  # below it what tells two images apart is under a hundredth or two of the embeddings' energy
SCALE_LEFT = 0.25  # of the largest scale there was: with less, and with
CONTRAST_LEFT = 0.5  # of the best contrast there was, embeddings shrink to a point
RANK = 2.5  # directions that are left, or
RANK_SHARE = 0.06  # of the directions that batch and dimension allow
PEAKED = 0.1  # of the largest entropy: nearly all items are given to the same few of the clusters
UNIFORM = 0.98  # of the largest entropy of an assignment: every item belongs to all clusters alike
STILL_FIRST, STILL_LAST = 3, 6  # rows at either end of the course, whose means are compared
STILL_SINCE = 11  # rows, before which nothing is said of it
STILL_NOISE = 3.0  # standard errors of their difference by which the loss has to fall or the contrast to rise,
STILL_LOSS = 0.005  # and by this part of the first loss,
STILL_CONTRAST = 0.02  # or this much (a difference of cosines)
BETTER = 1.05  # what rises by this factor over `ROWS` rows is recovering

REMEDIES = {
    "constant": "Every image gets nearly the same answer. Start anew with a --learning-rate four times lower; if that "
    "changes nothing, with another --objective, or with views that differ less.",
    "dimensional": "The answers vary in few directions. Start anew with a larger --batch-size or a lower "
    "--learning-rate, or with --objective vicreg, which keeps directions apart.",
    "cluster": "Nearly all images are given to the same few clusters. Start anew with fewer clusters or a lower "
    "--learning-rate.",
    "teacher uniform": "The teacher cannot decide: every image belongs to all clusters alike. Lower its temperature.",
    "teacher peaked": "The teacher says the same of every image. Its centring is too weak, or its temperature too low.",
    "loss not moving": "Nothing has been learnt yet. Look at views.png: views of one image must show the same thing. "
    "Or start anew with a --learning-rate four times higher.",
}


SEEN = (
    "step", "loss", "spread", "scale", "contrast", "effective_rank", "rank_share",
    "assignment_entropy", "cluster_entropy",
)  # fmt: skip
Seen = tuple[str, tuple[str, dict[str, float]]]  # kind, sentence, figures


@dataclass(frozen=True)
class Alert:
    """What was seen at a step. kind: a key of `REMEDIES`. sentence: with its figures."""

    step: int
    kind: str
    sentence: str
    remedy: str
    figures: dict[str, float]


class Alarm:
    """Shown every row of metrics in order; `raised` are the kinds that hold at present."""

    def __init__(self) -> None:
        self.raised: set[str] = set()
        self._rows: list[dict[str, Any]] = []  # those a figure of which is compared with later ones
        self._best: dict[str, float] = {}  # the highest level so far
        self._level: dict[str, float] = {}  # of the last rows

    def look(self, row: dict[str, Any]) -> list[Alert]:
        """The alerts that this row gives rise to; one that was raised is raised again only after it had ended."""
        self._rows.append({name: row[name] for name in SEEN if math.isfinite(row.get(name, math.nan))})
        recent = self._rows[-ROWS:]
        self._level = {name: median(r[name] for r in recent) for name in recent[-1] if all(name in r for r in recent)}
        if len(recent) < ROWS:
            return []
        for name, value in self._level.items():
            self._best[name] = max(value, self._best.get(name, value))
        now = self._now() if row["step"] >= FIRST_STEP else {}
        fresh = [kind for kind in now if kind not in self.raised]
        self.raised = set(now)
        return [Alert(row["step"], kind, now[kind][0], REMEDIES[kind], now[kind][1]) for kind in fresh]

    def _now(self) -> dict[str, tuple[str, dict[str, float]]]:
        """{kind: (sentence, figures)} of all that holds."""
        checks = (self._constant, self._dimensional, self._clusters, self._uniform)
        found = dict(seen for check in checks if (seen := check()))
        if "constant" in found:
            found.pop("dimensional", None)  # of what is left to see of a constant
        if not found and (still := self._still()):
            found["loss not moving"] = still
        return found

    def _low(self, name: str, threshold: float) -> bool:
        """Whether a figure is below its threshold in all recent rows, and not recovering."""
        values = [row.get(name, math.inf) for row in self._rows[-ROWS:]]
        return bool(max(values) < threshold and values[-1] <= BETTER * values[0])

    def _fell(self, name: str, left: float) -> bool:
        """Whether less than the part `left` of its best is left of a figure."""
        return name in self._level and self._level[name] < left * self._best[name]

    def _constant(self) -> Seen | None:
        level = self._level
        if self._low("spread", SPREAD):
            said = (
                f"The spread of the embeddings is {level['spread']:.3f} (1 is as different as can be, 0 all the same)."
            )
            return "constant", (said, {"spread": level["spread"]})
        if self._fell("scale", SCALE_LEFT) and self._fell("contrast", CONTRAST_LEFT):
            said = f"The embeddings shrank from a scale of {self._best['scale']:.2g} to {level['scale']:.2g}"
            told = f"and what tells images apart (the contrast) from {self._best['contrast']:.2f} to"
            figures = {name: level[name] for name in ("scale", "contrast")}
            return "constant", (f"{said}, {told} {level['contrast']:.2f}.", figures)
        return None

    def _dimensional(self) -> Seen | None:
        if not self._low("rank_share", RANK_SHARE) and not self._low("effective_rank", RANK):
            return None
        rank = self._level["effective_rank"]
        said = f"The embeddings vary in about {rank:.1f} directions"
        if "rank_share" in self._level:
            said += f", {self._level['rank_share']:.0%} of those there could be"
        return "dimensional", (f"{said}.", {"effective_rank": rank})

    def _clusters(self) -> Seen | None:
        if not self._low("cluster_entropy", PEAKED):
            return None
        figures = {name: self._level[name] for name in ("assignment_entropy", "cluster_entropy")}
        told = figures["cluster_entropy"] - figures["assignment_entropy"]
        said = f"Clusters are used at {figures['cluster_entropy']:.0%} of the entropy of all of them alike"
        kind = "teacher peaked" if told < PEAKED / 2 else "cluster"
        return kind, (f"{said}, and tell {told:.1%} of it about an item.", figures)

    def _uniform(self) -> Seen | None:
        values = [row.get("assignment_entropy", 0.0) for row in self._rows[-ROWS:]]
        if min(values) < UNIFORM:
            return None
        said = (
            f"An image's assignment to clusters has {self._level['assignment_entropy']:.1%} of the entropy of chance."
        )
        return "teacher uniform", (said, {"assignment_entropy": self._level["assignment_entropy"]})

    def _still(self) -> tuple[str, dict[str, float]] | None:
        """The loss of the first rows and of the last, if nothing has changed but what differs from batch to batch."""
        losses = [row["loss"] for row in self._rows if "loss" in row]
        contrasts = [row["contrast"] for row in self._rows if "contrast" in row]
        if len(losses) < STILL_SINCE or moved(losses, -1.0, STILL_LOSS * abs(losses[0])):
            return None
        if len(contrasts) == len(losses) and moved(contrasts, 1.0, STILL_CONTRAST):
            return None
        first, last = fmean(losses[:STILL_FIRST]), fmean(losses[-STILL_LAST:])
        said = f"In {self._rows[-1]['step']:,} steps the loss went from {first:.4g} to {last:.4g} only."
        return said, {"loss": last, "loss_first": first}


def moved(values: Sequence[float], direction: float, least: float) -> bool:
    """Whether the last values are beyond the first ones in `direction` (1 or -1), by more than `least` and than
    batches differ by.

    What batches differ by is seen from row to row: for normal noise the median of the differences of neighbours is
    0.954 standard deviations. A course, or a jump, does not count as noise.
    """
    change = direction * (fmean(values[-STILL_LAST:]) - fmean(values[:STILL_FIRST]))
    noise = median(abs(a - b) for a, b in pairwise(values)) / 0.954
    return change > max(least, STILL_NOISE * noise * math.sqrt(1 / STILL_FIRST + 1 / STILL_LAST))
