"""A real TensorRT takes the graphs: that for RTX parses and compiles them here, for GPUs that are not here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from earn.shape_ranges import profiles
from earn.specs import STAGES
from tests.export.tensorrt_graphs import CASES, VARIANTS, manifest_of, written
from tests.support import FAMILIES

REPOSITORY = Path(__file__).parent.parent.parent

# Each backbone in int8, and the backbones in turn in the other precisions; whatever else changes a graph in fp32.
EVERY = [(case, "fp32") for case in CASES] + [(case, "int8") for case in FAMILIES]
EVERY += zip(cycle(FAMILIES), (one for one in VARIANTS if one not in ("fp32", "int8")), strict=False)
FEW = [("tiny-qwen3", "int8")]

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
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b"]) for name in "xy")
    foreign = helper.make_graph([helper.make_node("Multinomial", ["x"], ["y"])], "g", [x], [y])
    opset = helper.make_opsetid("", 18)
    save(helper.make_model(foreign, opset_imports=[opset], ir_version=9), [{"x": [(1, 1)] * 3}], tmp_path / "odd.onnx")
    found = compiled(tmp_path)
    assert found.pop("odd")  # what it does not take is noticed
    assert len(found) == len(STAGES) * len(graphs)
    assert {graph: said for graph, said in found.items() if said} == {}
