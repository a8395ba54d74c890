"""Making, saving and reading encoders. What is saved loads through timm without selfsight."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import FORMAT_VERSION, Encoder
from selfsight.encoders.licences import NONE
from selfsight.errors import DataError, SelfsightError, check_version, first_line, meant
from selfsight.files import read_json

# Arguments of timm's that are none of a model's. By the first it reads a file, whatever that is, over all weights.
NOT_OF_A_MODEL = ("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


# What a pretrained_cfg says of weights that others trained.
OF_TIMMS_WEIGHTS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "hf_hub_id", "url", "file")


def create(
    name: str,
    geometry: Geometry,
    args: Mapping[str, object] | None = None,
    overlay: dict[str, object] | None = None,
) -> Encoder:
    """An encoder: the timm model `name` without classifier, fitted to the channels of the data, and to their size if
    the model's shape depends on it.

    args: of the timm model.
    overlay: of its `pretrained_cfg`, with the state to load. Without it weights are random.

    Raises `SelfsightError` for a name that timm does not know.
    """
    name = name.removeprefix("timm/")
    check_name(name)
    check_args(args or {})
    given: dict[str, Any] = {"in_chans": geometry.channels, "num_classes": 0, **(args or {})}
    if is_fixed_size(name):
        given.setdefault("img_size", geometry.size)
        if takes_any_size(name):  # position embeddings are resampled to the views' size
            given.setdefault("dynamic_img_size", True)
    try:
        net = timm.create_model(name, pretrained=overlay is not None, pretrained_cfg_overlay=overlay, **given)
    except Exception as error:  # timm raises many kinds
        what = "make" if overlay is None else "load the weights of"
        raise SelfsightError(f"Cannot {what} {name!r} with {given}: {first_line(error)}") from None
    return Encoder(net, geometry, {"starting_weights": None, "licence": NONE})


def check_name(name: str) -> None:
    """Raise `SelfsightError`, with names like it, if timm knows no model of this name."""
    name = name.removeprefix("timm/")
    if not timm.is_model(name.split(".")[0]):
        way = models_like(name) or " If it is a folder, check its path."
        raise SelfsightError(f"timm has no model {name!r}.{way}")


def models_like(name: str, prefix: str = "") -> str:
    """What to say of timm's models behind the sentence that refuses `name`: those that begin so, or the most like it.
    prefix: to be written before each."""
    base = name.split(".")[0]
    if some := timm.list_models(f"{base}*")[:5]:
        return f" There are: {', '.join(f'{prefix}{one}' for one in some)}."
    return meant(base, timm.list_models(), prefix)


def check_args(args: Container[str], source: str = "The encoder_args") -> None:
    """Raise `SelfsightError` if one of `args` is not a model's argument, but tells timm where to take weights from.
    `source` names the place that holds `args`, for the message."""
    if wrong := [name for name in NOT_OF_A_MODEL if name in args]:
        raise SelfsightError(f"{source} must not hold {wrong[0]}, which is not an argument of a model. Remove it.")


def is_fixed_size(name: str) -> bool:
    """Whether timm builds `name` for one input size."""
    base = name.removeprefix("timm/").split(".")[0]
    cfg = timm.get_pretrained_cfg(base) if timm.is_model(base) else None
    return bool(cfg and cfg.fixed_input_size)


def takes_any_size(name: str) -> bool:
    """Whether `name` is built for one size but can take others too, as plain ViTs can."""
    return name.removeprefix("timm/").startswith(("vit_", "deit"))


def save(encoder: Encoder, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors` into `folder`. Each replaces an earlier file in one step. The encoder
    itself does not change."""
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    p = encoder.geometry
    data_config = {
        "input_size": (p.channels, p.size, p.size),
        "mean": p.mean,
        "std": p.std,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    partial = folder / "partial"
    partial.mkdir(exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.net.state_dict().items()}
    save_file(state, partial / "model.safetensors")  # which writes no other
    config = partial / "config.json"
    save_config_for_hf(encoder.net, str(config), data_config=data_config)
    content = json.loads(config.read_text())
    content["selfsight"] = {
        "format_version": FORMAT_VERSION,
        "window": p.window,
        "depth": p.depth,
        "mode": p.mode,
        **({} if p.rule == "squash" else {"rule": p.rule}),  # as older encoders, which knew no other
        **encoder.about,
    }
    if encoder.licence == NONE:  # timm copies what it says of its own weights
        content["pretrained_cfg"] = {k: v for k, v in content["pretrained_cfg"].items() if k not in OF_TIMMS_WEIGHTS}
    config.write_text(json.dumps(content, indent=2))
    shutil.copymode(config, partial / "model.safetensors")  # safetensors lets nobody else read it
    os.replace(partial / "model.safetensors", folder / "model.safetensors")
    os.replace(config, folder / "config.json")  # last: its presence says the encoder is whole
    partial.rmdir()


def read_folder(folder: str | os.PathLike[str]) -> Encoder:
    """The encoder saved in `folder`, in eval mode. Raises `SelfsightError` if it is not one."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        about = config.get("selfsight", {})
        cfg = config["pretrained_cfg"]
        channels, _, size = cfg["input_size"]
        window, depth, mode = tuple(about.get("window", (0.0, 255.0))), about.get("depth", 8), about.get("mode", "")
        mean, std, rule = tuple(cfg["mean"]), tuple(cfg["std"]), about.get("rule", "squash")
        geometry = Geometry(channels, size, window, mean, std, depth, mode, rule)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} holds no encoder ({type(error).__name__}: {error}).") from None
    check_version(about.get("format_version", 1), FORMAT_VERSION, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            net = timm.create_model(f"local-dir:{folder}", pretrained=True)
        except Exception as error:  # a damaged file raises many kinds
            raise DataError(f"The encoder in {folder} cannot be read: {first_line(error)}") from None
    rest = {k: v for k, v in about.items() if k not in ("format_version", "window", "depth", "mode", "rule")}
    return Encoder(net, geometry, rest).eval()


def about_of(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the encoder saved in `folder` records about itself (`starting_weights`, `licence`, …); {} if it cannot be
    read. Tensors are not read."""
    about = (read_json(Path(folder) / "config.json") or {}).get("selfsight")
    return dict(about) if isinstance(about, dict) else {}


def folder_of(model: str | os.PathLike[str]) -> Path | None:
    """The encoder folder that `model` names, of a run or directly; None if it names neither."""
    path = Path(model).expanduser()
    for folder in (path / "encoder", path / "encoder.before", path):  # before: of a run that is being extended
        if (folder / "config.json").is_file():
            return folder
    return None


def random_like(encoder: Encoder, seed: int = 0) -> Encoder:
    """An encoder of the same architecture and geometry with random weights, the control of every evaluation."""
    net: Any = encoder.net
    args = {k: v for k, v in getattr(net, "_model_args", {}).items() if k not in ("num_classes", "in_chans")}
    name = net.pretrained_cfg["architecture"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = create(name, encoder.geometry, args)
    return fresh.eval()
