"""A real TensorRT takes the graphs: that for RTX parses and compiles them here, for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from earn.calibration.precisions import PRECISIONS
from earn.config import SET
from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.manifest import GRAPH_FILES, ONE_GRAPH_FILE, Manifest
from earn.model.earn_model import EarnModel
from earn.model.families import TINY_BACKBONES
from earn.runtime.engine_files import FIXED_FORMS
from earn.shape_ranges import OptimizationProfile, Range, one_graph_profiles, profiles
from earn.specs import STAGES
from tests.export.tensorrt_graphs import CASES, VARIANTS, in_variant, manifest_of, written
from tests.model.test_set_model import set_model
from tests.support import FAMILIES, OWN_SIZES, small_backbone, toy_catalog

REPOSITORY = Path(__file__).parent.parent.parent

ARCHITECTURES = ("SM89", "SM86", "SM120")  # RTX 40, 30 and 50
# Each precision for all of them, the backbones in turn; what else changes a graph, for one of them.
FEW = [("tiny-qwen3", "int8", ARCHITECTURES)]
EVERY = [
    (family, variant, ARCHITECTURES if variant in PRECISIONS else ARCHITECTURES[:1])
    for family, variant in zip(cycle(FAMILIES), (one for one in VARIANTS if one != "int8"), strict=False)
]
EVERY += [
    (case, "fp32", ARCHITECTURES[:1])
    for case in CASES
    if case not in FAMILIES and case not in ("tiny-qwen2, dense", "tiny-qwen3, dense")
]
# Each backbone and each precision once, for one architecture; the method "set", which is the smallest, for all.
ONE_GRAPHS = [
    ("tiny-qwen3", "int8", ARCHITECTURES[:1]),
    ("tiny-llama", "fp32", ARCHITECTURES[:1]),
    ("tiny-qwen2", "fp16", ARCHITECTURES[:1]),
    (SET, "fp32", ARCHITECTURES),
]
# Where this is set in the environment, every backbone is compiled in every precision, which takes minutes.
ALL_ONE_GRAPHS = "EARN_ALL_ONE_GRAPHS"
IDENTIFIERS = ["a b", "a c", "d", "e b", "e c", "e c"]

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="no tensorrt-rtx for this platform")


def compiled(folder: Path) -> Any:
    """What is complained of in each graph of a folder; in a process of its own, for its libraries."""
    command = [sys.executable, "-m", "tests.export.rtx_compiler", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def save(
    graph: onnx.ModelProto, profiles: Sequence[OptimizationProfile], path: Path, architectures: Sequence[str]
) -> None:
    onnx.save(graph, str(path))
    ranges = [{name: (own.least, own.usual, own.most) for name, own in one.ranges.items()} for one in profiles]
    path.with_suffix(".json").write_text(json.dumps({"profiles": ranges, "architectures": architectures}))


@pytest.mark.parametrize("graphs", [FEW, pytest.param(EVERY, marks=pytest.mark.slow)], ids=["few", "every"])
def test_graphs_are_compiled_with_both_profiles_and_without_a_warning(
    graphs: Sequence[tuple[str, str, Sequence[str]]], tmp_path: Path
) -> None:
    for number, (case, variant, architectures) in enumerate(graphs):
        manifest = manifest_of(case)
        for stage in STAGES:
            ranges = profiles(stage, manifest.sizes, manifest.limits)
            save(written(case, stage, variant), ranges, tmp_path / f"{number}.{stage}.onnx", architectures)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b"]) for name in "xy")
    foreign = helper.make_graph([helper.make_node("Multinomial", ["x"], ["y"])], "g", [x], [y])
    opset = helper.make_opsetid("", 18)
    anything = [OptimizationProfile("", {"x": Range((1, 1), (1, 1), (1, 1))})]
    save(helper.make_model(foreign, opset_imports=[opset], ir_version=9), anything, tmp_path / "odd.onnx", [])
    found = compiled(tmp_path)
    assert found.pop("odd")  # what it does not take is noticed
    assert len(found) == len(STAGES) * len(graphs)
    assert {graph: said for graph, said in found.items() if said} == {}


def one_graph(case: str, variant: str, bundle: Path) -> tuple[onnx.ModelProto, Sequence[OptimizationProfile]]:
    """The whole search of a tiny bundle as it is written for TensorRT, and its ranges: two levels, two layers."""
    if case == SET:
        model: EarnModel = set_model("tiny-llama", "digits", max_history=6)
    else:
        own = {name: layers[:2] for name, layers in OWN_SIZES.get(case, {}).items()}  # a kind for each layer
        backbone = small_backbone(case, num_hidden_layers=2, **own)
        model = EarnModel.from_backbone(backbone, toy_catalog(IDENTIFIERS), 1)
    export_bundle(model, bundle, [["1", "2"]], max_batch=2, max_beams=4)
    manifest = Manifest.load(bundle)
    if variant != "fp32":
        for path in (bundle / name for name in GRAPH_FILES.values()):
            onnx.save(in_variant(path.read_bytes(), variant), str(path))
        manifest.with_files(bundle).save(bundle)
    compose_bundle(bundle, FIXED_FORMS[manifest.model.method])
    return onnx.load(str(bundle / ONE_GRAPH_FILE)), one_graph_profiles(manifest.limits)[-1:]


@pytest.mark.slow
def test_one_graphs_are_compiled_without_a_warning(tmp_path: Path) -> None:
    for case, variant, architectures in ONE_GRAPHS:
        graph, ranges = one_graph(case, variant, tmp_path / f"{case}-bundle")
        save(graph, ranges, tmp_path / f"{case}.onnx", architectures)
    found = compiled(tmp_path)
    assert len(found) == len(ONE_GRAPHS)
    assert {graph: said for graph, said in found.items() if said} == {}


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get(ALL_ONE_GRAPHS), reason=f"only where {ALL_ONE_GRAPHS} is set")
@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_the_one_graph_of_every_backbone_is_compiled(family: str, variant: str, tmp_path: Path) -> None:
    graph, ranges = one_graph(family, variant, tmp_path / "bundle")
    save(graph, ranges, tmp_path / "graph.onnx", ARCHITECTURES[:1])
    assert compiled(tmp_path) == {"graph": []}
