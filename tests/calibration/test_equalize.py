from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from earn.calibration.bench import Bench, Mix
from earn.calibration.collect import ChannelRange, Observations, observe
from earn.calibration.equalize import channels, equalize
from earn.runtime.engine import load_engine
from earn.runtime.recommender import Recommender
from earn.specs import STAGES
from tests.calibration.conftest import Case, make_case


@pytest.mark.parametrize("family", ["tiny-llama", "tiny-qwen2", "tiny-qwen3"])
def test_the_function_stays_the_same_and_outliers_shrink(family: str, tmp_path: Path) -> None:
    case = make_case(family, tmp_path / "bundle")
    bench = Bench(case.bundle, tmp_path)
    add_outliers(bench)
    before = watch(bench, "outliers", case)

    def change(stage: str, graph: onnx.ModelProto) -> onnx.ModelProto:
        equalize(graph, before[stage].channels)
        return graph

    bench.change("outliers", "equalized", change)
    after = watch(bench, "equalized", case)
    for stage in STAGES:
        for channel in channels(bench.light("outliers", stage)):
            for reader in channel.readers:
                spreads = [spread(seen[stage].channels[reader.activation]) for seen in (before, after)]
                assert spreads[1] < spreads[0]
    lists = [rankings(bench, variant, tmp_path, case) for variant in ("outliers", "equalized")]
    assert lists[0] == lists[1]


def test_every_layer_has_three_such_places(case: Case, tmp_path: Path) -> None:
    bench = Bench(case.bundle, tmp_path)
    found = {
        stage: [[reader.name for reader in row.readers] for row in channels(bench.light("float", stage))]
        for stage in STAGES
    }
    late = bench.manifest.sizes.stage_layers("late")
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
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    scale = np.array([100**0.7 / 2**0.3, 1 / 0.5**0.3])
    np.testing.assert_allclose(weights["norm"], 1 / scale, rtol=1e-5)
    np.testing.assert_allclose(weights["head.weight"], np.array([[1, -2], [0.5, 0.25]]) * scale[:, None], rtol=1e-5)


def test_a_tensor_that_others_read_too_is_left_alone() -> None:
    graph = normed([[1.0, 2.0], [3.0, 4.0]])
    graph.graph.node.append(helper.make_node("Neg", ["normed"], ["other"]))
    graph.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["m", 2]))
    assert channels(graph) == []


def test_a_vector_that_two_norms_share_is_left_alone() -> None:
    graph = normed([[1.0, 2.0], [3.0, 4.0]])
    graph.graph.node.append(helper.make_node("Mul", ["x", "norm"], ["other"]))
    graph.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["m", 2]))
    assert channels(graph) == []


def normed(weight: list[list[float]]) -> onnx.ModelProto:
    """x * norm, then a product."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "norm"], ["normed"]),
            helper.make_node("MatMul", ["normed", "head.weight"], ["y"], "head"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", 2])],
        [
            numpy_helper.from_array(np.ones(2, np.float32), "norm"),
            numpy_helper.from_array(np.array(weight, np.float32), "head.weight"),
        ],
    )
    return helper.make_model(graph)


def add_outliers(bench: Bench) -> None:
    """Makes some channels of every norm fifty times larger, and their readers' rows smaller, as trained models have."""

    def change(stage: str, graph: onnx.ModelProto) -> onnx.ModelProto:
        weights = {tensor.name: tensor for tensor in graph.graph.initializer}
        for channel in channels(graph):
            for name, factor in [(channel.source, 50.0), *((reader.weight, 1 / 50) for reader in channel.readers)]:
                values = numpy_helper.to_array(weights[name]).copy()
                if name == channel.source:
                    values[..., :2] *= factor
                else:
                    values[:2] *= factor
                weights[name].CopyFrom(numpy_helper.from_array(values, name))
        return graph

    bench.change("float", "outliers", change)


def watch(bench: Bench, variant: str, case: Case) -> dict[str, Observations]:
    return observe(
        bench.paths(variant), bench.manifest, bench.catalog, case.histories[:8], 10, "minmax", lambda *_: None
    )


def spread(seen: ChannelRange) -> float:
    """How many times the usual channel's values the largest one's are."""
    return float(seen.magnitude.max() / np.median(seen.magnitude))


def rankings(bench: Bench, variant: str, tmp_path: Path, case: Case) -> list[list[str]]:
    bench.finish(variant, variant, Mix(), folder := tmp_path / f"{variant}-done")
    recommender = Recommender(load_engine("cpu", folder, bench.manifest), bench.manifest, bench.catalog)
    return [[item.item_id for item in recommender.recommend(history, 10, 20)] for history in case.histories[:8]]
