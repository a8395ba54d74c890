"""Plots of a head's figures, and of label curves, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfsight.heads.arms import ARMS, LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from selfsight.heads.curves import LabelCurve

DPI = 120
INK, LINE, FAINT = "#1f2430", "#2c5f8a", "#b8c4d0"
COLOURS = (LINE, "#8a8f98", "#2f8f6b", "#8a5fb0", "#b07a1e", "#3aa0b8")  # of the arms, in the order of the table
AIM = "#c0392b"  # what is to be reached
MOST_NUMBERED = 20  # classes, above which cells of a confusion matrix have no numbers


def confusion_png(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """The confusion matrix: true classes in rows, in % of the row, with the number of items in each cell."""
    import numpy as np

    table = np.array(counts, dtype=float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.55 * len(classes))
    figure, axes = _figure(side + 0.8, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    axes.set_xticks(places, classes, rotation=45, ha="right")
    axes.set_yticks(places, classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if len(classes) <= MOST_NUMBERED:
        for row in places:
            for column in places:
                if table[row, column]:
                    ink = "white" if shares[row, column] > 0.55 else INK
                    axes.text(column, row, f"{table[row, column]:.0f}", ha="center", va="center", color=ink, fontsize=8)
    return _png(figure)


def reliability_png(bins: Sequence[tuple[float, float, int]]) -> bytes:
    """The reliability diagram: how often the head is right where it says it is so sure. On the diagonal it is as good
    as its word; the area of a point is the number of its items."""
    figure, axes = _figure(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    total = sum(count for _, _, count in bins) or 1
    said, right = [b[0] for b in bins], [b[1] for b in bins]
    axes.plot(said, right, color=LINE, linewidth=1.2)
    axes.scatter(said, right, s=[20 + 600 * b[2] / total for b in bins], color=LINE, alpha=0.7, linewidths=0)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the answer")
    axes.set_ylabel("share that is right")
    return _png(figure)


def curve_png(result: LabelCurve) -> bytes:
    """Labels per class against accuracy, see `draw_curve`."""
    figure, axes = _figure(7.2, 4.8)
    draw_curve(axes, result)
    return _png(figure)


def draw_curve(axes: Axes, result: LabelCurve) -> None:
    """A line an arm with its 95 % band over labels per class on a log axis, the level that is to be reached, and a mark
    where the first arm reaches it."""
    classes = len(result.classes)
    shown = {arm: points for arm, points in result.curves.items() if arm != LEVEL}
    for (arm, points), colour in zip(shown.items(), COLOURS, strict=False):
        places = [p.per_class for p in points]
        values = [100 * (p.accuracy.value or 0.0) for p in points]
        axes.plot(places, values, color=colour, marker="o", markersize=4, linewidth=1.6, label=ARMS[arm].title)
        ends = [(p.accuracy.low, p.accuracy.high) for p in points]
        low, high = ([100 * end if end is not None else v for end, v in zip(side, values, strict=True)]
                     for side in zip(*ends, strict=True))  # fmt: skip
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    if result.level is not None and result.level.value is not None:
        level, least, most = result.level.value, result.level.low, result.level.high
        title = f"{ARMS[LEVEL].title}, all {result.train_items:,} labels"
        axes.axhline(100 * level, color=AIM, linewidth=1.4, linestyle="--", label=title)
        if least is not None and most is not None:
            axes.axhspan(100 * least, 100 * most, color=AIM, alpha=0.08, linewidth=0)
        first = next(iter(result.needed.values()), None)
        reached = first.labels.value if first else None
        if first and reached is not None:
            few = "at most " if first.at_most else ""
            axes.plot([reached / classes], [100 * level], marker="D", markersize=8, color=AIM, linestyle="none",
                      label=f"reached with {few}{reached:,.0f} labels", zorder=5)  # fmt: skip
    _log_axis(axes, sorted({p.per_class for points in result.curves.values() for p in points}))
    axes.set_xlabel("labels per class")
    axes.set_ylabel(f"{'balanced accuracy' if result.leading == 'balanced' else 'accuracy'} in %")
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)


def _log_axis(axes: Axes, places: list[float]) -> None:
    """A log axis with a number at each of the places that there is room for."""
    axes.set_xscale("log")
    kept: list[float] = []
    for place in places:
        if not kept or place >= 1.25 * kept[-1]:
            kept.append(place)
    axes.set_xticks(kept, [f"{place:,.0f}" if place >= 10 or place == int(place) else f"{place:.1f}" for place in kept])
    axes.minorticks_off()


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    return figure, axes


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
