"""The objective contract and its registry: one pretext task a file, one module that contains the encoder."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import (
    Any,
    ClassVar,
    Concatenate,
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.encoder import Encoder, Features
from selfsight.encoders.store import takes_any_size
from selfsight.errors import SelfsightError, meant
from selfsight.objectives.facts import Chosen, Facts, Options, Rule
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan, same_but_count


@dataclass
class Loss:
    """total: a float32 scalar to minimise; parts: its named terms, detached; embeddings [V, B, D]: what the monitors
    look at, detached, one row for each view that is to agree with the others; one row where none is."""

    total: Tensor
    parts: dict[str, Tensor]
    embeddings: Tensor
    assignments: Tensor | None = None


class ParameterGroup(TypedDict):
    """Parameters, and what part of the common weight decay (0 for biases and norms) and learning rate is theirs."""

    params: list[nn.Parameter]
    weight_decay_scale: float
    lr_scale: float


class Objective(nn.Module):
    """A pretext task around its encoder. The training loop wraps, steps and saves only this module.

    Subclasses write `forward`; `after_step` is for what moves without a gradient (EMA, centres, queues).
    `progress` in [0, 1] is the part of the budget that is spent: schedules are functions of it, never of a step
    count. Each of several processes has its part of the batch, and their gradients are averaged: `embed_views` gives
    the embeddings of the whole batch, a mean over items is right as it is, and `all_mean` is for the rest.

    Of the class: `family` and `when` say what kind of pretext task it is and when to use it; `tokens`, whether it
    needs an encoder of tokens (a ViT), and `pool`, how a ViT that is chosen for it makes one feature of them;
    `rate`, what part of the common learning rate suits it; `least_views`, how many views it compares; `resized`, which
    option, if any, is the side of the parts of a view that the encoder sees; `rules`, its own way to choose values of a
    recipe (views, options, …) where nobody asked for them, before the rules that hold for all.
    """

    family: ClassVar[str] = ""
    when: ClassVar[str] = ""
    tokens: ClassVar[bool] = False
    pool: ClassVar[str] = "token"
    rate: ClassVar[float] = 1.0
    least_views: ClassVar[int] = 1
    resized: ClassVar[str] = ""
    rules: ClassVar[dict[str, Rule]] = {}
    views: ViewPlan

    def __init__(self, encoder: Encoder, views: ViewPlan, **options: object) -> None:
        super().__init__()
        if options:
            raise SelfsightError(f"{type(self).__name__} has no option {', '.join(options)}.")
        self.encoder = encoder
        self.views = views

    @classmethod
    def check(cls, encoder: str, channels: int, views: ViewPlan) -> None:
        """Raise `SelfsightError` if it cannot work with this timm model, with images of so many channels or with these
        views. Before anything is loaded."""
        if views.count < cls.least_views:
            raise SelfsightError(f"{cls.__name__} compares views and needs {cls.least_views}, not {views.count}.")
        if cls.tokens and not takes_any_size(encoder):
            raise SelfsightError(
                f"{cls.__name__} hides or predicts tokens, and {encoder} has none. Choose a ViT, for example --encoder "
                "vit_tiny_patch16_224, or leave --encoder out."
            )

    @classmethod
    def check_options(cls, options: Options) -> None:
        """Raise `SelfsightError` for an option that it does not have, or a value that is not of the kind that the
        constructor names: whole numbers are at least 1, others at least 0. Before anything is loaded."""
        known, kinds = inspect.signature(cls.__init__).parameters, get_type_hints(cls.__init__)
        names = [name for name in known if name not in NOT_OPTIONS and cls.__init__ is not Objective.__init__]
        if any(parameter.kind is parameter.VAR_KEYWORD for name, parameter in known.items() if name in names):
            return
        for name, value in options.items():
            if name not in names:
                has = f"It has: {', '.join(names) or 'none'}.{meant(name, names)}"
                raise SelfsightError(f"{cls.__name__} has no option {name}. {has}")
            if wanted := _unlike(name, value, kinds.get(name)):
                raise SelfsightError(f"The option {name} of {cls.__name__} must be {wanted}, not {value!r}.")

    @classmethod
    def part_sizes(cls, options: Options) -> dict[int, str]:
        """Pixels a side of the parts of views that the encoder sees, and the option that says so."""
        if not cls.resized:
            return {}
        return {options.get(cls.resized, inspect.signature(cls).parameters[cls.resized].default): cls.resized}

    @property
    def trained(self) -> Encoder:
        """The encoder that is saved in the end: the trained one, or a teacher that follows it."""
        return self.encoder

    def forward(self, views: list[View], progress: float) -> Loss:
        """The loss of one batch's views, which are in the order of `self.views`."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step."""

    def parameter_groups(self, progress: float) -> list[ParameterGroup]:
        """Groups for the optimiser. Called once with progress 0 to build it, then each step for the scales."""
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in self.parameters():
            if parameter.requires_grad:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
        return [
            {"params": decayed, "weight_decay_scale": 1.0, "lr_scale": 1.0},
            {"params": plain, "weight_decay_scale": 0.0, "lr_scale": 1.0},
        ]


NOT_OPTIONS = ("self", "encoder", "views")  # of what an objective's constructor takes
ABOVE_ZERO = ("temperature", "teacher_temperature", "epsilon", "eps")  # numbers that something is divided by


def _unlike(name: str, value: Any, kind: Any) -> str:
    """What an option must be, if `value` is not of its `kind`; else nothing."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else " or ".join(get_args(kind))
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is int:
        return "" if type(value) is int and value > 0 else "a whole number of at least 1"
    if kind is float:
        least = "above 0" if name in ABOVE_ZERO else "of at least 0"
        sound = type(value) in (int, float) and 0 <= value < math.inf and (value > 0 or name not in ABOVE_ZERO)
        return "" if sound else f"a number {least} (YAML: 1.0e-3)"
    return "" if kind != Sequence[Sequence[int]] or _pairs(value, 1) else "pairs of whole numbers of at least 1"


def _pairs(value: Any, least: int) -> bool:
    """Whether it is a list of pairs of whole numbers."""
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int and n >= least for n in pair)
        for pair in value
    )


def encode(encoder: Encoder, images: Tensor) -> Features:
    """Features of `images` [B, C, H, W], laid out in memory as convolutions are fastest."""
    if images.device.type != "mps" and images.shape[1] > 1:
        images = images.contiguous(memory_format=torch.channels_last)
    return encoder(images)  # type: ignore[no-any-return]


def embed_views(encoder: Encoder, projector: Callable[[Tensor], Tensor], views: Sequence[View]) -> Tensor:
    """Projected pooled features [V, B, D] in float32, of the items of all processes. Views of one size pass the
    encoder together."""
    out: list[Tensor | None] = [None] * len(views)
    for size in {view.pixels.shape[-1] for view in views}:
        which = [i for i, view in enumerate(views) if view.pixels.shape[-1] == size]
        pixels = torch.cat([views[i].pixels for i in which])
        embedded = projector(encode(encoder, pixels).pooled).float()
        for i, rows in zip(which, embedded.chunk(len(which)), strict=True):
            out[i] = rows
    return gather(torch.stack([rows for rows in out if rows is not None]))


def embed_and_predict(
    encoder: Encoder, projector: nn.Module, predictor: nn.Module, views: Sequence[View]
) -> tuple[Tensor, Tensor]:
    """`embed_views`, and what `predictor` makes of them, of the same width: both [V, B, D] of all processes. The
    predictor sees a process's own items only: its batch norm counts each item once."""

    def both(pooled: Tensor) -> Tensor:
        z = projector(pooled)
        return torch.cat([z, predictor(z)], 1)

    z, predictions = embed_views(encoder, both, views).chunk(2, dim=2)
    return z, predictions


class EMATeacher(nn.Module):
    """An EMA teacher: copies of modules, without gradients, that follow them by an exponential moving average.

    Its momentum rises from `base` to 1 with half a cosine of progress (Grill et al., BYOL, 2020, section 3.2). Unless
    it is `slow`, it is at most (p / q) ** 9 from progress p to q (the power function of Karras et al., CVPR 2024,
    section 3.1): however few steps a run has, its teacher remembers the last tenth of them and not the random weights
    of the beginning. A teacher that is centred by a running mean must be slow, as the mean does not keep up otherwise.
    In an extension, which begins after the end of its run, the momentum alone counts.
    """

    last: Tensor  # the furthest progress at which it followed

    def __init__(self, *modules: nn.Module, base: float = 0.99, slow: bool = False) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(module).requires_grad_(False) for module in modules)
        self.base = base
        self.slow = slow
        self.register_buffer("last", torch.zeros(()))

    @torch.no_grad()
    def embed(self, views: Sequence[View]) -> Tensor:
        """`embed_views` by the copies of an encoder and its projector."""
        encoder, head = self.copies
        return embed_views(cast(Encoder, encoder), head, views)

    @torch.no_grad()
    def follow(self, modules: Sequence[nn.Module], progress: float) -> None:
        """A step towards the parameters of `modules`, in the order in which they were given."""
        least = (1.0 - self.base) * (math.cos(math.pi * min(progress, 1.0)) + 1.0) / 2.0
        weight = least if self.slow else (1.0 - (self.last / max(progress, 1e-9)) ** 9).clamp_min(least)
        self.last.clamp_(min=progress)
        for mine, theirs in zip(self.copies, modules, strict=True):
            for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
                p.lerp_(q, weight)


def projector(widths: Sequence[int], last_norm: bool = False) -> nn.Sequential:
    """Linear layers of `widths`, with batch norm and ReLU between them (Chen et al. 2020, section 4.2). last_norm: with
    batch norm behind the last one too (Chen and He 2021, section 3)."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(a, b, bias=last and not last_norm))
        if not last:
            layers += [nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(b))
    return nn.Sequential(*layers)


P = ParamSpec("P")
R = TypeVar("R")


def in_float32(loss: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Decorator of a loss whose first argument is its embeddings: float32 inside, whatever autocast does.

    Autocast would run the loss's matrix products in bfloat16 even on float32 inputs.
    """

    @functools.wraps(loss)
    def run(embeddings: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(embeddings.device.type, enabled=False):
            return loss(embeddings.float(), *args, **kwargs)

    return run


def check_views(embeddings: Tensor) -> None:
    """Raise `ValueError` where a joint-embedding loss has no meaning: under two views or two samples."""
    views, batch = embeddings.shape[:2]
    if views < 2 or batch < 2:
        raise ValueError(f"needs at least 2 views and 2 samples, got {views} views of {batch} samples")


@in_float32
def cross_view_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean of cos(prediction of view v, target of view w) over v != w, both [V, B, D], with no gradient through
    the targets. Raises `ValueError` for one view or one sample."""
    check_views(predictions)
    views, batch, _ = predictions.shape
    p, t = F.normalize(predictions, dim=2), F.normalize(targets.detach().float(), dim=2)
    # The sum over pairs of different views is that over all pairs less that over equal ones.
    mean: Tensor = ((p.sum(0) * t.sum(0)).sum() - (p * t).sum()) / (views * (views - 1) * batch)
    return mean


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


def joint(name: str) -> type[Joint]:
    """The class of a weighted sum such as `dino+mae` or `rotation+0.5*jigsaw`.

    Its options are those of its members by name, each with the `groups` of the common view plan that are its own.
    """
    from selfsight.objectives.shared import quarters  # which builds on this module

    weights: dict[str, float] = {}
    for part in name.split("+"):
        factor, star, member = part.rpartition("*")
        try:
            weights[member] = float(factor) if star else 1.0
        except ValueError:
            raise SelfsightError(f"{part!r} of --objective {name} is not WEIGHT*NAME.") from None
    classes = {member: find(member) for member in weights}

    def plans(facts: Facts, chosen: Chosen) -> dict[str, ViewPlan]:
        return {member: cls.rules.get("views", quarters)(facts, chosen)[0] for member, cls in classes.items()}

    def views(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
        union = functools.reduce(ViewPlan.union, plans(facts, chosen).values())
        return union, f"what {' and '.join(classes)} look at, shared where it is the same"

    def options(facts: Facts, chosen: Chosen) -> tuple[Options, str]:
        union = functools.reduce(ViewPlan.union, plans(facts, chosen).values())
        out = {}
        for member, plan in plans(facts, chosen).items():
            rule = classes[member].rules.get("objective_options")
            like = [next(i for i, u in enumerate(union.groups) if same_but_count(u, g)) for g in plan.groups]
            groups = [[i, g.count] for i, g in zip(like, plan.groups, strict=True)]
            out[member] = (rule(facts, chosen)[0] if rule else {}) | {"groups": groups}
        return out, "those of each by itself"

    class Several(Joint):
        family = "multi-task"
        when = "Where one task alone leaves something out: each sees the same images through one encoder."
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
                    raise SelfsightError(f"The options of {member} ask for groups of views that the view plan lacks.")
                groups = tuple(replace(views.groups[i], count=count) for i, count in asked)
                members.append(cls(encoder, replace(views, groups=groups), **own))
            super().__init__(members, list(weights.values()))

        @classmethod
        def check_options(cls, options: Options) -> None:
            for member, its in classes.items():
                own = options.get(member)
                own = dict(own) if isinstance(own, dict) else {}
                if not _pairs(own.get("groups"), 0) or options.keys() != classes.keys():
                    raise SelfsightError(
                        f"The options of {name} are those of {' and of '.join(classes)}, each with the groups of views "
                        "that it sees. Take them from a recipe that selfsight plan --out writes, or leave them out."
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


C = TypeVar("C", bound=type[Objective])
_REGISTRY: dict[str, type[Objective]] = {}


def register(name: str) -> Callable[[C], C]:
    """Class decorator: make an objective known by `name`. Raises `ValueError` for a name that another one has: an
    objective of yours never stands silently for one of ours, nor the other way round."""

    def put(cls: C) -> C:
        before = _REGISTRY.setdefault(name, cls)
        if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"Two objectives are called {name!r}: {before} and {cls}. Rename yours.")
        _REGISTRY[name] = cls  # the same one, of a module that was loaded again
        return cls

    return put


def registry() -> dict[str, type[Objective]]:
    """Every objective by name. A file in this folder that registers one is found by itself."""
    package = importlib.import_module("selfsight.objectives")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"selfsight.objectives.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def find(name: str) -> type[Objective]:
    """The objective called `name`, or a sum (see `joint`). Raises `SelfsightError` with the names there are."""
    if "+" in name or "*" in name:
        return joint(name)
    known = registry()
    if name not in known:
        raise SelfsightError(f"No objective is called {name!r}. There are: {', '.join(known)}.{meant(name, known)}")
    return known[name]
