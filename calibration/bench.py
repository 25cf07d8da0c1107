"""The bench of one calibration: a folder of graphs in the making, with one stage in memory at a time.

Graphs are kept as <variant>.<stage>.onnx with their weights beside them. A graph that combines two
variants is written without touching a weight, and sessions map the weights they need.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from earn.calibration.linear_layers import Product, products, unit
from earn.calibration.quantize import EMBEDDING, with_float
from earn.calibration.refine import refine
from earn.catalog import CATALOG_FILE, Catalog
from earn.export.weights import lay_out_weights
from earn.manifest import GRAPH_FILES, Manifest
from earn.specs import STAGES


@dataclass(frozen=True)
class Mix:
    """What is not plainly quantized."""

    float_units: tuple[str, ...] = ()  # layers such as "late.3", or "head", that stay as they were
    fine_kinds: tuple[str, ...] = ()  # kinds of products that read finer activations


Change = Callable[[str, onnx.ModelProto], onnx.ModelProto]  # stage and its graph with weights -> the changed graph


class Bench:
    """The variants of a bundle's graphs."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.manifest = Manifest.load(source)
        self.catalog = Catalog.load(source / CATALOG_FILE)
        for stage in STAGES:
            self._write("float", stage, onnx.load(str(source / GRAPH_FILES[stage])))

    def change(self, base: str, variant: str, change: Change) -> None:
        """Makes a variant of another one."""
        for stage in STAGES:
            graph = onnx.load(str(self.path(base, stage)))
            self._write(variant, stage, change(stage, graph))
            del graph

    def has(self, variant: str) -> bool:
        """Whether the variant was made."""
        return self.path(variant, STAGES[-1]).is_file()

    def path(self, variant: str, stage: str) -> Path:
        """The file of a variant's stage."""
        return self.folder / f"{variant}.{stage}.onnx"

    def paths(self, variant: str) -> Mapping[str, Path]:
        """The files of a variant by stage."""
        return {stage: self.path(variant, stage) for stage in STAGES}

    def light(self, variant: str, stage: str) -> onnx.ModelProto:
        """A variant's stage without its large weights."""
        return onnx.load(str(self.path(variant, stage)), load_external_data=False)

    def products(self, stage: str) -> list[Product]:
        """The products of a stage."""
        return products(self.light("float", stage))

    def units(self, quantized: str) -> list[str]:
        """What can be left in float in a quantized variant, from the embedding to the head."""
        found = [unit(stage, product) for stage in STAGES for product in self.products(stage)]
        tables = [
            tensor.data_type
            for tensor in self.light(quantized, STAGES[0]).graph.initializer
            if tensor.name.startswith(EMBEDDING)
        ]
        return list(dict.fromkeys([EMBEDDING, *found] if TensorProto.INT8 in tables else found))

    def mix(self, base: str, quantized: str, stage: str, mix: Mix) -> Path:
        """Writes a stage's quantized graph with some units as in the base; shares the weights of both."""
        found = self.products(stage)
        floats = {product.name for product in found if unit(stage, product) in mix.float_units}
        floats |= {EMBEDDING}.intersection(mix.float_units)  # only the early stage has it
        graph = with_float(self.light(quantized, stage), self.light(base, stage), floats)
        refine(graph, {product.name for product in found if product.kind in mix.fine_kinds})
        path = self.path("mixed", stage)
        onnx.save(graph, str(path))
        return path

    def finish(self, base: str, quantized: str, mix: Mix, folder: Path) -> None:
        """Writes both stages' graphs as a bundle has them; what stood in the folder is gone."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for stage in STAGES:
            mixed = self.mix(base, quantized, stage, mix)
            lay_out_weights(onnx.load(str(mixed)), folder / GRAPH_FILES[stage])

    def _write(self, variant: str, stage: str, graph: onnx.ModelProto) -> None:
        lay_out_weights(graph, self.path(variant, stage), external_data_bytes=0)
