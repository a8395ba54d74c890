"""From the data and the machine to a recipe: one table of rules, each value with its reason and where it is from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from selfsight.data.canvases import canvas_bytes, decoded, folder_of, free_bytes
from selfsight.data.collection import Collection
from selfsight.data.pixels import PixelFormat
from selfsight.data.spread import spread
from selfsight.encoders.licences import concern
from selfsight.encoders.store import is_fixed_size, takes_any_size
from selfsight.encoders.weights import RANDOM, Weights
from selfsight.machine import best_device, cores_of_process, fastest_threads, has_bf16, kind_of
from selfsight.objectives.facts import Chosen, Facts, Rule
from selfsight.objectives.objective import find
from selfsight.objectives.patches import patch_side
from selfsight.objectives.shared import BATCH, MEASURED, adamw, batch_of, quarters, restyled
from selfsight.training.recipe import Budget, Recipe, check_numbers
from selfsight.training.threads import most_for

SMALL = 64  # images below this many pixels are enlarged for the encoder
LARGEST_START = 224  # pixels, whatever size the weights know
# A ResNet for a CPU: three stages of one block
NARROW = {"layers": [1, 1, 1, 0], "channels": [64, 128, 256, 256]}
NARROW_COST = 28_300  # operations, forward, for each pixel of a view
SIZES = (32, 64, 96, 128)  # on a CPU; half of each, the side of a view, is in whole strides
LEAST_STEPS = 300  # with fewer of them, a smaller size learns more
# At a batch of `BATCH`
RATES = {"adamw": 2e-3, "muon": 4e-2, "sgd": 0.06, "lars": 0.3}
WEIGHT_DECAYS = {"adamw": 0.05, "muon": 0.05, "sgd": 5e-4, "lars": 1e-4}


def rules() -> dict[str, Rule]:
    """{value: the rule that chooses it where nobody asked}, in order: later rules see earlier values. An objective's
    own rules come before these."""
    return {
        "objective": lambda facts, chosen: (
            "simclr",
            "led those compared at equal cost on CIFAR-10 (docs/objectives.md)",
        ),
        "budget": lambda facts, chosen: (Budget(minutes=20.0), "enough to see on a CPU whether it works"),
        "weights": lambda facts, chosen: (RANDOM, "nothing is downloaded, and no licence inherited, unless asked for"),
        "encoder": _encoder,
        "channels": lambda facts, chosen: (facts.format.channels, f"the data's own: {facts.format}"),
        "size": _size,
        "encoder_args": _encoder_args,
        "views": quarters,
        "canvas_side": _canvas_side,
        "batch_size": batch_of(BATCH),
        "objective_options": lambda facts, chosen: ({}, "the objective's own defaults"),
        "accumulate": lambda facts, chosen: (1, "the batch fits"),
        "optimiser": adamw,
        "learning_rate": _learning_rate,
        "weight_decay": lambda facts, chosen: (WEIGHT_DECAYS.get(chosen["optimiser"], 0.0), "usual for the optimiser"),
        "warmup": _warmup,
        "freeze_fraction": _freeze_fraction,
        "encoder_lr_scale": _encoder_lr_scale,
        "batch_norm_policy": _batch_norm_policy,
        "clip": lambda facts, chosen: (
            0.0,
            "off: no run of ours needed it; steps that are not finite are skipped anyway",
        ),
        "precision": _precision,
        "seed": lambda facts, chosen: (0, "fixed, so that a run can be repeated"),
        "canvases": _canvases,
        "threads": _threads,
    }


def resolve(asked: Mapping[str, object], facts: Facts) -> Recipe:
    """The recipe with every value in `asked` as it is, and the rest chosen by the rules.

    `asked` may also hold `view_style` and `positives`, which change the views (see `restyled`).
    """
    values: dict[str, Any] = dict(asked)
    style, positives = values.pop("view_style", "full"), values.pop("positives", "image")
    reasons: dict[str, str] = {}
    if facts.start is not None:
        start = facts.start
        values |= {"encoder": start.architecture, "encoder_args": start.args | (values.get("encoder_args") or {})}
        reasons |= {"encoder": "that of the weights", "encoder_args": "those of the weights"}
        reasons["weights"] = f"as asked; licence: {start.licence}. {concern(start.licence) or ''}".rstrip()
    elif values.get("encoder_args") is None and values.get("encoder"):
        values["encoder_args"], reasons["encoder_args"] = {}, "the model as timm has it"
    check_numbers(values)
    if values.get("batch_size", 0) > facts.items:
        reasons["batch_size"] = f"all there are: {values['batch_size']:,} were asked for"
        values["batch_size"] = facts.items
    for name, rule in rules().items():
        if values.get(name) is None:
            own = find(values["objective"]).rules if name != "objective" else {}
            values[name], reasons[name] = own.get(name, rule)(facts, values)
        if name == "views":
            values["views"] = restyled(values["views"], style, positives)
    return Recipe(**values, reasons=reasons)


def _encoder(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    if find(chosen["objective"]).tokens:
        name = "vit_small_patch16_224" if facts.device == "cuda" else "vit_tiny_patch16_224"
        return name, "this pretext task needs tokens; a plain ViT" + (
            "" if facts.device == "cuda" else ", made small for a CPU"
        )
    if facts.device == "cuda":
        return "resnet50", "a GPU has room for it, and most published figures are of it"
    return "resnet18", f"narrowed to three stages of one block: learns most per minute on a CPU ({MEASURED})"


def _size(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    if facts.start is not None:
        return _size_of_start(facts.start, facts.side, chosen)
    if facts.side < SMALL and takes_any_size(chosen["encoder"]):
        return max(32, round(facts.side / 16) * 16), f"the images' {facts.side} px, in whole patches"
    if facts.side < SMALL:
        size = max(32, 2 * round(facts.side / 16) * 16)
        return size, f"twice the images' {facts.side} px, since the first two layers halve them ({MEASURED})"
    largest = 224 if facts.device == "cuda" else 128
    most = min(largest, round(facts.side / 32) * 32)
    minutes = chosen["budget"].minutes
    ours = chosen.get("encoder_args") is None and not find(chosen["objective"]).tokens
    if facts.device == "cpu" and minutes and ours:
        steps = {size: _steps(facts, chosen, size) for size in (*(each for each in SIZES if each < most), most)}
        size = max((size for size in steps if steps[size] >= LEAST_STEPS), default=min(steps))
        more = min((each for each in steps if each > size), default=None)
        if more:
            return size, (
                f"{minutes:g} minutes are about {steps[size]:,} steps at {size} px; at {more} px they are "
                f"{steps[more]:,}, and with fewer than {LEAST_STEPS} a smaller size learns more ({MEASURED})"
            )
    return most, (
        f"the images' median shorter side is {facts.side} px; at most {largest} px on {facts.device}, to see more of "
        "them"
    )


def _steps(facts: Facts, chosen: Chosen, size: int) -> int:
    """About how many steps the narrow ResNet makes in a budget by minutes."""
    trial = {**chosen, "size": size}
    for name in ("views", "batch_size"):
        if trial.get(name) is None:
            trial[name], _ = find(chosen["objective"]).rules.get(name, rules()[name])(facts, trial)
    pixels = trial["batch_size"] * sum(group.count * group.size**2 for group in trial["views"].groups)
    return int(0.9 * 60 * chosen["budget"].minutes * facts.processes * facts.speed / (3 * NARROW_COST * pixels))


def _size_of_start(start: Weights, side: int, chosen: Chosen) -> tuple[Any, str]:
    """The size that the weights know, as far as the images, `side` pixels, allow: twice their own at most."""
    if is_fixed_size(chosen["encoder"]) and not takes_any_size(chosen["encoder"]):
        return start.size, "the one size that these weights take"
    wanted = min(start.size, LARGEST_START, 2 * side)
    # Views are of half the size, in whole patches.
    step = 2 * patch_side(chosen) if takes_any_size(chosen["encoder"]) else 32
    size = max(step, round(wanted / step) * step)
    return size, f"the {start.size} px that these weights know, or less for small images (measured, docs/weights.md)"


def _encoder_args(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    """Arguments of an encoder that these rules chose. An encoder that was asked for is left as timm has it."""
    if takes_any_size(chosen["encoder"]):
        small = {} if facts.device == "cuda" else {"embed_dim": 128, "depth": 6, "num_heads": 4}
        patch, pool = min(16, chosen["size"] // 8), find(chosen["objective"]).pool
        a_side = chosen["size"] // patch
        reason = f"{a_side} by {a_side} patches of at most 16 px, as in most published ViTs"
        if pool == "avg":
            return small | {
                "patch_size": patch,
                "global_pool": pool,
            }, f"{reason}; features are their mean, which is what this task trains"
        return small | {"patch_size": patch}, reason
    return (NARROW if facts.device != "cuda" else {}), "see encoder"


def _precision(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    if facts.bf16:
        return "bf16", f"this {facts.device} computes it in hardware, 1.5 to 3.4 times as fast (measured)"
    return "no", f"no bf16 hardware on this {facts.device}"


def _canvas_side(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    """Large enough that no view is enlarged, but no larger than the images."""
    smallest = min(group.scale[0] for group in chosen["views"].groups) ** 0.5
    side = min(facts.side, max(round(chosen["views"].largest / smallest), chosen["size"]))
    return side, "so that the smallest part still fills a view"


def _warmup(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    if chosen["optimiser"] == "adamw":
        return 0.05, "of the budget, as Adam's second moments are rough at first (Liu et al., RAdam, ICLR 2020)"
    return 0.05, "of the budget, usual"


def _freeze_fraction(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    if facts.start is None:
        return 0.0, "random weights need no protection"
    return 0.1, "of the budget the weights stand still: random heads would distort them (Kumar et al., ICLR 2022)"


def _encoder_lr_scale(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    if facts.start is None:
        return 1.0, "the encoder is as new as the networks around it"
    return 0.1, "of the heads' rate, as what is learnt already moves less (Howard and Ruder, ULMFiT, ACL 2018)"


def _batch_norm_policy(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    if facts.start is None:
        return "batch", "random weights have none worth keeping"
    return (
        "kept",
        "those of small, altered views misfit whole images, and undo what was learnt (measured, docs/weights.md)",
    )


def _canvases(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    """Decoded beforehand if that fits the disk and a fifth of the time, else during training."""
    need, side = facts.size_of(chosen["canvas_side"]), chosen["canvas_side"]
    if need > facts.free / 2:
        return "stream", f"{need / 1e9:.1f} GB of canvases is more than half of the {facts.free / 1e9:.1f} GB free"
    minutes, seconds = chosen["budget"].minutes, facts.decoding(side)
    if minutes is not None and seconds > 0.2 * 60 * minutes:
        return "stream", f"decoding all beforehand takes about {seconds:,.0f} s of {minutes:g} minutes"
    when = f"decoded once, in about {seconds:,.0f} s" if seconds else "decoded already"
    return "resident", f"{when}; {facts.free / 1e9:,.0f} GB are free"


def _threads(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    if chosen["canvases"] == "stream" and facts.device == "cpu" and facts.cores > 1:
        threads = min(facts.threads, most_for("stream", facts.cores))
        return threads, f"the other {facts.cores // 2} of {facts.cores} cores decode"
    return facts.threads, f"as many as are not much slower than fewer, on {facts.cores} cores as busy as they were"


def _learning_rate(facts: Facts, chosen: Chosen) -> tuple[Any, str]:
    part = find(chosen["objective"]).rate
    rate = part * RATES.get(chosen["optimiser"], RATES["adamw"]) * (chosen["batch_size"] / BATCH) ** 0.5
    return rate, (
        f"{chosen['optimiser']}'s at a batch of {BATCH}, scaled by the root of the batch (Krizhevsky 2014; Malladi et "
        "al., NeurIPS 2022)"
        + (f"; times {part}, as it collapsed at more (measured, docs/evidence.md)" if part < 1 else "")
    )


def facts_of(items: Collection, format: PixelFormat, processes: int = 1, start: Weights | None = None) -> Facts:
    """The facts about the usable items of a collection and about this machine, which `processes` share."""
    rows = items.usable
    sides = np.minimum(rows["height"].to_numpy(), rows["width"].to_numpy())
    device = kind_of(best_device())
    bf16 = has_bf16(device)

    @cache
    def decoding(side: int) -> float:
        return seconds_to_decode(items, format, side)

    def size_of(side: int) -> int:
        return canvas_bytes(rows, format, side)

    cores = cores_of_process(processes)
    threads, speed = fastest_threads(cores, bf16 and device == "cpu")
    return Facts(
        len(rows), int(np.median(sides)), format, device, bf16, threads, free_bytes(), decoding, size_of, cores,
        processes, start, speed,
    )  # fmt: skip


def seconds_to_decode(items: Collection, format: PixelFormat, side: int, sample: int = 64) -> float:
    """Seconds to make all canvases of shorter side `side`, measured on `sample` items; 0 if they are made already."""
    if (folder_of(items, format, side) / "about.json").exists():
        return 0.0
    rows = items.usable
    some = rows.take(spread(len(rows), sample))
    began = time.monotonic()
    for _ in decoded(items, some, format, side, "Measuring"):
        pass
    return (time.monotonic() - began) * len(rows) / len(some)
