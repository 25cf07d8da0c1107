"""Engines: what runs the two stages. One small protocol, and one table of those that can be asked for by name.

An engine that was asked for is the engine that runs, or there is an error. "auto" takes the first automatic row of the
table that has what it needs here, and says (in the log) which and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.runtime.engine_files import TENSORRT, TENSORRT_ONE_GRAPH, check_form, engine_paths
from earn.runtime.memory import Device
from earn.runtime.onnx_engine import (
    OnnxEngine,
    Provider,
    check_provider,
    cuda_options,
    refuse_dynamic_ranges,
    rtx_options,
    session_options,
    tensorrt_options,
)
from earn.runtime.rtx import PROVIDER
from earn.runtime.tensorrt_api import this_machine
from earn.runtime.tensorrt_engine import TensorRTEngine

_log = logging.getLogger(__name__)

AUTO = "auto"
ONE_GRAPH = "one-graph"
ONE_GRAPHS = (ONE_GRAPH, TENSORRT_ONE_GRAPH)  # no rows of ENGINES: they run no stages (see earn.runtime.one_graph)
MOST_THREADS = 256  # thousands of them take minutes to start


class Engine(Protocol):
    """Runs a stage on arrays named and shaped as the tensor table says; safe to call from several threads."""

    @property
    def device(self) -> Device:
        """Where the engine computes, and what it reads and writes without a copy."""

    def run(self, stage: str, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Runs the stage "early" or "late" and writes each of its outputs into the array that is given for it.

        Arrays are numpy's or memory of the engine's device, inputs and outputs alike.
        """


@dataclass(frozen=True)
class EngineRow:
    """An engine that can be asked for by name. Every check raises EarnError with a remedy."""

    load: Callable[[Path, Manifest, Callable[[], Any]], Engine]  # the last makes options of an ONNX Runtime session
    check_machine: Callable[[], object]  # a package, a provider or a GPU is missing that it needs for any bundle
    check_graphs: Callable[[Manifest, Path], None] = lambda manifest, folder: None  # it does not take their form
    check_files: Callable[[Path, Manifest], object] = lambda folder, manifest: None  # what is built before is missing
    is_automatic: bool = False  # whether "auto" may take it


def onnx_row(
    provider: Provider,
    check_graphs: Callable[[Manifest, Path], None] = lambda manifest, folder: None,
    is_automatic: bool = False,
) -> EngineRow:
    """The row of an execution provider of ONNX Runtime."""
    return EngineRow(
        partial(OnnxEngine, provider), partial(check_provider, provider), check_graphs, is_automatic=is_automatic
    )


_GPU = "pip uninstall onnxruntime, then pip install onnxruntime-gpu cuda-bindings"
_RTX = "pip install 'onnxruntime>=1.31' onnxruntime-ep-nv-tensorrt-rtx cuda-bindings"

# The automatic ones stand before the others, the fastest first.
ENGINES: Mapping[str, EngineRow] = {
    TENSORRT: EngineRow(
        load=lambda folder, manifest, options: TensorRTEngine(folder, manifest),
        check_machine=this_machine,
        check_graphs=check_form,
        check_files=lambda folder, manifest: engine_paths(folder, manifest, this_machine(), verify=False),
        is_automatic=True,
    ),
    "cuda": onnx_row(Provider("CUDAExecutionProvider", _GPU, cuda_options), refuse_dynamic_ranges, is_automatic=True),
    "cpu": onnx_row(Provider("CPUExecutionProvider", "pip install onnxruntime", on_gpu=False), is_automatic=True),
    "tensorrt-ep": onnx_row(
        Provider("TensorrtExecutionProvider", f"{_GPU}, and TensorRT 10", tensorrt_options), check_form
    ),
    "tensorrt-rtx": onnx_row(Provider(PROVIDER, _RTX, rtx_options, is_plugin=True), check_form),
}


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
        name: one of ENGINES, or "auto".
        threads: threads of one call; ONNX Runtime's own choice (the physical cores) if None.
        spinning: whether threads wait for their next call at full speed, which takes cores from the other stage.
        arena: whether working memory is kept from call to call.

    Raises:
        EarnError: no such engine, it is not available here, or the graphs are not those of the manifest.
    """
    if name not in (*ENGINES, AUTO):
        raise EarnError(f"There is no engine {name!r}. Take one of: {', '.join((*ENGINES, *ONE_GRAPHS, AUTO))}.")
    check_threads(threads)
    if name == AUTO:
        name, why = choose_engine(folder, manifest)
        _log.info("engine %s%s", name, f" ({why})" if why else "")
    engine = ENGINES[name]
    engine.check_graphs(manifest, folder)
    engine.check_machine()
    return engine.load(folder, manifest, partial(session_options, threads, spinning, arena))


def check_threads(threads: int | None) -> int | None:
    """The number of threads, if it is one.

    Raises:
        EarnError: it is out of range.
    """
    if threads is not None and not (isinstance(threads, Integral) and 1 <= threads <= MOST_THREADS):
        raise EarnError(f"threads is {threads!r}. Take 1 to {MOST_THREADS}, or None for the machine's own number.")
    return threads


def choose_engine(folder: Path, manifest: Manifest) -> tuple[str, str]:
    """What "auto" means here: the fastest that this bundle and this machine have what it needs for.

    Returns:
        Its name, and why it is not a faster one.
    """
    reasons = []
    for name in (name for name, engine in ENGINES.items() if engine.is_automatic):
        if not (why := why_not(name, folder, manifest)):
            break
        reasons.append(f"{name}: {why}")
    else:  # the last one's error then says what is missing
        reasons.pop()
    return name, "; ".join(reasons)


def why_not(name: str, folder: Path, manifest: Manifest) -> str:
    """What an engine lacks here to run a bundle; "" if nothing is known to be missing."""
    engine = ENGINES[name]
    try:
        engine.check_graphs(manifest, folder)
        engine.check_machine()
        engine.check_files(folder, manifest)
    except (EarnError, ImportError) as error:
        return str(error)
    return ""
