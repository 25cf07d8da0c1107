"""A CUDA device's memory, through cuda-python: what engines on a GPU keep there between two calls.

Memory that is given back is kept for the next request of its size: taking memory stops the whole device. Of several
free blocks the one that was taken first is given first, so that a request which asks for the same arrays in the same
order as an earlier one gets the same addresses, which captured graphs hold on to. What else is taken in between has
other blocks.

All copies go through one stream, and engines that can share it run on it too. Others have streams of their own, so an
array is ready, and a copy done, when it is returned.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from itertools import count
from threading import Lock
from typing import Any

import numpy as np

from earn.errors import EarnError
from earn.runtime.memory import Array

GRAIN = 65_536  # bytes; blocks are multiples of it and at most an eighth too large, so that requests share them
ITEM = np.dtype(np.float32).itemsize
REMEDY = "Check it with nvidia-smi, or take engine='cpu'."


class Block:
    """A piece of the device's memory."""

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.end = address + size


@dataclass(frozen=True)
class CudaArray:
    """A float32 array on the device; `block` keeps its memory alive."""

    address: int
    shape: tuple[int, ...]
    block: Block

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return ITEM * math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> CudaArray:
        """Leading rows from..to, as a view."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"Rows of a device's memory are taken in one piece, not in steps of {step}.")
        row = ITEM * math.prod(self.shape[1:])
        return CudaArray(self.address + start * row, (max(0, stop - start), *self.shape[1:]), self.block)


@dataclass(frozen=True)
class Gpu:
    """What an engine file depends on."""

    name: str
    architecture: str  # compute capability, such as "8.9"
    driver: str  # the newest CUDA that the driver knows, such as "13.0"


class Cuda:
    """The first CUDA device that this process sees (CUDA_VISIBLE_DEVICES chooses)."""

    def __init__(self) -> None:
        """Takes the device.

        Raises:
            EarnError: there is no device, no driver, or no package cuda-bindings.
        """
        self.runtime = cuda_runtime()
        self._lock = Lock()
        self._free: dict[tuple[str, int], list[tuple[int, int]]] = {}  # heaps of (age, address), by use and size
        self._taken = count()
        self._returned: deque[tuple[tuple[str, int], tuple[int, int]]] = deque()  # what finalizers give back
        self._discarded: deque[Any] = deque()  # graphs to destroy
        self._sent: list[Array] = []  # host arrays that may still be read
        if not self.call("cudaGetDeviceCount"):
            raise EarnError(f"There is no CUDA device. {REMEDY}")
        self.stream = self.new_stream()

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of one function of the CUDA runtime.

        Raises:
            EarnError: it failed.
        """
        status, *result = getattr(self.runtime, name)(*arguments)
        if int(status) != 0:
            what = getattr(status, "name", status)
            raise EarnError(f"{name} failed with {what}. {REMEDY}")
        return result[0] if len(result) == 1 else tuple(result)

    def new_stream(self) -> int:
        """A stream that waits for no other, nor any for it."""
        return int(self.call("cudaStreamCreateWithFlags", self.runtime.cudaStreamNonBlocking))

    def gpu(self) -> Gpu:
        """Name, architecture and driver."""
        facts = self.call("cudaGetDeviceProperties", 0)
        name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
        driver = int(self.call("cudaDriverGetVersion"))
        return Gpu(name.rstrip("\0"), f"{facts.major}.{facts.minor}", f"{driver // 1000}.{driver % 1000 // 10}")

    def empty(self, shape: tuple[int, ...]) -> CudaArray:
        """See `earn.runtime.memory.Device`; all zero, so that rows not yet in use can be read, and masked."""
        block = self.clear(self.take(ITEM * math.prod(shape), "arrays"))
        self.finish()
        return CudaArray(block.address, shape, block)

    def take(self, size: int, use: str = "work") -> Block:
        """Memory of at least `size` bytes, which comes back when nobody holds the block any more."""
        step = max(GRAIN, 2 ** max(0, size.bit_length() - 4))
        size = max(1, -(-size // step)) * step
        with self._lock:
            self._collect()
            free = self._free.setdefault((use, size), [])
            order, address = heappop(free) if free else (next(self._taken), 0)
        address = address or self._new(size)
        block = Block(address, size)
        finalizer = weakref.finalize(block, self._returned.append, ((use, size), (order, address)))
        finalizer.atexit = False  # the process's end frees all
        return block

    def clear(self, block: Block) -> Block:
        """Starts filling a block with zeros: numbers that are masked must be finite, and memory may hold anything."""
        self.call("cudaMemsetAsync", block.address, 0, block.end - block.address, self.stream)
        return block

    def _new(self, size: int) -> int:
        try:
            return int(self.call("cudaMalloc", size))
        except EarnError:  # what is kept for later may be in the way
            self.release()
            return int(self.call("cudaMalloc", size))

    def discard(self, graph: Any) -> None:
        """Destroys a graph at a later call; for finalizers, which may run in the middle of anything, any lock held."""
        self._discarded.append(graph)

    def _collect(self) -> None:
        """Takes back what finalizers have given up."""
        while self._returned:
            kind, entry = self._returned.popleft()
            heappush(self._free.setdefault(kind, []), entry)
        if self._discarded:
            self.finish()
        while self._discarded:
            self.call("cudaGraphExecDestroy", self._discarded.popleft())

    def release(self) -> None:
        """Gives the device the memory back that no array uses."""
        with self._lock:
            self._collect()
            addresses = [address for free in self._free.values() for _, address in free]
            self._free.clear()
        self.finish()
        for address in addresses:
            self.call("cudaFree", address)

    def copy(self, source: Any, target: CudaArray) -> None:
        """See `earn.runtime.memory.Device`; returns when it is done."""
        if not target.nbytes:
            return
        if not isinstance(source, CudaArray):
            source = np.broadcast_to(np.asarray(source, np.float32), target.shape)
            self.upload(np.ascontiguousarray(source), target.address)
        elif source.shape == target.shape:
            self.copy_bytes(target.address, source.address, target.nbytes)
        else:
            row = ITEM * math.prod(target.shape[2:])
            for user in range(target.shape[1]):
                self.copy_rows(
                    target.address + user * row, target.shape[1] * row, source.address, row, row, len(target)
                )
        self.finish()

    def upload(self, source: Array, address: int) -> None:
        """Starts copying a host array of any type, in one piece, to an address; the array is kept until it is done."""
        self._sent.append(source)
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, self.stream)

    def copy_bytes(self, target: int, source: int, size: int) -> None:
        """Starts copying within the device."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpyAsync", target, source, size, kind, self.stream)

    def copy_rows(self, target: int, target_step: int, source: int, source_step: int, size: int, count: int) -> None:
        """Starts copying `count` pieces of `size` bytes within the device, each a step behind the one before."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpy2DAsync", target, target_step, source, source_step, size, count, kind, self.stream)

    def to_host(self, memory: CudaArray) -> Array:
        """See `earn.runtime.memory.Device`."""
        target = np.empty(memory.shape, np.float32)
        self.download(memory.address, target)
        return target

    def download(self, address: int, target: Array) -> None:
        """Fills a host array, in one piece, when all work before is done."""
        if target.nbytes:
            kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self.call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, self.stream)
        self.finish()

    def finish(self) -> None:
        """Waits until all work is done."""
        sent, self._sent = self._sent, []
        self.call("cudaStreamSynchronize", self.stream)
        sent.clear()


_devices: list[Cuda] = []
_devices_lock = Lock()


def shared_device() -> Cuda:
    """The process's one device: engines share its memory, so that what one gives back serves the next."""
    with _devices_lock:
        if not _devices:
            _devices.append(Cuda())
        return _devices[0]


@cache
def cuda_runtime() -> Any:
    """The CUDA runtime as cuda-python has it.

    Raises:
        EarnError: the package is not installed, or too old.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EarnError(
            "This needs cuda-bindings, of the CUDA that the driver knows. Install it: pip install cuda-bindings"
        ) from error
    return runtime
