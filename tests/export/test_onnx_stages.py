from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from earn.config import MASKED, Prompt
from earn.export import onnx_stages
from earn.export.onnx_stages import OPSET, export_stages
from earn.export.stages import BundleModel, TorchEngine, bundle_model
from earn.manifest import GRAPH_FILES
from earn.model.earn_model import EarnModel
from earn.model.reference import reference_search
from earn.runtime.engine import load_engine
from earn.runtime.memory import Array
from earn.runtime.recommender import Recommender
from earn.specs import STAGES, Axis, all_specs
from tests.support import FAMILIES, Agreement, assert_close, outputs_for, pairs, small_model, sweep

TEXT = Prompt(head=(1, 2), separator=(3,), tail=(4, 5))
SHAPES: dict[str, dict[str, Any]] = {
    "one register per side": {},
    "two registers per side, text": {"prefix_registers": 2, "suffix_registers": 2, "prompt": TEXT, "early_layers": 2},
    "suffix register alone": {"prefix_registers": 0},
    "tail instead of a suffix register": {"suffix_registers": 0, "prompt": Prompt(tail=(4, 5))},
    "registers, but no late layer": {"early_layers": 4},
    "dense": {"prefix_registers": 0, "suffix_registers": 0},
}


def exported(folder: Path, name: str, shape: str, max_batch: int, max_beams: int) -> tuple[BundleModel, EarnModel]:
    model = small_model(name, **SHAPES[shape])
    bundle = bundle_model(model, max_batch=max_batch, max_beams=max_beams)
    export_stages(bundle, model.config, folder)
    return bundle, model


def example(bundle: BundleModel, stage: str, seed: int) -> dict[str, Array]:
    """Random feeds of random sizes within the tensor table; every row sees itself."""
    generator = np.random.default_rng(seed)
    specs = all_specs(bundle.manifest.sizes, bundle.manifest.limits)[stage]
    b, m = int(generator.integers(1, 4)), int(generator.integers(1, 5))
    s = int(generator.integers(0, 6))
    size = {"b": b, "m": m, "s": s, "s+m": s + m}
    feeds: dict[str, Array] = {}
    for spec in specs.inputs:
        shape = [axis.most if axis.is_fixed else size.get(axis.name, 0) for axis in spec.axes]
        feeds[spec.name] = generator.normal(0, 1, shape).astype(np.float32)
        if spec.name == "input_ids":
            feeds[spec.name] = generator.integers(0, bundle.manifest.sizes.embedding_rows, shape)
        elif spec.name == "position_ids":
            feeds[spec.name] = generator.integers(0, bundle.manifest.limits.prompt, shape)
        elif spec.name == "attention_bias":
            sees = (generator.random(shape) < 0.6) | np.eye(m, s + m, s, dtype=bool)
            feeds[spec.name] = np.where(sees, 0, MASKED).astype(np.float32)
        elif spec.name == "keep":
            feeds[spec.name] = np.sort(generator.choice(m, int(generator.integers(1, m + 1)), replace=False))
    return feeds


CASES = [*(("tiny-llama", shape) for shape in SHAPES), ("tiny-qwen2", "one register per side"), ("tiny-qwen3", "dense")]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_graphs_compute_what_torch_computes(tmp_path: Path, name: str, shape: str) -> None:
    bundle, _ = exported(tmp_path, name, shape, max_batch=3, max_beams=8)
    torch_engine, engine = TorchEngine(bundle.stages), load_engine("cpu", tmp_path, bundle.manifest, 1)
    specs = all_specs(bundle.manifest.sizes, bundle.manifest.limits)
    for stage in STAGES:
        for seed in range(8):
            feeds = example(bundle, stage, seed)
            want, got = (outputs_for(specs[stage], feeds) for _ in range(2))
            torch_engine.run(stage, feeds, want)
            engine.run(stage, feeds, got)
            for output, array in want.items():
                assert np.isfinite(array).all(), output
                assert_close(array, got[output], 1e-4, f"{stage} {output}, seed {seed}")


def test_names_and_axes_are_those_of_the_tensor_table(tmp_path: Path) -> None:
    bundle, _ = exported(tmp_path, "tiny-qwen3", "two registers per side, text", max_batch=3, max_beams=8)
    for stage, specs in all_specs(bundle.manifest.sizes, bundle.manifest.limits).items():
        graph = onnx.load(str(tmp_path / GRAPH_FILES[stage]))
        onnx.checker.check_model(graph)
        assert {entry.domain: entry.version for entry in graph.opset_import} == {"": OPSET}
        assert [node.name for node in graph.graph.input] == [spec.name for spec in specs.inputs]
        assert [node.name for node in graph.graph.output] == [spec.name for spec in specs.outputs]
        for node, spec in zip([*graph.graph.input, *graph.graph.output], [*specs.inputs, *specs.outputs], strict=True):
            axes = [axis.dim_param or axis.dim_value for axis in node.type.tensor_type.shape.dim]
            assert axes == [named(axis) for axis in spec.axes], spec.name


def named(axis: Axis) -> str | int:
    return axis.most if axis.is_fixed else axis.name


def test_both_rules_over_identifier_tokens_share_their_graphs(tmp_path: Path) -> None:
    model = small_model()
    for scoring in ("trie", "level"):
        (tmp_path / scoring).mkdir()
        export_stages(bundle_model(model, scoring), model.config, tmp_path / scoring)
    for name in GRAPH_FILES.values():
        assert (tmp_path / "trie" / name).read_bytes() == (tmp_path / "level" / name).read_bytes()


@pytest.mark.skipif(
    onnx_stages.choose_exporter() is onnx_stages.export_by_torch, reason="Optimum cannot be imported here"
)
@pytest.mark.parametrize(("name", "shape"), [*zip(FAMILIES, list(SHAPES), strict=False), ("tiny-qwen3", "dense")])
def test_optimum_and_torch_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: str
) -> None:
    written = []
    for exporter in (onnx_stages.export_by_optimum, onnx_stages.export_by_torch):
        monkeypatch.setattr(onnx_stages, "choose_exporter", lambda exporter=exporter: exporter)
        folder = tmp_path / exporter.__name__
        folder.mkdir()
        exported(folder, name, shape, max_batch=3, max_beams=8)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert sorted(written[0]) == sorted(GRAPH_FILES.values())
    assert written[0] == written[1]


@pytest.mark.parametrize("missing", ["optimum", "optimum.exporters.onnx"])
def test_without_optimum_torch_exports(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert onnx_stages.choose_exporter() is onnx_stages.export_by_torch


LIMITS = ((1, 1), (1, 8), (3, 1))
FEW = list(zip(list(SHAPES)[-3:], LIMITS, strict=True))


@pytest.mark.parametrize(("shape", "limits"), sweep(FEW, product(SHAPES, LIMITS)), ids=str)
def test_one_user_and_one_beam_alone_can_be_exported(tmp_path: Path, shape: str, limits: tuple[int, int]) -> None:
    batch, beams = limits
    bundle, model = exported(tmp_path, "tiny-llama", shape, max_batch=batch, max_beams=beams)
    recommender = Recommender(load_engine("cpu", tmp_path, bundle.manifest, 1), bundle.manifest, model.catalog)
    agreement = Agreement()
    histories = [[1, 2, 3], [4], [5, 6]]
    found = recommender.recommend_batch(histories, beams, beams)
    for history, items in zip(histories, found, strict=True):
        agreement.add(str(history), reference_search(model, history, beams, beams), pairs(items))
    agreement.check()


@pytest.mark.parametrize("name", FAMILIES[1:])
def test_exporting_leaves_the_model_as_it_was(tmp_path: Path, name: str) -> None:
    model = small_model(name, early_layers=2)
    settings, before = model.config.to_dict(), reference_search(model, [1, 2])
    export_stages(bundle_model(model), model.config, tmp_path)
    assert model.config.to_dict() == settings
    assert reference_search(model, [1, 2]) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(GRAPH_FILES.values())
