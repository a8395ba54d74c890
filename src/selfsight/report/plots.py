"""Plots of a head's figures as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
INK, LINE, FAINT = "#1f2430", "#2c5f8a", "#b8c4d0"
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
