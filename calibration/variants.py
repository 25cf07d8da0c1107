"""A working folder with variants of a bundle's graphs: in float, equalized, and one per precision.

A variant's stage is <variant>.<stage>.onnx, with its weights beside it. One stage is in memory at a time. A graph that
combines two variants is written without copying a weight, and sessions map the weights that they need.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto

from earn.calibration.linear_layers import EMBEDDING, LinearLayer, linear_layers
from earn.calibration.quantize import with_float
from earn.calibration.refine import refine
from earn.catalog import CATALOG_FILE, Catalog
from earn.constant_head import ConstantHead
from earn.export.weights import lay_out_weights, load_graph
from earn.files import link_files
from earn.manifest import GRAPH_FILES, Manifest
from earn.places import opened
from earn.runtime.decoder import Decoder
from earn.runtime.engine import Engine, load_engine
from earn.runtime.onnx_engine import session_options
from earn.runtime.recommender import Recommender
from earn.specs import STAGES

FLOAT, EQUALIZED = "float", "equalized"  # the variants that precisions are made from


@dataclass(frozen=True)
class MixedPrecision:
    """What is more precise than the rest of a quantized graph."""

    float_layers: tuple[str, ...] = ()  # such as "late.3", "embedding" or "head"
    refined_kinds: tuple[str, ...] = ()  # kinds of linear layers that read refined activations


class GraphVariants:
    """The variants of a bundle's graphs."""

    def __init__(self, source: Path, folder: Path, threads: int | None = None) -> None:
        self.source = folder / "source"  # the bundle as it now is, whatever becomes of it meanwhile
        self.folder = folder
        self.threads = threads  # of every graph that runs; ONNX Runtime's own choice if None
        self.manifest = opened(source, self._keep)
        self.catalog = Catalog.load(self.source / CATALOG_FILE)
        for stage in STAGES:
            self.save(FLOAT, stage, load_graph(self.source / GRAPH_FILES[stage]))

    def _keep(self, source: Path) -> Manifest:
        manifest = Manifest.load(source)
        shutil.rmtree(self.source, ignore_errors=True)
        link_files(source, self.source)
        return manifest

    def load(self, variant: str, stage: str) -> onnx.ModelProto:
        """A variant's stage with its weights."""
        return load_graph(self.path(variant, stage))

    def save(self, variant: str, stage: str, graph: onnx.ModelProto) -> None:
        """Writes a variant's stage, whose weights are loaded."""
        lay_out_weights(graph, self.path(variant, stage), external_data_bytes=0)

    def path(self, variant: str, stage: str) -> Path:
        """The file of a variant's stage."""
        return self.folder / f"{variant}.{stage}.onnx"

    def load_without_weights(self, variant: str, stage: str) -> onnx.ModelProto:
        """A variant's stage; its large weights stay on disk."""
        return onnx.load(str(self.path(variant, stage)), load_external_data=False)

    def linear_layers(self, stage: str) -> list[LinearLayer]:
        """The linear layers of a stage."""
        return linear_layers(self.load_without_weights(FLOAT, stage))

    def layers(self, quantized: str) -> list[str]:
        """Names of what can stay in float in a quantized variant, from the embedding to the head."""
        names = [linear.layer_name(stage) for stage in STAGES for linear in self.linear_layers(stage)]
        constants = self.load_without_weights(quantized, STAGES[0]).graph.initializer
        tables = [tensor.data_type for tensor in constants if tensor.name.startswith(EMBEDDING)]
        return list(dict.fromkeys([EMBEDDING, *names] if TensorProto.INT8 in tables else names))

    def write_mixed(self, base: str, quantized: str, stage: str, mixed: MixedPrecision) -> Path:
        """Writes a stage's quantized graph with some layers as in the base; it shares the weights of both."""
        linears = self.linear_layers(stage)
        in_float = {linear.name for linear in linears if linear.layer_name(stage) in mixed.float_layers}
        in_float |= {EMBEDDING}.intersection(mixed.float_layers)  # only the early stage has it
        graph = with_float(
            self.load_without_weights(quantized, stage), self.load_without_weights(base, stage), in_float
        )
        refine(graph, {linear.name for linear in linears if linear.kind in mixed.refined_kinds})
        path = self.path("mixed", stage)
        onnx.save(graph, str(path))
        return path

    def write_bundle_graphs(self, base: str, quantized: str, mixed: MixedPrecision, folder: Path) -> None:
        """Writes both stages' graphs and the constant head as a bundle has them; the folder is emptied before."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for stage in STAGES:
            path = self.write_mixed(base, quantized, stage, mixed)
            lay_out_weights(load_graph(path), folder / GRAPH_FILES[stage])
        if len(self.head.early):
            self.head.save(folder)

    def recommender(self, folder: Path) -> Recommender:
        """Recommends by the graphs in a folder of `write_bundle_graphs`, or in the source."""
        return self.recommender_of(self.engine(folder))

    def recommender_of(self, engine: Engine) -> Recommender:
        """Recommends by an engine behind the float graphs' constant head, which every variant has."""
        return Recommender(engine, self.manifest, self.catalog, head=self.head)

    @cached_property
    def head(self) -> ConstantHead:
        """Keys and values of the prompt's constant head, by the float graphs."""
        return Decoder(self.engine(self.source), self.manifest).head

    def engine(self, folder: Path) -> Engine:
        """Runs the graphs in a folder, likewise."""
        return load_engine("cpu", folder, self.manifest, self.threads)

    def session(self, path: Path) -> Any:
        """An ONNX Runtime session of one graph alone."""
        options = session_options(self.threads, spinning=False, arena=True)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def graph_bytes(folder: Path) -> int:
    """The size of the graphs in a folder, weights included."""
    return sum(path.stat().st_size for path in folder.glob("*.onnx*"))
