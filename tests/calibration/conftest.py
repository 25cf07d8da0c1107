from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from earn.calibration.gate import HeldOut
from earn.export.bundle import export_bundle
from earn.runtime.recommender import Recommender
from tests.support import random_catalog, small_model

ITEMS, CALIBRATING, JUDGING = 300, 32, 48


def int8_sums_saturate() -> bool:
    """Whether this CPU adds products of 8 bits in 16 (AVX2 and AVX-512 without VNNI do), and so loses large sums."""
    node = helper.make_node("MatMulInteger", ["rows", "weight"], ["sums"])
    weight = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "weight")
    rows = helper.make_tensor_value_info("rows", TensorProto.UINT8, [1, 64])
    sums = helper.make_tensor_value_info("sums", TensorProto.INT32, [1, 16])
    model = helper.make_model(
        helper.make_graph([node], "sums", [rows], [sums], [weight]), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"rows": np.full((1, 64), 255, np.uint8)})
    return bool((np.asarray(got) != 64 * 255 * 127).any())


needs_exact_int8_sums = pytest.mark.skipif(int8_sums_saturate(), reason="sums of 8-bit products saturate on this CPU")


@dataclass(frozen=True)
class Case:
    """A bundle over a catalog that is much wider than the beam set, and users of two kinds."""

    bundle: Path
    histories: Sequence[Sequence[str]]
    held_out: HeldOut


@pytest.fixture(scope="session", params=["tiny-llama"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("case") / "bundle")


def make_case(family: str, folder: Path) -> Case:
    catalog = random_catalog(ITEMS, codes=8)
    model = small_model(family, catalog, early_layers=1, max_history=8)
    generator = np.random.default_rng(3)
    users = [
        [str(item) for item in generator.integers(0, ITEMS, generator.integers(2, 9))]
        for _ in range(CALIBRATING + JUDGING)
    ]
    export_bundle(model, folder, users[:3], max_batch=4, max_beams=24)
    held_out = HeldOut(
        tuple(map(tuple, users[CALIBRATING:])), tuple(str(item) for item in generator.integers(0, ITEMS, JUDGING))
    )
    return Case(folder, users[:CALIBRATING], held_out)


def best(recommender: Recommender, history: Sequence[str], k: int = 20) -> list[str]:
    """Item ids, best first."""
    return [item.item_id for item in recommender.recommend(history, k, 20)]


def small_graph(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, NDArray[np.float32]], width: int, columns: int
) -> onnx.ModelProto:
    """x [m, width] to y [m, columns]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", columns])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def constants_of(graph: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The values of the initializers."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def optimized_operators(graph: Path | bytes, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
    )
    optimized = onnx.load(str(folder / "optimized.onnx"), load_external_data=False)
    return Counter(node.op_type for node in optimized.graph.node)
