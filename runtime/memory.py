"""Where an engine keeps its arrays: the host's memory, or a device's.

What stays between two calls of an engine (caches, hidden states) lives where the engine computes; what the search looks
at (logits) is always the host's. An engine takes either, as input and as output.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Memory(Protocol):
    """A float32 array in one piece, whose leading rows can be taken as a view; numpy's own, or a device's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every axis."""

    @property
    def nbytes(self) -> int:
        """The size in bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


class Device(Protocol):
    """Where memory is."""

    def empty(self, shape: tuple[int, ...]) -> Memory:
        """A float32 array with any finite values in it."""

    def copy(self, source: Any, target: Any) -> None:
        """Fills `target` with `source`, whose axis of users (the second) may be 1 where the target's is longer."""

    def to_host(self, memory: Any) -> Array:
        """The values as a numpy array."""


class Host:
    """The host's memory: numpy arrays."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """See `Device`."""
        return np.empty(shape, np.float32)

    def copy(self, source: Any, target: Any) -> None:
        """See `Device`."""
        target[:] = source

    def to_host(self, memory: Any) -> Array:
        """See `Device`."""
        return np.asarray(memory)


HOST = Host()
