from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from earn.calibration.collect import StageRanges, collect_ranges
from earn.calibration.precisions import FORMS, PRECISIONS, QUANTIZED, find_form, find_precisions
from earn.calibration.quantize import quantize
from earn.calibration.refine import LEVELS
from earn.calibration.variants import FLOAT, GraphVariants, MixedPrecision
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.weights import load_graph
from earn.manifest import PRECISIONS as KNOWN
from earn.runtime.recommender import Recommender
from earn.specs import STAGES
from tests.calibration.conftest import Case, best, constants_of, int8_sums_saturate, make_case, optimized_operators
from tests.support import FAMILIES, small_model

ROWS = [(name, engine) for name in QUANTIZED for engine in PRECISIONS[name].engines]
STANDARD = {"", "ai.onnx"}

# What ONNX Runtime makes of a linear layer that it runs in integers.
FUSED = {"int8": {"MatMulIntegerToFloat"}, "int8-dynamic": {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}}


def quantize_variant(
    variants: GraphVariants, name: str, engine: str, ranges: Mapping[str, StageRanges], variant: str
) -> None:
    precision, form = PRECISIONS[name], find_form(PRECISIONS[name], engine)
    for stage in STAGES:
        spans = {tensor: seen.whole for tensor, seen in ranges[stage].items()}
        graph = quantize(variants.load(FLOAT, stage), precision.of_stage(stage), form, spans)
        variants.save(variant, stage, graph)


@pytest.fixture(scope="module")
def variants(case: Case, tmp_path_factory: pytest.TempPathFactory) -> GraphVariants:
    variants = GraphVariants(case.bundle, tmp_path_factory.mktemp("variants"))
    ranges = collect_ranges(variants, FLOAT, case.histories, 20)
    for name, engine in ROWS:
        quantize_variant(variants, name, engine, ranges, f"{name}-{engine}")
    return variants


def test_the_manifest_knows_every_row() -> None:
    assert tuple(PRECISIONS) == KNOWN
    assert all(engine in FORMS for row in PRECISIONS.values() for engine in row.engines)


@pytest.mark.parametrize(("name", "engine"), ROWS)
def test_every_form_recommends(name: str, engine: str, variants: GraphVariants, case: Case, tmp_path: Path) -> None:
    if "int8" in (name, PRECISIONS[name].of_stage("early").name) and engine == "cpu" and int8_sums_saturate():
        pytest.skip("sums of 8-bit products saturate on this CPU")
    variants.write_bundle_graphs(FLOAT, f"{name}-{engine}", MixedPrecision(), tmp_path)
    sides = Recommender.load(case.bundle), variants.recommender(tmp_path)
    lists = [[set(best(side, history)) for side in sides] for history in case.held_out.histories[:16]]
    overlap = [len(before & after) / 20 for before, after in lists]
    assert np.mean(overlap) > (0.5 if "int4" in name else 0.8)


@pytest.mark.parametrize(("name", "engine"), [row for row in ROWS if "int4" not in row[0] or row[1] != "cpu"])
def test_graphs_hold_standard_operators_alone(name: str, engine: str, variants: GraphVariants) -> None:
    for stage in STAGES:
        graph = onnx.load(str(variants.path(f"{name}-{engine}", stage)))
        assert {node.domain for node in graph.graph.node} <= STANDARD
        onnx.checker.check_model(graph, full_check=True)


@pytest.mark.parametrize("name", sorted(FUSED))
@pytest.mark.parametrize("stage", STAGES)
def test_every_linear_layer_is_fused_on_the_cpu(name: str, stage: str, variants: GraphVariants, tmp_path: Path) -> None:
    operators = optimized_operators(variants.path(f"{name}-cpu", stage), tmp_path)
    fused = sum(operators[operator] for operator in FUSED[name])
    assert fused == len(variants.linear_layers(stage))
    attention = 2 * variants.manifest.sizes.stage_layers(stage)  # queries by keys, shares by values
    assert operators["MatMul"] + operators["FusedMatMul"] == attention


@pytest.mark.parametrize("family", FAMILIES)
def test_refined_layers_are_fused_in_every_family(family: str, tmp_path: Path) -> None:
    """Biases and norms follow the linear layers of Qwen2 and Qwen3."""
    case = make_case(family, tmp_path / "bundle")
    variants = GraphVariants(case.bundle, tmp_path)
    ranges = collect_ranges(variants, FLOAT, case.histories[:2], 20)  # any will do
    quantize_variant(variants, "int8", "cpu", ranges, "int8")
    for kinds in LEVELS:
        for stage in STAGES:
            operators = optimized_operators(
                variants.write_mixed(FLOAT, "int8", stage, MixedPrecision(refined_kinds=kinds)), tmp_path
            )
            refined = [linear for linear in variants.linear_layers(stage) if linear.kind in kinds]
            assert operators["MatMulIntegerToFloat"] == len(variants.linear_layers(stage)) + len(refined)
            assert operators["MatMul"] + operators["FusedMatMul"] == 2 * variants.manifest.sizes.stage_layers(stage)
            assert not operators["Gemm"]


def test_signed_activations_are_not_all_fused_there(variants: GraphVariants, tmp_path: Path) -> None:
    """Why there are two forms: were this to change, one would do."""
    operators = optimized_operators(variants.path("int8-tensorrt", "late"), tmp_path)
    assert sum(operators[operator] for operator in FUSED["int8"]) < len(variants.linear_layers("late"))


def test_int8_weights_have_a_scale_per_column_and_nothing_else_is_rounded(variants: GraphVariants) -> None:
    graph = onnx.load(str(variants.path("int8-cpu", "late")))
    constants = constants_of(graph)
    weights = [node for node in graph.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    assert len(weights) == len(variants.linear_layers("late"))
    for node in weights:
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        assert weight.dtype == np.int8
        assert scale.shape == weight.shape[1:]
    rounded = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    readers = [node for node in graph.graph.node if rounded.intersection(node.input)]
    assert {node.op_type for node in readers} == {"MatMul"}
    assert not {output.name for output in graph.graph.output} & rounded


def test_the_int8_embedding_is_near_the_float_one(variants: GraphVariants) -> None:
    graph = onnx.load(str(variants.path("int8-cpu", "early")))
    constants = constants_of(graph)
    table = constants_of(onnx.load(str(variants.path(FLOAT, "early"))))["embedding.weight"]
    rows = constants["embedding.weight.int8"] * constants["embedding.weight.scale"]
    assert "embedding.weight" not in constants
    assert (np.abs(rows - table) <= np.abs(table).max(axis=1, keepdims=True) / 254 + 1e-7).all()


@pytest.mark.parametrize("variant", ["int8-cpu", "int8-dynamic-cpu", "int8-tensorrt", "int8-weights-cpu", "int4-cpu"])
def test_all_layers_back_in_float_give_the_float_graph(
    variant: str, variants: GraphVariants, case: Case, tmp_path: Path
) -> None:
    all_layers = MixedPrecision(float_layers=tuple(variants.layers(variant)))
    variants.write_bundle_graphs(FLOAT, variant, all_layers, tmp_path)
    history = case.held_out.histories[0]
    assert best(variants.recommender(tmp_path), history) == best(Recommender.load(case.bundle), history)


def test_one_layer_back_in_float_costs_its_weights_alone(variants: GraphVariants, tmp_path: Path) -> None:
    path = variants.write_mixed(FLOAT, "int8-cpu", "late", MixedPrecision(float_layers=("late.1",)))
    linears = variants.linear_layers("late")
    weights = [tensor.name for tensor in onnx.load(str(path), load_external_data=False).graph.initializer]
    assert {linear.weight for linear in linears if linear.layer == 1} <= set(weights)
    assert not {linear.weight for linear in linears if linear.layer != 1} & set(weights)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(EarnError, match="no precision 'fp8'"):
        find_precisions("fp8", None)
    with pytest.raises(EarnError, match="no precision 'fp32' to calibrate to"):
        find_precisions("fp32", None)
    assert [row.name for row in find_precisions("fastest", None)] == ["int8", "int8-dynamic"]
    assert [row.name for row in find_precisions("fastest", "tensorrt")] == ["int8"]
    with pytest.raises(EarnError, match="int8-dynamic is not written for the engine 'tensorrt'"):
        find_form(PRECISIONS["int8-dynamic"], "tensorrt")


@pytest.mark.parametrize("stage", STAGES)
def test_int8_weights_are_float_matmuls_once_the_graph_is_loaded(
    stage: str, variants: GraphVariants, tmp_path: Path
) -> None:
    """What the float graph runs is run, with other weights: so processors agree as they do on fp32."""
    path = variants.path("int8-weights-cpu", stage)
    in_float, rounded = (optimized_operators(each, tmp_path) for each in (variants.path(FLOAT, stage), path))
    lookup = Counter({"Gather": 1, "Cast": 1, "Mul": 1} if stage == "early" else {})
    assert rounded == in_float + lookup
    constants = constants_of(onnx.load(str(path)))
    for linear in variants.linear_layers(stage):
        weight, scale = constants[f"{linear.weight}.int8"], constants[f"{linear.weight}.scale"]
        assert linear.weight not in constants
        assert scale.shape == (1, weight.shape[1])
        assert weight.dtype == np.int8
        assert (np.abs(weight).max(axis=0) == 127).all()


def test_large_weights_are_read_where_a_bundles_files_are_links(tmp_path: Path) -> None:
    """As in a cache of downloads; and a calibration's own view of its source is made of links."""
    model = small_model("tiny-llama", early_layers=1)
    for name, most in (("plain", 1 << 30), ("large", 1)):
        export_bundle(model, tmp_path / name, [["1"]], external_data_bytes=most)
    (tmp_path / "linked").mkdir()
    for path in (tmp_path / "large").iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    assert (tmp_path / "linked" / "late.onnx.data").is_symlink()
    sides = [GraphVariants(tmp_path / name, tmp_path / f"{name}-work") for name in ("plain", "linked")]
    for stage in STAGES:
        want, got = (constants_of(load_graph(side.path(FLOAT, stage))) for side in sides)
        assert want.keys() == got.keys()
        assert all((want[name] == got[name]).all() for name in want)
