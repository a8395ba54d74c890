"""View plans: a declaration of which views an objective wants. Nothing here touches a pixel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Colour:
    """Strengths and probabilities of the photometric part of a view.

    Images that are not RGB get brightness and contrast per channel; saturation, hue and grey do not apply to them.

    brightness: s, for a factor drawn from [1 - s, 1 + s].
    contrast: the same.
    saturation: the same.
    hue: h, for a turn of the IQ plane drawn from [-h, h]; 1 is a full turn.
    jitter: probability of these four together.
    grey: probability.
    blur: probability.
    blur_sigma: from and to, in view pixels.
    solarise: probability.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.1


@dataclass(frozen=True)
class ViewGroup:
    """`count` views of `size` x `size` pixels, each of a random part of the canvas.

    count: views per item.
    size: side of a view in pixels.
    scale: area of the part over the area of the canvas, from and to.
    ratio: width over height of the part, from and to.
    flip: probability of a left-right flip.
    colour: the photometric changes.
    shared: which of "geometry" and "colour" all views of the group have in common.
    draws: random numbers per item that each view carries for the objective's own use, such as which patches to mask.
    """

    count: int
    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    colour: Colour = field(default_factory=Colour)
    shared: frozenset[str] = frozenset()
    draws: int = 0


@dataclass(frozen=True)
class ViewPlan:
    """All views of an item.

    groups: of views.
    companion: "frames" makes each view a clip of frames t-1, t, t+1; "group" takes every second view from another item
        of the same group.
    """

    groups: tuple[ViewGroup, ...]
    companion: Literal["frames", "group"] | None = None

    def __post_init__(self) -> None:
        if not self.groups or any(group.count < 1 or group.size < 1 for group in self.groups):
            raise ValueError("a view plan has groups of one or more views of one or more pixels")

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def largest(self) -> int:
        return max(group.size for group in self.groups)

    def union(self, other: ViewPlan) -> ViewPlan:
        """The smallest plan that holds both: equal groups are shared, with the larger count."""
        if self.companion != other.companion:
            raise ValueError("objectives with different companions cannot share a view plan")
        groups = list(self.groups)
        for group in other.groups:
            same = [i for i, mine in enumerate(groups) if same_but_count(mine, group)]
            if same:
                groups[same[0]] = replace(group, count=max(group.count, groups[same[0]].count))
            else:
                groups.append(group)
        return replace(self, groups=tuple(groups))


def same_but_count(a: ViewGroup, b: ViewGroup) -> bool:
    """Whether two groups ask for the same kind of view."""
    return replace(a, count=0) == replace(b, count=0)
