from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from earn.calibration.precisions import FORMS, PRECISIONS, Form
from earn.calibration.quantize import quantize
from earn.calibration.refine import refine

ROWS, WIDTH, COLUMNS = 400, 24, 16


@pytest.mark.parametrize("engine", sorted(FORMS))
def test_the_error_of_activations_falls_by_two_orders(engine: str) -> None:
    generator = np.random.default_rng(0)
    activation = generator.standard_t(3, (ROWS, WIDTH)).astype(np.float32)  # few values far larger than the rest
    weight = np.rint(generator.uniform(-127, 127, (WIDTH, COLUMNS))).astype(np.float32)
    weight[0] = 127  # so that int8 holds the weights exactly
    want = activation @ weight
    errors = [np.abs(run(graph, activation) - want).mean() for graph in graphs(weight, activation, FORMS[engine])]
    assert errors[1] < errors[0] / 100


@pytest.mark.parametrize("engine", sorted(FORMS))
def test_weights_are_there_once_and_operators_are_standard(engine: str) -> None:
    weight = np.random.default_rng(0).standard_normal((WIDTH, COLUMNS)).astype(np.float32)
    _, refined = graphs(weight, np.ones((ROWS, WIDTH), np.float32), FORMS[engine])
    onnx.checker.check_model(refined, full_check=True)
    assert [list(tensor.dims) for tensor in refined.graph.initializer].count([WIDTH, COLUMNS]) == 1
    assert Counter(node.op_type for node in refined.graph.node)["MatMul"] == 2


def test_both_products_are_fused(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((WIDTH, COLUMNS)).astype(np.float32)
    _, refined = graphs(weight, np.ones((ROWS, WIDTH), np.float32), FORMS["cpu"])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(refined.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node)
    assert operators["MatMulIntegerToFloat"] == 2
    assert not operators["MatMul"]


def test_float_products_stay_as_they_are() -> None:
    graph = product(np.ones((WIDTH, COLUMNS), np.float32))
    before = graph.SerializeToString()
    refine(graph, {"head"})
    assert graph.SerializeToString() == before


def graphs(weight: NDArray[np.float32], activation: NDArray[np.float32], form: Form) -> list[onnx.ModelProto]:
    """The product in static int8, plain and refined."""
    ranges = {"x": (float(activation.min()), float(activation.max()))}
    result = [quantize(product(weight), PRECISIONS["int8"], form, ranges) for _ in range(2)]
    refine(result[1], {"head"})
    return result


def product(weight: NDArray[np.float32]) -> onnx.ModelProto:
    """A head alone."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "head.weight"], ["y"], "head")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", COLUMNS])],
        [numpy_helper.from_array(weight, "head.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(graph: onnx.ModelProto, activation: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": activation})[0]
    return result
