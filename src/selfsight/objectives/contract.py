"""The contract of an objective: one pretext task, one module that contains the encoder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar, TypedDict, get_type_hints

from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import takes_any_size
from selfsight.errors import SelfsightError, meant
from selfsight.objectives.facts import Options, Rule
from selfsight.objectives.options import NOT_OPTIONS, unlike
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


@dataclass
class Loss:
    """The loss of one batch, and what the monitors look at.

    total: float32 scalar to minimise.
    parts: its terms by name, detached. They become columns of `metrics.jsonl`.
    embeddings: [V, B, D], detached. V counts the views that should agree; V = 1 where none should.
    assignments: [N, K] the teacher's probabilities, of objectives with prototypes.
    """

    total: Tensor
    parts: dict[str, Tensor]
    embeddings: Tensor
    assignments: Tensor | None = None


class ParameterGroup(TypedDict):
    """A group of parameters for the optimiser.

    params: the parameters.
    weight_decay_scale: factor on the common weight decay; 0 for biases and norms.
    lr_scale: factor on the common learning rate.
    """

    params: list[nn.Parameter]
    weight_decay_scale: float
    lr_scale: float


class Objective(nn.Module):
    """A pretext task around its encoder. The training loop wraps, steps and saves only this module.

    Subclasses write `forward`. `after_step` is for what moves without a gradient (EMA, centres, queues). `progress` is
    the share of the budget that is spent, 0 to 1; schedules are functions of it, never of a step count.

    With several processes each has its part of the batch, and gradients are averaged. `embed_views` gives the
    embeddings of the whole batch, a mean over items is right as it is, and `all_mean` is for other means.

    Attributes of the class: family: kind of pretext task. when: when to use it, in one sentence. tokens: whether it
    needs an encoder of tokens (a ViT). pool: how a ViT chosen by the rules pools its tokens, "token" or "avg". rate:
    factor on the common learning rate that suits it. least_views: fewest views it can work with. resized: name of the
    option, if any, that is the side of the parts of a view that the encoder sees. rules: its own rules for values of a
    recipe (views, options, …) that nobody asked for; they come before the common ones. views: its view plan.
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
        """Raise `SelfsightError` if it cannot work with the timm model `encoder`, with images of so many `channels` or
        with these `views`. Called before anything is loaded."""
        if views.count < cls.least_views:
            raise SelfsightError(f"{cls.__name__} compares views and needs {cls.least_views}, not {views.count}.")
        if cls.tokens and not takes_any_size(encoder):
            raise SelfsightError(
                f"{cls.__name__} hides or predicts tokens, and {encoder} has none. Choose a ViT, for example --encoder "
                "vit_tiny_patch16_224, or leave --encoder out."
            )

    @classmethod
    def check_options(cls, options: Options) -> None:
        """Raise `SelfsightError` for an unknown option, or a value that does not fit the constructor's annotation:
        whole numbers are at least 1, other numbers at least 0. Called before anything is loaded."""
        known, kinds = inspect.signature(cls.__init__).parameters, get_type_hints(cls.__init__)
        names = [name for name in known if name not in NOT_OPTIONS and cls.__init__ is not Objective.__init__]
        if any(parameter.kind is parameter.VAR_KEYWORD for name, parameter in known.items() if name in names):
            return
        for name, value in options.items():
            if name not in names:
                has = f"It has: {', '.join(names) or 'none'}.{meant(name, names)}"
                raise SelfsightError(f"{cls.__name__} has no option {name}. {has}")
            if wanted := unlike(name, value, kinds.get(name)):
                raise SelfsightError(f"The option {name} of {cls.__name__} must be {wanted}, not {value!r}.")

    @classmethod
    def part_sizes(cls, options: Options) -> dict[int, str]:
        """{side in pixels of the parts of a view that the encoder sees: the option that sets it}; empty for whole
        views."""
        if not cls.resized:
            return {}
        return {options.get(cls.resized, inspect.signature(cls).parameters[cls.resized].default): cls.resized}

    @property
    def trained(self) -> Encoder:
        """The encoder to save at the end: the trained one, or its EMA teacher."""
        return self.encoder

    def forward(self, views: list[View], progress: float) -> Loss:
        """The loss of one batch. `views` are in the order of `self.views`."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step."""

    def parameter_groups(self, progress: float) -> list[ParameterGroup]:
        """The optimiser's groups. Called with progress 0 to build the optimiser, then at each step for the scales."""
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in self.parameters():
            if parameter.requires_grad:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
        return [
            {"params": decayed, "weight_decay_scale": 1.0, "lr_scale": 1.0},
            {"params": plain, "weight_decay_scale": 0.0, "lr_scale": 1.0},
        ]
