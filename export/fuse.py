"""Makes one product of projections that stand side by side: q, k and v of a layer, or k and v where q has fewer rows.

`earn.model.stage` joins the outputs of such projections; joining the weights instead gives the same numbers,
since every column of a product is computed for itself. One product of 1,152 columns runs faster than three of 896, 128
and 128.
Gate and up stay apart: joined they gain nothing, and their halves would have to be copied out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from earn.errors import EarnError
from earn.export.simplify import REMEDY, drop_dead

Makers = Mapping[str, NodeProto]  # the node that makes a tensor, by the tensor's name
Constants = Mapping[str, TensorProto]


def fuse_projections(graph: onnx.ModelProto) -> None:
    """Changes a simplified stage graph, whose weights are loaded, in place."""
    body = graph.graph
    makers = {output: node for node in body.node for output in node.output}
    constants = {tensor.name: tensor for tensor in body.initializer}
    for place in reversed(range(len(body.node))):
        node = body.node[place]
        if node.op_type != "Concat" or helper.get_node_attr_value(node, "axis") != -1:
            continue
        sides = [_projection(name, makers, constants) for name in node.input]
        if any(side is None for side in sides):
            continue
        products, biases = zip(*(side for side in sides if side), strict=True)
        if len({product.input[0] for product in products}) > 1 or len({bias is None for bias in biases}) > 1:
            continue
        name = _joined_name([product.name for product in products])
        weight = [numpy_helper.to_array(constants[product.input[1]]) for product in products]
        body.initializer.append(_joined(weight, f"{name}.weight"))
        output = node.output[0]
        new = [helper.make_node("MatMul", [products[0].input[0], f"{name}.weight"], [output], name)]
        if biases[0] is not None:
            body.initializer.append(
                _joined([numpy_helper.to_array(constants[bias]) for bias in biases], f"{name}.bias")
            )
            new[0].output[0] = f"{name}.output"
            new.append(helper.make_node("Add", [new[0].output[0], f"{name}.bias"], [output], f"{name}.biased"))
        del body.node[place]
        for offset, one in enumerate(new):
            body.node.insert(place + offset, one)
    drop_dead(body)


def check_fused(graph: onnx.ModelProto) -> None:
    """Raises EarnError where keys or values still have a product of their own: calibration would not know it."""
    for node in graph.graph.node:
        if node.name.endswith((".k_proj", ".v_proj")):
            raise EarnError(f"The exported graph keeps {node.name} apart from its neighbours. {REMEDY}")


def _projection(tensor: str, makers: Makers, constants: Constants) -> tuple[NodeProto, str | None] | None:
    """The product with a weight that makes the tensor, and the name of the bias that is added; None if none does."""
    node, bias = makers.get(tensor), None
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
    place, _, _ = names[0].rpartition(".")
    return f"{place}.{''.join(name.rpartition('.')[2].removesuffix('_proj') for name in names)}_proj"


def _joined(parts: Sequence[NDArray[np.float32]], name: str) -> TensorProto:
    return numpy_helper.from_array(np.concatenate(parts, axis=-1), name)
