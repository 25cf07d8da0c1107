"""A simulated GPU: CUDA's memory, streams and graphs in host memory (see simulated_tensorrt for TensorRT).

Function and method names, arguments, flags and enumerations are the real ones (see signatures). What a real device
does not forgive is an error here too: reading or writing outside of memory that was taken, addresses that are not
aligned, shapes outside a profile, tensors without shape or address, and whatever may not happen while a graph is
captured. New memory holds NaN, so that reading unwritten memory shows in the answer.
"""

# ruff: noqa: N802
from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import get_ident
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import numpy as np
from cuda.bindings import runtime as real

from earn.runtime.memory import Array

STREAM = 7  # the number of the first stream
ALIGNED = 256


class CudaError(Exception):
    """A function of the CUDA runtime fails with this status."""


def status(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """The function as the CUDA runtime has it: a status, then the result if there is one."""

    def call(*arguments: Any) -> tuple[Any, ...]:
        try:
            result = function(*arguments)
        except CudaError as error:
            return error.args[0], None
        return (real.cudaError_t.cudaSuccess, *(() if result is None else (result,)))

    return call


class SimulatedCuda:
    """cuda.bindings.runtime as far as it is used; `.module` replaces it."""

    def __init__(self, devices: int = 1, memory: int = 1 << 30) -> None:
        self.devices, self.memory = devices, memory
        self.blocks: dict[int, Array] = {}  # by address
        self.graphs: list[list[Callable[[], None]]] = []
        self.captured: dict[int, tuple[int, list[Callable[[], None]]]] = {}  # by stream: its thread, and its work
        self.streams = 0
        self.launches = 0
        self.name, self.architecture = "NVIDIA Simulated 1", (8, 9)
        names = [name for name in dir(self) if name.startswith("cuda")]
        answers = {name: status(getattr(self, name)) for name in names}
        functions = {name: create_autospec(getattr(real, name), side_effect=answers[name]) for name in names}
        kinds = ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaError_t")
        enumerations = {name: getattr(real, name) for name in (*kinds, "cudaStreamNonBlocking")}
        self.module = SimpleNamespace(**functions, **enumerations)

    @property
    def taken(self) -> int:
        """Bytes that are taken."""
        return sum(block.nbytes - ALIGNED for block in self.blocks.copy().values())

    def cudaGetDeviceCount(self) -> Any:
        if not self.devices:
            raise CudaError(real.cudaError_t.cudaErrorNoDevice)
        return self.devices

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == real.cudaStreamNonBlocking  # others wait for whoever uses the default stream
        self.streams += 1
        return STREAM + self.streams - 1

    def cudaGetDeviceProperties(self, device: int) -> Any:
        major, minor = self.architecture
        return SimpleNamespace(name=self.name.encode() + b"\0", major=major, minor=minor)

    def cudaDriverGetVersion(self) -> Any:
        return 13020

    def cudaMalloc(self, size: int) -> Any:
        self.forbid_capture()
        if self.taken + size > self.memory:
            raise CudaError(real.cudaError_t.cudaErrorMemoryAllocation)
        block = np.full(size + ALIGNED, 255, np.uint8)  # as numbers: NaN
        address = -(-block.ctypes.data // ALIGNED) * ALIGNED
        self.blocks[address] = block
        return address

    def cudaFree(self, address: int) -> None:
        self.forbid_capture()
        del self.blocks[address]

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> None:
        self.forbid_captured(stream)
        self.forbid_capture()
        self.bytes_at(address, size)[:] = value

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> None:
        self.cudaMemcpy2DAsync(target, size, source, size, size, 1, kind, stream)

    def cudaMemcpy2DAsync(
        self, target: int, to: int, source: int, step: int, size: int, count: int, kind: Any, stream: int
    ) -> None:
        self.forbid_captured(stream)
        assert size <= min(to, step)
        self.forbid_capture()
        kinds = real.cudaMemcpyKind
        assert kind in (kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost, kinds.cudaMemcpyDeviceToDevice)
        for row in range(count):
            there, here = target + row * to, source + row * step
            assert self.is_device(there, size) == (kind != kinds.cudaMemcpyDeviceToHost)
            assert self.is_device(here, size) == (kind != kinds.cudaMemcpyHostToDevice)
            ctypes.memmove(there, here, size)

    def cudaStreamSynchronize(self, stream: int) -> None:
        self.forbid_captured(stream)
        self.forbid_capture()

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
        assert self.is_stream(stream)
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert stream not in self.captured
        self.forbid_capture()
        self.captured[stream] = (get_ident(), [])

    def cudaStreamEndCapture(self, stream: int) -> Any:
        thread, graph = self.captured.pop(stream)
        assert thread == get_ident()
        return graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        self.graphs.append(graph)
        return graph

    def cudaGraphDestroy(self, graph: Any) -> None:
        """Only executable graphs are kept."""

    def cudaGraphExecDestroy(self, graph: Any) -> None:
        self.graphs = [own for own in self.graphs if own is not graph]

    def cudaGraphLaunch(self, graph: Any, stream: int) -> None:
        self.forbid_captured(stream)
        assert any(own is graph for own in self.graphs)
        self.launches += 1
        for work in graph:
            work()

    def is_stream(self, number: int) -> bool:
        """Whether there is such a stream."""
        return number in range(STREAM, STREAM + self.streams)

    def forbid_capture(self) -> None:
        """What a thread may not do while it captures a graph: anything but starting kernels."""
        assert all(thread != get_ident() for thread, _ in self.captured.copy().values())

    def forbid_captured(self, stream: int) -> None:
        """Work on a stream that somebody captures would become part of that graph."""
        assert self.is_stream(stream)
        assert stream not in self.captured

    def is_device(self, address: int, size: int) -> bool:
        """Whether the bytes lie within one piece of memory that was taken."""
        return any(
            start <= address and address + size <= start + block.nbytes - ALIGNED
            for start, block in self.blocks.copy().items()  # a copy: other threads take and free memory meanwhile
        )

    def bytes_at(self, address: int, size: int) -> Array:
        """The device's bytes."""
        assert self.is_device(address, size)
        return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))
