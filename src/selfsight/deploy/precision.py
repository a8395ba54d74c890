"""An exported network in less precision: the encoder in half precision, or its layers in 8 bits.

What the features are made of after the encoder (whitening, banks, readouts, calibration) and what comes before it stay
in float32, and so do norms, softmax and the first layer. 8 bits are those of ONNX Runtime's static quantisation: a
scale for each channel of the weights (Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference",
2018), and ranges of the values between layers from the user's own images.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.deploy.graphs import ENCODER

WEIGHED = ("Conv", "MatMul", "Gemm")  # layers that can have weights of 8 bits
BETWEEN = ("Add", "MaxPool", "Relu", "Clip")  # what a network of convolutions alone may do in 8 bits too
PRECISE = ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization", "Softmax")
HALVED = (
    *(*WEIGHED, *BETWEEN, "Mul", "Sub", "Gelu", "Erf", "Sigmoid", "HardSigmoid", "HardSwish", "AveragePool", "Concat"),
    *("Transpose", "Reshape", "Slice", "Squeeze", "Unsqueeze"),
)
GROUPS = 8  # of layers, that are kept or not
Batch = dict[str, np.ndarray]


def halved(source: Path, out: Path) -> None:
    """Write the network `source` with the layers of its encoder in float16, but for the first, norms and softmax."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    graph, single, half = model.graph, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    weights = {each.name: each for each in graph.initializer}
    known = {each.name: each.type.tensor_type.elem_type for each in (*graph.value_info, *graph.input, *graph.output)}
    known |= {name: each.data_type for name, each in weights.items()}
    layers = [node for node in graph.node if _of_encoder(node) and node.op_type in HALVED]
    first = next((node.name for node in layers if node.op_type in WEIGHED), "")
    ends = {each.name for each in graph.output}
    chosen = {
        node.name
        for node in layers
        if node.name != first and known.get(node.output[0]) == single and not ends.intersection(node.output)
    }
    made = {name for node in graph.node if node.name in chosen for name in node.output}  # what is then of float16
    nodes, there = [], set[str]()

    def cast(name: str, to: int, end: str) -> str:
        if name + end not in there:
            there.add(name + end)
            if name in weights:
                value = onnx.numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(onnx.numpy_helper.from_array(value, name + end))
            else:
                nodes.append(onnx.helper.make_node("Cast", [name], [name + end], name=name + end, to=to))
        return name + end

    for node in graph.node:
        for place, name in enumerate(node.input):
            if node.name in chosen and name not in made and known.get(name) == single:
                node.input[place] = cast(name, half, "_half")
            elif node.name not in chosen and name in made:
                node.input[place] = cast(name, single, "_single")
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    for part, content in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, [])):
        values = [copy.deepcopy(each) for each in content]
        del part[:]
        part.extend(values)
    onnx.save(model, out)


class Quantiser:
    """Writes a network in 8 bits, as often as it takes.

    source: the ONNX file in float32. images: batches of what it takes, of the user's own, by which ranges are found.
    groups: the names of the layers, in the order of the network, in at most `GROUPS` lists.
    """

    def __init__(self, source: Path, images: Sequence[Batch], folder: Path) -> None:
        """folder: for what is written on the way."""
        import onnx

        self.source, self.images, self.folder = source, images, folder
        model = onnx.load(source)
        self._about = {each.key: each.value for each in model.metadata_props}
        nodes = [node for node in model.graph.node if _of_encoder(node)]
        weights = {each.name for each in model.graph.initializer}
        layers = [node.name for node in nodes if node.op_type in WEIGHED and node.input[1] in weights]
        first = layers[0] if layers else ""
        plain = not any(node.op_type in PRECISE for node in nodes)
        self._types = (*WEIGHED, *(BETWEEN if plain else ()))
        chosen = {node.name for node in nodes if node.op_type in self._types and node.op_type not in WEIGHED}
        chosen |= set(layers) - {first}
        ordered = [node.name for node in nodes if node.name in chosen]
        self.groups = [part.tolist() for part in np.array_split(np.array(ordered, dtype=object), GROUPS) if len(part)]

    def write(self, out: Path, kept: Sequence[int] = ()) -> None:
        """Write the network, with the groups of these numbers in float32."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        chosen = [name for number, names in enumerate(self.groups) if number not in kept for name in names]
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # where it advises what was done
        try:
            quantize_static(
                str(self.source), str(out), _reader(self.images), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=chosen,
                op_types_to_quantize=list(self._types), calibrate_method=CalibrationMethod.MinMax,
                extra_options={"MatMulConstBOnly": True}, calibration_cache_path=self.folder / "ranges.json",
            )  # fmt: skip
        finally:
            logging.getLogger().setLevel(level)
        _save(onnx.load(out), self._about, out)


def _of_encoder(node: Any) -> bool:
    return any(each.key == "part" and each.value == ENCODER for each in node.metadata_props)


def _save(model: Any, about: dict[str, str], out: Path) -> None:
    import onnx

    del model.metadata_props[:]
    for name, value in about.items():
        model.metadata_props.add(key=name, value=value)
    onnx.save(model, out)


def _reader(images: Sequence[Batch]) -> Any:
    """Batches as ONNX Runtime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Batch] = iter(images)

        def get_next(self) -> Batch | None:
            return next(self.left, None)

    return Reader()
