"""Exports of heads that stand on one encoder, cut where it ends.

Every value of a graph gets a name that says how it is computed: a hash of the operator, its attributes and the names of
what goes in. So values of two graphs with one name are the same. What nodes of the encoder give and others take is
computed by one graph for all, and what comes after it by a graph of each head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from selfsight.deploy.engine import Engine

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

WEIGHED = ("Conv", "MatMul", "Gemm")  # layers, of which no encoder has any behind its end


class Cut(NamedTuple):
    """The encoder of several exports, which gives all that the `rests` take of it, by name."""

    encoder: Engine
    rests: list[Engine]


def cut(files: Sequence[Path]) -> Cut | None:
    """Exports, cut behind the encoder that they share; None where they share none that can be cut off."""
    try:
        import onnx
    except ImportError:  # which serving alone does without
        return None
    models = [onnx.load(file) for file in files]
    if any(model.functions or _nested(model.graph) for model in models):
        return None
    graphs = [onnx.shape_inference.infer_shapes(_named(model)).graph for model in models]
    ends = [_ends(graph) for graph in graphs]
    outputs = [[each.name for each in graph.output] for graph in graphs]
    rests = [_part(graph, names, end) for graph, names, end in zip(graphs, outputs, ends, strict=True)]
    whole = onnx.GraphProto()
    for part in ("node", "initializer", "value_info", "input"):
        getattr(whole, part).extend(each for graph in graphs for each in getattr(graph, part))
    encoder = _part(whole, sorted(set().union(*ends)), set())
    most = max(_layers(graph.node) for graph in graphs)
    if not all(ends) or _layers(encoder.node) > most or any(_layers(rest.node) for rest in rests):
        return None
    opset = models[0].opset_import
    if any((list(model.opset_import), model.ir_version) != (list(opset), models[0].ir_version) for model in models):
        return None  # written by different versions
    made = [onnx.helper.make_model(graph, opset_imports=opset, ir_version=models[0].ir_version)
            for graph in (encoder, *rests)]  # fmt: skip
    first, *others = (Engine(model.SerializeToString()) for model in made)
    return Cut(first, others)


def _nested(graph: GraphProto) -> bool:
    """Whether it has graphs inside, whose names reach out."""
    return any(each.HasField("g") or each.graphs for node in graph.node for each in node.attribute)


def _named(model: ModelProto) -> ModelProto:
    """The model with names that say how each value is computed; what it gives bears its own names all the same."""
    from onnx import helper

    graph = model.graph
    names = {each.name: each.name for each in graph.input} | {"": ""}
    for each in graph.initializer:
        own, each.name = each.name, ""
        names[own] = each.name = _hash([each.SerializeToString(deterministic=True)])
    for node in graph.node:
        node.input[:] = [names[name] for name in node.input]
        told = [each.SerializeToString(deterministic=True) for each in sorted(node.attribute, key=lambda one: one.name)]
        computed = [node.op_type.encode(), node.domain.encode(), *told, *(name.encode() for name in node.input)]
        for place, name in enumerate(node.output):
            names[name] = _hash([*computed, str(place).encode()]) if name else ""
        node.output[:] = [names[name] for name in node.output]
        node.name = node.output[0]
    for each in graph.value_info:
        each.name = names[each.name]
    graph.node.extend(helper.make_node("Identity", [names[each.name]], [each.name]) for each in graph.output)
    return model


def _hash(parts: Iterable[bytes]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(f"{len(part)} ".encode() + part)
    return found.hexdigest()


def _ends(graph: GraphProto) -> set[str]:
    """What the encoder makes of pixels and others take of it: floating-point values alone."""
    from onnx import TensorProto

    floats = {each.name for each in graph.value_info if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    of_pixels, own = {"pixels"}, set[str]()
    for node in graph.node:
        if of_pixels.intersection(node.input) and node.op_type != "Shape":
            of_pixels.update(node.output)
        if _of_encoder(node):
            own.update(node.output)
    taken = {name for node in graph.node if not _of_encoder(node) for name in node.input}
    return own & taken & floats & of_pixels


def _of_encoder(node: NodeProto) -> bool:
    return any(each.key == "part" for each in node.metadata_props)


def _layers(nodes: Iterable[NodeProto]) -> int:
    return sum(_of_encoder(node) and node.op_type in WEIGHED for node in nodes)


def _part(graph: GraphProto, outputs: Sequence[str], ends: set[str]) -> GraphProto:
    """What is needed for the `outputs` from the inputs and the `ends`, which become inputs."""
    from onnx import TensorProto, helper

    made = {name: node for node in graph.node for name in node.output}
    needed: dict[str, NodeProto] = {}
    left, given = list(outputs), set[str]()
    while left:
        name = left.pop()
        if name in ends or name not in made:
            given.add(name)
        elif made[name].output[0] not in needed:
            needed[made[name].output[0]] = made[name]
            left += made[name].input
    nodes: list[NodeProto] = []
    there: set[str] = set()
    for node in graph.node:  # in their order, each once
        if node.output[0] in needed and node.output[0] not in there:
            nodes.append(node)
            there.add(node.output[0])
    inputs = {each.name: each for each in graph.input if each.name in given}
    inputs |= {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(given & ends)}
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    own = {each.name: each for each in graph.output}
    weights = {each.name: each for each in graph.initializer if each.name in given}
    return helper.make_graph(
        nodes, "part", list(inputs.values()), [own.get(each.name, each) for each in gives], list(weights.values())
    )
