from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.runtime.engine import ENGINES, OnnxEngine, OnnxStages, check_graph, load_engine
from earn.runtime.recommender import Recommender
from earn.specs import Axis, StageSpecs, TensorSpec


def node(name: str, shape: list[Any], kind: str = "tensor(float)") -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=shape, type=kind)


def graph(inputs: list[SimpleNamespace], outputs: list[SimpleNamespace]) -> SimpleNamespace:
    return SimpleNamespace(get_inputs=lambda: inputs, get_outputs=lambda: outputs)


B, D = Axis("b", 1, 2, 4), Axis("d", 8, 8, 8)
SPECS = StageSpecs(
    inputs=(TensorSpec("hidden", (B, D), "float32"), TensorSpec("keep", (B,), "int64")),
    outputs=(TensorSpec("logits", (B, D), "float32"),),
)


def test_a_graph_of_the_table_passes() -> None:
    inputs = [node("keep", ["r"], "tensor(int64)"), node("hidden", ["batch", 8])]
    check_graph(graph(inputs, [node("logits", ["b", 8])]), SPECS, Path("late.onnx"))


def test_every_difference_from_the_table_is_listed() -> None:
    wrong = graph(
        [node("hidden", ["b", 9]), node("keep", ["r"], "tensor(int32)"), node("mask", ["b"])],
        [node("scores", ["b", 8])],
    )
    with pytest.raises(EarnError) as raised:
        check_graph(wrong, SPECS, Path("late.onnx"))
    for part in (
        "late.onnx: not the graph of its manifest",
        "input hidden is tensor(float) ['b', 9]",
        "input keep is tensor(int32) ['r']",
        "input mask is not in the table",
        "output logits is missing",
        "output scores is not in the table",
        "Export the checkpoint again.",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize("shape", [["b"], ["b", 8, 1], ["b", "d"]])
def test_ranks_and_fixed_sizes_are_compared(shape: list[Any]) -> None:
    inputs = [node("hidden", shape), node("keep", ["r"], "tensor(int64)")]
    with pytest.raises(EarnError, match="input hidden"):
        check_graph(graph(inputs, [node("logits", ["b", 8])]), SPECS, Path("late.onnx"))


def test_an_unknown_engine_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(EarnError, match=r"no engine 'npu'.*cpu"):
        load_engine("npu", toy_bundle, Manifest.load(toy_bundle))


@pytest.mark.parametrize("threads", [0, 100_000, "2"])
def test_a_number_of_threads_out_of_range_is_refused(toy_bundle: Path, threads: Any) -> None:
    with pytest.raises(EarnError, match=f"threads is {threads!r}"):
        load_engine("cpu", toy_bundle, Manifest.load(toy_bundle), threads=threads)


def test_an_engine_that_is_not_there_is_an_error_with_its_remedy(toy_bundle: Path) -> None:
    engine = OnnxEngine("NoSuchExecutionProvider", "pip install nosuch")
    with pytest.raises(EarnError, match=r"has no NoSuchExecutionProvider, only .*pip install nosuch"):
        OnnxStages(engine, toy_bundle, Manifest.load(toy_bundle), None)


def test_a_silent_fallback_is_an_error(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["FastExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *_, **__: SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"]),
    )
    with pytest.raises(EarnError, match="asked for FastExecutionProvider, got CPUExecutionProvider"):
        OnnxStages(OnnxEngine("FastExecutionProvider", ""), toy_bundle, Manifest.load(toy_bundle), None)


def test_a_broken_graph_is_named(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    (bundle / "late.onnx").write_bytes(b"not a graph")
    with pytest.raises(EarnError, match=r"late\.onnx: ONNX Runtime cannot load it"):
        load_engine("cpu", bundle, manifest)


def test_graphs_of_another_model_are_refused(bundle: Path) -> None:
    loaded = Manifest.load(bundle)
    (bundle / "late.onnx").write_bytes((bundle / "early.onnx").read_bytes())
    with pytest.raises(EarnError, match=r"late\.onnx: not the graph of its manifest.*input hidden is missing"):
        load_engine("cpu", bundle, loaded)


def test_threads_of_one_stage_do_not_spin_while_the_other_runs(toy_bundle: Path) -> None:
    engine = load_engine("cpu", toy_bundle, Manifest.load(toy_bundle), threads=2)
    assert isinstance(engine, OnnxStages)
    for session in engine._sessions.values():
        assert session.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"


def test_an_engine_gives_every_output_by_name(toy_bundle: Path) -> None:
    loaded = Manifest.load(toy_bundle)
    engine = load_engine("cpu", toy_bundle, loaded, threads=1)
    sizes = loaded.sizes
    cache = np.zeros((1, sizes.key_value_heads, 0, sizes.head_size), np.float32)
    outputs = engine.run(
        "early",
        {
            "input_ids": np.array([[0, 1, 2]]),
            "position_ids": np.array([[0, 1, 2]]),
            "attention_bias": np.zeros((1, 1, 3, 3), np.float32),
            "keep": np.array([2]),
            **{f"past_key_values.{layer}.{part}": cache for layer in range(2) for part in ("key", "value")},
        },
    )
    assert outputs["hidden"].shape == (1, 1, sizes.hidden)
    assert outputs["new_key_values.1.value"].shape == (1, sizes.key_value_heads, 3, sizes.head_size)
    assert len(outputs) == 5


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_every_engine_answers_alike_on_any_number_of_threads(toy_bundle: Path, name: str, threads: int | None) -> None:
    want = Recommender.load(toy_bundle, threads=1).recommend(["1", "2"])
    if ENGINES[name].provider not in onnxruntime.get_available_providers():
        pytest.skip(f"no {ENGINES[name].provider} here")
    got = Recommender.load(toy_bundle, name, threads).recommend(["1", "2"])
    assert [item.item_id for item in got] == [item.item_id for item in want]
    assert [item.score for item in got] == pytest.approx([item.score for item in want], abs=1e-5)
