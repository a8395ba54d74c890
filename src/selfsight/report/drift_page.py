"""The page of a stream's drift: distance over time, what was done, and the pictures that drifted most."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from selfsight.report.plots import AIM, DPI, FAINT, INK, LINE
from selfsight.report.template import render

MOST_LINES = 50  # of what was done


class Line(TypedDict):
    """A window, as a line of drift.jsonl.

    first, last: the paths of its pictures. mean, mmd, distance, limit: see `deploy.drift`. drift: whether the distance
    is beyond the limit. undone: length of the shift that is taken away. labels: that came with it. did: in words.
    """

    window: int
    images: int
    first: str
    last: str
    mean: float
    mmd: float
    distance: float
    limit: float
    drift: bool
    undone: float
    labels: int
    did: list[str]


class FarTile(NamedTuple):
    """A picture that drifted far; its thumbnail, a data URI, may be ""."""

    picture: str
    uri: str
    distance: float
    window: int


def build(
    title: str, stream: str, head: str, lines: Sequence[Line], tiles: Sequence[FarTile], thumbnails: bool,
    false_alarms: float, verdict: tuple[str, str],
) -> str:  # fmt: skip
    """The page as HTML. lines: of drift.jsonl. verdict: a word and a sentence."""
    happened = [line for line in lines if line["did"]]
    content: dict[str, object] = {
        "title": title, "stream": stream, "head": head, "lines": lines, "tiles": tiles, "thumbnails": thumbnails,
        "images": sum(line["images"] for line in lines), "false_alarms": false_alarms, "word": verdict[0],
        "sentence": verdict[1], "drifting": bool(lines and lines[-1]["drift"]), "happened": happened[-MOST_LINES:],
        "left_out": max(0, len(happened) - MOST_LINES),
        "chart": "data:image/png;base64," + base64.b64encode(drift_png(lines)).decode("ascii"),
    }  # fmt: skip
    return render("drift_page.html", content)


def drift_png(lines: Sequence[Line]) -> bytes:
    """Distance and limit of each window as a PNG; windows that the head followed are shaded."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.0, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    places = [line["window"] for line in lines]
    undone = [line for line in lines if line["drift"]]
    for number, line in enumerate(undone):
        label = "followed" if number == 0 else None
        axes.axvspan(line["window"] - 0.5, line["window"] + 0.5, color=FAINT, alpha=0.5, linewidth=0, label=label)
    axes.plot(places, [line["limit"] for line in lines], color=AIM, linestyle="--", linewidth=1.3, label="limit")
    marker = "o" if len(lines) <= 200 else ""
    axes.plot(places, [line["distance"] for line in lines], color=LINE, marker=marker, markersize=3, label="distance")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("window")
    axes.set_ylabel("times as far as usual")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
