"""A head, or an encoder, as one ONNX file: pixels of own depth in, named tensors out, as its `module` gives them.

What a network holds, window, normalisation, whitening, banks and calibration, is inside; weights too, so that it is one
file. The way from a picture to pixels of the input's size is not: `data/geometry.py` says it, and `run.py` does it.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import is_fixed_size, takes_any_size
from selfsight.encoders.whitening import unwhitened
from selfsight.errors import MachineError, SelfsightError, first_line
from selfsight.files import write_whole
from selfsight.heads.head import Head
from selfsight.heads.inspect_modules import Gaussian, InspectModule
from selfsight.heads.modules import Prepare

DTYPES = {8: torch.uint8, 16: torch.uint16, 32: torch.float32}  # of pixels, by the depth of a geometry
MOST = 2**31 - 1  # bytes of a file with weights inside, which is a limit of protobuf
ENCODER = "encoder"  # the part of a network that may compute in less precision
EXTRA = "pip install 'selfsight[export]'"


def check_installed() -> None:
    """Raise `MachineError` where the extra "export" is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise MachineError(f"An export needs the package {name}, which is not installed. Run: {EXTRA}")


class EncoderModule(nn.Module):
    """An encoder as one network: pixels [B, C, H, W] of own depth to `pooled` [B, D], as `embed` gives them, and, where
    the encoder whitens them, `unwhitened` [B, D], as they were before."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.prepare = Prepare(encoder.geometry)
        net: Any = encoder.net
        self.whiten = copy.deepcopy(net.get_classifier()) if net.num_classes else None
        self.encoder = unwhitened(copy.deepcopy(encoder)) if net.num_classes else encoder

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        pooled = self.encoder(self.prepare(pixels)).pooled
        return {"pooled": pooled} if self.whiten is None else {"pooled": self.whiten(pooled), "unwhitened": pooled}


def module_of(model: Head | Encoder) -> nn.Module:
    """The network that is exported: of a head its own, of an encoder an `EncoderModule`."""
    return (model.module if isinstance(model, Head) else EncoderModule(model)).eval()


class Inputs(NamedTuple):
    """What a graph takes: pixels [B, C, H, W] and, of an inspection, `looked` [B, H, W] bool, which of them count.

    size: (H, W), multiples of the stride. free: whether H and W may be any other multiples of it.
    """

    size: tuple[int, int]
    free: bool
    looked: bool


def stride_of(encoder: Encoder) -> int:
    """What the sides of inputs are multiples of; 1 of a geometry that gives inputs of one size."""
    return 1 if encoder.geometry.rule == "squash" else max(encoder.level_strides)


def inputs_of(model: Head | Encoder, size: tuple[int, int] | None = None) -> Inputs:
    """What the graph of a head or an encoder takes.

    Under the geometry's rules "fit" and "tiles" they are of any size, a batch of one. A network that is built for one
    size, and an inspection with a mean for each place, take that alone: `size` (H, W), or the geometry's.
    """
    encoder = model.encoder if isinstance(model, Head) else model
    stride, side = stride_of(encoder), encoder.geometry.size
    module = model.module if isinstance(model, Head) else None
    scorer = module.task.scorer if isinstance(module, InspectModule) else None
    name = str(encoder.net.pretrained_cfg["architecture"])  # type: ignore[index]
    free = encoder.geometry.rule != "squash" and (takes_any_size(name) or not is_fixed_size(name))
    if free and isinstance(scorer, Gaussian) and scorer.mean[0].numel() > 1:
        finest = encoder.level_strides[module.task.patches.chosen[0]]  # type: ignore[union-attr, index]
        rows, columns = scorer.mean.shape[-2:]
        size, free = (rows * finest, columns * finest), False
    padded = -(-side // stride) * stride
    return Inputs(size or (padded, padded), free, scorer is not None)


def write_graph(
    model: Head | Encoder, path: Path, *, size: tuple[int, int] | None = None, about: Mapping[str, str] | None = None
) -> Inputs:
    """Write a head or an encoder to the ONNX file `path`, in float32; returns what it takes.

    Inputs are those of `inputs_of`; the first node casts pixels to float32. The batch may be of any size. Outputs bear
    the names that the module gives them. about: the metadata of the file. Raises `MachineError` where the extra
    "export" is not installed, `SelfsightError` for a network with an operator that ONNX does not have.
    """
    check_installed()
    takes, module = inputs_of(model, size), copy.deepcopy(module_of(model)).cpu()
    if takes.free:
        _fix_padding(module)
    geometry = (model.encoder if isinstance(model, Head) else model).geometry
    example = _example(geometry, takes)
    with torch.inference_mode():
        names = list(module(*example))
    shape = {0: torch.export.Dim("batch"), **(_free_sides(model, takes) if takes.free else {})}
    looked = {0: shape[0], **({1: shape[2], 2: shape[3]} if takes.free else {})}
    shapes = (shape, looked) if takes.looked else (shape,)
    inputs = ["pixels", "looked"][: len(example)]
    with _quiet():
        try:
            program = torch.onnx.export(
                _InOrder(module, names), example, dynamo=True, input_names=inputs, output_names=names,
                dynamic_shapes=(shapes,), custom_translation_table=_translations(), verbose=False,
            )  # fmt: skip
        except Exception as error:  # torch raises many kinds
            raise SelfsightError(_refusal(error)) from error
    assert program is not None
    content = _told(program.model_proto, about or {})
    if content.ByteSize() > MOST:
        raise SelfsightError(f"The network has {content.ByteSize():,} bytes, and one ONNX file holds {MOST:,} at most.")
    write_whole(path, content.SerializeToString())
    return takes


def _told(content: Any, about: Mapping[str, str]) -> Any:
    """The network with its metadata, and without what torch writes of the source code and this machine's paths. Of a
    node it says alone whether it is of the `ENCODER`."""
    for node in content.graph.node:
        of_encoder = any("'module.encoder'" in each.value for each in node.metadata_props)
        del node.metadata_props[:]
        node.doc_string = ""
        if of_encoder:
            node.metadata_props.add(key="part", value=ENCODER)
    for each in (content.graph, *content.graph.value_info, *content.graph.input, *content.graph.output):
        del each.metadata_props[:]
    for each in content.graph.initializer:
        del each.metadata_props[:]
    del content.metadata_props[:]
    for name, value in about.items():
        content.metadata_props.add(key=name, value=value)
    content.producer_name, content.doc_string, content.graph.doc_string = "selfsight", "", ""
    return content


class _InOrder(nn.Module):
    """A network whose named tensors come as a tuple, in the order of the `names`."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.module(*inputs)
        return tuple(found[name] for name in self.names)


class _Padded(nn.Conv2d):
    """A convolution with padding of TensorFlow's kind, for inputs whose sides are multiples of its stride: then it is
    known beforehand, and free sizes need no arithmetic on it, which takes torch minutes."""

    padding_of: list[int]

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, self.padding_of)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _fix_padding(module: nn.Module) -> None:
    for part in module.modules():
        if type(part) is Conv2dSame:
            lacking = [
                max((side - 1) * apart + 1 - step, 0)
                for side, step, apart in zip(part.kernel_size, part.stride, part.dilation, strict=True)
            ]
            padding = [amount for each in reversed(lacking) for amount in (each // 2, each - each // 2)]
            part.__class__, part.padding_of = _Padded, padding  # type: ignore[assignment]


def _example(geometry: Geometry, takes: Inputs) -> tuple[Tensor, ...]:
    """Two inputs, as a batch of one would be taken for a constant."""
    pixels = torch.zeros(2, geometry.channels, *takes.size, dtype=DTYPES[geometry.depth])
    return (pixels, torch.ones(2, *takes.size, dtype=torch.bool)) if takes.looked else (pixels,)


def _free_sides(model: Head | Encoder, takes: Inputs) -> dict[int, Any]:
    """H and W as multiples of the stride."""
    stride = stride_of(model.encoder if isinstance(model, Head) else model)
    return {2: stride * torch.export.Dim("rows"), 3: stride * torch.export.Dim("columns")}


def _translations() -> dict[Any, Any]:
    """How operators are written that torch does not translate, or not to the same numbers."""
    from onnxscript import INT64, opset18

    op: Any = opset18  # whose types ask for more than it does

    def searchsorted(sorted_sequence: Any, input: Any, **options: object) -> Any:
        """How many of the values, ascending, are below each of the input: of 1-D alone, as calibrations have it."""
        below = op.Less(op.Unsqueeze(sorted_sequence, [0]), op.Unsqueeze(input, [1]))
        return op.ReduceSum(op.Cast(below, to=INT64.dtype), [1], keepdims=False)

    def cumsum(self: Any, dim: int, dtype: int = -1) -> Any:
        """In double precision, as torch sums on the CPU."""
        return op.CastLike(op.CumSum(op.Cast(self, to=11), op.Constant(value_int=dim)), self)

    return {torch.ops.aten.searchsorted.Tensor: searchsorted, torch.ops.aten.cumsum.default: cumsum}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own work on the way."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refusal(error: BaseException) -> str:
    """The sentence for a network that torch cannot export, with the operator's name where it says one."""
    at: BaseException | None = error
    while at is not None:
        if found := re.search(r"No ONNX function found for .*?op='([\w.:]+)'", str(at)):
            return f"The network has the operator {found[1]}, which ONNX does not have. Use another encoder."
        error, at = at, at.__cause__ or at.__context__
    return f"The network cannot be exported: {first_line(error).rstrip('.')}. Use another encoder."
