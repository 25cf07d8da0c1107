from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.runtime.engine import ENGINES, load_engine, onnx_row, why_not
from earn.runtime.memory import Array
from earn.runtime.onnx_engine import OnnxEngine, Provider, check_graph, session_options
from earn.runtime.recommender import Recommender
from earn.specs import NEW, PAST, Axis, StageSpecs, TensorSpec, stage_specs
from tests.support import outputs_for


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


def test_an_engine_that_is_not_there_is_an_error_with_its_remedy(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "npu", onnx_row(Provider("NoSuchExecutionProvider", "pip install nosuch")))
    with pytest.raises(EarnError, match=r"has no NoSuchExecutionProvider, only .*pip install nosuch"):
        load_engine("npu", toy_bundle, Manifest.load(toy_bundle))


def test_a_silent_fallback_is_an_error(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["FastExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *_, **__: SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"]),
    )
    with pytest.raises(EarnError, match="asked for FastExecutionProvider, got CPUExecutionProvider"):
        OnnxEngine(
            Provider("FastExecutionProvider", "", on_gpu=False),
            toy_bundle,
            Manifest.load(toy_bundle),
            lambda: session_options(None, False, False),
        )


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


def options_of(bundle: Path, **settings: bool) -> list[Any]:
    """The session options that both stages were loaded with."""
    engine = load_engine("cpu", bundle, Manifest.load(bundle), threads=2, **settings)
    assert isinstance(engine, OnnxEngine)
    return [session.get_session_options() for session in engine._sessions.values()]


def test_threads_of_one_stage_do_not_spin_while_the_other_runs(toy_bundle: Path) -> None:
    for options in options_of(toy_bundle):
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert not options.enable_cpu_mem_arena
        assert options.intra_op_num_threads == 2


def test_spinning_and_kept_memory_can_be_asked_for(toy_bundle: Path) -> None:
    for options in options_of(toy_bundle, spinning=True, arena=True):
        with pytest.raises(RuntimeError, match="force_spinning_stop"):  # no such entry
            options.get_session_config_entry("session.force_spinning_stop")
        assert options.enable_cpu_mem_arena


@pytest.mark.parametrize("settings", [{"spinning": True}, {"arena": True}, {"threads": 2}, {"threads": None}])
def test_no_setting_changes_an_answer(toy_bundle: Path, settings: dict[str, Any]) -> None:
    want = Recommender.load(toy_bundle, threads=1).recommend(["1", "2"], 8)
    got = Recommender.load(toy_bundle, **{"threads": 1, **settings}).recommend(["1", "2"], 8)
    assert [item.item_id for item in got] == [item.item_id for item in want]
    assert [item.score for item in got] == pytest.approx([item.score for item in want], abs=1e-5)


USERS, PAST_ROWS, ROWS = 2, 4, 3


def call(manifest: Manifest, stage: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Feeds of a stage of the toy bundle, and arrays for what it answers."""
    generator = np.random.default_rng(0)
    size = {"b": USERS, "m": ROWS, "s": PAST_ROWS, "s+m": PAST_ROWS + ROWS, "r": 2}
    specs = stage_specs(stage, manifest.sizes, manifest.limits)
    feeds: dict[str, Array] = {
        spec.name: generator.normal(0, 1, [size.get(axis.name, axis.most) for axis in spec.axes]).astype(np.float32)
        for spec in specs.inputs
    }
    feeds["position_ids"] = np.array([[4, 5, 6], [7, 8, 9]])
    feeds["keep"] = np.array([0, 2])
    if stage == "early":
        feeds["input_ids"] = np.array([[0, 1, 2], [3, 4, 5]])
    return feeds, outputs_for(specs, feeds)


@pytest.fixture(scope="module")
def toy(toy_bundle: Path) -> tuple[Manifest, OnnxEngine]:
    manifest = Manifest.load(toy_bundle)
    engine = load_engine("cpu", toy_bundle, manifest, threads=1)
    assert isinstance(engine, OnnxEngine)
    return manifest, engine


@pytest.mark.parametrize("stage", ["early", "late"])
def test_an_engine_writes_every_output_by_name(toy: tuple[Manifest, OnnxEngine], stage: str) -> None:
    manifest, engine = toy
    feeds, outputs = call(manifest, stage)
    assert list(outputs) == [{"early": "hidden", "late": "logits"}[stage], NEW]
    engine.run(stage, feeds, outputs)
    want = engine._sessions[stage].run(list(outputs), feeds)
    for array, values in zip(outputs.values(), want, strict=True):
        assert array.shape == values.shape
        assert np.array_equal(array, values)
        assert np.isfinite(array).all()


@pytest.mark.parametrize("stage", ["early", "late"])
def test_an_engine_writes_into_the_memory_that_it_is_given_and_nowhere_else(
    toy: tuple[Manifest, OnnxEngine], stage: str
) -> None:
    manifest, engine = toy
    feeds, outputs = call(manifest, stage)
    engine.run(stage, feeds, outputs)
    room = np.full((PAST_ROWS + ROWS + 2, *feeds[PAST].shape[1:]), np.nan, np.float32)
    room[:PAST_ROWS] = feeds[PAST]
    new = room[PAST_ROWS : PAST_ROWS + ROWS]
    before = {name: array.copy() for name, array in feeds.items()}
    inside = {name: np.empty_like(array) for name, array in outputs.items()} | {NEW: new}
    engine.run(stage, {**feeds, PAST: room[:PAST_ROWS]}, inside)
    assert np.array_equal(new, outputs[NEW])
    assert np.array_equal(room[:PAST_ROWS], before[PAST])
    assert np.isnan(room[PAST_ROWS + ROWS :]).all()
    assert all(np.array_equal(array, before[name]) for name, array in feeds.items())


def strided(array: Array) -> Array:
    """The same values, every second place of a larger array."""
    larger = np.zeros([2 * size for size in array.shape], array.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def turned(array: Array) -> Array:
    """The same values, the last axis outermost in memory."""
    return np.asfortranarray(array)


def broadcast(array: Array) -> Array:
    """The first user's values for all, from one place."""
    return array if array.ndim < 2 else np.broadcast_to(array[:1], array.shape)


@pytest.mark.parametrize("lay", [strided, turned, broadcast])
@pytest.mark.parametrize("stage", ["early", "late"])
def test_arrays_that_do_not_lie_in_one_piece_are_read_right(
    toy: tuple[Manifest, OnnxEngine], stage: str, lay: Callable[[Array], Array]
) -> None:
    manifest, engine = toy
    feeds, want = call(manifest, stage)
    laid = {name: lay(array) for name, array in feeds.items()}
    assert not all(array.flags.c_contiguous for array in laid.values())
    engine.run(stage, {name: array.copy() for name, array in laid.items()}, want)
    got = {name: np.full_like(array, np.nan) for name, array in want.items()}
    engine.run(stage, laid, got)
    assert all(np.array_equal(array, got[name]) for name, array in want.items())


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_answers_alike(toy_bundle: Path, name: str) -> None:
    want = Recommender.load(toy_bundle, threads=1).recommend(["1", "2"])
    if why := why_not(name, toy_bundle, Manifest.load(toy_bundle)):
        pytest.skip(why)
    got = Recommender.load(toy_bundle, name).recommend(["1", "2"])
    assert [item.item_id for item in got] == [item.item_id for item in want]
    assert [item.score for item in got] == pytest.approx([item.score for item in want], abs=1e-5)
