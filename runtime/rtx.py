"""The engine "tensorrt-rtx": TensorRT for RTX, a provider that comes as a plugin of its own, for RTX 30 and later.

Compiling is in two halves. The first, long one is done once and kept in the bundle as a model with EP context nodes:

    engines/tensorrt-rtx/early.onnx, late.onnx    compiled; another RTX GPU may use them as they are
    engines/tensorrt-rtx/compiled.json            what they were made from, and by which version of the plugin

The second makes kernels for the GPU at hand, in seconds; the provider keeps them in the folder `kernels` beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from earn.errors import EarnError
from earn.files import read_json, write_json, written_whole
from earn.manifest import GRAPH_FILES, Manifest
from earn.runtime.plans import graph_hash, ranges_hash

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
    if not (found := devices()):
        raise EarnError(f"{PROVIDER} finds no GPU on this machine. Check it with nvidia-smi.")
    return found


def compiled_graph(kept: Path, source: Path, manifest: Manifest, options: Any) -> Path:
    """A stage's compiled model in the folder `kept`; compiled now where there is none of these graphs and this version.

    Raises:
        EarnError: the provider cannot compile the graph.
    """
    import onnxruntime

    out, record = kept / source.name, _record(manifest)
    if not _is_of(kept / RECORD_FILE, record):
        for name in GRAPH_FILES.values():  # none may be taken for what the record will say
            (kept / name).unlink(missing_ok=True)
        write_json(kept / RECORD_FILE, record)
    if not out.is_file():
        with written_whole(out) as beside:
            try:
                compiler = onnxruntime.ModelCompiler(options, str(source), embed_compiled_data_into_model=True)
                compiler.compile_to_file(str(beside))
            except Exception as error:  # onnxruntime raises classes of its own without a common base
                raise EarnError(f"{source}: {PROVIDER} cannot compile it ({error}).") from error
    return out


def _record(manifest: Manifest) -> dict[str, str]:
    try:
        plugin = version(PLUGIN.replace("_", "-"))
    except PackageNotFoundError:  # installed as the package of one CUDA version
        plugin = ""
    return {"plugin": plugin, "graphs": graph_hash(manifest), "profiles": ranges_hash(manifest)}


def _is_of(path: Path, record: Mapping[str, str]) -> bool:
    try:
        found: Any = read_json(path)
    except EarnError:
        return False
    return bool(found == record)
