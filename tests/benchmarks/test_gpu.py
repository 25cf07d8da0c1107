"""The GPU benchmark: bundles written in pieces are those of an export, and all of it but CUDA runs on the CPU."""

from __future__ import annotations

import json
import runpy
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from benchmarks import gpu, gpu_bundles, sides
from benchmarks.gpu import Clock, Row, compare, cpu_lists, one_line
from benchmarks.gpu_bundles import BLOCK, blocks, drawn_name, load_weights, random_model, vector, write_bundle
from benchmarks.sides import Side, measure, overlap, random_histories, same_order, timed
from earn.calibration.precisions import PRECISIONS, find_form
from earn.calibration.quantize import quantize
from earn.catalog import Catalog
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.parity import check_parity
from earn.export.stages import TorchEngine, bundle_model
from earn.manifest import GRAPH_FILES, Manifest
from earn.model.earn_model import EarnModel
from earn.prompts import prompt_rows
from earn.runtime.engine import load_engine
from earn.runtime.lists import Recommendation
from tests import forked
from tests.benchmarks.conftest import write_data
from tests.support import small_model, toy_catalog
from tests.tensorrt.conftest import bindings, cuda, nothing_stays, trt  # noqa: F401
from tests.tensorrt.simulated_gpu import SimulatedCuda

ROOT = Path(__file__).parent.parent.parent


def catalog() -> Catalog:
    """120 items."""
    codes = [(item % 6, item // 6 % 5, item % 7, item // 2) for item in range(120)]
    return toy_catalog(
        [" ".join(f"<{letter}_{code}>" for letter, code in zip("abcd", row, strict=True)) for row in codes]
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shape, prepared, in a folder with nothing beside it."""
    folder = tmp_path_factory.mktemp("prepared") / "tiny"
    gpu_bundles.prepare(sides.SHAPES["tiny"], folder, gpu.SHAPES["tiny"], catalog())
    return folder


@pytest.fixture(scope="module", params=["qwen2", pytest.param("llama", marks=pytest.mark.slow)])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shape of each family."""
    folder = tmp_path_factory.mktemp(request.param)
    row = replace(sides.SHAPES["tiny"], family=request.param)
    gpu_bundles.prepare(row, folder, ("fp32", "fp16"), catalog())
    return folder


def model_of(manifest: Manifest) -> EarnModel:
    """The EARN model with the weights that a bundle of this manifest has."""
    model = EarnModel(random_model(manifest.sizes, "fp32", "cpu"), manifest.model, catalog())
    model.eval()
    return model


def content(graph: ModelProto) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nodes by their outputs, and constants."""
    nodes = {
        node.output[0]: (node.op_type, node.name, list(node.input), str(node.attribute)) for node in graph.graph.node
    }
    return nodes, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def check_same(want: ModelProto, got: ModelProto) -> None:
    """Refuses graphs that differ in anything but the order of nodes that do not wait for each other."""
    (want_nodes, want_constants), (got_nodes, got_constants) = content(want), content(got)
    assert got_nodes == want_nodes
    assert got_constants.keys() == want_constants.keys()
    for name, value in want_constants.items():
        np.testing.assert_array_equal(got_constants[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize("split", gpu.SPLITS)
def test_a_bundle_written_in_pieces_is_an_exported_one(prepared: Path, split: str, tmp_path: Path) -> None:
    manifest = write_bundle(prepared / split / "fp32", tmp_path / "fp32")
    half = write_bundle(prepared / split / "fp16", tmp_path / "fp16")
    assert Manifest.load(tmp_path / "fp32") == manifest  # sums are right
    assert (half.precision, half.sizes, half.limits) == ("fp16", manifest.sizes, manifest.limits)
    model, histories = model_of(manifest), random_histories(catalog(), 3, manifest.limits.history)
    exported = export_bundle(
        model, tmp_path / "plain", histories, "vocab", gpu_bundles.MAX_BATCH, gpu_bundles.MAX_BEAMS
    )
    assert replace(exported, files=manifest.files, parity=None) == manifest
    form = find_form(PRECISIONS["fp16"], None)
    for file in GRAPH_FILES.values():
        plain = onnx.load(str(tmp_path / "plain" / file))
        check_same(plain, onnx.load(str(tmp_path / "fp32" / file)))
        check_same(quantize(plain, PRECISIONS["fp16"], form, {}), onnx.load(str(tmp_path / "fp16" / file)))


@pytest.mark.parametrize("split", gpu.SPLITS)
def test_a_bundle_written_in_pieces_computes_what_torch_computes(prepared: Path, split: str, tmp_path: Path) -> None:
    manifest = write_bundle(prepared / split / "fp32", tmp_path / "bundle")
    stages = bundle_model(model_of(manifest), "vocab").stages
    histories = random_histories(catalog(), 3, manifest.limits.history)
    engine = load_engine("cpu", tmp_path / "bundle", manifest)
    assert check_parity(TorchEngine(stages), engine, manifest, catalog(), histories) < 1e-4


def test_nothing_large_stands_in_what_is_prepared(prepared: Path) -> None:
    place = prepared / "earn" / "fp16"
    graph = onnx.load(str(place / "late.onnx"), load_external_data=False)
    large = [tensor for tensor in graph.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    joined = {weight.names: weight for weight in load_weights(place)}
    assert {tensor.data_type for tensor in large} == {TensorProto.FLOAT16}
    assert not any(tensor.raw_data for tensor in large)
    assert ("layers.1.q_proj", "layers.1.k_proj", "layers.1.v_proj") in joined  # of the whole model, not of the stage
    assert ("layers.3.k_proj", "layers.3.v_proj") in joined
    assert joined["layers.3.down_proj",].file == "late.onnx.data"
    assert not list(place.glob("*.data"))


def test_weights_are_drawn_by_name() -> None:
    rows, columns = BLOCK + 44, 100
    first, second = blocks("layers.0.up_proj", rows, columns)
    assert (first.shape, second.shape) == ((BLOCK, columns), (44, columns))
    assert first.dtype == np.float16
    again = np.concatenate(list(blocks("layers.0.up_proj", rows, columns)))
    np.testing.assert_array_equal(again, np.concatenate((first, second)))
    assert abs(again.astype(float).std() * rows**0.5 - 1) < 0.02
    assert abs(again.astype(float).mean()) < 0.001
    assert np.corrcoef(first.ravel(), next(blocks("layers.1.up_proj", rows, columns)).ravel())[0, 1] < 0.05
    assert np.corrcoef(first[:44].ravel(), second.ravel())[0, 1] < 0.05
    norm = vector("layers.0.input_layernorm", 10_000).astype(float)
    assert abs(norm.mean() - 1) < 0.01
    assert abs(norm.std() - 0.1) < 0.01


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.12.self_attn.q_proj.weight", "layers.12.q_proj"),
        ("model.layers.12.self_attn.q_proj.bias", "layers.12.q_proj.bias"),
        ("model.layers.0.mlp.down_proj.weight", "layers.0.down_proj"),
        ("model.layers.0.post_attention_layernorm.weight", "layers.0.post_attention_layernorm"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "head"),
    ],
)
def test_parameters_have_the_names_of_drawn_weights(parameter: str, name: str) -> None:
    assert drawn_name(parameter) == name


def test_shapes_are_those_that_the_table_says() -> None:
    assert gpu.SHAPES.keys() == sides.SHAPES.keys()
    texts = gpu_bundles.INSTRUCTION, gpu_bundles.TAIL
    for name, row in sides.SHAPES.items():
        lengths = {
            prompt_rows(config, sides.DEPTH) for config in sides.make_splits(row, 1024, *texts, row.history).values()
        }
        assert lengths == ({46} if name == "tiny" else {170})


def test_a_catalog_with_other_identifiers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match="other lengths than 4"):
        gpu_bundles.prepare(sides.SHAPES["tiny"], tmp_path, ("fp32",), toy_catalog())


def test_lists_are_compared() -> None:
    def items(*scores: tuple[str, float]) -> list[Recommendation]:
        return [Recommendation(item_id, score, "") for item_id, score in scores]

    near = items(("1", -1.0), ("2", -2.0), ("3", -2.00001))
    assert overlap([["1", "2"], ["3", "4"]], [["2", "1"], ["5", "3"]]) == 3 / 4
    assert same_order([["1", "2", "3"], ["1", "3", "2"], ["2", "1", "3"], ["1", "2", "4"]], [near] * 4) == 2 / 4
    row = Row("a", "cuda", "fp16", 1)
    compare(row, [near, near], [["1", "2", "4"]])
    assert (row.top10_overlap_with_cpu, row.same_order_as_cpu) == (round(2 / 3, 4), 0)


def test_sides_take_turns_and_one_that_fails_is_left_out() -> None:
    asked: list[str] = []

    def side(name: str, requests: int, fails_at: int = 99) -> Side:
        def ask() -> str:
            asked.append(name)
            if asked.count(name) == fails_at:
                raise RuntimeError("out of memory\nand more")
            return f"{name}{asked.count(name)}"

        return Side(lambda turn: [timed(ask)], requests, warm_up=0)

    failures: list[str] = []
    sides = {"a": side("a", 2), "b": side("b", 1, fails_at=2), "c": side("c", 1)}
    found = measure(sides, 3, lambda name, error: failures.append(f"{name}: {one_line(error)}"), pause=0)
    assert asked == ["a", "a", "b", "c", "a", "a", "b", "c", "a", "a", "c"]
    assert failures == ["b: RuntimeError: out of memory and more"]
    assert {name: (len(it.steps), it.answers[-1]) for name, it in found.items()} == {"a": (6, "a6"), "c": (3, "c3")}
    with pytest.raises(RuntimeError, match="out of memory"):
        measure({"d": side("d", 1, fails_at=1)}, 1, pause=0)
    late = measure({"a": side("a", 1)}, 5, time_is_up=lambda: True, pause=0)
    assert len(late["a"].steps) == 1


@pytest.mark.parametrize(
    ("item", "seconds", "why"),
    [
        ("1", 0.1, "no lists of the CPU, which was not done after 0.1 s"),
        ("no item", 60, "whose process ended with 1: earn.errors.EarnError: The catalog has no item 'no item'"),
    ],
)
def test_it_is_said_why_the_cpu_gives_no_lists(
    item: str, seconds: float, why: str, toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpu_lists(toy_bundle, [[item]], seconds, Clock(1)) is None
    assert why in capsys.readouterr().err


def test_without_time_every_row_is_there_and_empty(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = asked_for(tiny.parent, minutes=0.0)
    rows, trained = gpu.run(arguments, "cpu", tmp_path / "work")
    assert rows == [Row("tiny", "cpu", precision, batch) for precision in ("fp32", "fp16") for batch in (1, 2)]
    assert trained == []
    assert "no time for tiny fp16" in capsys.readouterr().err
    with pytest.raises(EarnError, match=r"holds no 0\.5b"):
        gpu.run(Namespace(**{**vars(arguments), "shapes": ["0.5b"]}), "cpu", tmp_path / "work")


def test_what_breaks_off_does_not_take_the_rest_along(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: Any, **settings: Any) -> Manifest:
        raise OSError("no space left")

    monkeypatch.setattr(gpu_bundles, "write_bundle", fail)
    rows, _ = gpu.run(asked_for(tiny.parent), "cpu", tmp_path / "work")
    assert len(rows) == 4
    said = capsys.readouterr().err
    assert "tiny fp32 broke off: OSError: no space left" in said
    assert "tiny fp16 broke off" in said


@pytest.mark.slow
@pytest.mark.usefixtures("trt")
def test_engines_are_built_measured_and_given_up(
    tiny: Path,
    tmp_path: Path,
    cuda: SimulatedCuda,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(gpu.SHAPES, "tiny", ("fp16",))
    arguments = asked_for(tiny.parent, engines=["tensorrt-rtx", "tensorrt"], batches=[2])
    rows, _ = gpu.run(arguments, "cpu", tmp_path / "work")
    assert "without tensorrt-rtx: EarnError: This needs onnxruntime_ep_nv_tensorrt_rtx" in capsys.readouterr().err
    (row,) = rows
    assert (row.engine, row.precision, row.batch) == ("tensorrt", "fp16", 2)
    assert row.earn_ms
    assert row.dense_ms
    assert row.hf_generate_ms
    assert row.top10_overlap_with_cpu == 1  # of the same fp16 bundle
    assert not list((tmp_path / "work").rglob("*.data"))
    assert cuda.taken == 0


def asked_for(prepared: Path, **others: Any) -> Namespace:
    """What a command line gives."""
    plain: Mapping[str, Any] = {
        "shapes": ["tiny"],
        "engines": ["cpu"],
        "batches": [1, 2],
        "repeats": 1,
        "prepared": prepared,
        "data": None,
        "bundle": None,
        "bundle_fp16": None,
        "minutes": 8.0,
    }
    return Namespace(**{**plain, **others})


def test_a_machine_without_a_gpu_is_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--shapes", "tiny"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^2$"):
        gpu.main()
    assert "sees no CUDA device" in capsys.readouterr().err


@forked.needs_fork
def test_a_machine_without_a_gpu_needs_no_exporter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--shapes", "tiny"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def program() -> None:
        forked.forget("benchmarks", "earn", "optimum", "onnx")
        sys.modules["optimum"] = sys.modules["onnx"] = None  # type: ignore[assignment]
        runpy.run_path(str(ROOT / "benchmarks/gpu.py"), run_name="__main__")

    assert forked.run(program, tmp_path / "log") == 2
    (said,) = (tmp_path / "log").read_text().splitlines()
    assert "sees no CUDA device" in said


@pytest.mark.slow
def test_all_of_it_but_cuda_runs_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = catalog()
    write_data(tmp_path, items, {f"user{start}": items.item_ids[start : start + 5] for start in range(0, 60, 5)})
    trained = small_model("tiny-qwen2", catalog=items)
    export_bundle(trained, tmp_path / "trained", [["1", "2"]], max_beams=20)
    options = {"--engines": "cpu", "--shapes": "tiny", "--batches": "3", "--repeats": "1", "--data": str(tmp_path)}
    options |= {"--bundle": str(tmp_path / "trained")}
    monkeypatch.setattr("sys.argv", ["gpu.py", *(word for pair in options.items() for word in pair)])
    capsys.readouterr()
    gpu.main()
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert (result["gpu"], result["engines"]) == (None, ["cpu"])
    assert [(run["precision"], run["batch"]) for run in result["runs"]] == [("fp32", 3), ("fp16", 3)]
    for run in result["runs"]:
        assert min(run[f"{name}_ms"] for name in ("earn", "dense", "hf_generate", "hf_unconstrained")) > 0
        least = 1 if run["precision"] == "fp32" else 0.8
        assert run["dense_overlap_with_hf"] >= least
        assert run["top10_overlap_with_cpu"] >= least
    assert result["runs"][0]["same_order_as_cpu"] == 1
    assert [(run["shape"], run["top10_overlap_with_cpu"]) for run in result["trained"]] == [("trained", 1)]
    assert "WARNING" not in said.err
