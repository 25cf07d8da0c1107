from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from earn.errors import EarnError
from earn.export.onnx_stages import OPSET, export_stages
from earn.export.simplify import LAYER_LINEARS, reshape_target, simplify
from earn.export.stages import bundle_model
from earn.manifest import GRAPH_FILES
from earn.runtime.memory import Array
from earn.specs import STAGES
from tests.export.test_onnx_stages import example
from tests.support import FAMILIES, assert_close, small_model, sweep

Axes = Sequence[int | str]
DENSE: dict[str, Any] = {"prefix_registers": 0, "suffix_registers": 0}


def graph(
    nodes: Sequence[NodeProto], inputs: dict[str, Axes], outputs: dict[str, Axes], **weights: Array
) -> ModelProto:
    """A model over float tensors."""

    def values(axes: dict[str, Axes]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in axes.items()]

    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    body = helper.make_graph(nodes, "stage", values(inputs), values(outputs), initializers)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def constant(name: str, value: Any, dtype: Any = np.int64) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, dtype)))


def size_of(tensor: str, axis: int) -> list[NodeProto]:
    """The integer arithmetic that the exporter makes of `tensor.shape[axis]`: its result is `tensor`_`axis`."""
    return [
        helper.make_node("Shape", [tensor], [f"{tensor}_shape_{axis}"]),
        constant(f"{tensor}_index_{axis}", axis),
        helper.make_node("Gather", [f"{tensor}_shape_{axis}", f"{tensor}_index_{axis}"], [f"{tensor}_size_{axis}"]),
        constant(f"{tensor}_zero_{axis}", [0]),
        helper.make_node("Unsqueeze", [f"{tensor}_size_{axis}", f"{tensor}_zero_{axis}"], [f"{tensor}_{axis}"]),
    ]


def reshape(tensor: str, *target: str) -> list[NodeProto]:
    """Reshapes `tensor` to `y`."""
    return [
        helper.make_node("Concat", target, ["target"], axis=0),
        helper.make_node("Reshape", [tensor, "target"], ["y"], "reshape", allowzero=0),
    ]


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def weights(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: ModelProto | Path, feeds: dict[str, Array]) -> list[Array]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, feeds)
    return outputs


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        (["b", "m", 6], ["b", "m", 2, 3], [0, 0, 2, 3]),
        (["b", 2, "n", "m", 3], ["b", 2, "nm", 3], [0, 2, -1, 3]),
        (["b", 4], ["b", 4], [0, 4]),
        (["b", "m"], ["bm"], [-1]),
        (["b", "m"], ["b", "m", ""], [0, 0, -1]),
        ([6], [2, 3], [2, 3]),
        (["", 6], ["", 2, 3], [-1, 2, 3]),  # two sizes without symbol need not be the same
        (["b", "m"], ["m", "b"], None),  # copies, but of other axes
        (["b", "m"], ["", ""], None),
        (["b", 0], ["b", 0], None),  # a size of 0 would be read as a copy
    ],
)
def test_a_target_has_sizes_copies_and_one_unknown(before: Axes, after: Axes, target: list[int] | None) -> None:
    assert reshape_target(before, after) == target


def test_computed_shapes_become_constants() -> None:
    nodes = [*size_of("x", 0), *size_of("x", 1), constant("rest", [2, 3]), *reshape("x", "x_0", "x_1", "rest")]
    model = graph(nodes, {"x": ["b", "m", 6]}, {"y": ["b", "m", 2, 3]})
    original = model.SerializeToString()
    simplified = simplify(model)
    onnx.checker.check_model(simplified, full_check=True)
    assert model.SerializeToString() == original
    assert operators(simplified) == ["Reshape"]
    assert [array.tolist() for array in weights(simplified).values()] == [[0, 0, 2, 3]]
    assert not simplified.graph.value_info
    feeds = {"x": np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)}
    assert np.array_equal(run(model, feeds)[0], run(simplified, feeds)[0])


def test_a_reshape_that_no_constant_can_say_stays() -> None:
    model = graph([*size_of("x", 1), *size_of("x", 0), *reshape("x", "x_1", "x_0")], {"x": ["b", "m"]}, {"y": [1, 1]})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    simplified = simplify(model)
    assert sorted(set(operators(simplified))) == ["Concat", "Gather", "Reshape", "Shape", "Unsqueeze"]
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    assert np.array_equal(run(simplified, feeds)[0], feeds["x"].reshape(3, 2))


def test_copies_are_seen_through_constants_joined_and_what_no_output_needs_dropped() -> None:
    """Of equal weights the exporter keeps one, and copies of it; products need the weight itself."""
    nodes = [
        helper.make_node("Identity", ["w"], ["copy"]),
        helper.make_node("Identity", ["copy"], ["copy of it"]),
        matmul("/q_proj/MatMul", "x", "w", "a"),
        matmul("/mlp/down_proj_12/Gemm", "a", "copy of it", "b", "Gemm"),
        matmul("/MatMul_3", "a", "b", "c"),
        matmul("/head/MatMul", "c", "w", "d"),
        constant("one", 1, np.float32),
        constant("uno", 1, np.float32),
        constant("ones", [1], np.float32),
        helper.make_node("Add", ["d", "one"], ["e"]),
        helper.make_node("Add", ["e", "uno"], ["f"]),
        helper.make_node("Add", ["f", "ones"], ["g"]),
        helper.make_node("Exp", ["f"], ["nobody reads it"]),
        helper.make_node("Identity", ["g"], ["y"]),
    ]
    model = graph(nodes, {"x": [2, 2]}, {"y": [2, 2]}, w=square(1), unused=square(2))
    simplified = simplify(model)
    onnx.checker.check_model(simplified, full_check=True)
    products, (first, second, third) = simplified.graph.node[:4], simplified.graph.node[4:7]
    assert operators(simplified) == ["MatMul", "Gemm", "MatMul", "MatMul", "Add", "Add", "Add", "Identity"]
    assert [node.name for node in products] == ["layers.0.q_proj", "layers.12.down_proj", "/MatMul_3", "head"]
    assert first.input[1] == second.input[1] != third.input[1]  # a number is not a list of one number
    found = weights(simplified)
    named = {f"{name}.weight" for name in ("layers.0.q_proj", "layers.12.down_proj", "head")}
    assert found.keys() == named | {first.input[1], third.input[1]}
    assert all(np.array_equal(found[name], square(1)) for name in named)
    feeds = {"x": np.arange(4, dtype=np.float32).reshape(2, 2)}
    assert_close(run(model, feeds)[0], run(simplified, feeds)[0], 1e-4)


def matmul(name: str, source: str, weight: str, result: str, kind: str = "MatMul") -> NodeProto:
    return helper.make_node(kind, [source, weight], [result], name)


def square(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((2, 2)).astype(np.float32)


@pytest.mark.parametrize("name", ["/lora/MatMul", "/q_proj_x/MatMul", ""])
def test_products_without_a_place_of_their_own_are_refused(name: str) -> None:
    model = graph([matmul(name, "x", "w", "y")], {"x": [2, 2]}, {"y": [2, 2]}, w=square(1))
    with pytest.raises(EarnError, match=f"MatMul '{name}': neither one of a layer nor the head. Check the versions"):
        simplify(model)
    twice = [matmul("/head/MatMul", "x", "v", "a"), matmul("/head/Gemm", "a", "w", "y", "Gemm")]
    with pytest.raises(EarnError, match="more than one linear layer head"):
        simplify(graph(twice, {"x": [2, 2]}, {"y": [2, 2]}, v=square(1), w=square(2)))


def test_weights_in_external_data_are_not_read(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["embedding.weight", "i"], ["a"]), matmul("/head/MatMul", "a", "w", "y")]
    model = graph(nodes, {"i": ["b"]}, {"y": ["b", 2]}, **{"embedding.weight": square(1), "w": square(2)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    path = tmp_path / "late.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="late.onnx.data", size_threshold=0)
    data = (tmp_path / "late.onnx.data").rename(tmp_path / "away")
    simplified = simplify(onnx.load(str(path), load_external_data=False))
    onnx.save_model(simplified, str(path))
    data.rename(tmp_path / "late.onnx.data")
    assert [node.name for node in simplified.graph.node] == ["embedding", "head"]
    assert all(tensor.data_location == TensorProto.EXTERNAL for tensor in simplified.graph.initializer)
    rows = np.array([1, 0, 1])
    assert_close(square(1)[rows] @ square(2), run(path, {"i": rows})[0], 1e-6)


FEW = [("tiny-llama", DENSE), ("tiny-qwen3", {"early_layers": 2})]
SHAPES: tuple[dict[str, Any], ...] = ({"early_layers": 2}, DENSE)


@pytest.mark.parametrize(("name", "shape"), sweep(FEW, product(FAMILIES, SHAPES)))
def test_an_exported_stage_computes_no_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: dict[str, Any]
) -> None:
    model = small_model(name, **shape)
    bundle = bundle_model(model, max_batch=3, max_beams=8)
    monkeypatch.setattr("earn.export.onnx_stages.simplify", lambda graph: graph)
    monkeypatch.setattr("earn.export.onnx_stages.fuse_projections", lambda graph: None)
    export_stages(bundle, model.config, tmp_path)
    for stage in STAGES:
        exported = onnx.load(str(tmp_path / GRAPH_FILES[stage]))
        simplified = simplify(exported)
        onnx.checker.check_model(simplified, full_check=True)
        assert not {"Constant", "Shape", "Identity", "Range"} & set(operators(simplified))
        check_products(simplified, bundle.stages[stage])
        for seed in range(4):
            feeds = example(bundle, stage, seed)
            for want, got in zip(run(exported, feeds), run(simplified, feeds), strict=True):
                assert_close(want, got, 1e-6, f"{stage}, seed {seed}")


def check_products(model: ModelProto, stage: Any) -> None:
    """Every linear layer of the stage is a product under its name, with its own weight."""
    modules = {"head": stage.head} if hasattr(stage, "head") else {}
    for number, layer in enumerate(stage.layers):
        parts = {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}
        modules |= {f"layers.{number}.{part}": parts[part] for part in LAYER_LINEARS}
    found, nodes = weights(model), {node.name: node for node in model.graph.node}
    named = {name for name in found if name.endswith(".weight") and nodes.keys() & {name.removesuffix(".weight")}}
    if hasattr(stage, "embedding"):
        named.remove("embedding.weight")
        assert np.array_equal(found["embedding.weight"], stage.embedding.weight.detach().numpy())
    assert named == {f"{name}.weight" for name in modules}
    for name, module in modules.items():
        assert list(nodes[name].input)[1] == f"{name}.weight"
        assert np.array_equal(found[f"{name}.weight"], module.weight.detach().numpy().T)
