"""Whether TensorRT's ONNX parser takes the graphs: operators, types and restrictions, as its documentation lists them.

The table holds what docs/operators.md of onnx-tensorrt says for TensorRT 9.2 and for 10.15 alike, and 4-bit weights,
which came with 10.0. Networks are strongly typed, so types count as they stand in the graph. No TensorRT runs here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from earn.calibration.error_feedback import BLOCK
from earn.calibration.precisions import FORMS, PRECISIONS
from earn.calibration.quantize import quantize
from earn.export.onnx_stages import OPSET
from earn.model.earn_model import EarnModel
from earn.runtime.memory import Array
from earn.specs import PAST, STAGES
from tests.export.tensorrt_graphs import CASE_PARAMETERS, TENSORRT, VARIANTS, graphs_of, written
from tests.support import FAMILIES, assert_close, random_catalog, small_backbone

FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
NUMBERS = FLOATS | {"INT32", "INT64"}
ANY = NUMBERS | {"BOOL"}

# Types of what an operator computes with and gives out, for the operators of which stages are made.
OPERATORS: Mapping[str, frozenset[str]] = {
    "Add": NUMBERS,
    "Cast": ANY | {"UINT8"},
    "Concat": ANY,
    "Cos": FLOATS,
    "DequantizeLinear": FLOATS | {"INT8", "INT4"},
    "Div": NUMBERS,
    "Gather": ANY,
    "MatMul": FLOATS,
    "Mul": NUMBERS,
    "Neg": NUMBERS,
    "Pow": FLOATS,
    "QuantizeLinear": FLOATS | {"INT8"},
    "ReduceMean": NUMBERS,
    "Reshape": ANY,
    "Sigmoid": FLOATS,
    "Sin": FLOATS,
    "Softmax": FLOATS,
    "Split": ANY,
    "Sqrt": FLOATS,
    "Sub": NUMBERS,
    "Transpose": ANY,
    "Unsqueeze": ANY,
}
# Inputs that must be constants, since shapes or kernels follow from them.
CONSTANT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "ReduceMean": (1,),
    "Reshape": (1,),
    "Split": (1,),
    "Unsqueeze": (1,),
}
INDICES: Mapping[str, int] = {"Gather": 1, **dict.fromkeys(("ReduceMean", "Reshape", "Split", "Unsqueeze"), 1)}
QUANTIZED = ("INT8", "INT4")  # types that only stand between QuantizeLinear and DequantizeLinear
OPSETS = range(9, 20)  # 19 is the highest of TensorRT 9.2
BLOCK_OPSET = 21  # the first with blocks of 4 bits; TensorRT takes these from 10.0 on


# --- the check --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """A graph with the types of all tensors."""

    model: ModelProto
    types: Mapping[str, str]
    constants: Mapping[str, TensorProto]

    @classmethod
    def of(cls, model: ModelProto) -> Graph:
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
        values = [*inferred.input, *inferred.value_info, *inferred.output]
        types = {value.name: type_name(value.type.tensor_type.elem_type) for value in values}
        constants = {tensor.name: tensor for tensor in inferred.initializer}
        return cls(model, types | {name: type_name(one.data_type) for name, one in constants.items()}, constants)

    @property
    def nodes(self) -> Sequence[NodeProto]:
        nodes: Sequence[NodeProto] = self.model.graph.node
        return nodes

    def value(self, name: str) -> Array:
        array: Array = numpy_helper.to_array(self.constants[name])
        return array

    def data_types(self, node: NodeProto) -> set[str]:
        """Types of what a node computes with and gives out; indices, sizes and axes are neither."""
        data = [name for place, name in enumerate(node.input) if name and place != INDICES.get(node.op_type)]
        return {self.types.get(name, "unknown") for name in (*data, *node.output)}


def type_name(number: int) -> str:
    name: str = TensorProto.DataType.Name(number)
    return name


def complaints(model: ModelProto) -> list[str]:
    """What TensorRT would refuse, or compute slowly or otherwise than is meant."""
    if foreign := {node.domain for node in model.graph.node} - {"", "ai.onnx"}:
        return [f"operators of the domain {domain} are no standard ones" for domain in sorted(foreign)]
    graph = Graph.of(model)
    found = [*_opset(graph)]
    for node in graph.nodes:
        what = f"{node.op_type} {node.name!r}"
        if node.op_type not in OPERATORS:
            found.append(f"{what} is not in the table")
            continue
        if wrong := graph.data_types(node) - OPERATORS[node.op_type]:
            found.append(f"{what} computes with {', '.join(sorted(wrong))}")
        for place in CONSTANT_INPUTS.get(node.op_type, ()):
            if place < len(node.input) and node.input[place] not in graph.constants:
                found.append(f"{what} computes its input {place}")
        found += [f"{what} {text}" for text in (*_quantization(graph, node), *_integers(graph, node))]
    return found


def _opset(graph: Graph) -> Iterator[str]:
    opsets = {entry.domain: entry.version for entry in graph.model.opset_import}
    allowed = {BLOCK_OPSET} if "INT4" in graph.types.values() else OPSETS
    if opsets.keys() != {""} or opsets[""] not in allowed:
        yield f"the graph needs the operator sets {opsets}"


def _quantization(graph: Graph, node: NodeProto) -> Iterator[str]:
    """Zero points are 0; scales are one, one per column, or one per block of rows, and blocks fill the rows."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] not in graph.constants:
        return
    if len(node.input) > 2 and node.input[2] in graph.constants and graph.value(node.input[2]).any():
        yield "has a zero point other than 0"
    axis, block = (attribute(node, name, default) for name, default in (("axis", 1), ("block_size", 0)))
    scale, weight = graph.constants[node.input[1]].dims, graph.constants.get(node.input[0])
    if weight is None:
        if list(scale):
            yield f"has scales {list(scale)} for activations"
    elif block:  # the parser infers the size of blocks from the number of scales, and one axis alone may have blocks
        rows, columns = weight.dims
        if axis != 0 or rows % block or rows == rows // block or list(scale) != [rows // block, columns]:
            yield f"has scales {list(scale)} for blocks of {block} of a weight {[rows, columns]}"
    elif list(scale) != [weight.dims[axis]]:
        yield f"has scales {list(scale)} for a weight {list(weight.dims)}"


def _integers(graph: Graph, node: NodeProto) -> Iterator[str]:
    """Integers are not computed with: 64-bit ones pick rows or are cast, 8- and 4-bit ones are dequantized."""
    for place, name in enumerate(node.input):
        kind = graph.types.get(name)
        if kind == "INT64" and not (place == INDICES.get(node.op_type) or node.op_type in ("Cast", "Unsqueeze")):
            yield f"computes with the 64-bit integers {name!r}"
        if kind in QUANTIZED and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            yield f"reads the {kind} {name!r}"


def attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASE_PARAMETERS)
@pytest.mark.parametrize("stage", STAGES)
def test_tensorrt_takes_every_graph_that_is_written_for_it(case: str, stage: str, variant: str) -> None:
    assert complaints(written(case, stage, variant)) == []


@pytest.mark.parametrize("case", CASE_PARAMETERS)
def test_every_precision_changes_what_it_says(case: str) -> None:
    """Else the test above would look at the same graph again and again."""
    for stage in STAGES:
        for variant in TENSORRT:
            graph = Graph.of(written(case, stage, variant))
            own = {"fp32": set[str](), "fp16": {"FLOAT16"}, "int8": {"INT8"}, "int4": {"INT4"}}[variant]
            assert set(graph.types.values()) == {"FLOAT", "INT64"} | own
            outside = [*graph.model.graph.input, *graph.model.graph.output]  # the tensor table's, in every precision
            assert {graph.types[value.name] for value in outside} == {"FLOAT", "INT64"}
            if variant != "fp16":
                continue
            sensitive = {"Sqrt", "Div", "Pow", "ReduceMean", "Softmax", "Cos", "Sin"}
            for node in graph.nodes:
                if node.op_type in sensitive | {"MatMul"}:
                    want = {"FLOAT16"} if node.op_type == "MatMul" else {"FLOAT"}
                    assert graph.data_types(node) == want, node.name


@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        ("int8", "zero point other than 0"),
        ("int8-dynamic", "DynamicQuantizeLinear"),
        ("int4", "com.microsoft"),
    ],
)
def test_the_forms_for_the_cpu_are_not_for_tensorrt(variant: str, complaint: str) -> None:
    """And the check would notice."""
    assert complaint in " ".join(complaints(written("tiny-llama", "late", variant, "cpu")))


@pytest.mark.parametrize(
    ("nodes", "complaint"),
    [
        ([helper.make_node("NonZero", ["x"], ["y"])], "NonZero"),
        ([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)], "DOUBLE"),
        ([helper.make_node("Add", ["ids", "ids"], ["y"])], "64-bit integers"),
        ([helper.make_node("Reshape", ["x", "ids"], ["y"])], "computes its input 1"),
        ([helper.make_node("Gather", ["small", "ids"], ["y"])], "INT8"),
    ],
)
def test_the_check_notices(nodes: list[NodeProto], complaint: str) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [2])
    small = numpy_helper.from_array(np.zeros((3, 2), np.int8), "small")
    graph = helper.make_graph(nodes, "stage", [x, ids], [helper.make_empty_tensor_value_info("y")], [small])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    assert complaint in " ".join(complaints(model))


def dequantized(weight: Sequence[int], scales: Sequence[int], block: int) -> ModelProto:
    """A product with a weight in 4 bits."""
    rows, columns = weight
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["float"], axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "float"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stage",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", columns])],
        [
            helper.make_tensor("w", TensorProto.INT4, weight, np.zeros(rows * columns, np.int8)),
            numpy_helper.from_array(np.ones(scales, np.float32), "scale"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", BLOCK_OPSET)], ir_version=10)


def test_blocks_fill_the_rows_of_a_weight() -> None:
    """Of 40 rows in blocks of 32 the parser would make two blocks of 20: it counts scales."""
    assert complaints(dequantized([64, 6], [2, 6], BLOCK)) == []
    assert complaints(dequantized([32, 6], [1, 6], BLOCK)) == []
    assert "blocks of 32 of a weight [40, 6]" in complaints(dequantized([40, 6], [2, 6], BLOCK))[0]
    sizes = {"hidden_size": 48, "intermediate_size": 96}  # such weights are written otherwise
    model = EarnModel.from_backbone(small_backbone("tiny-llama", **sizes), random_catalog(60))
    for graph in graphs_of(model, "trie").values():
        assert complaints(quantize(onnx.load_from_string(graph), PRECISIONS["int4"], FORMS["tensorrt"], {})) == []


def run(model: ModelProto, feeds: Mapping[str, Array]) -> Array:
    """The first output, every node computed as it stands: ONNX Runtime's optimizer would leave casts out."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    first: Array = session.run([session.get_outputs()[0].name], dict(feeds))[0]
    return first


def feeds_of(model: ModelProto, first_position: int, size: float) -> dict[str, Array]:
    """Six rows behind ten that are cached; hidden states of that size."""
    generator, rows, cached = np.random.default_rng(0), 6, 10
    past = next(value for value in model.graph.input if value.name == PAST)
    row = [axis.dim_value for axis in past.type.tensor_type.shape.dim][2:]
    feeds: dict[str, Array] = {
        "position_ids": first_position + np.arange(rows)[None],
        "attention_bias": np.zeros((1, 1, rows, cached + rows), np.float32),
        PAST: generator.normal(0, 1, (cached, 1, *row)).astype(np.float32),
        "keep": np.arange(rows),
    }
    first = model.graph.input[0]
    if first.name == "hidden":
        width = first.type.tensor_type.shape.dim[2].dim_value
        return {**feeds, "hidden": size * generator.normal(0, 1, (1, rows, width)).astype(np.float32)}
    return {**feeds, "input_ids": generator.integers(0, 10, (1, rows))}


FAR = pytest.param("early", 1500, 1, id="far positions")
LARGE = pytest.param("late", 0, 1000, id="large hidden states")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("stage", "position", "size"),
    [pytest.param("early", 0, 1, id="early"), pytest.param("late", 0, 1, id="late"), FAR, LARGE],
)
def test_fp16_graphs_compute_what_fp32_graphs_compute(family: str, stage: str, position: int, size: float) -> None:
    feeds = feeds_of(written(family, stage, "fp32"), position, size)
    want, got = (run(written(family, stage, precision), feeds) for precision in ("fp32", "fp16"))
    scale = np.abs(want).max()
    assert np.isfinite(got).all()
    assert_close(want / scale, got / scale, 3e-3)
