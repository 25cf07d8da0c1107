"""Finer activations in 8 bits: what rounding added is rounded too, and taken away through the same weights.

    x W  ~  q(x) W - q'(q(x) - x) W        q' has steps 1/254 of those of q

The excess q(x) - x lies within half a step of q, so its range needs no calibration. The result has the resolution of
16-bit activations for one more 8-bit product; the weights are there once. It pays where few values are far larger than
the rest, so that most fall on few steps: silu(gate) * up, which down_proj reads, and before the head, whose errors
reorder items directly.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

# Kinds of products that get finer activations, from the first to the last resort.
LEVELS: Sequence[tuple[str, ...]] = (
    ("down_proj", "head"),
    ("qkv_proj", "q_proj", "kv_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "head"),
)

STEPS = 254  # to one step of q: the excess is at most half of one, on either side of the zero point


def refine(graph: onnx.ModelProto, names: Collection[str]) -> None:
    """Gives these products of a static int8 graph finer activations, in place; large weights need not be loaded."""
    made_by = {output: node for node in graph.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for product in [node for node in graph.graph.node if node.name in names]:
        activation, weight = (made_by.get(name) for name in product.input)
        if activation is None or weight is None or activation.op_type != "DequantizeLinear":  # a product that is float
            continue
        rounding = made_by[activation.input[0]]
        scale, zero = (numpy_helper.to_array(constants[name]) for name in rounding.input[1:3])
        _refine_one(graph, product, rounding, weight, float(scale), zero.dtype == np.uint8)
    ONNXModel(graph).topological_sort()


def _refine_one(
    graph: onnx.ModelProto,
    product: onnx.NodeProto,
    rounding: onnx.NodeProto,
    weight: onnx.NodeProto,
    scale: float,
    is_unsigned: bool,
) -> None:
    """Subtracts the product of what rounding added.

    Every DequantizeLinear has one reader, and nothing is added to a product: otherwise ONNX Runtime would not fuse it
    to an integer product, or make a float Gemm of it first.
    """
    name, result = product.name, product.output[0]
    parameters = [f"{name}.fine_scale", f"{name}.fine_zero"]
    middle = np.array(128, np.uint8) if is_unsigned else np.array(0, np.int8)
    graph.graph.initializer.extend(
        numpy_helper.from_array(value, parameter)
        for value, parameter in zip((np.array(scale / STEPS, np.float32), middle), parameters, strict=True)
    )
    product.output[0] = f"{name}.coarse"
    nodes = (  # operator, inputs, output
        ("DequantizeLinear", [rounding.output[0], *rounding.input[1:]], f"{name}.rounded"),
        ("Sub", [f"{name}.rounded", rounding.input[0]], f"{name}.excess"),
        ("QuantizeLinear", [f"{name}.excess", *parameters], f"{name}.excess_int8"),
        ("DequantizeLinear", [f"{name}.excess_int8", *parameters], f"{name}.excess_rounded"),
        ("MatMul", [f"{name}.excess_rounded", f"{name}.same_weight"], f"{name}.fine"),
        ("Sub", [f"{name}.coarse", f"{name}.fine"], result),
    )
    graph.graph.node.extend(
        helper.make_node(operator, inputs, [output], f"{name}.{place}")
        for place, (operator, inputs, output) in enumerate(nodes)
    )
    same = graph.graph.node.add()
    same.CopyFrom(weight)
    same.name = same.output[0] = f"{name}.same_weight"
