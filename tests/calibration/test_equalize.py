from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from earn.calibration.collect import ChannelRange, collect_ranges
from earn.calibration.equalize import equalize, smoothing_pairs
from earn.calibration.variants import GraphVariants, MixedPrecision
from earn.specs import STAGES
from tests.calibration.conftest import Case, best, constants_of, make_case, small_graph


@pytest.mark.parametrize("family", ["tiny-llama", "tiny-qwen2", "tiny-qwen3"])
def test_the_function_stays_the_same_and_outliers_shrink(family: str, tmp_path: Path) -> None:
    case = make_case(family, tmp_path / "bundle")
    variants = GraphVariants(case.bundle, tmp_path)
    add_outliers(variants)
    before = collect_ranges(variants, "outliers", case.histories[:8], 10)
    for stage in STAGES:
        variants.save("equalized", stage, equalize(variants.load("outliers", stage), before[stage]))
    after = collect_ranges(variants, "equalized", case.histories[:8], 10)
    for stage in STAGES:
        for pair in smoothing_pairs(variants.load_without_weights("outliers", stage)):
            for reader in pair.readers:
                spreads = [spread(seen[stage][reader.activation]) for seen in (before, after)]
                assert spreads[1] < spreads[0]
    lists = [rankings(variants, variant, tmp_path / f"{variant}-graphs", case) for variant in ("outliers", "equalized")]
    assert lists[0] == lists[1]


def test_every_layer_has_three_pairs(case: Case, tmp_path: Path) -> None:
    variants = GraphVariants(case.bundle, tmp_path)
    found = {
        stage: [
            [reader.name for reader in row.readers]
            for row in smoothing_pairs(variants.load_without_weights("float", stage))
        ]
        for stage in STAGES
    }
    late = variants.manifest.sizes.stage_layers("late")
    assert len(found["early"]) == 3
    assert len(found["late"]) == 3 * late + 1
    assert ["head"] in found["late"]
    assert ["layers.0.kv_proj", "layers.0.q_proj"] in map(sorted, found["early"])  # its only layer is its last
    for layer in range(late):
        reading = ["qkv_proj"] if layer < late - 1 else ["kv_proj", "q_proj"]
        assert [f"layers.{layer}.{name}" for name in reading] in map(sorted, found["late"])


def test_scales_by_hand() -> None:
    """Two channels, s = |x| ** 0.7 / |w| ** 0.3: the channel is divided by it, the weight's row multiplied."""
    graph = normed([[1.0, -2.0], [0.5, 0.25]])
    equalize(graph, {"normed": ChannelRange(np.array([-100, -1], np.float32), np.array([50, 1], np.float32))})
    weights = constants_of(graph)
    scale = np.array([100**0.7 / 2**0.3, 1 / 0.5**0.3])
    np.testing.assert_allclose(weights["norm"], 1 / scale, rtol=1e-5)
    np.testing.assert_allclose(weights["head.weight"], np.array([[1, -2], [0.5, 0.25]]) * scale[:, None], rtol=1e-5)


@pytest.mark.parametrize(
    "other",
    [helper.make_node("Neg", ["normed"], ["other"]), helper.make_node("Mul", ["x", "norm"], ["other"])],
    ids=["the tensor is read elsewhere", "two norms share the vector"],
)
def test_what_another_node_reads_is_left_alone(other: onnx.NodeProto) -> None:
    graph = normed([[1.0, 2.0], [3.0, 4.0]])
    graph.graph.node.append(other)
    graph.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["m", 2]))
    assert smoothing_pairs(graph) == []


def normed(weight: list[list[float]]) -> onnx.ModelProto:
    """x * norm, then a linear layer."""
    nodes = [
        helper.make_node("Mul", ["x", "norm"], ["normed"]),
        helper.make_node("MatMul", ["normed", "head.weight"], ["y"], "head"),
    ]
    weights = {"norm": np.ones(2, np.float32), "head.weight": np.array(weight, np.float32)}
    return small_graph(nodes, weights, 2, 2)


def add_outliers(variants: GraphVariants) -> None:
    """Makes some channels of every norm fifty times larger, and their readers' rows smaller, as trained models have."""
    for stage in STAGES:
        graph = variants.load("float", stage)
        for pair in smoothing_pairs(graph):
            scale(graph, pair.source, (..., slice(2)), 50)
            for reader in pair.readers:
                scale(graph, reader.weight, (slice(2),), 1 / 50)
        variants.save("outliers", stage, graph)


def scale(graph: onnx.ModelProto, name: str, place: tuple[Any, ...], factor: float) -> None:
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(weight).copy()
    values[place] *= factor
    weight.CopyFrom(numpy_helper.from_array(values, name))


def spread(seen: ChannelRange) -> float:
    """How many times the usual channel's values the largest one's are."""
    return float(seen.magnitude.max() / np.median(seen.magnitude))


def rankings(variants: GraphVariants, variant: str, folder: Path, case: Case) -> list[list[str]]:
    variants.write_bundle_graphs(variant, variant, MixedPrecision(), folder)
    recommender = variants.recommender(folder)
    return [best(recommender, history, 10) for history in case.histories[:8]]
