"""Writes a stage graph in a precision: first all linear layers, then any of them back in float.

onnxruntime.quantization does the work. This module says which nodes, types and ranges. Graphs go in with their weights
loaded and are changed.
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

from earn.calibration.error_feedback import BLOCK
from earn.calibration.linear_layers import EMBEDDING, LinearLayer, activations, linear_layers, producers
from earn.calibration.precisions import GraphForm, Precision
from earn.export.simplify import drop_dead

INT8_ACCURACY = 4  # of MatMulNBits: it rounds activations to 8 bits, a scale for every BLOCK, and sums integers

_FP32_OPERATORS = ("Softmax", "Pow", "ReduceMean", "Sqrt", "Cos", "Sin")  # stay in fp32 in an fp16 graph
_FP32_NEIGHBOURS = ("Add", "Div")  # of Sqrt: the epsilon, and one over the root


def quantize(
    graph: onnx.ModelProto,
    precision: Precision,
    form: GraphForm,
    ranges: Mapping[str, tuple[float, float]],
) -> onnx.ModelProto:
    """The stage graph in another precision.

    Args:
        graph: with its weights loaded; it is used up. Weights go to their nearest steps, if they are not on steps
            already (see earn.calibration.error_feedback).
        precision: the row of the stage.
        ranges: of what goes into the linear layers, by tensor; only static precisions need them.
    """
    if precision.method == "half":
        return _half(graph)
    linears = linear_layers(graph)
    if form.int8_embedding and precision.rounds_embedding:
        _quantize_embedding(graph)
    if precision.method == "weights":
        return _weights(graph, linears)
    if precision.method == "blocks":
        return _blocks(graph, linears, precision, form)
    if precision.method == "dynamic":
        return _dynamic(graph, linears, precision, form)
    return _static(graph, linears, precision, form, ranges)


def with_float(quantized: onnx.ModelProto, original: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The quantized graph with these nodes (linear layers, the embedding) as they were.

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
    linears: list[LinearLayer],
    precision: Precision,
    form: GraphForm,
    ranges: Mapping[str, tuple[float, float]],
) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear before every linear layer.

    Linear layers give out float: sums and norms behind them would lose by rounding, and the engines fuse them all the
    same.
    """
    known = {
        name: TensorData(lowest=np.array(lowest, np.float32), highest=np.array(highest, np.float32))
        for name, (lowest, highest) in ranges.items()
    }
    quantizer = QDQQuantizer(
        _with_types(graph, linears),
        precision.per_channel,
        False,
        QuantType.QInt8 if precision.weight_bits == 8 else QuantType.QInt4,
        QuantType.QInt8 if form.signed_activations else QuantType.QUInt8,
        known,
        [linear.name for linear in linears],
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
    _read_rounded_only(quantizer.model.model, {linear.name for linear in linears})
    return _finished(quantizer.model.model)


def _read_rounded_only(graph: onnx.ModelProto, names: Collection[str]) -> None:
    """Lets only these nodes read rounded activations; else the rows kept for q_proj would be rounded twice."""
    made_by = producers(graph)
    for node in graph.graph.node:
        if node.name in names or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            if name in made_by and made_by[name].op_type == "DequantizeLinear":
                node.input[index] = made_by[made_by[name].input[0]].input[0]


def _dynamic(
    graph: onnx.ModelProto, linears: list[LinearLayer], precision: Precision, form: GraphForm
) -> onnx.ModelProto:
    """DynamicQuantizeLinear before every linear layer, and an integer MatMul."""
    quantizer = ONNXQuantizer(
        _with_types(graph, linears),
        precision.per_channel,
        False,
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        [linear.name for linear in linears],
        [],
        ["MatMul"],
        {"MatMulConstBOnly": True, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    return _finished(quantizer.model.model)


def _blocks(
    graph: onnx.ModelProto, linears: list[LinearLayer], precision: Precision, form: GraphForm
) -> onnx.ModelProto:
    """4-bit weights with a scale per block of rows; activations go in as floats."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # a slow import

    rows = {tensor.name: tensor.dims[0] for tensor in graph.graph.initializer if tensor.dims}
    names = {
        linear.name  # TensorRT derives the block size from the number of scales, so all blocks must be full
        for linear in linears
        if form.block_operator or rows[linear.weight] % BLOCK == 0
    }
    quantizer = MatMulNBitsQuantizer(
        graph,
        bits=precision.weight_bits,
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=INT8_ACCURACY,
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
    _skip_casts_between_fp32(half)
    return _finished(half)


def _skip_casts_between_fp32(graph: onnx.ModelProto) -> None:
    """Lets nodes that stay in fp32 read each other: the converter casts tensors between them to fp16 and back.

    Squares of more than 256 would become infinite there.
    """
    made_by = producers(graph)
    source: dict[str, str] = {}
    for node in graph.graph.node:
        before = made_by.get(node.input[0]) if node.name.endswith("_cast_to_fp32_node") else None
        if before is not None and before.name.endswith("_cast_to_fp16_node"):
            source[node.output[0]] = before.input[0]
    for node in graph.graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]


def _fp32_nodes(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """What fp16 would harm: norms from their squares to one over the root, softmax, and angles from positions on."""
    made_by = producers(graph)
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
        for index, name in enumerate(node.input):
            if name in constants:
                own = graph.graph.initializer.add()
                own.CopyFrom(constants[name])
                own.name = node.input[index] = f"{node.name}.{name}"


def _quantize_embedding(graph: onnx.ModelProto) -> None:
    """Stores the token embedding as int8 rows with a scale each, and multiplies what is looked up.

    DequantizeLinear knows no scale per looked-up row, so the rows are cast and multiplied.
    """
    index, node = next((pair for pair in enumerate(graph.graph.node) if pair[1].name == EMBEDDING), (0, None))
    if node is None:  # a late stage has none
        return
    rounded, scales = _add_int8(graph, node.input[0], axis=1)
    int8_row, row_scale = f"{EMBEDDING}.int8", f"{EMBEDDING}.scale"
    ids, result = node.input[1], node.output[0]
    node.input[0], node.output[0] = rounded, int8_row
    lookup = helper.make_node("Gather", [scales, ids], [row_scale], row_scale)
    for offset, new in enumerate((lookup, *_in_float(int8_row, row_scale, result, EMBEDDING)), start=1):
        graph.graph.node.insert(index + offset, new)


def _weights(graph: onnx.ModelProto, linears: list[LinearLayer]) -> onnx.ModelProto:
    """8-bit weights with a scale per column, in float before they are multiplied; activations stay float.

    By Cast and Mul, which every ONNX Runtime computes once, when it loads the graph. DequantizeLinear it would compute
    in every call, or put an operator of its own in its place, which fails in a loop's body (1.31).
    """
    nodes: list[onnx.NodeProto] = []
    for weight in dict.fromkeys(linear.weight for linear in linears):
        rounded, scales = _add_int8(graph, weight, axis=0)
        nodes += _in_float(rounded, scales, f"{weight}.float", weight)
    names = {linear.name for linear in linears}
    for node in graph.graph.node:
        if node.name in names:
            node.input[1] = f"{node.input[1]}.float"
        nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return _finished(graph)


def _add_int8(graph: onnx.ModelProto, weight: str, axis: int) -> tuple[str, str]:
    """Adds a weight in int8, and its scales, which the numbers along `axis` share; returns the names of both."""
    values = numpy_helper.to_array(next(tensor for tensor in graph.graph.initializer if tensor.name == weight))
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
    rounded = np.rint(values / scale).astype(np.int8)
    names = f"{weight}.int8", f"{weight}.scale"
    graph.graph.initializer.extend(map(numpy_helper.from_array, (rounded, scale), names))
    return names


def _in_float(rounded: str, scale: str, output: str, prefix: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The nodes that compute what int8 numbers stand for."""
    cast = f"{prefix}.cast"
    return (
        helper.make_node("Cast", [rounded], [cast], cast, to=TensorProto.FLOAT),
        helper.make_node("Mul", [cast, scale], [output], f"{prefix}.scaled"),
    )


def _with_types(graph: onnx.ModelProto, linears: list[LinearLayer]) -> onnx.ModelProto:
    """The graph as ONNX Runtime's quantizers want it: types of the tensors they look at are stated.

    Without the mark they would infer all shapes first, through a second copy of all weights.
    """
    stated = {info.name for info in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output)}
    graph.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in activations(linears)
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
