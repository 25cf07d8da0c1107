"""Engines: what runs the two stages. One small protocol, and one table of those that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from earn.errors import EarnError
from earn.manifest import GRAPH_FILES, Manifest
from earn.specs import StageSpecs, all_specs

Array = NDArray[Any]


class Engine(Protocol):
    """Runs a stage on arrays named and shaped as the tensor table says; safe to call from several threads."""

    def run(self, stage: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of the stage "early" or "late" by name."""
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


def load_engine(name: str, folder: Path, manifest: Manifest, threads: int | None = None) -> Engine:
    """The engine of that name over a bundle's graphs.

    Args:
        threads: threads of one call; ONNX Runtime's own choice (the physical cores) if None.

    Raises:
        EarnError: no such engine, it is not available here, or the graphs are not those of the manifest.
    """
    if name not in ENGINES:
        raise EarnError(f"There is no engine {name!r}. Take one of: {', '.join(ENGINES)}.")
    if threads is not None and not (isinstance(threads, Integral) and 1 <= threads <= MOST_THREADS):
        raise EarnError(f"threads is {threads!r}. Take 1 to {MOST_THREADS}, or None for the machine's own number.")
    return OnnxStages(ENGINES[name], folder, manifest, threads)


class OnnxStages:
    """Both stages as ONNX Runtime sessions."""

    def __init__(self, engine: OnnxEngine, folder: Path, manifest: Manifest, threads: int | None) -> None:
        import onnxruntime

        if engine.provider not in onnxruntime.get_available_providers():
            raise EarnError(
                f"This onnxruntime has no {engine.provider}, only {', '.join(onnxruntime.get_available_providers())}. "
                f"Install it: {engine.remedy}"
            )
        options = onnxruntime.SessionOptions()
        # Threads of one stage would go on spinning, and take the cores, while the other stage runs or the app is idle.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
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

    def run(self, stage: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of the stage by name."""
        session = self._sessions[stage]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))


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
