"""A recipe: every choice of one pretraining, as one typed, printable, saveable object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from selfsight.errors import DataError, SelfsightError, meant
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

# 2: a view's `draws` in place of `grid` and `keep`; 3: `weights` in place of `pretrained`; 4: the names of `RENAMED`
FORMAT_VERSION = 4
RENAMED = {  # before format 4, still read
    "frozen": "freeze_fraction",
    "encoder_rate": "encoder_lr_scale",
    "statistics": "batch_norm_policy",
}
WHOLE = {"channels": 1, "size": 8, "canvas_side": 1, "batch_size": 2, "accumulate": 1, "threads": 1, "seed": 0}
REAL = ("learning_rate", "weight_decay", "warmup", "clip", "freeze_fraction", "encoder_lr_scale")


@dataclass(frozen=True)
class Budget:
    """How long to train. Exactly one is given.

    minutes: of the whole command.
    epochs: passes over the data.
    steps: optimiser steps.
    """

    minutes: float | None = None
    epochs: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if len(given) != 1:
            raise SelfsightError(f"Give one of --minutes, --epochs and --steps, not {' and '.join(given) or 'none'}.")
        name, value = next(iter(given.items()))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise SelfsightError(f"--{name} must be a number above 0, not {value!r}.")


@dataclass(frozen=True)
class Recipe:
    """Every value of a pretraining.

    objective: name of the pretext task, or a sum such as "dino+0.5*mae". objective_options: its options by name.
    encoder: timm's name. encoder_args: of the timm model. weights: what `--weights` names, or "random". channels: of
    the images. size: side of the encoder's input in pixels. canvas_side: shorter side of a canvas in pixels. canvases:
    "resident" (decoded beforehand) or "stream" (decoded during training). views: the view plan. batch_size: items per
    batch, over all processes. accumulate: batches per step. optimiser: its name. learning_rate: at its peak.
    weight_decay: of all parameters but biases and norms. warmup: share of the budget in which the learning rate rises.
    freeze_fraction: share of the budget (of the first one, if a run is extended) in which the encoder is frozen and
    only
        the networks around it learn.
    encoder_lr_scale: the encoder's learning rate after that, as a share of the others'. batch_norm_policy: of the
    encoder's batch norms. "batch" uses the statistics of each batch and remembers them, "kept"
        leaves the running statistics as they were.
    clip: largest norm of a step's gradient; 0 for no limit.
    precision: "bf16" or "no".
    threads: of torch.
    seed: of everything that is random.
    budget: how long to train.
    reasons: {value: why it was chosen}, for values that were not asked for.
    """

    objective: str
    objective_options: dict[str, Any]
    encoder: str
    encoder_args: dict[str, Any]
    weights: str
    channels: int
    size: int
    canvas_side: int
    canvases: str
    views: ViewPlan
    batch_size: int
    accumulate: int
    optimiser: str
    learning_rate: float
    weight_decay: float
    warmup: float
    freeze_fraction: float
    encoder_lr_scale: float
    batch_norm_policy: str
    clip: float
    precision: str
    threads: int
    seed: int
    budget: Budget
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers({name: getattr(self, name) for name in (*WHOLE, *REAL)})
        if self.canvases not in ("resident", "stream"):
            raise SelfsightError(f"canvases must be resident or stream, not {self.canvases!r}.")
        if self.precision not in ("no", "bf16"):
            raise SelfsightError(f"precision must be no or bf16, not {self.precision!r}.")
        if self.batch_norm_policy not in ("batch", "kept"):
            raise SelfsightError(f"batch_norm_policy must be batch or kept, not {self.batch_norm_policy!r}.")
        if self.freeze_fraction >= 1.0:
            raise SelfsightError(f"freeze_fraction must be below 1, the whole budget, not {self.freeze_fraction!r}.")

    @property
    def encoder_apart(self) -> bool:
        """Whether the encoder's weights have a learning rate of their own."""
        return self.freeze_fraction > 0.0 or self.encoder_lr_scale != 1.0

    def to_dict(self) -> dict[str, object]:
        """Plain values, for YAML and JSON."""
        out = asdict(self)
        for group in out["views"]["groups"]:
            group["shared"] = sorted(group["shared"])
        return plain(out)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Recipe:
        """The recipe from what `to_dict` wrote, in this format or an older one. Raises `SelfsightError` naming what
        does not fit."""
        values = renamed(values)
        if "pretrained" in values:
            values = {"freeze_fraction": 0.0, "encoder_lr_scale": 1.0, "batch_norm_policy": "batch", **values}
        try:
            made: dict[str, Any] = typed(values)
            if isinstance(reasons := made.get("reasons"), dict):
                made["reasons"] = renamed(reasons)
            return cls(**made)
        except TypeError as error:
            raise DataError(f"This recipe does not fit this version of selfsight: {error}.") from None


def check_numbers(values: Mapping[str, object]) -> None:
    """Raise `SelfsightError` for a number among some of a recipe's values that is none, or out of its range."""
    for name, value in values.items():
        called = name.replace("_", " ")
        if name in WHOLE and (type(value) is not int or not WHOLE[name] <= value < 2**62):
            raise SelfsightError(f"{called} must be a whole number of at least {WHOLE[name]}, not {value!r}.")
        if name in REAL and not ((type(value) is int or type(value) is float) and 0 <= value < float("inf")):
            raise SelfsightError(f"{called} must be a number, 0 or above (YAML: 1.0e-3), not {value!r}.")


def renamed(values: Mapping[str, object]) -> dict[str, object]:
    """`values` (or reasons) of a recipe by their present names."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


def typed(values: Mapping[str, object]) -> dict[str, object]:
    """`values` of a recipe, some or all, from their plain form in YAML to the types of `Recipe`."""
    values = renamed(values)
    if "pretrained" in values:  # before format 3
        before = f"timm:{values.get('encoder')}" if values["pretrained"] else "random"
        values = {"weights": before} | {k: v for k, v in values.items() if k != "pretrained"}
    check_keys(values, Recipe, "A recipe")
    made: dict[str, Any] = dict(values)
    try:
        if "views" in made:
            plan = made["views"]
            made["views"] = ViewPlan(tuple(_group(group) for group in plan["groups"]), plan.get("companion"))
        if "budget" in made:
            check_keys(made["budget"], Budget, "The budget of a recipe")
            made["budget"] = Budget(**made["budget"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SelfsightError(f"The views or the budget of this recipe cannot be read: {error}.") from None
    check_numbers(made)
    return made


def check_keys(values: Mapping[str, object], of: type, called: str) -> None:
    """Raise `SelfsightError` for a key that is not a field of the dataclass `of`."""
    known = [f.name for f in fields(of)]
    for name in values:
        if name not in known:
            raise SelfsightError(f"{called} has no {name}.{meant(name, known) or ' It has: ' + ', '.join(known) + '.'}")


def _group(values: dict[str, Any]) -> ViewGroup:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k not in ("grid", "keep")}
    check_keys(values, ViewGroup, "A group of views")
    if "colour" in values:
        check_keys(values["colour"], Colour, "The colour of a group of views")
        colour: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["colour"].items()}
        values["colour"] = Colour(**colour)
    return ViewGroup(**values | {"shared": frozenset(values.get("shared", ()))})


def plain(values: Mapping[str, object]) -> dict[str, object]:
    """`values` with tuples as lists at every level, which YAML and JSON both give back unchanged."""
    return {str(k): _plain(v) for k, v in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return plain(value)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
