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

Tensors = dict[str, tuple[str, list[Any]]]


def graph(inputs: Tensors, outputs: Tensors) -> SimpleNamespace:
    """What a session says of its graph; a tensor is its type and axes."""

    def nodes(tensors: Tensors) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(name=name, type=f"tensor({kind})", shape=axes) for name, (kind, axes) in tensors.items()
        ]

    return SimpleNamespace(get_inputs=lambda: nodes(inputs), get_outputs=lambda: nodes(outputs))


B, D = Axis("b", 1, 2, 4), Axis("d", 8, 8, 8)
SPECS = StageSpecs(
    inputs=(TensorSpec("hidden", (B, D), "float32"), TensorSpec("keep", (B,), "int64")),
    outputs=(TensorSpec("logits", (B, D), "float32"),),
)
KEEP: tuple[str, list[Any]] = ("int64", ["r"])
LOGITS: tuple[str, list[Any]] = ("float", ["b", 8])


def test_every_difference_from_the_table_is_listed() -> None:
    check_graph(graph({"keep": KEEP, "hidden": ("float", ["batch", 8])}, {"logits": LOGITS}), SPECS, Path("late.onnx"))
    inputs: Tensors = {"hidden": ("float", ["b", 9]), "keep": ("int32", ["r"]), "mask": ("float", ["b"])}
    with pytest.raises(EarnError) as raised:
        check_graph(graph(inputs, {"scores": LOGITS}), SPECS, Path("late.onnx"))
    for part in (
        "late.onnx: not the graph of its manifest",
        "input hidden is tensor(float) ['b', 9]",
        "input keep is tensor(int32) ['r']",
        "input mask is not in the table",
        "output logits is missing",
        "output scores is not in the table",
    ):
        assert part in str(raised.value)
    for axes in (["b"], ["b", 8, 1], ["b", "d"]):
        with pytest.raises(EarnError, match="input hidden"):
            check_graph(graph({"keep": KEEP, "hidden": ("float", axes)}, {"logits": LOGITS}), SPECS, Path("late.onnx"))


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


def test_broken_graphs_and_those_of_another_model_are_refused(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    for content, says in (
        (b"not a graph", r"late\.onnx: ONNX Runtime cannot load it"),
        ((bundle / "early.onnx").read_bytes(), r"late\.onnx: not the graph of its manifest.*input hidden is missing"),
    ):
        (bundle / "late.onnx").write_bytes(content)
        with pytest.raises(EarnError, match=says):
            load_engine("cpu", bundle, manifest)


@pytest.mark.parametrize("asked", [False, True])
def test_threads_of_one_stage_spin_while_the_other_runs_and_memory_is_kept_only_where_asked_for(
    asked: bool, toy_bundle: Path
) -> None:
    engine = load_engine("cpu", toy_bundle, Manifest.load(toy_bundle), threads=2, spinning=asked, arena=asked)
    assert isinstance(engine, OnnxEngine)
    for session in engine._sessions.values():
        options = session.get_session_options()
        assert (options.intra_op_num_threads, options.enable_cpu_mem_arena) == (2, asked)
        if asked:
            with pytest.raises(RuntimeError, match="force_spinning_stop"):  # no such entry
                options.get_session_config_entry("session.force_spinning_stop")
        else:
            assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize(
    "settings",
    [{"spinning": True}, {"arena": True}, {"threads": 2}, {"threads": None}, *({"engine": n} for n in ENGINES)],
)
def test_no_setting_or_engine_changes_an_answer(toy_bundle: Path, settings: dict[str, Any]) -> None:
    if "engine" in settings and (why := why_not(settings["engine"], toy_bundle, Manifest.load(toy_bundle))):
        pytest.skip(why)
    want = Recommender.load(toy_bundle, threads=1).recommend(["1", "2"], 8)
    one = {} if "engine" in settings else {"threads": 1}
    got = Recommender.load(toy_bundle, **{**one, **settings}).recommend(["1", "2"], 8)
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
def test_an_engine_writes_every_output_into_the_memory_that_it_is_given_and_nowhere_else(
    toy: tuple[Manifest, OnnxEngine], stage: str
) -> None:
    manifest, engine = toy
    feeds, outputs = call(manifest, stage)
    assert list(outputs) == [{"early": "hidden", "late": "logits"}[stage], NEW]
    want = dict(zip(outputs, engine._sessions[stage].run(list(outputs), feeds), strict=True))
    room = np.full((PAST_ROWS + ROWS + 2, *feeds[PAST].shape[1:]), np.nan, np.float32)
    room[:PAST_ROWS] = feeds[PAST]
    before = {name: array.copy() for name, array in feeds.items()}
    engine.run(stage, {**feeds, PAST: room[:PAST_ROWS]}, outputs | {NEW: room[PAST_ROWS : PAST_ROWS + ROWS]})
    first = next(iter(outputs))
    assert np.array_equal(outputs[first], want[first])
    assert np.array_equal(room[PAST_ROWS : PAST_ROWS + ROWS], want[NEW])
    assert np.array_equal(room[:PAST_ROWS], before[PAST])
    assert np.isnan(room[PAST_ROWS + ROWS :]).all()
    assert all(np.array_equal(array, before[name]) for name, array in feeds.items())


def strided(array: Array) -> Array:
    """The same values, every second place of a larger array."""
    larger = np.zeros([2 * size for size in array.shape], array.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def broadcast(array: Array) -> Array:
    """The first user's values for all, from one place."""
    return array if array.ndim < 2 else np.broadcast_to(array[:1], array.shape)


@pytest.mark.parametrize("lay", [strided, np.asfortranarray, broadcast])
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
