"""Joint objectives: a weighted sum of pretext tasks on one encoder."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import nn

from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError
from selfsight.objectives.contract import Loss, Objective
from selfsight.objectives.facts import Chosen, Facts, Options, Rule
from selfsight.objectives.options import are_pairs
from selfsight.objectives.shared import quarters
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan, same_but_count


class Joint(Objective):
    """A weighted sum of objectives that share one encoder, on the union of their view plans."""

    def __init__(self, members: Sequence[Objective], weights: Sequence[float] | None = None) -> None:
        plan = members[0].views
        for member in members[1:]:
            plan = plan.union(member.views)
        super().__init__(members[0].encoder, plan)
        if any(member.encoder is not self.encoder for member in members):
            raise ValueError("the members of a joint objective share one encoder")
        self.members = nn.ModuleList(members)
        self.weights = list(weights or [1.0] * len(members))

    @property
    def trained(self) -> Encoder:
        """The teacher of the first member that has one, else the encoder."""
        made = [cast(Objective, member).trained for member in self.members]
        return next((encoder for encoder in made if encoder is not self.encoder), self.encoder)

    def forward(self, views: list[View], progress: float) -> Loss:
        losses: list[Loss] = [m(self._share(cast(Objective, m).views, views), progress) for m in self.members]
        total = torch.stack([w * loss.total for w, loss in zip(self.weights, losses, strict=True)]).sum()
        parts = {f"{i}_{name}": part for i, loss in enumerate(losses) for name, part in loss.parts.items()}
        return Loss(total, parts, losses[0].embeddings)

    def _share(self, plan: ViewPlan, views: list[View]) -> list[View]:
        """The views of the union that `plan` asked for, in its order."""
        chosen: list[View] = []
        for group in plan.groups:
            like = next(i for i, mine in enumerate(self.views.groups) if same_but_count(group, mine))
            chosen += [view for view in views if view.group == like][: group.count]
        return chosen

    def after_step(self, progress: float) -> None:
        for member in self.members:
            member.after_step(progress)  # type: ignore[operator]


def weights_of(name: str) -> dict[str, float]:
    """The weight of each member of a sum by name: {"rotation": 1.0, "jigsaw": 0.5} of `rotation+0.5*jigsaw`.

    Raises `SelfsightError` for a weight that is not a number.
    """
    weights: dict[str, float] = {}
    for part in name.split("+"):
        factor, star, member = part.rpartition("*")
        try:
            weights[member] = float(factor) if star else 1.0
        except ValueError:
            raise SelfsightError(f"{part!r} of --objective {name} is not WEIGHT*NAME.") from None
    return weights


def joint(name: str, classes: dict[str, type[Objective]], weights: Sequence[float]) -> type[Joint]:
    """The class of the sum called `name`. `classes` are its members by name, `weights` theirs in the same order.

    Its options are {member: the member's own options, with `groups`: its groups of the common view plan}.
    """

    def plans(facts: Facts, chosen: Chosen) -> dict[str, ViewPlan]:
        return {member: cls.rules.get("views", quarters)(facts, chosen)[0] for member, cls in classes.items()}

    def views(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
        union = functools.reduce(ViewPlan.union, plans(facts, chosen).values())
        return union, f"the views of {' and '.join(classes)}, shared where they are the same"

    def options(facts: Facts, chosen: Chosen) -> tuple[Options, str]:
        union = functools.reduce(ViewPlan.union, plans(facts, chosen).values())
        out = {}
        for member, plan in plans(facts, chosen).items():
            rule = classes[member].rules.get("objective_options")
            like = [next(i for i, u in enumerate(union.groups) if same_but_count(u, g)) for g in plan.groups]
            groups = [[i, g.count] for i, g in zip(like, plan.groups, strict=True)]
            out[member] = (rule(facts, chosen)[0] if rule else {}) | {"groups": groups}
        return out, "each member's own"

    class Several(Joint):
        family = "multi-task"
        when = "Where one task alone leaves something out. All tasks see the same images through one encoder."
        tokens = any(cls.tokens for cls in classes.values())
        pool = "avg" if all(cls.pool == "avg" for cls in classes.values()) else "token"
        rate = min(cls.rate for cls in classes.values())
        rules: ClassVar[dict[str, Rule]] = {"views": views, "objective_options": options}

        def __init__(self, encoder: Encoder, views: ViewPlan, **options: Options) -> None:
            members = []
            for member, cls in classes.items():
                own = dict(options[member])
                asked = own.pop("groups")
                if any(i >= len(views.groups) for i, _ in asked):
                    raise SelfsightError(
                        f"The options of {member} name groups of views that the view plan does not have."
                    )
                groups = tuple(replace(views.groups[i], count=count) for i, count in asked)
                members.append(cls(encoder, replace(views, groups=groups), **own))
            super().__init__(members, weights)

        @classmethod
        def check_options(cls, options: Options) -> None:
            for member, its in classes.items():
                own = options.get(member)
                own = dict(own) if isinstance(own, dict) else {}
                if not are_pairs(own.get("groups"), 0) or options.keys() != classes.keys():
                    raise SelfsightError(
                        f"The options of {name} must be given for each of {' and '.join(classes)}, with the groups of "
                        "views that each sees. Take them from a recipe that selfsight plan --out writes, or leave them "
                        "out."
                    )
                del own["groups"]
                its.check_options(own)

        @classmethod
        def part_sizes(cls, options: Options) -> dict[int, str]:
            each = [(member, its.part_sizes(options[member])) for member, its in classes.items()]
            return {size: f"{member}'s {option}" for member, sizes in each for size, option in sizes.items()}

        @classmethod
        def check(cls, encoder: str, channels: int, views: ViewPlan) -> None:
            for member in classes.values():
                member.check(encoder, channels, views)

    return Several
