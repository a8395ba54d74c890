"""A square chart as SVG: how one figure lies to another that it should equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

SIDE, LEFT, BELOW, EDGE = 300, 46, 40, 14  # px
LEAST, MOST = 3.0, 13.0  # px, radii


class Point(NamedTuple):
    """A point at (x, y), whose area is its `weight`, from 0 to 1. title: shown when it is pointed at."""

    x: float
    y: float
    title: str
    weight: float = 0.0


def plane(points: Sequence[Point], x: str, y: str, shares: bool = False) -> Markup:
    """The points over the diagonal, both axes over the same range, with their titles `x` and `y`.

    shares: whether both go from 0 to 1; then the points are joined.
    """
    values = [0.0, 1.0] if shares else [value for point in points for value in (point.x, point.y)]
    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(min(values), max(values))]
    low, span = ticks[0], ticks[-1] - ticks[0]

    def at(px: float, py: float) -> tuple[str, str]:
        across, up = ((value - low) / span * SIDE for value in (px, py))
        return f"{LEFT + across:.1f}", f"{EDGE + SIDE - up:.1f}"

    parts = []
    for tick in ticks:
        (across, up), text = at(tick, tick), f"{round(tick, 10):g}"
        parts.append(f'<path class="grid" d="M{LEFT} {up}h{SIDE}M{across} {EDGE}v{SIDE}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up}" dy=".35em" text-anchor="end">{text}</text>')
        parts.append(f'<text x="{across}" y="{EDGE + SIDE + 16}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="diagonal" d="M{LEFT} {EDGE + SIDE}L{LEFT + SIDE} {EDGE}"/>')
    places = [at(point.x, point.y) for point in points]
    if shares and places:
        parts.append(f'<path class="line" d="M{"L".join(" ".join(place) for place in places)}"/>')
    for (cx, cy), point in zip(places, points, strict=True):
        radius = (LEAST**2 + point.weight * (MOST**2 - LEAST**2)) ** 0.5
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="{radius:.1f}"><title>{escape(point.title)}</title></circle>')
    middle, width, height = EDGE + SIDE // 2, LEFT + SIDE + EDGE, EDGE + SIDE + BELOW
    parts.append(f'<text x="{LEFT + SIDE // 2}" y="{height - 5}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    return Markup(f'<svg class="plane" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>')
