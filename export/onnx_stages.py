"""Stage modules to ONNX graphs, with names and dynamic axes from the one tensor table.

A stage is traced by Optimum where it can be imported, else by the exporter of torch that Optimum calls. Both write the
same bytes, for Optimum passes torch the names, axes and example that it is given here. Releases of optimum-onnx know
transformers up to some version: the extra `optimum` in pyproject.toml says which release is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from earn.export.simplify import check_fused, fuse_projections, simplify
from earn.export.stages import BundleModel
from earn.export.weights import EXTERNAL_DATA_BYTES, lay_out_weights
from earn.manifest import GRAPH_FILES
from earn.specs import StageSpecs, TensorSpec, all_specs

OPSET = 18

# Sizes of the example that is traced: all different, so that no axis can pass for another.
_TRACED = {"b": 2, "m": 5, "s": 3, "s+m": 8, "r": 4}

Exporter = Callable[[nn.Module, StageSpecs, PretrainedConfig, Path], None]


def export_stages(
    bundle: BundleModel,
    config: PretrainedConfig,
    folder: Path,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> None:
    """Writes early.onnx and late.onnx into the folder.

    Args:
        bundle: its stages are on the CPU, in evaluation mode.
        config: the backbone's.
    """
    for name in bundle.stages:
        with TemporaryDirectory(dir=folder) as traced:  # of files that the exporter names
            path = trace_stage(bundle, name, config, Path(traced))
            graph = simplify(onnx.load(str(path), load_external_data=False))
            onnx.load_external_data_for_model(graph, traced)
        fuse_projections(graph)
        check_fused(graph)
        lay_out_weights(graph, folder / GRAPH_FILES[name], external_data_bytes)


def trace_stage(bundle: BundleModel, stage: str, config: PretrainedConfig, folder: Path) -> Path:
    """Writes a stage's graph as the exporter leaves it; large weights may stand in other files of that folder."""
    specs, path = all_specs(bundle.manifest.sizes, bundle.manifest.limits)[stage], folder / GRAPH_FILES[stage]
    choose_exporter()(bundle.stages[stage], specs, config, path)
    return path


def choose_exporter() -> Exporter:
    """Optimum's exporter, or torch's where Optimum is not installed or does not know this version of transformers."""
    try:
        import optimum.exporters.onnx  # noqa: F401
    except ImportError:
        return export_by_torch
    return export_by_optimum


def export_by_torch(stage: nn.Module, specs: StageSpecs, config: PretrainedConfig, path: Path) -> None:
    """Calls torch.onnx.export with the arguments that Optimum gives it."""
    inputs, outputs = _dynamic_axes(specs.inputs), _dynamic_axes(specs.outputs)
    with torch.no_grad():
        torch.onnx.export(
            stage,
            (_example(specs),),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**inputs, **outputs},
            do_constant_folding=True,
            opset_version=OPSET,
            dynamo=False,
        )


def export_by_optimum(stage: nn.Module, specs: StageSpecs, config: PretrainedConfig, path: Path) -> None:
    """Describes the stage to Optimum."""
    from optimum.exporters.onnx.base import OnnxConfig
    from optimum.exporters.onnx.convert import export_models
    from optimum.utils import NormalizedConfig

    class StageOnnxConfig(OnnxConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedConfig
        inputs = _dynamic_axes(specs.inputs)
        outputs = _dynamic_axes(specs.outputs)
        values_override = None  # no setting of the backbone is to be changed for the export

        def generate_dummy_inputs(self, framework: str = "pt", **shapes: int) -> dict[str, Tensor]:
            return _example(specs)  # `shapes` is Optimum's and of no use here

    own = deepcopy(config)  # Optimum reads and writes it
    stage.config = own  # type: ignore[assignment]  # Optimum looks for it on the module
    described: Any = {path.stem: (stage, StageOnnxConfig(own, task="feature-extraction"))}
    use_cache = config.use_cache
    try:
        export_models(described, path.parent, opset=OPSET, output_names=[path.name], disable_dynamic_axes_fix=True)
    finally:
        config.use_cache = use_cache  # Optimum turns it off in all layers, and these hold the model's own settings
        del stage.config


def _dynamic_axes(specs: Iterable[TensorSpec]) -> dict[str, dict[int, str]]:
    """Names of the tensors, and of their axes whose sizes are not fixed."""
    return {spec.name: spec.dynamic_axes for spec in specs}


def _example(specs: StageSpecs) -> dict[str, Tensor]:
    """An example of the stage's arguments; of integers the one token, position and row that every model has: 0."""
    generator = np.random.default_rng(0)
    example: dict[str, Tensor] = {}
    for spec in specs.inputs:
        size = [axis.most if axis.is_fixed else _TRACED[axis.name] for axis in spec.axes]
        is_float = spec.dtype == "float32"
        array = generator.standard_normal(size).astype(np.float32) if is_float else np.zeros(size, np.int64)
        example[spec.name] = torch.from_numpy(array)
    return example
