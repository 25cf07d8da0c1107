"""Engines: what runs the two stages. One small protocol, and one table of those that can be asked for by name.

An engine that was asked for is the engine that runs, or there is an error. "auto" takes the fastest that has what it
needs here, and says (in the log) which and why.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.runtime.cuda import shared_device
from earn.runtime.engine_files import check_form, engine_paths
from earn.runtime.memory import Device
from earn.runtime.onnx_engine import (
    OnnxEngine,
    OnnxStages,
    check_available,
    cuda_options,
    rtx_options,
    session_options,
    tensorrt_options,
)
from earn.runtime.rtx import PROVIDER
from earn.runtime.tensorrt_api import this_machine

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs a stage on arrays named and shaped as the tensor table says; safe to call from several threads."""

    @property
    def device(self) -> Device:
        """Where the engine computes, and what it reads and writes without a copy."""
        ...

    def run(self, stage: str, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Runs the stage "early" or "late" and writes each of its outputs into the array that is given for it.

        Arrays are numpy's or memory of the engine's device, inputs and outputs alike.
        """
        ...


NATIVE = "tensorrt"
AUTO = (NATIVE, "cuda", "cpu")  # the fastest first
_GPU = "pip uninstall onnxruntime, then pip install onnxruntime-gpu cuda-bindings"

# Those of ONNX Runtime. The one besides is NATIVE: TensorRT itself, with engines that stand in the bundle.
ENGINES: Mapping[str, OnnxEngine] = {
    "cpu": OnnxEngine("CPUExecutionProvider", "pip install onnxruntime", on_gpu=False),
    "cuda": OnnxEngine("CUDAExecutionProvider", _GPU, cuda_options),
    "tensorrt-ep": OnnxEngine("TensorrtExecutionProvider", f"{_GPU}, and TensorRT 10", tensorrt_options),
    "tensorrt-rtx": OnnxEngine(
        PROVIDER,
        "pip install 'onnxruntime>=1.31' onnxruntime-ep-nv-tensorrt-rtx cuda-bindings",
        rtx_options,
        is_plugin=True,
    ),
}

MOST_THREADS = 256  # thousands of them take minutes to start


def load_engine(
    name: str,
    folder: Path,
    manifest: Manifest,
    threads: int | None = None,
    spinning: bool = False,
    arena: bool = False,
) -> Engine:
    """The engine of that name over a bundle's graphs. The defaults are for an app that is idle most of the time.

    Args:
        name: one of ENGINES, NATIVE, or "auto".
        threads: threads of one call; ONNX Runtime's own choice (the physical cores) if None.
        spinning: whether threads wait for their next call at full speed, which takes cores from the other stage.
        arena: whether memory for what is computed in between is kept from call to call.

    Raises:
        EarnError: no such engine, it is not available here, or the graphs are not those of the manifest.
    """
    names = (*ENGINES, NATIVE, "auto")
    if name not in names:
        raise EarnError(f"There is no engine {name!r}. Take one of: {', '.join(names)}.")
    if threads is not None and not (isinstance(threads, Integral) and 1 <= threads <= MOST_THREADS):
        raise EarnError(f"threads is {threads!r}. Take 1 to {MOST_THREADS}, or None for the machine's own number.")
    if name == "auto":
        name, why = choose_engine(folder, manifest)
        _log.info("engine %s%s", name, f" ({why})" if why else "")
    check_precision(name, folder, manifest)
    if name == NATIVE:
        from earn.runtime.tensorrt_engine import TensorRTStages

        return TensorRTStages(folder, manifest)
    engine = ENGINES[name]
    check_available(engine)
    return OnnxStages(engine, folder, manifest, lambda: session_options(threads, spinning, arena))


def check_precision(name: str, folder: Path, manifest: Manifest) -> None:
    """Raises EarnError where an engine has no kernels for a bundle's graphs."""
    if name in (NATIVE, "tensorrt-ep", "tensorrt-rtx"):
        check_form(manifest, folder)
    if name == "cuda" and manifest.precision == "int8-dynamic":
        raise EarnError(f"{folder}: CUDA finds no ranges of activations (int8-dynamic). Take engine='cpu', or fp16.")


def choose_engine(folder: Path, manifest: Manifest) -> tuple[str, str]:
    """What "auto" means here: the fastest that this bundle and this machine have what it needs for.

    Returns:
        Its name, and why it is not a faster one.
    """
    reasons = {name: why_not(name, folder, manifest) for name in AUTO}
    chosen = next((name for name, why in reasons.items() if not why), AUTO[-1])
    faster = AUTO[: AUTO.index(chosen)]
    return chosen, "; ".join(f"{name}: {reasons[name]}" for name in faster)


def why_not(name: str, folder: Path, manifest: Manifest) -> str:
    """What an engine lacks here to run a bundle; "" if nothing is known to be missing."""
    try:
        check_precision(name, folder, manifest)
        check_machine(name)
        if name == NATIVE:
            engine_paths(folder, manifest, this_machine(), verify=False)
    except (EarnError, ImportError) as error:
        return str(error)
    return ""


def check_machine(name: str) -> None:
    """Raises EarnError where a package, a provider or a GPU is missing that an engine needs for any bundle."""
    if name == NATIVE:
        this_machine()
        return
    check_available(ENGINES[name])
    if ENGINES[name].on_gpu:
        shared_device()
