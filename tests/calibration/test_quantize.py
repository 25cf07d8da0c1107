from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from earn.calibration.bench import Bench, Mix
from earn.calibration.collect import Observations, observe
from earn.calibration.precisions import FORMS, METHODS, PRECISIONS, find_form, find_precisions
from earn.calibration.quantize import quantize
from earn.calibration.refine import LEVELS
from earn.errors import EarnError
from earn.manifest import PRECISIONS as KNOWN
from earn.runtime.engine import load_engine
from earn.runtime.recommender import Recommender
from earn.specs import STAGES
from tests.calibration.conftest import Case, make_case
from tests.support import FAMILIES

ROWS = [(row.name, engine) for row in PRECISIONS.values() for engine in row.engines if row.method != "none"]
STANDARD = {"", "ai.onnx"}

# What ONNX Runtime makes of a product that it runs in integers.
FUSED = {"int8": {"MatMulIntegerToFloat"}, "int8-dynamic": {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}}


@pytest.fixture(scope="module")
def bench(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(case.bundle, tmp_path_factory.mktemp("bench"))
    seen = observed(bench, case)
    for name, engine in ROWS:
        precision = PRECISIONS[name]

        def change(stage: str, graph: onnx.ModelProto) -> onnx.ModelProto:
            return quantize(graph, precision, find_form(precision, engine), seen[stage].ranges)  # noqa: B023

        bench.change("float", f"{name}-{engine}", change)
    return bench


def observed(bench: Bench, case: Case) -> dict[str, Observations]:
    return observe(bench.paths("float"), bench.manifest, bench.catalog, case.histories, 20, "minmax", lambda *_: None)


def test_the_manifest_knows_every_row() -> None:
    assert tuple(PRECISIONS) == KNOWN
    assert {row.method for row in PRECISIONS.values()} == set(METHODS)
    assert all(engine in FORMS for row in PRECISIONS.values() for engine in row.engines)


@pytest.mark.parametrize(("name", "engine"), ROWS)
def test_every_form_recommends(name: str, engine: str, bench: Bench, case: Case, tmp_path: Path) -> None:
    variant = f"{name}-{engine}"
    base = Recommender.load(case.bundle)
    bench.finish("float", variant, Mix(), tmp_path)
    recommender = Recommender(load_engine("cpu", tmp_path, bench.manifest), bench.manifest, bench.catalog)
    overlap = [len(items(base, history) & items(recommender, history)) / 20 for history in case.held_out.histories[:16]]
    assert np.mean(overlap) > (0.5 if name == "int4" else 0.8)


def items(recommender: Recommender, history: tuple[str, ...]) -> set[str]:
    return {item.item_id for item in recommender.recommend(history, 20, 20)}


@pytest.mark.parametrize(("name", "engine"), [row for row in ROWS if row != ("int4", "cpu")])
def test_graphs_hold_standard_operators_alone(name: str, engine: str, bench: Bench) -> None:
    for stage in STAGES:
        graph = onnx.load(str(bench.path(f"{name}-{engine}", stage)))
        assert {node.domain for node in graph.graph.node} <= STANDARD
        onnx.checker.check_model(graph, full_check=True)


@pytest.mark.parametrize("name", sorted(FUSED))
@pytest.mark.parametrize("stage", STAGES)
def test_every_product_is_fused_on_the_cpu(name: str, stage: str, bench: Bench, tmp_path: Path) -> None:
    operators = optimized(bench.path(f"{name}-cpu", stage), tmp_path)
    fused = sum(operators[operator] for operator in FUSED[name])
    assert fused == len(bench.products(stage))
    attention = 2 * bench.manifest.sizes.stage_layers(stage)  # queries by keys, shares by values
    assert operators["MatMul"] + operators["FusedMatMul"] == attention


@pytest.mark.parametrize("family", FAMILIES)
def test_refined_products_are_fused_in_every_family(family: str, tmp_path: Path) -> None:
    """Biases and norms stand behind the products of Qwen2 and Qwen3."""
    case = make_case(family, tmp_path / "bundle")
    bench = Bench(case.bundle, tmp_path)
    seen = observed(bench, case)
    bench.change(
        "float", "int8", lambda stage, graph: quantize(graph, PRECISIONS["int8"], FORMS["cpu"], seen[stage].ranges)
    )
    for kinds in LEVELS:
        for stage in STAGES:
            operators = optimized(bench.mix("float", "int8", stage, Mix(fine_kinds=kinds)), tmp_path)
            refined = [product for product in bench.products(stage) if product.kind in kinds]
            assert operators["MatMulIntegerToFloat"] == len(bench.products(stage)) + len(refined)
            assert operators["MatMul"] + operators["FusedMatMul"] == 2 * bench.manifest.sizes.stage_layers(stage)
            assert not operators["Gemm"]


def test_signed_activations_are_not_all_fused_there(bench: Bench, tmp_path: Path) -> None:
    """Why there are two forms: were this to change, one would do."""
    operators = optimized(bench.path("int8-tensorrt", "late"), tmp_path)
    assert sum(operators[operator] for operator in FUSED["int8"]) < len(bench.products("late"))


@pytest.mark.parametrize("stage", STAGES)
def test_tensorrt_gets_zero_points_of_zero_and_no_int8_lookup(stage: str, bench: Bench) -> None:
    graph = onnx.load(str(bench.path("int8-tensorrt", stage)))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    points = [
        constants[node.input[2]]
        for node in graph.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
    ]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    lookups = [node for node in graph.graph.node if node.op_type == "Gather" and node.input[0] in constants]
    assert all(constants[node.input[0]].dtype == np.float32 for node in lookups)


def test_int8_weights_have_a_scale_per_column_and_nothing_else_is_rounded(bench: Bench) -> None:
    graph = onnx.load(str(bench.path("int8-cpu", "late")))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    weights = [node for node in graph.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    assert len(weights) == len(bench.products("late"))
    for node in weights:
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        assert weight.dtype == np.int8
        assert scale.shape == weight.shape[1:]
    rounded = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    readers = [node for node in graph.graph.node if rounded.intersection(node.input)]
    assert {node.op_type for node in readers} == {"MatMul"}
    assert not {output.name for output in graph.graph.output} & rounded


def test_the_int8_embedding_is_near_the_float_one(bench: Bench) -> None:
    graph = onnx.load(str(bench.path("int8-cpu", "early")))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    whole = onnx.load(str(bench.path("float", "early")))
    table = next(onnx.numpy_helper.to_array(row) for row in whole.graph.initializer if row.name == "embedding.weight")
    rows = constants["embedding.weight.int8"] * constants["embedding.weight.scale"]
    assert "embedding.weight" not in constants
    assert (np.abs(rows - table) <= np.abs(table).max(axis=1, keepdims=True) / 254 + 1e-7).all()


@pytest.mark.parametrize("variant", ["int8-cpu", "int8-dynamic-cpu", "int8-tensorrt", "int4-cpu"])
def test_all_products_back_in_float_give_the_float_graph(
    variant: str, bench: Bench, case: Case, tmp_path: Path
) -> None:
    bench.finish("float", variant, Mix(float_units=tuple(bench.units(variant))), tmp_path)
    recommender = Recommender(load_engine("cpu", tmp_path, bench.manifest), bench.manifest, bench.catalog)
    base = Recommender.load(case.bundle)
    lists = [
        [item.item_id for item in side.recommend(case.held_out.histories[0], 20, 20)] for side in (base, recommender)
    ]
    assert lists[0] == lists[1]


def test_one_layer_back_in_float_costs_its_weights_alone(bench: Bench, tmp_path: Path) -> None:
    path = bench.mix("float", "int8-cpu", "late", Mix(float_units=("late.1",)))
    products = bench.products("late")
    in_float = [product for product in products if product.layer == 1]
    weights = [tensor.name for tensor in onnx.load(str(path), load_external_data=False).graph.initializer]
    assert {product.weight for product in in_float} <= set(weights)
    assert not {product.weight for product in products if product.layer != 1} & set(weights)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(EarnError, match="no precision 'fp8'"):
        find_precisions("fp8", None)
    with pytest.raises(EarnError, match="no precision 'fp32' to calibrate to"):
        find_precisions("fp32", None)
    assert [row.name for row in find_precisions("fastest", None)] == ["int8", "int8-dynamic"]
    assert [row.name for row in find_precisions("fastest", "tensorrt")] == ["int8"]
    with pytest.raises(EarnError, match="int8-dynamic is not written for the engine 'tensorrt'"):
        find_form(PRECISIONS["int8-dynamic"], "tensorrt")


def optimized(path: Path, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(folder / "optimized.onnx"), load_external_data=False)
    return Counter(node.op_type for node in graph.graph.node)
