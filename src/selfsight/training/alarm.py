"""The collapse alarm: names what is going wrong while a run could still be saved, and stays silent otherwise.

It looks at the rows of metrics one after another and remembers a few of them, so that a resumed run, which shows it
its old rows again, goes on as if it had not stopped. The thresholds were chosen on sound and on broken runs of
`benchmarks/health.py`; docs/evidence.md has the table, and says which runs were trained after they were fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

ROWS = 3  # that must say the same: one batch decides nothing
QUIET = 5  # rows without it, after which an episode has ended
FIRST_STEP = 50  # a random network may look collapsed, and the first steps may widen it
BETTER = 1.05  # what rises by this factor over `ROWS` rows is recovering; so is
RISEN = 1.15  # a spread that has risen by this from its lowest, where nothing has been told apart yet
SPREAD_NONE = 0.15  # with less (1 fills the sphere), and with
NO_CONTRAST = 0.005  # less between cosines of the same image and of others, all images look the same; or with
SPREAD = 0.3  # less spread and
LOW_CONTRAST = 0.05  # less contrast, where there had been more, and with less than
CONTRAST_LEFT = 0.5  # of that left; or, whatever the spread, with
CONTRAST_GONE = 0.1  # of it left in every row, where there had been more than twice `LOW_CONTRAST`
SPREAD_ALONE = 0.02  # where no views are compared, with less than this spread; or there with less than
SPREAD_TRIVIAL = 0.2  # if of the largest loss less is left than
LOSS_GONE = 0.02  # as what is asked has become trivial
SCALE_LEFT = 0.25  # of the largest scale there was: with less, and with
CONTRAST_SHRUNK = 0.75  # of the best contrast there was, embeddings shrink to a point
RANK = 10.0  # directions: with fewer (or than
RANK_OTHERWISE = 3.0  # where clusters or pixels are the task, which few directions can serve), and
RANK_SHARE = 0.12  # of the directions that batch and dimension allow, with less of which (or with fewer than
RANK_SURE = 6.5  # directions of pairs, whatever the batch allows), and with
RANK_LEFT = 0.4  # of the largest share there was, directions have been lost
CLUSTERS_LEFT = 0.5  # of the most even use of clusters there was: with less, some are given up; and if what they
PEAKED = 0.05  # tell of an item is less than this part of the largest entropy, the teacher says the same of all
UNIFORM = 0.995  # of the largest entropy of an assignment: every item belongs to all clusters alike
STILL_SINCE, STILL_SURE = (
    11,
    30,
)  # rows from which on standing still is named: that of all figures, of loss and contrast
STILL_FIRST, STILL_LAST = 3, 20  # rows at the beginning and (at most, and half of them) at the end that are compared
STILL_NOISE, STILL_DOUBT = 3.0, 1.5  # standard errors by which a figure has to move, at first and when sure, and
STILL_LOSS = 0.005  # of the first loss, or
STILL_CONTRAST = 0.02  # (a difference of cosines; or of the answers that are right), or
STILL_OTHERS = 0.05  # of what the others were at first

REMEDIES = {
    "constant": "Images are not told apart any more. Start anew with a --learning-rate four times lower; if that "
    "changes nothing, with another --objective, or with views that differ less.",
    "dimensional": "The answers vary in few directions. Start anew with a larger --batch-size or a lower "
    "--learning-rate, or with --objective vicreg, which keeps directions apart.",
    "cluster": "Images are given to fewer and fewer of the clusters. Start anew with fewer clusters or a lower "
    "--learning-rate.",
    "teacher uniform": "The teacher cannot decide: every image belongs to all clusters alike. Its temperature is too "
    "high, or views of an image have too little in common: start anew with larger ones, or with another --objective.",
    "teacher peaked": "The teacher says the same of every image. Its centring is too weak, or its temperature too low.",
    "loss not moving": "Nothing has been learnt yet. Look at views.png: views of one image must show the same thing. "
    "Or start anew with a --learning-rate four times higher.",
}


SEEN_TO_MOVE = ("loss", "contrast", "accuracy", "rank_share", "scale", "spread")
SEEN = ("step", "learning_rate", *SEEN_TO_MOVE, "effective_rank", "assignment_entropy", "cluster_entropy")
Seen = tuple[str, dict[str, float]]  # a sentence and its figures


@dataclass(frozen=True)
class Alert:
    """What was seen at a step. kind: a key of `REMEDIES`. sentence: with its figures."""

    step: int
    kind: str
    sentence: str
    remedy: str
    figures: dict[str, float]


class Alarm:
    """Shown every row of metrics in order; `raised` holds what is wrong at present: {kind: the alert when it began}."""

    def __init__(self) -> None:
        self.raised: dict[str, Alert] = {}
        self._rows: list[dict[str, float]] = []  # all of them until something has moved, then the recent ones
        self._moved = False
        self._best: dict[str, float] = {}  # the highest level so far; a level is the median of recent rows; and
        self._worst: dict[str, float] = {}  # the lowest
        self._level: dict[str, float] = {}
        self._quiet: dict[str, int] = {}  # rows since a raised kind was last seen

    def look(self, row: Mapping[str, float]) -> list[Alert]:
        """The alerts that this row gives rise to; one that was raised is raised again only after it had ended."""
        self._rows.append({name: row[name] for name in SEEN if math.isfinite(row.get(name, math.nan))})
        recent = self._rows[-ROWS:]
        self._level = {name: median(r[name] for r in recent) for name in recent[-1] if all(name in r for r in recent)}
        if len(recent) < ROWS:
            return []
        for name, value in self._level.items():
            self._best[name] = max(value, self._best.get(name, value))
            self._worst[name] = min(value, self._worst.get(name, value))
        now = self._now() if row["step"] >= FIRST_STEP else {}
        fresh = [Alert(int(row["step"]), kind, said[0], REMEDIES[kind], said[1]) for kind, said in now.items()]
        fresh = [alert for alert in fresh if alert.kind not in self.raised]
        self.raised |= {alert.kind: alert for alert in fresh}
        for kind in list(self.raised):
            self._quiet[kind] = 0 if kind in now else self._quiet[kind] + 1
            if self._quiet[kind] >= QUIET:
                del self.raised[kind]
        return fresh

    def _now(self) -> dict[str, Seen]:
        """{kind: (sentence, figures)} of all that holds."""
        checks = {
            "constant": self._constant, "dimensional": self._dimensional, "cluster": self._cluster,
            "teacher peaked": self._peaked, "teacher uniform": self._uniform, "loss not moving": self._still,
        }  # fmt: skip
        found = {kind: seen for kind, check in checks.items() if (seen := check())}
        if len(found) > 1:
            found.pop("loss not moving", None)  # which is only what is left to say
        if "constant" in found or "constant" in self.raised:
            found.pop("dimensional", None)
        return found

    def _low(self, name: str, threshold: float) -> bool:
        """Whether a figure is below its threshold in all recent rows, and not recovering."""
        values = [row.get(name, math.inf) for row in self._rows[-ROWS:]]
        return bool(max(values) < threshold and values[-1] <= BETTER * values[0])

    def _fell(self, name: str, left: float) -> bool:
        """Whether less than the part `left` of its best is left of a figure."""
        return name in self._level and self._level[name] < left * self._best[name]

    def _warming_up(self) -> bool:
        rates = [row.get("learning_rate", 0.0) for row in self._rows[-ROWS:]]
        return rates[-1] > rates[0]

    def _constant(self) -> Seen | None:
        level = self._level
        contrast, best = level.get("contrast", math.inf), self._best.get("contrast", 0.0)
        # A random network may not have begun to tell images apart, as long as the rate still rises.
        rises = level.get("spread", 0.0) > RISEN * self._worst.get("spread", 0.0)
        none = contrast < NO_CONTRAST and not self._warming_up() and not rises
        lost = best > LOW_CONTRAST > contrast and self._fell("contrast", CONTRAST_LEFT)
        alone = self._low("spread", SPREAD_ALONE)
        alone |= self._low("spread", SPREAD_TRIVIAL) and self._fell("loss", LOSS_GONE)
        if "contrast" not in level and alone and not self._warming_up():
            said = f"The features have a spread of {level['spread']:.3f} (1 as different as can be, 0 all the same)."
            return said, {"spread": level["spread"]}
        if (none and self._low("spread", SPREAD_NONE)) or (lost and self._low("spread", SPREAD)):
            said = f"The embeddings have a spread of {level['spread']:.3f} (1 as different as can be, 0 all the same)"
            said += f" and two views of an image are only {contrast:.3f} more alike than those of two images."
            return said, {"spread": level["spread"], "contrast": contrast}
        if best > 2 * LOW_CONTRAST and self._low("contrast", CONTRAST_GONE * best):
            said = f"Two views of an image are {contrast:.3f} more alike than those of two images, and were {best:.2f}."
            return said, {"contrast": contrast}
        if self._fell("scale", SCALE_LEFT) and self._fell("contrast", CONTRAST_SHRUNK):
            said = f"The embeddings shrank from a scale of {self._best['scale']:.2g} to {level['scale']:.2g}"
            said += f", and what tells images apart (the contrast) from {best:.2f} to {contrast:.2f}."
            return said, {"scale": level["scale"], "contrast": contrast}
        return None

    def _dimensional(self) -> Seen | None:
        pairs = "contrast" in self._level and "cluster_entropy" not in self._level
        few = self._low("effective_rank", RANK if pairs else RANK_OTHERWISE) and self._low("rank_share", RANK_SHARE)
        few |= pairs and self._low("effective_rank", RANK_SURE)
        if not few or not self._fell("rank_share", RANK_LEFT):
            return None
        rank, share, best = self._level["effective_rank"], self._level["rank_share"], self._best["rank_share"]
        said = f"The embeddings vary in about {rank:.1f} directions, {share:.0%} of those there could be"
        return f"{said}; it was {best:.0%}.", {"effective_rank": rank, "rank_share": share}

    def _few_clusters(self) -> tuple[Seen, float] | None:
        """What there is to say of them, and how much of the entropy they tell about an item."""
        best = self._best.get("cluster_entropy", 0.0)
        if not self._low("cluster_entropy", CLUSTERS_LEFT * best):
            return None
        figures = {name: self._level[name] for name in ("assignment_entropy", "cluster_entropy")}
        told = figures["cluster_entropy"] - figures["assignment_entropy"]
        said = f"Clusters are used at {figures['cluster_entropy']:.0%} of the entropy of all of them alike, which was"
        return (f"{said} {best:.0%}, and tell {told:.1%} of it about an item.", figures), told

    def _cluster(self) -> Seen | None:
        found = self._few_clusters()
        return found[0] if found and found[1] >= PEAKED else None

    def _peaked(self) -> Seen | None:
        found = self._few_clusters()
        return found[0] if found and found[1] < PEAKED else None

    def _uniform(self) -> Seen | None:
        if min(row.get("assignment_entropy", 0.0) for row in self._rows[-ROWS:]) < UNIFORM:
            return None
        entropy = self._level["assignment_entropy"]
        return f"An image's assignment has {entropy:.1%} of the entropy of pure chance.", {
            "assignment_entropy": entropy
        }

    def _still(self) -> Seen | None:
        """The loss of the first rows and of the last, if nothing has changed yet but what differs from batch to batch.

        Once the loss or the contrast has, it is never said again: a run that has converged stands still as well.
        """
        if self._moved or len(self._rows) < STILL_SINCE or self._warming_up():
            return None
        losses = [row["loss"] for row in self._rows if "loss" in row]
        self._moved = any(self._has_moved(name) for name in SEEN_TO_MOVE[:3])
        if self._moved:
            del self._rows[:-ROWS]
        early = len(self._rows) < STILL_SURE and any(self._has_moved(name) for name in SEEN_TO_MOVE[3:])
        if self._moved or early or len(losses) < STILL_SINCE:
            return None
        first, last = fmean(losses[:STILL_FIRST]), fmean(losses[-STILL_FIRST:])
        said = f"In {self._rows[-1]['step']:,} steps the loss went from {first:.4g} to {last:.4g} only"
        return f"{said}, which is within what batches differ by.", {"loss": last, "loss_first": first}

    def _has_moved(self, name: str) -> bool:
        values = [row[name] for row in self._rows if name in row]
        if len(values) < STILL_SINCE:
            return False
        early = len(values) < STILL_SURE and "contrast" in self._level
        errors = STILL_NOISE if early else STILL_DOUBT  # rather silent than wrong; a task without pairs begins slowly
        if name == "loss":
            return moved(values, -1.0, STILL_LOSS * abs(values[0]), errors)
        if name in ("contrast", "accuracy"):
            return moved(values, 1.0, STILL_CONTRAST, errors)
        return max(moved(values, sign, STILL_OTHERS * abs(values[0]), errors) for sign in (-1.0, 1.0))


def moved(values: Sequence[float], direction: float, least: float, errors: float) -> bool:
    """Whether the last values are beyond the first ones in `direction` (1 or -1), by more than `least` and than so
    many standard `errors` of what batches differ by.

    What batches differ by is seen from row to row: for normal noise the median of the differences of neighbours is
    0.954 standard deviations. A course, or a jump, does not count as noise.
    """
    count = min(STILL_LAST, len(values) // 2)
    change = direction * (fmean(values[-count:]) - fmean(values[:STILL_FIRST]))
    noise = median(abs(a - b) for a, b in pairwise(values)) / 0.954
    return change > max(least, errors * noise * math.sqrt(1 / STILL_FIRST + 1 / count))
