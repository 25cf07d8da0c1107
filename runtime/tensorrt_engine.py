"""The engine "tensorrt": both stages as TensorRT engines, with all that stays between two calls on the device.

Decoding passes are what a search repeats, and at few rows their cost is that of starting hundreds of kernels. They run
as CUDA graphs, which start all of them at once. A graph is for fixed shapes and addresses, so a pass is widened to the
next shape of a coarse grid: added rows are seen by nobody, added cached rows are masked. Graphs are kept by shape and
by the cache that they read; a request whose cache has the size of an earlier one's gets its memory, and its graphs.

Prompts are read with the shapes that they have.
"""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from earn.config import MASKED
from earn.errors import EarnError
from earn.manifest import Manifest
from earn.runtime.cuda import Block, Cuda, CudaArray, shared_device
from earn.runtime.engine_files import STAGE_ENGINES, engine_paths
from earn.runtime.memory import Array
from earn.runtime.tensorrt_api import LoadedEngine, check_engine, load_engines, make_log, this_machine
from earn.shape_ranges import OptimizationProfile, profile_for, profiles
from earn.specs import NEW, PAST, StageSpecs, TensorSpec, all_specs

DECODE = 0  # index of the profile of decoding passes (see earn.shape_ranges)
ROWS, CACHED = 8, 64  # the grid that passes are widened to: rows and cached rows
MOST_GRAPHS = 32  # per stage; the one that was used longest ago makes room
ALIGNED = 256  # bytes, as TensorRT wants addresses


class TensorRTEngine:
    """Both stages as TensorRT engines."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Loads a bundle's engines.

        Raises:
            EarnError: there are none, they are not for this bundle and machine, or TensorRT is missing or refuses them.
        """
        self.device = shared_device()
        record, paths = engine_paths(folder, manifest, this_machine())
        self._lock = Lock()  # a stage has one scratch memory
        log = make_log()
        self._runtime, engines = load_engines(folder, STAGE_ENGINES, record, paths, log)
        capturing = self.device.new_stream()  # of this engine alone: what others do is not captured with it
        self._stages: dict[str, TensorRTStage] = {}
        for stage, specs in all_specs(manifest.sizes, manifest.limits).items():
            ranges = profiles(stage, manifest.sizes, manifest.limits)
            dtypes = {spec.name: spec.dtype for spec in (*specs.inputs, *specs.outputs)}
            check_engine(engines[stage], dtypes, len(ranges), paths[stage])
            self._stages[stage] = TensorRTStage(engines[stage], specs, ranges, self.device, capturing, log)

    def run(self, stage: str, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Runs the stage; returns when outputs in host memory are there."""
        with self._lock:
            self._stages[stage].run(feeds, outputs)


class TensorRTStage(LoadedEngine):
    """One stage's engine with its memory."""

    def __init__(
        self,
        engine: Any,
        specs: StageSpecs,
        ranges: Sequence[OptimizationProfile],
        device: Cuda,
        capturing: int,
        log: Any,
    ) -> None:
        super().__init__(engine, device, log)
        self._capturing, self._ranges = capturing, ranges
        self._types = {spec.name: np.dtype(spec.dtype) for spec in (*specs.inputs, *specs.outputs)}
        self._outputs = {spec.name: spec for spec in specs.outputs}
        self._passes: OrderedDict[tuple[int, ...], Pass] = OrderedDict()
        self._blocks: dict[str, Block] = {}  # what all passes read and write, but for the cache

    def run(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Reads feeds, writes outputs."""
        profile = profile_for(self._ranges, {name: array.shape for name, array in feeds.items()})
        if profile == DECODE and PAST in feeds and len(feeds["keep"]) == _rows(feeds):  # every row goes on
            self._run_pass(feeds, outputs)
        else:
            self._run_once(profile, feeds, outputs)

    def _run_once(self, profile: int, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Runs with the shapes as they are."""
        context = self._shared_context(profile)
        held: list[Block] = []
        for name, array in feeds.items():
            address = self._on_device(name, array, held)
            self._bind(context, name, address, array.shape)
        staged: list[tuple[Any, Block]] = []
        for name, array in outputs.items():
            is_direct = isinstance(array, CudaArray) and array.address % ALIGNED == 0
            block = array if is_direct else self._device.take(array.nbytes)
            if not is_direct:
                staged.append((array, block))
            self._bind(context, name, block.address)
        self._enqueue(context, self._device.stream)
        for array, block in staged:
            self._give(array, block.address)

    def _run_pass(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Runs widened to the grid, as a graph."""
        past = feeds[PAST]
        shape = self._widened(_rows(feeds), past)
        key = (shape.users, shape.rows, shape.cached, past.address)
        if key in self._passes:
            self._passes.move_to_end(key)
            self._load(shape, feeds)
        else:
            self._passes[key] = self._capture(shape, feeds)
            if len(self._passes) > MOST_GRAPHS:
                self._passes.popitem(last=False)
        self._device.call("cudaGraphLaunch", self._passes[key].graph, self._device.stream)
        for name, array in outputs.items():
            self._give_rows(array, self._blocks[name].address, name, shape)

    def _widened(self, rows: int, past: CudaArray) -> PassShape:
        """The shape on the grid, no larger than the profile and than the memory behind the cache."""
        most = self._ranges[DECODE].ranges[PAST].most[0]
        room = past.block.end - past.address
        row = past.nbytes // len(past)
        most_rows = self._ranges[DECODE].ranges["keep"].most[0]
        return PassShape(
            past.shape[1],
            min(most_rows, _rounded(rows, ROWS)),
            min(most, _rounded(len(past), CACHED), room // row),
        )

    def _capture(self, shape: PassShape, feeds: Mapping[str, Any]) -> Pass:
        """A graph of one pass of this shape over this cache."""
        sizes = {name: shape.of(name, array.shape) for name, array in feeds.items()}
        sizes |= {name: shape.of_output(spec) for name, spec in self._outputs.items()}
        del sizes[PAST]
        for name, size in sizes.items():
            self._make_room(name, self._types[name].itemsize * math.prod(size))
        context = self._context(DECODE)
        for name in feeds:
            address = feeds[PAST].address if name == PAST else self._blocks[name].address
            self._bind(context, name, address, shape.of(name, feeds[name].shape))
        for name in self._outputs:
            self._bind(context, name, self._blocks[name].address)
        self._load(shape, feeds)
        self._enqueue(context, self._device.stream)  # what is set up at a first run must not be captured
        self._device.finish()
        captured = Pass(context, self._captured(context))
        weakref.finalize(captured, self._device.discard, captured.graph).atexit = False
        return captured

    def _captured(self, context: Any) -> Any:
        """The graph of one run."""
        mode = self._device.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._device.call("cudaStreamBeginCapture", self._capturing, mode)
        try:
            self._enqueue(context, self._capturing)
        except EarnError:
            with suppress(EarnError):  # what TensorRT said is the reason
                self._device.call("cudaStreamEndCapture", self._capturing)
            raise
        graph = self._device.call("cudaStreamEndCapture", self._capturing)
        executable = self._device.call("cudaGraphInstantiate", graph, 0)
        self._device.call("cudaGraphDestroy", graph)
        return executable

    def _make_room(self, name: str, size: int) -> None:
        """Gives a tensor of the passes so many bytes; graphs over a smaller block are forgotten.

        Rows that are added are masked, so they must be finite, and memory may hold anything.
        """
        block = self._blocks.get(name)
        if block is None or block.end - block.address < size:
            self._passes.clear()
            self._blocks[name] = self._device.clear(self._device.take(size))

    def _load(self, shape: PassShape, feeds: Mapping[str, Any]) -> None:
        """Puts inputs where a pass of this shape reads them, widened."""
        rows = _rows(feeds)
        for name, array in feeds.items():
            if name == PAST:
                continue
            address = self._blocks[name].address
            if isinstance(array, CudaArray):  # hidden [b,m,d]
                row = array.nbytes // (array.shape[0] * rows)
                self._device.copy_rows(address, shape.rows * row, array.address, rows * row, rows * row, array.shape[0])
            else:
                padded = _padded(name, array, shape, len(feeds[PAST]))
                self._device.upload(np.ascontiguousarray(padded, self._types[name]), address)

    def _give_rows(self, target: Any, address: int, name: str, shape: PassShape) -> None:
        """Takes the rows that were asked for out of a widened output."""
        if name == NEW:  # [m,b,...]: the first rows are one piece
            self._give(target, address)
            return
        wide = (shape.users, shape.rows, *target.shape[2:])
        if isinstance(target, CudaArray):
            row = target.nbytes // (shape.users * target.shape[1])
            size = target.shape[1] * row
            self._device.copy_rows(target.address, size, address, shape.rows * row, size, shape.users)
        else:
            whole = np.empty(wide, np.float32)
            self._device.download(address, whole)
            target[:] = whole[:, : target.shape[1]]

    def _give(self, target: Any, address: int) -> None:
        """Copies an output to where it belongs."""
        if isinstance(target, CudaArray):
            self._device.copy_bytes(target.address, address, target.nbytes)
        else:
            whole = np.empty(target.shape, target.dtype)
            self._device.download(address, whole)
            target[...] = whole

    def _on_device(self, name: str, array: Any, held: list[Block]) -> int:
        """The address of an input; a host array is sent to memory that `held` keeps."""
        if isinstance(array, CudaArray):
            return array.address
        held.append(self._device.take(array.nbytes))
        if array.nbytes:
            self._device.upload(np.ascontiguousarray(array, self._types[name]), held[-1].address)
        return held[-1].address


@dataclass(frozen=True)
class PassShape:
    """The shape of a decoding pass on the grid."""

    users: int
    rows: int
    cached: int

    def of(self, name: str, size: Sequence[int]) -> tuple[int, ...]:
        """The widened shape of an input."""
        return {
            "attention_bias": (self.users, 1, self.rows, self.cached + self.rows),
            PAST: (self.cached, *size[1:]),
            "keep": (self.rows,),
        }.get(name, (self.users, self.rows, *size[2:]))

    def of_output(self, spec: TensorSpec) -> tuple[int, ...]:
        """The widened shape of an output."""
        free = {"b": self.users, "r": self.rows, "m": self.rows}
        return tuple(free.get(axis.name, axis.most) for axis in spec.axes)


@dataclass
class Pass:
    """A captured pass."""

    context: Any  # what the graph uses lives as long as it
    graph: Any


def _rows(feeds: Mapping[str, Any]) -> int:
    """m: rows of the call."""
    return int(feeds["input_ids" if "input_ids" in feeds else "hidden"].shape[1])


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step


def _padded(name: str, array: Array, shape: PassShape, cached: int) -> Array:
    """A host input widened: rows that nobody sees, and cached rows that are masked."""
    if name == "keep":
        return np.arange(shape.rows)  # all rows go on
    rows = array.shape[-2] if name == "attention_bias" else array.shape[1]
    wide = np.full(shape.of(name, array.shape), MASKED if name == "attention_bias" else 0, array.dtype)
    if name == "attention_bias":  # columns: cached rows, then the pass's own
        wide[:, :, :rows, :cached] = array[..., :cached]
        wide[:, :, :rows, shape.cached : shape.cached + rows] = array[..., cached:]
    else:
        wide[:, :rows] = array
    return wide
