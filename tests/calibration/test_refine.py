from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from earn.calibration.precisions import FORMS, PRECISIONS, GraphForm
from earn.calibration.quantize import quantize
from earn.calibration.refine import refine
from tests.calibration.conftest import needs_exact_int8_sums, small_graph

ROWS, WIDTH, COLUMNS = 400, 24, 16


@needs_exact_int8_sums
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


def test_layers_in_float_stay_as_they_are() -> None:
    graph = head(np.ones((WIDTH, COLUMNS), np.float32))
    before = graph.SerializeToString()
    refine(graph, {"head"})
    assert graph.SerializeToString() == before


def graphs(weight: NDArray[np.float32], activation: NDArray[np.float32], form: GraphForm) -> list[onnx.ModelProto]:
    """The head in static int8, plain and refined."""
    ranges = {"x": (float(activation.min()), float(activation.max()))}
    plain, refined = (quantize(head(weight), PRECISIONS["int8"], form, ranges) for _ in range(2))
    refine(refined, {"head"})
    return [plain, refined]


def head(weight: NDArray[np.float32]) -> onnx.ModelProto:
    """An item head alone."""
    node = helper.make_node("MatMul", ["x", "head.weight"], ["y"], "head")
    return small_graph([node], {"head.weight": weight}, WIDTH, COLUMNS)


def run(graph: onnx.ModelProto, activation: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": activation})[0]
    return result
