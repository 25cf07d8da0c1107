from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from earn.errors import EarnError
from earn.export.onnx_stages import export_stages
from earn.export.stages import bundle_model
from earn.manifest import GRAPH_FILES, PRECISIONS, Manifest, stage_precision
from earn.profiling import roofline
from earn.profiling.roofline import (
    MatmulBench,
    Work,
    least_ms,
    memory_bandwidth,
    stage_work,
)
from earn.runtime.memory import Array
from earn.specs import NEW, PAST, STAGES, Sizes, stage_specs
from tests.support import small_model

# One layer: q 4x6, keys and values 4x6, o 6x4, gate and up 4x6 each, down 6x4; 24 numbers in each of these six.
TINY = Sizes("llama", 3, 1, 4, intermediate=6, heads=2, key_value_heads=1, head_size=3, embedding_rows=9, logits=10)
LAYER = 6 * 24
ROW = 2 * 1 * 3 * 4  # bytes of a cached row of one layer


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return replace(bundle_model(small_model()).manifest, sizes=TINY)


def test_a_layer_by_hand(manifest: Manifest) -> None:
    # Keys and values of 5 rows; q, o and MLP of 1; its two heads see 7 rows, once for scores and once for the mix.
    multiplied = 5 * 24 + 1 * 5 * 24 + 2 * 1 * 7 * 6
    assert stage_work(manifest, "early", 5, 2, 1) == Work(2 * multiplied, 4 * LAYER + 7 * ROW)


@pytest.mark.parametrize(("precision", "each"), [("fp16", 2.0), ("int8", 1.0), ("int8-weights", 4.0), ("int4", 0.625)])
def test_weights_are_read_in_their_precision_or_in_float(manifest: Manifest, precision: str, each: float) -> None:
    smaller = replace(manifest, precision=precision)
    assert stage_work(smaller, "late", 2, 1, 1).bytes == each * (2 * LAYER + 40) + 2 * 3 * ROW
    assert roofline.weight_bytes(smaller) == each * (3 * LAYER + 40)
    mixed = replace(smaller, calibration={"float_layers": ["late.1", "head"]})
    assert stage_work(mixed, "late", 2, 1, 1).bytes == each * LAYER + 4 * (LAYER + 40) + 2 * 3 * ROW


def test_stages_of_a_mixed_precision_have_their_own() -> None:
    assert {stage_precision(name, stage) for name in PRECISIONS for stage in STAGES} == set(roofline.ARITHMETIC)


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "EARN, shared keys": ("tiny-llama", {"early_layers": 2}),
    "one early layer, biases": ("tiny-qwen2", {}),
    "dense, heads wider than hidden": ("tiny-qwen3", {"prefix_registers": 0, "suffix_registers": 0}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_those_of_the_exported_products(shape: str, tmp_path: Path) -> None:
    name, settings = SHAPES[shape]
    model = small_model(name, **settings)
    bundle = bundle_model(model, max_batch=3, max_beams=8)
    export_stages(bundle, model.config, tmp_path)
    for stage in STAGES:
        for rows, cached, kept, batch in ((6, 0, 1, 1), (7, 5, 2, 1), (4, 9, 4, 3)):
            if not bundle.manifest.sizes.stage_layers(stage):
                cached = 0
            feeds = feeds_of(bundle.manifest, stage, rows, cached, kept, batch)
            found = stage_work(bundle.manifest, stage, rows, cached, kept, batch)
            assert found == slow_count(tmp_path / GRAPH_FILES[stage], feeds), (stage, rows, cached, kept, batch)


def feeds_of(manifest: Manifest, stage: str, rows: int, cached: int, kept: int, batch: int) -> dict[str, Array]:
    """Zeros in the shapes of the tensor table; the last rows are kept."""
    size = {"b": batch, "m": rows, "s": cached, "s+m": cached + rows, "r": kept}
    feeds: dict[str, Array] = {
        spec.name: np.zeros([size.get(axis.name, axis.most) for axis in spec.axes], spec.dtype)
        for spec in stage_specs(stage, manifest.sizes, manifest.limits).inputs
    }
    return {**feeds, "keep": np.arange(rows - kept, rows)}


def slow_count(path: Path, feeds: Mapping[str, Array]) -> Work:
    """Runs the graph, looks at the shapes of everything that is multiplied, and at the sizes of what is read."""
    graph = onnx.load(str(path))
    nodes = [node for node in graph.graph.node if node.op_type == "MatMul"]
    assert not {"Gemm", "Einsum", "Conv", "Attention"}.intersection(node.op_type for node in graph.graph.node)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    outputs = [output.name for output in graph.graph.output]
    tensors = dict.fromkeys(name for node in nodes for name in (node.input[0], node.output[0]) if name not in outputs)
    graph.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True)) | weights
    operations = sum(2 * found[node.output[0]].size * found[node.input[0]].shape[-1] for node in nodes)
    read = sum(weights[node.input[1]].nbytes for node in nodes if node.input[1] in weights)
    cache = sum(array.nbytes for name, array in {**feeds, **found}.items() if name in (PAST, NEW))
    return Work(operations, read + cache)


def test_the_limit_is_the_slower_of_matmuls_and_memory() -> None:
    assert least_ms(Work(3_000, 10), rate=1_000, bandwidth=10) == 3000  # 3 s of matmuls, 1 s of memory
    assert least_ms(Work(3_000, 50), rate=1_000, bandwidth=10) == 5000


@pytest.mark.parametrize("precision", roofline.ARITHMETIC)
def test_a_rate_is_operations_over_time_in_every_precision(
    manifest: Manifest, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "fastest", lambda run: run() or 0.5)
    bench = MatmulBench(manifest, precision, 1)
    assert bench.rate(5) == 2 * 5 * 3 * LAYER / 0.5  # all three layers: the model is small


def test_a_large_models_weights_leave_the_caches(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "last_cache_bytes", lambda: None)
    monkeypatch.setattr(roofline, "COLD_BYTES", 4 * LAYER + 1)  # one layer is not enough, two are
    assert roofline._layers(manifest.sizes, "fp32") == 2
    assert roofline._layers(manifest.sizes, "int8") == 3  # the model has no more
    monkeypatch.setattr(roofline, "last_cache_bytes", lambda: 2 * LAYER)
    assert roofline._layers(manifest.sizes, "fp32") == 2


def test_integer_products_are_fused(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    graph = roofline._graph("int8", [(8, 16), (16, 8)])
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(str(tmp_path / "optimized.onnx"))
    assert [node.op_type for node in optimized.graph.node] == ["MatMulIntegerToFloat"] * 2


def test_bandwidth_is_bytes_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "LEAST_ARRAY", 1 << 16)
    monkeypatch.setattr(roofline, "fastest", lambda run, least: run() and 0.5)
    for cache, read in ((None, 1 << 16), (1 << 15, 1 << 17)):
        monkeypatch.setattr(roofline, "last_cache_bytes", lambda cache=cache: cache)
        assert memory_bandwidth(3) == read / 0.5


def test_the_fastest_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0.0, 3.0, 10.0, 12.0, 20.0, 25.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    runs: list[None] = []
    assert roofline.fastest(lambda: runs.append(None), least=3, seconds=10.0) == 2.0
    assert len(runs) == 4  # the first is not counted


def test_without_onnx_the_remedy_is_named(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EarnError, match=r'pip install "earn-edge\[profile\]"'):
        MatmulBench(manifest, "fp32")
