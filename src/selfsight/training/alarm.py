"""The collapse alarm: names what is going wrong while a run could still be saved, and stays silent otherwise.

It takes the rows of metrics one by one and remembers a few of them. A resumed run shows it the old rows again, so that
it goes on as if the run had not stopped. The thresholds were chosen on healthy and on broken runs of
`benchmarks/health.py`. docs/evidence.md has the table, and says which runs were trained after they were fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

# Thresholds. Unless a comment says otherwise, a value was chosen on rounds 0 and 1 of `benchmarks/health.py`, so that
# broken runs are named within 100 steps and healthy runs are not; round 2 was trained afterwards, as a check
# (docs/evidence.md). A "level" is the median of the last `ROWS` rows; "best" is the highest level so far. Figures are
# explained at `monitors.evidence`.

# When it speaks
ROWS = 3  # rows that must all show a fault, as one batch decides nothing
QUIET = 5  # rows without a fault that end its episode; if it is seen again before that, it is not named again
FIRST_STEP = 50  # no alarm before this step: random networks may look collapsed, and their first steps may widen them
BETTER = 1.05  # a low figure is left alone while it recovers: its last row is this factor above its first of `ROWS`
RISEN = 1.15  # no contrast is left alone while spread is above its lowest level by this factor: some runs begin slowly

# Constant, without contrast: contrast < NO_CONTRAST, and spread < SPREAD_NONE or, once the loss has moved,
# spread < SPREAD_MOVED
SPREAD_NONE = 0.15  # spread is 1 where embeddings fill the sphere, 0 where all are equal
NO_CONTRAST = 0.005  # views of one image are then no more alike than views of two images
# The loss moves without contrast where views have nothing in common: that of the default recipe fell to chance, at a
# spread of 0.27 by step 100. Sound runs without contrast that late had 0.74 at least, or one that rose.
SPREAD_MOVED = 0.45

# Constant, contrast lost: spread < SPREAD, contrast < LOW_CONTRAST < best contrast, contrast < CONTRAST_LEFT * best
SPREAD = 0.3  # twice `SPREAD_NONE`, as a fall in contrast is further evidence
LOW_CONTRAST = 0.05  # contrast that was never above it is too small for its fall to mean anything
CONTRAST_LEFT = 0.5  # of the best contrast: half of what told images apart is lost

# Constant, contrast gone whatever the spread: contrast < CONTRAST_GONE * best in all rows, best > 2 * LOW_CONTRAST
# Sound runs kept 0.6 at least. It was 0.1, until the default recipe kept 0.3 at a temperature of 0.0001, with a spread
# above 0.55 (docs/evidence.md).
CONTRAST_GONE = 0.45

# Constant, of objectives that compare no views and so have no contrast: spread < SPREAD_ALONE
SPREAD_ALONE = 0.02  # far below `SPREAD_NONE`, as no second figure supports it

# The same, or the task became trivial: spread < SPREAD_TRIVIAL and loss < LOSS_GONE * largest loss
SPREAD_TRIVIAL = 0.2  # above `SPREAD_ALONE`, as the vanished loss is further evidence
LOSS_GONE = 0.02  # chosen on the one broken run of I-JEPA of round 2, whose patches collapse slowly

# Constant, shrunk to a point: scale < SCALE_LEFT * largest and contrast < CONTRAST_SHRUNK * best
SCALE_LEFT = 0.25  # of the largest scale: a loss of distances can shrink embeddings without turning one
CONTRAST_SHRUNK = 0.75  # of the best contrast: shrinking counts only where contrast falls with it

# Dimensional: rank < RANK and rank_share < RANK_SHARE, or rank < RANK_SURE, or contrast < CONTRAST_SHRUNK * best and
# spread < SPREAD_LEFT * best; and rank_share < RANK_LEFT * best
RANK = 10.0  # directions, of objectives that compare views without clusters
RANK_OTHERWISE = 3.0  # in place of `RANK` where clusters or pixels are the task: few directions can serve these
RANK_SHARE = 0.12  # of the directions that batch and dimension allow: in small batches 10 directions are many
RANK_SURE = 6.5  # directions so few that the batch does not matter; where `RANK` applies
RANK_LEFT = 0.4  # of the best share: directions have been lost, not few from the start
# Where `RANK` applies, three falls together say it before directions are few: the default recipe collapses slowly once
# its rate is low. In sound runs one of the three stayed 12 % above its limit.
SPREAD_LEFT = 0.8

# Cluster and teacher peaked: cluster_entropy < CLUSTERS_LEFT * best; it is "teacher peaked" if also
# cluster_entropy - assignment_entropy < PEAKED
CLUSTERS_LEFT = 0.5  # of the best entropy: many clusters that were in use are given up
PEAKED = 0.05  # what the clusters still tell of an item: below this the teacher says the same of every image

# Teacher uniform: assignment_entropy >= UNIFORM
UNIFORM = 0.995  # of the entropy of pure chance: every item then belongs to all clusters alike

# Loss not moving: from row STILL_SINCE on if no figure has moved, from row STILL_SURE on if loss, contrast and accuracy
# have not. A figure has moved if the mean of its last rows differs from that of its first by more than a least change,
# and by more than so many standard errors of what batches differ by (`moved`).
STILL_SINCE = 11  # row of step 100, as there is a row every 10 steps: before, a change cannot be told from noise
STILL_SURE = 30  # row of step 290: from here only loss, contrast and accuracy count as learning
STILL_FIRST = 3  # first rows, whose mean is compared: few, as the first steps change most
STILL_LAST = 20  # last rows, at most, and at most half of all rows: their mean has little noise left
STILL_NOISE = 3.0  # standard errors before `STILL_SURE`: a change that large is hardly chance
STILL_DOUBT = 1.5  # standard errors after it, or where no views are compared: rather silent than wrong there
STILL_LOSS = 0.005  # least fall of the loss, as a share of its first value
STILL_CONTRAST = 0.02  # least rise of contrast (a difference of cosines) and of accuracy (a share)
STILL_OTHERS = 0.05  # least change of rank_share, scale and spread, as a share of their first value

REMEDIES = {
    "constant": "Images are not told apart any more. Start again with a --learning-rate four times lower. If that "
    "changes nothing, take another --objective, or views that differ less.",
    "dimensional": "The answers vary in few directions. Start again with a larger --batch-size or a lower "
    "--learning-rate, or with --objective vicreg, which keeps directions apart.",
    "cluster": "Images are assigned to fewer and fewer clusters. Start again with fewer clusters or a lower "
    "--learning-rate.",
    "teacher uniform": "The teacher cannot decide: every image belongs to all clusters alike. Its temperature is too "
    "high, or views of an image have too little in common. Start again with larger ones, or with another --objective.",
    "teacher peaked": "The teacher says the same of every image. Its centring is too weak, or its temperature too low.",
    "loss not moving": "Nothing has been learnt yet. Look at views.png: views of one image must show the same thing. "
    "Or start again with a --learning-rate four times higher.",
}


SEEN_TO_MOVE = ("loss", "contrast", "accuracy", "rank_share", "scale", "spread")
SEEN = ("step", "learning_rate", *SEEN_TO_MOVE, "effective_rank", "assignment_entropy", "cluster_entropy")
Seen = tuple[str, dict[str, float]]  # a sentence and its figures


@dataclass(frozen=True)
class Alert:
    """A fault, as it was first seen.

    step: at which.
    kind: a key of `REMEDIES`.
    sentence: what was seen, with figures.
    remedy: what to do.
    figures: those of the sentence, by name.
    """

    step: int
    kind: str
    sentence: str
    remedy: str
    figures: dict[str, float]


class Alarm:
    """Looks at every row of metrics, in order.

    raised: {kind: its first alert} of the faults present now.
    """

    def __init__(self) -> None:
        self.raised: dict[str, Alert] = {}
        self._rows: list[dict[str, float]] = []  # all until something has moved, then the recent ones
        self._moved = False
        self._best: dict[str, float] = {}  # highest level so far, by figure
        self._worst: dict[str, float] = {}  # lowest level so far
        self._level: dict[str, float] = {}
        self._quiet: dict[str, int] = {}  # rows since a present fault was last seen, by kind

    def look(self, row: Mapping[str, float]) -> list[Alert]:
        """The new alerts after `row`. A fault that is present already is named again only after its episode has
        ended."""
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
        """{kind: (sentence, figures)} of the faults that the recent rows show."""
        checks = {  # the first one says for the others whether anything has moved
            "loss not moving": self._still, "constant": self._constant, "dimensional": self._dimensional,
            "cluster": self._cluster, "teacher peaked": self._peaked, "teacher uniform": self._uniform,
        }  # fmt: skip
        found = {kind: seen for kind, check in checks.items() if (seen := check())}
        if len(found) > 1:
            found.pop("loss not moving", None)  # said only where nothing else is wrong
        if "constant" in found or "constant" in self.raised:
            found.pop("dimensional", None)
        return found

    def _low(self, name: str, threshold: float) -> bool:
        """Whether a figure is below `threshold` in all recent rows, and not recovering."""
        values = [row.get(name, math.inf) for row in self._rows[-ROWS:]]
        return bool(max(values) < threshold and values[-1] <= BETTER * values[0])

    def _fell(self, name: str, left: float) -> bool:
        """Whether the level of a figure is below `left` times its best."""
        return name in self._level and self._level[name] < left * self._best[name]

    def _warming_up(self) -> bool:
        rates = [row.get("learning_rate", 0.0) for row in self._rows[-ROWS:]]
        return rates[-1] > rates[0]

    def _constant(self) -> Seen | None:
        level = self._level
        contrast, best = level.get("contrast", math.inf), self._best.get("contrast", 0.0)
        # While the rate still rises, a random network may not have begun to tell images apart.
        rises = level.get("spread", 0.0) > RISEN * self._worst.get("spread", 0.0)
        none = contrast < NO_CONTRAST and not self._warming_up() and not rises
        lost = best > LOW_CONTRAST > contrast and self._fell("contrast", CONTRAST_LEFT)
        alone = self._low("spread", SPREAD_ALONE)
        alone |= self._low("spread", SPREAD_TRIVIAL) and self._fell("loss", LOSS_GONE)
        if "contrast" not in level and alone and not self._warming_up():
            said = f"The features have a spread of {level['spread']:.3f} (1 as different as can be, 0 all the same)."
            return said, {"spread": level["spread"]}
        none = none and self._low("spread", SPREAD_MOVED if self._moved else SPREAD_NONE)
        if none or (lost and self._low("spread", SPREAD)):
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
        few |= pairs and self._fell("contrast", CONTRAST_SHRUNK) and self._fell("spread", SPREAD_LEFT)
        if not few or not self._fell("rank_share", RANK_LEFT):
            return None
        rank, share, best = self._level["effective_rank"], self._level["rank_share"], self._best["rank_share"]
        said = f"The embeddings vary in about {rank:.1f} directions, {share:.0%} of those there could be"
        return f"{said}; it was {best:.0%}.", {"effective_rank": rank, "rank_share": share}

    def _few_clusters(self) -> tuple[Seen, float] | None:
        """(sentence and figures, what clusters tell of an item as a share of the entropy) if clusters are given up."""
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
        """The first and last loss in words, if nothing has changed yet beyond what batches differ by.

        Once loss, contrast or accuracy has moved, it is never said again: a converged run stands still as well.
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
        return f"{said}, which is no more than batches differ by.", {"loss": last, "loss_first": first}

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
    """Whether the last `values` differ from the first in `direction` (1 or -1), by more than `least` and by more than
    so many standard `errors` of what batches differ by.

    What batches differ by is estimated from neighbouring rows: for normal noise the median of their absolute
    differences is 0.954 standard deviations. So neither a trend nor a jump counts as noise.
    """
    count = min(STILL_LAST, len(values) // 2)
    change = direction * (fmean(values[-count:]) - fmean(values[:STILL_FIRST]))
    noise = median(abs(a - b) for a, b in pairwise(values)) / 0.954
    return change > max(least, errors * noise * math.sqrt(1 / STILL_FIRST + 1 / count))
