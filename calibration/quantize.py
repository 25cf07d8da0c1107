"""Writes a stage graph in a precision: all products at once, and any of them taken back to float afterwards.

The work is done by onnxruntime.quantization; this module says which nodes, types and ranges. Graphs go in with their
weights loaded and are changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantFormat, QuantType, TensorData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode, add_infer_metadata

from earn.calibration.linear_layers import Product, activations, products
from earn.calibration.precisions import Form, Precision
from earn.export.simplify import drop_dead

BLOCK = 32  # weights that share a 4-bit scale
EMBEDDING = "embedding"  # node of the token embedding's lookup

_FP32_OPERATORS = ("Softmax", "Pow", "ReduceMean", "Sqrt", "Cos", "Sin")  # stay in fp32 in an fp16 graph
_FP32_NEIGHBOURS = ("Add", "Div")  # of Sqrt: the epsilon, and one over the root


def quantize(
    graph: onnx.ModelProto, precision: Precision, form: Form, ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """The stage graph in another precision.

    Args:
        graph: with its weights loaded; it is used up.
        ranges: of the products' inputs, by tensor; only static precisions need them.
    """
    if precision.method == "half":
        return _half(graph)
    found = products(graph)
    if form.int8_embedding and precision.equalizes:
        _quantize_embedding(graph)
    if precision.method == "blocks":
        return _blocks(graph, found, precision, form)
    if precision.method == "dynamic":
        return _dynamic(graph, found, precision)
    return _static(graph, found, precision, form, ranges)


def with_float(quantized: onnx.ModelProto, original: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The quantized graph with these nodes (products, the embedding) as they were.

    Works without weights loaded, if both lie in one folder.
    """
    kept = {output: node for node in original.graph.node if node.name in names for output in node.output}
    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    nodes = [kept.get(node.output[0], node) for node in result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    weights = {name for node in kept.values() for name in node.input}
    result.graph.initializer.extend(tensor for tensor in original.graph.initializer if tensor.name in weights)
    drop_dead(result.graph)
    return result


def _static(
    graph: onnx.ModelProto,
    found: list[Product],
    precision: Precision,
    form: Form,
    ranges: Mapping[str, tuple[float, float]],
) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear before every product.

    Products give out float: sums and norms behind them would lose by rounding, and the engines fuse a product all the
    same.
    """
    known = {
        name: TensorData(lowest=np.array(lowest, np.float32), highest=np.array(highest, np.float32))
        for name, (lowest, highest) in ranges.items()
    }
    quantizer = QDQQuantizer(
        _with_types(graph, found),
        precision.per_channel,
        False,  # 7-bit weights, for CPUs without VNNI
        QuantType.QInt8 if precision.weight_bits == 8 else QuantType.QInt4,
        QuantType.QInt8 if form.signed_activations else QuantType.QUInt8,
        known,
        [product.name for product in found],
        [],
        ["MatMul"],
        {
            "ActivationSymmetric": form.signed_activations,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            "QuantizeBias": False,
        },
    )
    quantizer.quantize_model()
    _round_for_alone(quantizer.model.model, {product.name for product in found})
    return _finished(quantizer.model.model)


def _round_for_alone(graph: onnx.ModelProto, names: Collection[str]) -> None:
    """Lets only these nodes read rounded activations: the rows kept for q_proj would be rounded twice."""
    made_by = {output: node for node in graph.graph.node for output in node.output}
    for node in graph.graph.node:
        if node.name in names or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for place, name in enumerate(node.input):
            if name in made_by and made_by[name].op_type == "DequantizeLinear":
                node.input[place] = made_by[made_by[name].input[0]].input[0]


def _dynamic(graph: onnx.ModelProto, found: list[Product], precision: Precision) -> onnx.ModelProto:
    """DynamicQuantizeLinear before every product, and an integer product."""
    quantizer = ONNXQuantizer(
        _with_types(graph, found),
        precision.per_channel,
        False,
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        [product.name for product in found],
        [],
        ["MatMul"],
        {"MatMulConstBOnly": True, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    return _finished(quantizer.model.model)


def _blocks(graph: onnx.ModelProto, found: list[Product], precision: Precision, form: Form) -> onnx.ModelProto:
    """4-bit weights with a scale per block of rows; activations stay float."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # a slow import

    rows = {tensor.name: tensor.dims[0] for tensor in graph.graph.initializer if tensor.dims}
    names = {
        product.name  # TensorRT tells the size of blocks by the number of scales, so all must be full
        for product in found
        if form.block_operator or rows[product.weight] % BLOCK == 0
    }
    quantizer = MatMulNBitsQuantizer(
        graph,
        bits=precision.weight_bits,
        block_size=BLOCK,
        is_symmetric=True,
        quant_format=QuantFormat.QOperator if form.block_operator else QuantFormat.QDQ,
        op_types_to_quantize=("MatMul",),
        nodes_to_exclude=[node.name for node in graph.graph.node if node.name not in names],
    )
    quantizer.process()
    return _finished(quantizer.model.model)


def _half(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and activations in fp16, inputs and outputs as they were."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # a slow import

    kept = _fp32_nodes(graph)
    _own_constants(graph, kept)
    half: onnx.ModelProto = convert_float_to_float16(
        graph, keep_io_types=True, op_block_list=[], node_block_list=[node.name for node in kept]
    )
    once = {node.output[0]: node for node in half.graph.node}  # it casts a tensor once for each node that reads it
    del half.graph.node[:]
    half.graph.node.extend(once.values())
    _see_through_halves(half.graph)
    return _finished(half)


def _see_through_halves(graph: onnx.GraphProto) -> None:
    """Lets nodes that stay in fp32 read each other: the converter casts what goes between them to fp16 and back.

    Squares of more than 256 would become infinite there.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    source: dict[str, str] = {}
    for node in graph.node:
        before = made_by.get(node.input[0]) if node.name.endswith("_cast_to_fp32_node") else None
        if before is not None and before.name.endswith("_cast_to_fp16_node"):
            source[node.output[0]] = before.input[0]
    for node in graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]


def _fp32_nodes(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """What would lose in fp16: norms from their squares to one over the root, softmax, angles from positions on."""
    made_by = {output: node for node in graph.graph.node for output in node.output}
    roots = {name for node in graph.graph.node if node.op_type == "Sqrt" for name in (*node.input, *node.output)}
    angles = [name for node in graph.graph.node if node.op_type in ("Cos", "Sin") for name in node.input]
    for name in angles:  # grows: what they are made of
        angles += made_by[name].input if name in made_by else ()
    return [
        node
        for node in graph.graph.node
        if node.op_type in _FP32_OPERATORS
        or (node.op_type in _FP32_NEIGHBOURS and roots.intersection((*node.input, *node.output)))
        or node.output[0] in angles
    ]


def _own_constants(graph: onnx.ModelProto, nodes: Collection[onnx.NodeProto]) -> None:
    """Gives each of the nodes constants of its own: the converter cannot keep one in fp32 for several."""
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in nodes:
        for place, name in enumerate(node.input):
            if name in constants:
                own = graph.graph.initializer.add()
                own.CopyFrom(constants[name])
                own.name = node.input[place] = f"{node.name}.{name}"


def _quantize_embedding(graph: onnx.ModelProto) -> None:
    """Stores the token embedding as int8 rows with a scale each, and multiplies what is looked up.

    DequantizeLinear knows no scale per looked-up row, so the rows are cast and multiplied.
    """
    place, node = next(
        ((place, node) for place, node in enumerate(graph.graph.node) if node.name == EMBEDDING), (0, None)
    )
    if node is None:  # a late stage has none
        return
    table = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[0])
    rows = numpy_helper.to_array(table)
    scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    scales = f"{table.name}.scale"
    rounded = numpy_helper.from_array(np.rint(rows / scale).astype(np.int8), f"{table.name}.int8")
    graph.graph.initializer.extend((rounded, numpy_helper.from_array(scale, scales)))
    ids, result = node.input[1], node.output[0]
    node.input[0] = rounded.name
    node.output[0] = f"{EMBEDDING}.int8"
    behind = (
        helper.make_node("Gather", [scales, ids], [f"{EMBEDDING}.scale"], f"{EMBEDDING}.scale"),
        helper.make_node(
            "Cast", [f"{EMBEDDING}.int8"], [f"{EMBEDDING}.cast"], f"{EMBEDDING}.cast", to=TensorProto.FLOAT
        ),
        helper.make_node("Mul", [f"{EMBEDDING}.cast", f"{EMBEDDING}.scale"], [result], f"{EMBEDDING}.scaled"),
    )
    for offset, new in enumerate(behind, start=1):
        graph.graph.node.insert(place + offset, new)


def _with_types(graph: onnx.ModelProto, found: list[Product]) -> onnx.ModelProto:
    """The graph as ONNX Runtime's quantizers want it: types of the tensors they look at are stated.

    Without the mark they would infer all shapes first, through a second copy of all weights.
    """
    stated = {info.name for info in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output)}
    graph.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in activations(found)
        if name not in stated
    )
    add_infer_metadata(graph)
    return graph


def _finished(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Without what served the quantization alone."""
    del graph.metadata_props[:], graph.graph.value_info[:]
    ONNXModel(graph).topological_sort()
    drop_dead(graph.graph)
    return graph
