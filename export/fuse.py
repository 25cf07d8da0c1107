"""Joins the projections of a layer that read the same activations into one MatMul: q, k and v, or k and v alone.

`earn.model.stage` concatenates the outputs of such projections. Concatenating their weights gives the same numbers,
because a MatMul computes each column for itself. One MatMul of 1,152 columns is faster than three of 896, 128 and 128.
Gate and up projections stay apart: joined they gain nothing, and their halves would have to be copied out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from earn.errors import EarnError
from earn.export.simplify import REMEDY, drop_dead

Constants = Mapping[str, TensorProto]


def fuse_projections(graph: onnx.ModelProto) -> None:
    """Changes a simplified stage graph, whose weights are loaded, in place."""
    body = graph.graph
    makers = {output: node for node in body.node for output in node.output}
    constants = {tensor.name: tensor for tensor in body.initializer}
    for index in reversed(range(len(body.node))):
        node = body.node[index]
        if node.op_type != "Concat" or helper.get_node_attr_value(node, "axis") != -1:
            continue
        projections = [_projection(makers.get(name), makers, constants) for name in node.input]
        if any(projection is None for projection in projections):
            continue
        matmuls, biases = zip(*(projection for projection in projections if projection), strict=True)
        if len({matmul.input[0] for matmul in matmuls}) > 1 or len({bias is None for bias in biases}) > 1:
            continue
        name, output = _joined_name([matmul.name for matmul in matmuls]), node.output[0]
        body.initializer.append(_joined([constants[matmul.input[1]] for matmul in matmuls], f"{name}.weight"))
        new = [helper.make_node("MatMul", [matmuls[0].input[0], f"{name}.weight"], [output], name)]
        if biases[0] is not None:
            body.initializer.append(_joined([constants[bias] for bias in biases], f"{name}.bias"))
            new[0].output[0] = f"{name}.output"
            new.append(helper.make_node("Add", [new[0].output[0], f"{name}.bias"], [output], f"{name}.biased"))
        del body.node[index]
        for offset, added in enumerate(new):
            body.node.insert(index + offset, added)
    drop_dead(body)


def check_fused(graph: onnx.ModelProto) -> None:
    """Raises EarnError where keys or values still have a MatMul of their own: calibration would not know it."""
    for node in graph.graph.node:
        if node.name.endswith((".k_proj", ".v_proj")):
            raise EarnError(f"The exported graph keeps {node.name} apart from its neighbours. {REMEDY}")


def _projection(
    node: NodeProto | None, makers: Mapping[str, NodeProto], constants: Constants
) -> tuple[NodeProto, str | None] | None:
    """The MatMul with a weight that a node is, and the name of the bias that it may add; None if it is neither."""
    bias = None
    if node is not None and node.op_type == "Add":
        biases = [name for name in node.input if name in constants]
        others = [name for name in node.input if name not in constants]
        if len(biases) != 1:
            return None
        node, bias = makers.get(others[0]), biases[0]
    if node is None or node.op_type != "MatMul" or node.input[1] not in constants:
        return None
    is_one_per_column = bias is None or list(constants[bias].dims) == list(constants[node.input[1]].dims[1:])
    return (node, bias) if is_one_per_column else None


def _joined_name(names: Sequence[str]) -> str:
    """layers.0.q_proj, layers.0.k_proj, layers.0.v_proj -> layers.0.qkv_proj."""
    layer, _, _ = names[0].rpartition(".")
    return f"{layer}.{''.join(name.rpartition('.')[2].removesuffix('_proj') for name in names)}_proj"


def _joined(parts: Sequence[TensorProto], name: str) -> TensorProto:
    return numpy_helper.from_array(np.concatenate([numpy_helper.to_array(part) for part in parts], axis=-1), name)
