"""Builds TensorRT engines from a bundle's graphs, on the machine that will run them.

Networks are strongly typed: precision is what the graph says, in TensorRT 10 as in 11. fp16 bundles hold float16
weights and products with norms and softmax in float32, int8 and int4 bundles explicit Q/DQ, so no builder flag is
needed for either. TF32 is off: fp32 means fp32. Optimization profiles are those of earn.shape_ranges.

The engines stand in the bundle under engines/, with a record of what they are for (see
earn.runtime.engine_files). Timings of kernels are kept beside them, so that building again is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earn.errors import EarnError
from earn.files import folder_written_whole
from earn.manifest import FileEntry, Manifest
from earn.runtime.engine_files import (
    HARDWARE,
    ONE_ENGINE,
    STAGE_ENGINES,
    EngineKind,
    EngineRecord,
    check_form,
    check_one_graph,
    graph_hash,
    ranges_hash,
)
from earn.runtime.tensorrt_api import last_error, make_log, tensorrt, this_machine
from earn.shape_ranges import OptimizationProfile

TIMING_CACHE = "timing.cache"
LEVELS = range(6)  # of the builder's search for fast kernels; 3 is TensorRT's own choice

Progress = Callable[[str, int, int], None]  # what is done, steps done, all steps


@dataclass(frozen=True)
class BuildSettings:
    """How engines are built."""

    hardware: str = "none"  # one of HARDWARE
    version_compatible: bool = False  # whether later TensorRTs of the same major version may run them
    workspace_bytes: int | None = None  # most memory for what a kernel computes in between; all there is if None
    level: int = 3  # one of LEVELS: higher ones take longer to build


def build_engines(
    folder: str | Path,
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
    kind: EngineKind = STAGE_ENGINES,
) -> EngineRecord:
    """Builds both stages of a bundle, or its one graph; engines that stood there are replaced when all are done.

    Args:
        folder: the bundle.
        progress: called while TensorRT works.
        kind: what is built.

    Raises:
        EarnError: the bundle is damaged or in another engine's form, its one graph is missing or in another form,
            there is no GPU, a package is missing, or TensorRT refuses a graph.
        KeyboardInterrupt: the user broke it off; nothing has changed.
    """
    folder, settings = Path(folder), settings or BuildSettings()
    check_settings(settings)
    manifest = Manifest.load(folder)
    check_form(manifest, folder)
    if kind is ONE_ENGINE:
        check_one_graph(folder, manifest)
    target = this_machine()
    out = folder / kind.folder
    timings = (out / TIMING_CACHE).read_bytes() if (out / TIMING_CACHE).is_file() else b""
    with folder_written_whole(out) as beside:
        for name, ranges in kind.ranges(manifest).items():
            what = "one graph" if kind is ONE_ENGINE else f"{name} stage"
            graph, file = folder / kind.graphs[name], beside / kind.files[name]
            timings = _build_engine(graph, ranges, settings, timings, file, _make_monitor(what, progress))
        (beside / TIMING_CACHE).write_bytes(timings)
        record = EngineRecord(
            tensorrt=target.tensorrt,
            gpu=target.gpu.name,
            architecture=target.gpu.architecture,
            driver=target.gpu.driver,
            hardware=settings.hardware,
            version_compatible=settings.version_compatible,
            precision=manifest.precision,
            graphs=graph_hash(manifest, kind),
            profiles=ranges_hash(manifest, kind),
            files={name: FileEntry.of(beside / name) for name in kind.files.values()},
        )
        record.save(beside)
    return record


def check_settings(settings: BuildSettings) -> None:
    """Raises EarnError for settings that no TensorRT, or not this one, has."""
    if settings.hardware not in HARDWARE:
        raise EarnError(f"There is no hardware setting {settings.hardware!r}. Take one of: {', '.join(HARDWARE)}.")
    if settings.level not in LEVELS:
        raise EarnError(f"The level is {settings.level}. Take {LEVELS[0]} to {LEVELS[-1]}.")
    if settings.workspace_bytes is not None and settings.workspace_bytes < 1:
        raise EarnError(f"The workspace is {settings.workspace_bytes} bytes. Take 1 or more.")


def _build_engine(
    graph: Path,
    ranges: Sequence[OptimizationProfile],
    settings: BuildSettings,
    timings: bytes,
    out: Path,
    monitor: Any,
) -> bytes:
    """Writes one engine and returns the kernels' timings so far."""
    package, log = tensorrt(), make_log()
    builder = package.Builder(log)
    network = builder.create_network(1 << int(package.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(package.OnnxParser(network, log), graph)
    config = _config(builder, settings)
    for row in ranges:
        profile = builder.create_optimization_profile()
        for name, own in row.ranges.items():
            profile.set_shape(name, own.least, own.usual, own.most)
        config.add_optimization_profile(profile)
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):  # of another version or GPU
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    config.progress_monitor = monitor
    built = builder.build_serialized_network(network, config)
    if monitor.stopped_by is not None:
        raise monitor.stopped_by
    if built is None:
        raise EarnError(
            f"{graph}: TensorRT {package.__version__} cannot build it{last_error(log)}. If memory is short, export "
            "with smaller --max-batch and --max-beams, or give a smaller --workspace."
        )
    out.write_bytes(memoryview(built))
    return bytes(memoryview(cache.serialize()))


def _parse(parser: Any, graph: Path) -> None:
    """Reads a graph.

    Raises:
        EarnError: TensorRT's parser refuses it; names every node that it complains of.
    """
    if parser.parse_from_file(str(graph)):
        return
    reasons = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"{error.node_operator()} {error.node_name()!r}: " if error.node_operator() else ""
        reasons.append(f"{node}{error.desc()}")
    raise EarnError(
        f"{graph}: TensorRT {tensorrt().__version__} does not take it: {'; '.join(reasons) or 'no reason given'}. "
        "Export or calibrate the bundle again with this earn-edge, or take a later TensorRT."
    )


def _config(builder: Any, settings: BuildSettings) -> Any:
    package = tensorrt()
    config = builder.create_builder_config()
    config.builder_optimization_level = settings.level
    config.clear_flag(package.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(package.BuilderFlag.VERSION_COMPATIBLE)
    level = getattr(package.HardwareCompatibilityLevel, HARDWARE[settings.hardware].level, None)
    if level is None:
        raise EarnError(f"TensorRT {package.__version__} has no hardware setting {settings.hardware!r}.")
    config.hardware_compatibility_level = level
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(package.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    return config


def _make_monitor(what: str, progress: Progress | None) -> Any:
    """TensorRT's phases as progress; an interrupt stops the build at its next step."""
    package = tensorrt()

    class Monitor(package.IProgressMonitor):  # type: ignore[name-defined, misc]  # known at run time alone
        def __init__(self) -> None:
            package.IProgressMonitor.__init__(self)
            self.stopped_by: BaseException | None = None  # an exception must not cross TensorRT's own code
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guard(lambda: self._steps.__setitem__(phase_name, num_steps))

        def phase_finish(self, phase_name: str) -> None:
            self._guard(lambda: self._steps.pop(phase_name, None))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if report := progress:
                self._guard(lambda: report(f"{what}: {phase_name}", step + 1, self._steps.get(phase_name, step + 1)))
            return self.stopped_by is None

        def _guard(self, work: Callable[[], object]) -> None:
            try:
                work()
            except BaseException as error:  # also an interrupt
                self.stopped_by = error

    return Monitor()
