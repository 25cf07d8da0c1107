"""Stage modules to ONNX graphs through Optimum, with names and dynamic axes from the one tensor table."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from optimum.exporters.onnx.base import OnnxConfig
from optimum.exporters.onnx.convert import export_models
from optimum.utils import NormalizedConfig
from transformers import PretrainedConfig

from earn.export.fuse import check_fused, fuse_projections
from earn.export.simplify import simplify
from earn.export.stages import BundleModel
from earn.export.weights import EXTERNAL_DATA_BYTES, lay_out_weights
from earn.manifest import GRAPH_FILES
from earn.specs import Axis, StageSpecs, all_specs

OPSET = 18

# Sizes of the example that is traced: all different, so that no axis can pass for another.
_TRACED = {"b": 2, "m": 5, "s": 3, "s+m": 8, "r": 4}


class StageOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """Optimum's description of a stage, read off its tensor specs."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    def __init__(self, config: PretrainedConfig, specs: StageSpecs) -> None:
        super().__init__(config, task="feature-extraction")
        self._specs = specs

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Names and dynamic axes of the inputs."""
        return {spec.name: spec.dynamic_axes for spec in self._specs.inputs}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names and dynamic axes of the outputs."""
        return {spec.name: spec.dynamic_axes for spec in self._specs.outputs}

    @property
    def values_override(self) -> dict[str, Any] | None:
        """No setting of the backbone is to be changed for the export."""
        return None

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Any]:
        """An example of the stage's arguments; `shapes` is Optimum's and of no use here."""
        generator = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for spec in self._specs.inputs:
            size = [_traced_size(axis) for axis in spec.axes]
            arrays[spec.name] = (
                generator.standard_normal(size).astype(np.float32)
                if spec.dtype == "float32"
                else np.zeros(size, np.int64)  # the one token, position and row that every model has
            )
        if framework == "np":
            return arrays
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _traced_size(axis: Axis) -> int:
    return axis.most if axis.is_fixed else _TRACED[axis.name]


def export_stages(
    bundle: BundleModel,
    config: PretrainedConfig,
    folder: Path,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> None:
    """Writes early.onnx and late.onnx into the folder."""
    trace_stages(bundle, config, folder)
    for name in GRAPH_FILES.values():
        path = folder / name
        graph = simplify(onnx.load(str(path), load_external_data=False))
        onnx.load_external_data_for_model(graph, str(folder))
        fuse_projections(graph)
        check_fused(graph)
        for file in folder.glob(f"{name}*"):
            file.unlink()
        lay_out_weights(graph, path, external_data_bytes)


def trace_stages(bundle: BundleModel, config: PretrainedConfig, folder: Path) -> None:
    """Writes both stages' graphs as Optimum makes them."""
    specs = all_specs(bundle.manifest.sizes, bundle.manifest.limits)
    models: dict[str, tuple[torch.nn.Module, StageOnnxConfig]] = {}
    for name, module in bundle.stages.items():
        own = deepcopy(config)  # Optimum reads and writes it
        module.config = own  # type: ignore[assignment]  # Optimum looks for it on the module
        models[name] = (module, StageOnnxConfig(own, specs[name]))
    use_cache = config.use_cache
    try:
        export_models(
            models, folder, opset=OPSET, output_names=list(GRAPH_FILES.values()), disable_dynamic_axes_fix=True
        )
    finally:
        config.use_cache = use_cache  # Optimum turns it off in all layers, and these hold the model's own settings
