"""LoRA: attention that learns a change of low rank, merged into the weights at the end. Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022."""

from __future__ import annotations

import re
from importlib.util import find_spec

from torch import nn

from selfsight.errors import MachineError, SelfsightError

RANK, SCALE = 8, 16  # of the change; it counts SCALE / RANK times
LAYERS = r"(.*\.)?attn\.(qkv|proj)"


def check_lora(net: nn.Module) -> None:
    """Raise `SelfsightError` if `net` has no attention to adapt, or peft is not installed."""
    if not any(re.fullmatch(LAYERS, name) for name, part in net.named_modules() if isinstance(part, nn.Linear)):
        raise SelfsightError(
            f"--method lora is for ViTs, whose attention has the layers qkv and proj; {type(net).__name__} has none. "
            "Give --method norm or finetune."
        )
    if find_spec("peft") is None:
        raise MachineError("--method lora needs another package: pip install 'selfsight[lora]'")


def adapted(net: nn.Module) -> nn.Module:
    """`net` itself, with adapters in its attention. They are all of it that learns, and change nothing yet."""
    from peft import LoraConfig, LoraModel

    check_lora(net)
    config = LoraConfig(r=RANK, lora_alpha=SCALE, target_modules=LAYERS)
    LoraModel(net, config, "default")
    return net


def merged(net: nn.Module) -> nn.Module:
    """`net` itself, with its adapters added to the weights and then gone: a plain network again."""
    from peft.tuners.lora import LoraLayer

    for name, part in list(net.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()  # type: ignore[operator]
            above, _, own = name.rpartition(".")
            setattr(net.get_submodule(above), own, part.get_base_layer())
    return net.requires_grad_(True)
