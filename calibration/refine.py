"""Refined activations: the error of rounding to 8 bits is itself rounded to 8 bits and subtracted.

    x W  ~  q(x) W - q'(q(x) - x) W        q' has steps 1/254 of those of q

The error q(x) - x lies within half a step of q, so its range needs no calibration. The result has the resolution of
16-bit activations for one more 8-bit multiplication by the same weights. Refining pays where few values are far larger
than the rest, so that most fall on few steps: in silu(gate) * up, which down_proj reads. It pays before the head too,
whose errors reorder items directly.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from earn.calibration.linear_layers import producers

# Kinds of linear layers whose activations are refined: those that need it most, then all.
LEVELS: Sequence[tuple[str, ...]] = (
    ("down_proj", "head"),
    ("qkv_proj", "q_proj", "kv_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "head"),
)

STEPS = 254  # to one step of q: the error is at most half of one, on either side of the zero point


def refine(graph: onnx.ModelProto, names: Collection[str]) -> None:
    """Refines the activations of these linear layers of a static int8 graph in place; weights need not be loaded."""
    made_by = producers(graph)
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for matmul in [node for node in graph.graph.node if node.name in names]:
        activation, weight = (made_by.get(name) for name in matmul.input)
        if activation is None or weight is None or activation.op_type != "DequantizeLinear":  # it is in float
            continue
        rounding = made_by[activation.input[0]]
        scale, zero = (numpy_helper.to_array(constants[name]) for name in rounding.input[1:3])
        _refine_one(graph, matmul, rounding, weight, float(scale), zero.dtype == np.uint8)
    ONNXModel(graph).topological_sort()


def _refine_one(
    graph: onnx.ModelProto,
    matmul: onnx.NodeProto,
    rounding: onnx.NodeProto,
    weight: onnx.NodeProto,
    scale: float,
    is_unsigned: bool,
) -> None:
    """Subtracts the error of rounding, times the weight, from the result.

    Every DequantizeLinear has one reader, and the results are subtracted, not added. Otherwise ONNX Runtime would not
    fuse a MatMul to an integer one, or would make a float Gemm of it first.
    """
    name, result = matmul.name, matmul.output[0]
    parameters = [f"{name}.fine_scale", f"{name}.fine_zero"]
    middle = np.array(128, np.uint8) if is_unsigned else np.array(0, np.int8)
    graph.graph.initializer.extend(
        numpy_helper.from_array(value, parameter)
        for value, parameter in zip((np.array(scale / STEPS, np.float32), middle), parameters, strict=True)
    )
    matmul.output[0] = f"{name}.coarse"
    nodes = (  # operator, inputs, output
        ("DequantizeLinear", [rounding.output[0], *rounding.input[1:]], f"{name}.rounded"),
        ("Sub", [f"{name}.rounded", rounding.input[0]], f"{name}.excess"),
        ("QuantizeLinear", [f"{name}.excess", *parameters], f"{name}.excess_int8"),
        ("DequantizeLinear", [f"{name}.excess_int8", *parameters], f"{name}.excess_rounded"),
        ("MatMul", [f"{name}.excess_rounded", f"{name}.same_weight"], f"{name}.fine"),
        ("Sub", [f"{name}.coarse", f"{name}.fine"], result),
    )
    graph.graph.node.extend(
        helper.make_node(operator, inputs, [output], f"{name}.{index}")
        for index, (operator, inputs, output) in enumerate(nodes)
    )
    same = graph.graph.node.add()
    same.CopyFrom(weight)
    same.name = same.output[0] = f"{name}.same_weight"
