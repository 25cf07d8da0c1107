"""The engine "tensorrt-rtx": TensorRT for RTX, a provider that comes as a plugin of its own, for RTX 30 and later.

Compiling is in two halves. The first, long one is done once and kept in the bundle as models with EP context nodes:

    engines/tensorrt-rtx/early/, late/    early.onnx with its weights beside, and compiled.json: what it was made from,
                                          for which architecture and by which version of the plugin

The second makes kernels for the GPU at hand, in seconds; the provider keeps them in the folder `kernels` beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from earn.errors import EarnError
from earn.files import folder_written_whole, read_json, write_json
from earn.manifest import Manifest
from earn.runtime.cuda import shared_device
from earn.runtime.engine_files import graph_hash, ranges_hash

PROVIDER = "NvTensorRTRTXExecutionProvider"
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
RECORD_FILE = "compiled.json"


def register(remedy: str) -> list[Any]:
    """The GPUs that the plugin finds; ONNX Runtime is told of it once.

    Raises:
        EarnError: the plugin is not installed, does not fit this ONNX Runtime, or finds no GPU.
    """
    import onnxruntime

    try:
        plugin: Any = import_module(PLUGIN)
    except ImportError as error:
        raise EarnError(f"This needs {PLUGIN}. Install it: {remedy}") from error

    def devices() -> list[Any]:
        return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]

    if not devices():
        try:
            onnxruntime.register_execution_provider_library(PROVIDER, plugin.get_library_path())
        except Exception as error:  # a class of onnxruntime's own
            raise EarnError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {PLUGIN} ({error}). Check driver and versions."
            ) from error
    if not (gpus := devices()):
        raise EarnError(
            f"{PROVIDER} finds no GPU that it takes (architecture 8.6, 8.9, 12.0 or later). Check nvidia-smi."
        )
    return gpus


def compiled_graph(folder: Path, source: Path, manifest: Manifest, options: Any) -> Path:
    """A stage's compiled model in `folder`; compiled now where there is none of these graphs for this GPU.

    Raises:
        EarnError: the provider cannot compile the graph.
    """
    import onnxruntime

    record, own = _record(manifest), folder / source.stem
    if not _is_of(own / RECORD_FILE, record):
        with folder_written_whole(own) as beside:
            try:
                compiler = onnxruntime.ModelCompiler(options, str(source))
                compiler.compile_to_file(str(beside / source.name))  # its weights stand in a file beside it
            except Exception as error:  # onnxruntime raises classes of its own without a common base
                raise EarnError(f"{source}: {PROVIDER} cannot compile it ({error}).") from error
            write_json(beside / RECORD_FILE, record)
    return own / source.name


def _record(manifest: Manifest) -> dict[str, str]:
    """What a compiled model is for."""
    return {
        "plugin": str(import_module(PLUGIN).__version__),
        "architecture": shared_device().gpu().architecture,
        "graphs": graph_hash(manifest),
        "profiles": ranges_hash(manifest),
    }


def _is_of(path: Path, record: Mapping[str, str]) -> bool:
    try:
        return bool(read_json(path) == record)
    except EarnError:
        return False
