"""A real TensorRT takes the graphs: that for RTX parses and compiles them here, for GPUs that are not here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from earn.shape_ranges import profiles
from earn.specs import STAGES
from tests.export.tensorrt_graphs import CASES, VARIANTS, manifest_of, written

REPOSITORY = Path(__file__).parent.parent.parent

# Each backbone in every precision; whatever else changes a graph in fp32.
EVERY = [(case, "fp32") for case in CASES] + [(case, one) for case in list(CASES)[:3] for one in VARIANTS[1:]]
FEW = [("tiny-llama, dense", "fp32"), ("tiny-qwen2", "fp16"), ("tiny-qwen3", "int8")]

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="no tensorrt-rtx for this platform")


def compiled(folder: Path) -> Any:
    """What is complained of in each graph of a folder; in a process of its own, for its libraries."""
    command = [sys.executable, "-m", "tests.export.rtx_compiler", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def save(graph: onnx.ModelProto, ranges: Sequence[Mapping[str, Any]], path: Path) -> None:
    onnx.save(graph, str(path))
    path.with_suffix(".json").write_text(json.dumps(ranges))


@pytest.mark.parametrize("graphs", [FEW, pytest.param(EVERY, marks=pytest.mark.slow)], ids=["few", "every"])
def test_graphs_are_compiled_with_both_profiles_and_without_a_warning(
    graphs: Sequence[tuple[str, str]], tmp_path: Path
) -> None:
    for number, (case, variant) in enumerate(graphs):
        manifest = manifest_of(case)
        for stage in STAGES:
            found = profiles(stage, manifest.sizes, manifest.limits)
            ranges = [
                {name: (own.least, own.usual, own.most) for name, own in profile.ranges.items()} for profile in found
            ]
            save(written(case, stage, variant), ranges, tmp_path / f"{number}.{stage}.onnx")
    found = compiled(tmp_path)
    assert len(found) == len(STAGES) * len(graphs)
    assert {graph: said for graph, said in found.items() if said} == {}


def test_what_it_does_not_take_is_noticed(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b"]) for name in "xy")
    odd = helper.make_node("Multinomial", ["x"], ["y"])
    add = helper.make_node("Add", ["x", "x"], ["y"])
    ranges = {"x": ((1, 1), (2, 2), (4, 4))}
    for name, node, own in (
        ("odd", odd, ranges),
        ("add", add, ranges),
        ("narrow", add, {"x": ((3, 3), (2, 2), (4, 4))}),
    ):
        model = helper.make_model(helper.make_graph([node], "g", [x], [y]), ir_version=9)
        model.opset_import[0].version = 18
        save(model, [own], tmp_path / f"{name}.onnx")
    found = compiled(tmp_path)
    assert found["add"] == []
    assert found["odd"]
    assert found["narrow"]
