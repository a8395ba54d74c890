"""View plans that several objectives share, as rules (see `facts.Rule`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from selfsight.encoders.store import is_fixed_size, takes_any_size
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Chosen, Facts, Rule, ViewRule
from selfsight.objectives.patches import patch_side
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

MEASURED = "measured, benchmarks/README.md"


def adamw(facts: Facts, chosen: Chosen) -> tuple[str, str]:
    """AdamW, for any objective."""
    return "adamw", "robust to scale across objectives (Loshchilov and Hutter, ICLR 2019)"


BATCH = 256  # items per step
BATCH_OF_START = 64  # items per step where weights are adapted without CUDA


def batch_of(most: int) -> Rule:
    """A rule for batches of `most` items, or all there are, evenly over the processes. Weights that are adapted
    without CUDA take `BATCH_OF_START`."""

    def rule(facts: Facts, chosen: Chosen) -> tuple[int, str]:
        adapted = facts.start is not None and facts.device != "cuda"
        wanted = BATCH_OF_START if adapted else most
        size = min(wanted, facts.items) // facts.processes * facts.processes
        if facts.items < wanted:
            evenly = "" if size == facts.items else ", evenly over the processes"
            return size, f"all {facts.items} items{evenly}"
        if adapted:
            return size, "networks like these make few larger steps without CUDA (measured, docs/weights.md)"
        views = chosen["views"].count
        return size, f"{views} views each give {views * size:,} a step ({MEASURED})"

    return rule


def quarters(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
    """Four quarters of an image, for objectives that compare any number of views."""
    if _one_size(chosen):
        reason = f"{chosen['encoder']} takes one size only: two crops (Chen et al., ICML 2020){_colours(facts)}"
        return _two(chosen), reason
    group = ViewGroup(count=4, size=part_side(chosen, 2), scale=(0.25, 0.25), ratio=(1.0, 1.0), colour=Colour())
    reason = "several quarters of the image at full magnification; they are small, so a minute sees many"
    return ViewPlan((group,)), f"{reason} ({MEASURED}; Tong et al., EMP-SSL, 2023){_colours(facts)}"


def patches(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
    """Eight quarters of an image: as `quarters`, and twice as many."""
    plan, reason = quarters(facts, chosen)
    if _one_size(chosen):
        return plan, reason
    (group,) = plan.groups
    reason = f"many small parts of each image teach most in a minute (Tong et al., EMP-SSL, 2023; {MEASURED})"
    return ViewPlan((replace(group, count=8),)), f"{reason}{_colours(facts)}"


def two_crops(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
    """Two crops of a fifth to all of an image, for objectives of pairs."""
    return _two(chosen), f"two crops of a fifth to all of the image, as in the paper{_colours(facts)}"


def multi_crop(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
    """Two large crops, whose targets are predicted, and four small ones (Caron et al., SwAV, 2020, section 3.2)."""
    if _one_size(chosen):
        return _two(chosen), f"{chosen['encoder']} takes one size only: no small crops{_colours(facts)}"
    large = ViewGroup(count=2, size=chosen["size"], scale=(0.3, 1.0), colour=Colour())
    small = ViewGroup(count=4, size=part_side(chosen, 2), scale=(0.08, 0.3), colour=Colour())
    return ViewPlan(
        (large, small)
    ), f"two large crops and four of half the side, a quarter of the cost each{_colours(facts)}"


def quick_crops(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
    """`multi_crop` on CUDA, elsewhere `quarters`, which give two to three times as many steps for the same operations.
    Every quarter predicts and is predicted, and a short run learns more."""
    return multi_crop(facts, chosen) if facts.device == "cuda" else quarters(facts, chosen)


def one_crop(draws: int | Callable[[Chosen], int] = 0) -> ViewRule:
    """A rule for one crop without colour changes. `draws`: its random numbers, or a function of the recipe for them."""

    def rule(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
        count = draws if isinstance(draws, int) else draws(chosen)
        group = ViewGroup(count=1, size=chosen["size"], scale=(0.3, 1.0), colour=PLAIN, draws=count)
        return ViewPlan((group,)), "one crop, sometimes mirrored, with colours unchanged: what is hidden is the task"

    return rule


PLAIN = Colour(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, jitter=0.0, grey=0.0, solarise=0.0)


def restyled(plan: ViewPlan, style: str, positives: str) -> ViewPlan:
    """The view plan `plan` with another style or other positives.

    style: "crop-only" drops colour changes and mirroring (Moutakanni et al., NeurIPS 2024).
    positives: "group" takes every second view from another item of the group (Azizi et al., MICLe, ICCV 2021).

    Raises `SelfsightError` for positives of a group where there is only one view.
    """
    if style == "crop-only":
        plan = replace(plan, groups=tuple(replace(group, colour=PLAIN, flip=0.0) for group in plan.groups))
    if positives == "group":
        if plan.count < 2:
            raise SelfsightError("--positives group is for objectives that compare views; this one has a single view.")
        plan = replace(plan, companion="group")
    return plan


def part_side(chosen: Chosen, parts: int) -> int:
    """Side in pixels of a part of a view: the encoder's size over `parts`, a multiple of 16 or of a ViT's patch."""
    step = patch_side(chosen) if takes_any_size(chosen["encoder"]) else 16
    return int(max(step, chosen["size"] // parts // step * step))


def _two(chosen: Chosen) -> ViewPlan:
    return ViewPlan((ViewGroup(count=2, size=chosen["size"], scale=(0.2, 1.0), colour=Colour()),))


def _one_size(chosen: Chosen) -> bool:
    return is_fixed_size(chosen["encoder"]) and not takes_any_size(chosen["encoder"])


def _colours(facts: Facts) -> str:
    return "" if facts.format.channels == 3 else "; brightness and contrast change; there is no colour to change"
