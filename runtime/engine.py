"""Engines: what runs the two stages. One small protocol, and one table of those that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from earn.errors import EarnError
from earn.manifest import GRAPH_FILES, Manifest
from earn.runtime.memory import HOST, Device
from earn.specs import StageSpecs, all_specs


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


@dataclass(frozen=True)
class OnnxEngine:
    """An engine of ONNX Runtime."""

    provider: str  # execution provider that must be the one that runs
    remedy: str  # what to install when it is not there


ENGINES: Mapping[str, OnnxEngine] = {
    "cpu": OnnxEngine("CPUExecutionProvider", "pip install onnxruntime"),
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
        threads: threads of one call; ONNX Runtime's own choice (the physical cores) if None.
        spinning: whether threads wait for their next call at full speed, which takes cores from the other stage.
        arena: whether memory for what is computed in between is kept from call to call.

    Raises:
        EarnError: no such engine, it is not available here, or the graphs are not those of the manifest.
    """
    if name not in ENGINES:
        raise EarnError(f"There is no engine {name!r}. Take one of: {', '.join(ENGINES)}.")
    if threads is not None and not (isinstance(threads, Integral) and 1 <= threads <= MOST_THREADS):
        raise EarnError(f"threads is {threads!r}. Take 1 to {MOST_THREADS}, or None for the machine's own number.")
    engine = ENGINES[name]
    check_available(engine)
    return OnnxStages(engine, folder, manifest, session_options(threads, spinning, arena))


def check_available(engine: OnnxEngine) -> None:
    """Raises EarnError where this ONNX Runtime lacks the engine's provider."""
    import onnxruntime

    if engine.provider not in onnxruntime.get_available_providers():
        raise EarnError(
            f"This onnxruntime has no {engine.provider}, only {', '.join(onnxruntime.get_available_providers())}. "
            f"Install it: {engine.remedy}"
        )


def session_options(threads: int | None, spinning: bool, arena: bool) -> Any:
    """ONNX Runtime's options for what `load_engine` is asked for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = arena
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


class OnnxStages:
    """Both stages as ONNX Runtime sessions."""

    device = HOST

    def __init__(self, engine: OnnxEngine, folder: Path, manifest: Manifest, options: Any) -> None:
        import onnxruntime

        self._sessions: dict[str, Any] = {}
        for stage, specs in all_specs(manifest.sizes, manifest.limits).items():
            path = folder / GRAPH_FILES[stage]
            try:
                session = onnxruntime.InferenceSession(str(path), options, providers=[engine.provider])
            except Exception as error:  # onnxruntime raises classes of its own without a common base
                raise EarnError(
                    f"{path}: ONNX Runtime cannot load it ({error}). Export the checkpoint again."
                ) from error
            if session.get_providers()[0] != engine.provider:
                raise EarnError(f"{path}: asked for {engine.provider}, got {session.get_providers()[0]}.")
            check_graph(session, specs, path)
            self._sessions[stage] = session

    def run(self, stage: str, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Reads feeds and writes outputs where they lie."""
        session = self._sessions[stage]
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            if not array.flags.c_contiguous:  # it would be written past its rows
                raise ValueError(f"The array for {name} is not one piece of memory.")
            address = array.__array_interface__["data"][0]
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, address)
        session.run_with_iobinding(binding)


def check_graph(session: Any, specs: StageSpecs, path: Path) -> None:
    """Compares a graph's inputs and outputs with the tensor table: names, types, ranks and fixed sizes.

    Raises:
        EarnError: they differ; all differences are listed.
    """
    wrong: list[str] = []
    for side, nodes, table in (
        ("input", session.get_inputs(), specs.inputs),
        ("output", session.get_outputs(), specs.outputs),
    ):
        got, want = {node.name: node for node in nodes}, {spec.name: spec for spec in table}
        wrong += [f"{side} {name} is missing" for name in want.keys() - got.keys()]
        wrong += [f"{side} {name} is not in the table" for name in got.keys() - want.keys()]
        for name in want.keys() & got.keys():
            shape, axes = got[name].shape, want[name].axes
            fits = len(shape) == len(axes) and all(
                size == axis.most for size, axis in zip(shape, axes, strict=True) if axis.is_fixed
            )
            if not fits or got[name].type != _ONNX_TYPES[want[name].dtype]:
                wrong.append(f"{side} {name} is {got[name].type} {shape}")
    if wrong:
        raise EarnError(
            f"{path}: not the graph of its manifest: {'; '.join(sorted(wrong))}. Export the checkpoint again."
        )


_ONNX_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
