"""Stage modules to ONNX graphs, with names and dynamic axes from the one tensor table."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from transformers import PretrainedConfig

from earn.export.fuse import check_fused, fuse_projections
from earn.export.simplify import simplify
from earn.export.stages import BundleModel
from earn.export.tracing import trace
from earn.export.weights import EXTERNAL_DATA_BYTES, lay_out_weights
from earn.manifest import GRAPH_FILES
from earn.specs import all_specs


def export_stages(
    bundle: BundleModel,
    config: PretrainedConfig,
    folder: Path,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> None:
    """Writes early.onnx and late.onnx into the folder."""
    specs = all_specs(bundle.manifest.sizes, bundle.manifest.limits)
    for name, module in bundle.stages.items():
        with TemporaryDirectory(dir=folder) as traced:  # of files that the exporter names
            path = Path(traced, GRAPH_FILES[name])
            trace(module, specs[name], config, path)
            graph = simplify(onnx.load(str(path), load_external_data=False))
            onnx.load_external_data_for_model(graph, traced)
        fuse_projections(graph)
        check_fused(graph)
        lay_out_weights(graph, folder / GRAPH_FILES[name], external_data_bytes)


def trace_stages(bundle: BundleModel, config: PretrainedConfig, folder: Path) -> None:
    """Writes both stages' graphs as the exporter leaves them."""
    specs = all_specs(bundle.manifest.sizes, bundle.manifest.limits)
    for name, module in bundle.stages.items():
        trace(module, specs[name], config, folder / GRAPH_FILES[name])
