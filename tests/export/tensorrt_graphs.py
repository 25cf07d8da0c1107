"""The graphs that are written for TensorRT: backbones, splits, rules and precisions, on small models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import pytest
from onnx import ModelProto

from earn.calibration.linear_layers import activations, linear_layers
from earn.calibration.precisions import PRECISIONS, find_form
from earn.calibration.quantize import quantize, with_float
from earn.calibration.refine import LEVELS, refine
from earn.config import Prompt
from earn.export.onnx_stages import export_stages
from earn.export.stages import bundle_model
from earn.manifest import GRAPH_FILES, Manifest
from earn.model.earn_model import EarnModel
from earn.specs import STAGES
from tests.support import FAMILIES, random_catalog, small_model

TEXT = Prompt(head=(1, 2), separator=(3,), tail=(4, 5))
DENSE: dict[str, Any] = {"prefix_registers": 0, "suffix_registers": 0}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: (name, "trie", {}) for name in FAMILIES},
    **{f"{name}, dense": (name, "trie", DENSE) for name in FAMILIES},
    "tiny-llama, whole vocabulary": ("tiny-llama", "vocab", {}),
    "tiny-llama, two registers, text": (
        "tiny-llama",
        "trie",
        {"prefix_registers": 2, "suffix_registers": 2, "prompt": TEXT, "early_layers": 2},
    ),
    "tiny-qwen3, no late layer": ("tiny-qwen3", "trie", {"early_layers": 4}),
}
QUICK = [*FAMILIES, "tiny-llama, dense"]  # the cases of the default run; the slow run has all
CASE_PARAMETERS = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
TENSORRT = [name for name, row in PRECISIONS.items() if "tensorrt" in row.engines]
REFINED, MIXED = "int8, refined", "with products in float"
VARIANTS = [*TENSORRT, REFINED, f"int8 {MIXED}", f"int4 {MIXED}"]


@cache
def model_of(case: str) -> EarnModel:
    family, _, shape = CASES[case]
    return small_model(family, random_catalog(60), **shape)


def manifest_of(case: str) -> Manifest:
    """Sizes and limits of its bundle."""
    return bundle_model(model_of(case), CASES[case][1], max_batch=4, max_beams=24).manifest


@cache
def exported(case: str) -> Mapping[str, bytes]:
    """The fp32 graph of each stage."""
    return graphs_of(model_of(case), CASES[case][1])


def graphs_of(model: EarnModel, rule: str) -> Mapping[str, bytes]:
    with TemporaryDirectory() as folder:
        export_stages(bundle_model(model, rule, max_batch=4, max_beams=24), model.config, Path(folder))
        return {stage: (Path(folder) / GRAPH_FILES[stage]).read_bytes() for stage in STAGES}


@cache
def written(case: str, stage: str, variant: str, engine: str = "tensorrt") -> ModelProto:
    """A stage's graph as it is written for an engine; not to be changed."""
    return in_variant(exported(case)[stage], variant, engine)


def in_variant(fp32: bytes, variant: str, engine: str = "tensorrt") -> ModelProto:
    """A stage's graph in a precision."""
    plain = onnx.load_from_string(fp32)
    precision = PRECISIONS[variant.split(",")[0].split(" ")[0]]
    if precision.method == "none":
        return plain
    linears = linear_layers(plain)
    ranges = dict.fromkeys(activations(linears), (-4.0, 3.0))
    graph = quantize(onnx.load_from_string(fp32), precision, find_form(precision, engine), ranges)
    if variant == REFINED:
        refine(graph, {linear.name for linear in linears if linear.kind in LEVELS[-1]})
    if variant.endswith(MIXED):
        graph = with_float(graph, plain, [linear.name for linear in linears if linear.kind == "o_proj"])
    return graph
