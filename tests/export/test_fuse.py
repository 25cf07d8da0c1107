from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, helper

from earn.export.onnx_stages import export_stages
from earn.export.simplify import fuse_projections
from earn.export.stages import bundle_model
from earn.manifest import GRAPH_FILES
from earn.model.earn_model import EarnModel
from earn.runtime.memory import Array
from earn.specs import PAST, STAGES
from tests.export.test_simplify import Axes, graph, matmul, operators, run, weights
from tests.support import FAMILIES, assert_close, small_model

WIDTHS = {"q": 6, "k": 2, "v": 2}


def arrays(biased: str = "") -> dict[str, Array]:
    """Weights of q, k and v over 4 channels, and biases of those that are named."""
    generator = np.random.default_rng(0)
    found = {
        f"layers.3.{name}_proj.weight": generator.standard_normal((4, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }
    return found | {f"{name}.bias": generator.standard_normal(WIDTHS[name]).astype(np.float32) for name in biased}


def projections(which: str, biased: str = "", sources: str = "xxx") -> list[NodeProto]:
    """The products, each of its own source, and what adds the biases: their results are the letters of `which`."""
    nodes = []
    for name, source in zip(which, sources, strict=False):
        place = f"layers.3.{name}_proj"
        nodes.append(matmul(place, source, f"{place}.weight", f"{name}.product" if name in biased else name))
        if name in biased:
            nodes.append(helper.make_node("Add", [f"{name}.bias", f"{name}.product"], [name], f"{name}.add"))
    return nodes


def joined(which: str, axis: int = -1) -> NodeProto:
    return helper.make_node("Concat", list(which), ["y"], "side by side", axis=axis)


def model_of(nodes: Sequence[NodeProto], width: int | str = "columns", biased: str = "", **inputs: int) -> ModelProto:
    axes: dict[str, Axes] = {name: ["b", "m", size] for name, size in (inputs or {"x": 4}).items()}
    return graph(nodes, axes, {"y": ["b", "rows", width]}, **arrays(biased))


def fused(model: ModelProto) -> ModelProto:
    """A fused copy, which is a valid graph and computes the same."""
    changed = ModelProto()
    changed.CopyFrom(model)
    fuse_projections(changed)
    onnx.checker.check_model(changed, full_check=True)
    generator = np.random.default_rng(1)
    feeds = {
        value.name: generator.standard_normal((2, 3, value.type.tensor_type.shape.dim[2].dim_value)).astype(np.float32)
        for value in model.graph.input
    }
    for want, got in zip(run(model, feeds), run(changed, feeds), strict=True):
        assert_close(want, got, 1e-6)
    return changed


@pytest.mark.parametrize(("which", "biased"), [("qkv", ""), ("qkv", "qkv"), ("kv", ""), ("kv", "kv")])
def test_products_side_by_side_become_one(which: str, biased: str) -> None:
    width = sum(WIDTHS[name] for name in which)
    changed = fused(model_of([*projections(which, biased), joined(which)], width, biased))
    name = f"layers.3.{which}_proj"
    added = [("Add", f"{name}.biased")] if biased else []
    assert [(node.op_type, node.name) for node in changed.graph.node] == [("MatMul", name), *added]
    want = [np.concatenate([arrays()[f"layers.3.{one}_proj.weight"] for one in which], axis=1)]
    want += [np.concatenate([arrays(biased)[f"{one}.bias"] for one in which])] if biased else []
    assert all(np.array_equal(*both) for both in zip(weights(changed).values(), want, strict=True))


def test_a_product_that_others_read_too_stays_for_them() -> None:
    nodes = [*projections("qkv"), joined("qkv"), helper.make_node("Neg", ["k"], ["negative"])]
    model = graph(nodes, {"x": ["b", "m", 4]}, {"y": ["b", "m", 10], "negative": ["b", "m", 2]}, **arrays())
    changed = fused(model)
    assert sorted(node.name for node in changed.graph.node if node.op_type == "MatMul") == [
        "layers.3.k_proj",
        "layers.3.qkv_proj",
    ]
    assert weights(changed).keys() == {"layers.3.k_proj.weight", "layers.3.qkv_proj.weight"}


TURNED = helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1])
SCORES = helper.make_node("MatMul", ["x", "turned"], ["s"], "layers.3.v_proj")
APART: dict[str, ModelProto] = {
    "other activations": model_of([*projections("qkv", sources="xzx"), joined("qkv")], x=4, z=4),
    "a bias on one alone": model_of([*projections("qkv", "k"), joined("qkv")], biased="k"),
    "another axis": model_of([*projections("kv"), joined("kv", 1)], 2),
    "a function between": model_of([*projections("qk"), helper.make_node("Tanh", ["k"], ["t"]), joined("qt")]),
    "no product": model_of([*projections("kv"), joined("kvx")]),
    "a product of two activations": model_of([*projections("k"), TURNED, SCORES, joined("ks")]),
    "an activation added": model_of([*projections("kv"), helper.make_node("Add", ["k", "v"], ["b"]), joined("bv")]),
}


@pytest.mark.parametrize("why", APART)
def test_what_is_not_side_by_side_stays_apart(why: str) -> None:
    model = APART[why]
    changed = fused(model)
    assert operators(changed) == operators(model)
    assert [node.name for node in changed.graph.node] == [node.name for node in model.graph.node]
    read = {name for node in model.graph.node for name in node.input}
    assert weights(changed).keys() == weights(model).keys() & read


DENSE: dict[str, Any] = {"prefix_registers": 0, "suffix_registers": 0}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"early_layers": 3}) for name in FAMILIES},
    "dense": ("tiny-llama", DENSE),
}


@pytest.fixture(scope="module", params=BACKBONES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EarnModel, Path]:
    """A model of three early layers, or four where it is dense, and the folder of its graphs."""
    name, shape = BACKBONES[request.param]
    model = small_model(name, **shape)
    folder = tmp_path_factory.mktemp("fused")
    export_stages(bundle_model(model, max_batch=3, max_beams=8), model.config, folder)
    return model, folder


def test_exported_layers_have_one_product_but_the_last_which_has_two(exported: tuple[EarnModel, Path]) -> None:
    model, folder = exported
    sizes = bundle_model(model).manifest.sizes
    for stage in STAGES:
        loaded = onnx.load(str(folder / GRAPH_FILES[stage]))
        layers = sizes.stage_layers(stage)
        want = {f"layers.{number}.qkv_proj" for number in range(layers - 1)}
        want |= {f"layers.{layers - 1}.{name}_proj" for name in ("kv", "q") if layers}
        found = [node for node in loaded.graph.node if "v_proj" in node.name or "q_proj" in node.name]
        assert {node.name for node in found if node.op_type == "MatMul"} == want
        assert not [name for name in weights(loaded) if ".k_proj" in name or ".v_proj" in name]
        biased = {node.name.removesuffix(".biased") for node in found if node.name.endswith(".biased")}
        qwen2 = sizes.family == "qwen2"  # whose last query is one product, so that its bias is added as it was
        assert biased == ({name for name in want if not name.endswith(".q_proj")} if qwen2 else set())
        for name in want:
            number, kind = name.removeprefix("layers.").removesuffix("_proj").split(".")
            attention = model.model.layers[int(number) + (sizes.early_layers if stage == "late" else 0)].self_attn
            parts = [getattr(attention, f"{part}_proj").weight.detach().numpy().T for part in kind]
            assert np.array_equal(weights(loaded)[f"{name}.weight"], np.concatenate(parts, axis=1))


def test_onnx_runtime_reads_the_cache_where_it_lies(exported: tuple[EarnModel, Path]) -> None:
    """Nothing between cache and products turns it: the products read keys and values with their rows in front."""
    model, folder = exported
    sizes = bundle_model(model).manifest.sizes
    for stage in STAGES:
        options, path = onnxruntime.SessionOptions(), folder / f"optimized.{stage}.onnx"
        options.optimized_model_filepath, options.log_severity_level = str(path), 3
        onnxruntime.InferenceSession(str(folder / GRAPH_FILES[stage]), options, providers=["CPUExecutionProvider"])
        found, layers = onnx.load(str(path)), sizes.stage_layers(stage)
        assert "Shape" not in operators(found)
        reached, between, attention = {PAST}, set(), []
        for node in found.graph.node:
            if reached.isdisjoint(node.input):
                continue
            if node.op_type in ("MatMul", "FusedMatMul"):
                attention.append(node)
            else:
                between.add(node.op_type)
                reached.update(node.output)
        assert between <= {"Split", "Slice", "Gather", "Squeeze", "Concat"}
        assert [node.op_type for node in attention] == ["FusedMatMul"] * 2 * layers
        for number, node in enumerate(attention):
            settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            assert settings["transBatchB"] == 1
            assert settings["transB"] == 1 - number % 2  # keys stand with their rows as columns, values do not
            assert node.input[1] in reached
