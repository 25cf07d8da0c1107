"""The append-only key-value cache of one stage, in memory that is taken once and filled where it lies.

Rows are only ever added: the constant head, the prompt, then the generated rows of every step. Beams are rows of one
sequence, so a beam that changes its parent moves nothing. Rows are the outermost axis, so that those in use, and those
that come next, are one piece of memory each: engines read the first and write the second without a copy.
"""

from __future__ import annotations

import numpy as np

from earn.runtime.memory import HOST, Array, Device, Memory
from earn.specs import Limits, Sizes, generated_rows


class KeyValueCache:
    """Keys and values of one stage's layers for a batch: [rows,b,2l,g,e]."""

    def __init__(self, sizes: Sizes, stage: str, rows: int, batch: int = 1, device: Device = HOST) -> None:
        """Takes room for `rows` rows in the memory of a device and holds none."""
        width = (2 * sizes.stage_layers(stage), sizes.key_value_heads, sizes.head_size)
        self._device = device
        self._memory = device.empty((rows, batch, *width))
        self.rows = 0  # in use

    @property
    def past(self) -> Memory:
        """The rows in use."""
        rows: Memory = self._memory[: self.rows]
        return rows

    def grow(self, rows: int) -> Memory:
        """Takes the next rows into use and returns them, to be written.

        Raises:
            ValueError: there is no room for them.
        """
        after = self.rows + rows
        if after > len(self._memory):
            raise ValueError(f"The cache has room for {len(self._memory)} rows, not for {after}.")
        new: Memory = self._memory[self.rows : after]
        self.rows = after
        return new

    def extend(self, past: Memory | Array) -> None:
        """Adds rows computed before, [rows,b,2l,g,e]; those of one user serve a whole batch."""
        self._device.copy(past, self.grow(len(past)))

    def shorten(self, rows: int) -> None:
        """Keeps the first rows alone."""
        self.rows = min(rows, self.rows)

    @property
    def bytes(self) -> int:
        """Bytes that the cache has taken, whether in use or not."""
        return self._memory.nbytes


def cache_bytes(sizes: Sizes, limits: Limits, prompt: int, beams: int) -> int:
    """Bytes of both stages' caches for one user: a prompt of `prompt` tokens and `beams` beams.

    Paper, section 3.4: N*L rows become k*L + (N-k)*r; here the generated rows come to both.
    """
    generated = generated_rows(beams, limits.depth)
    rows = {"early": prompt + generated, "late": limits.prefix + limits.readout + generated}
    row = 2 * sizes.key_value_heads * sizes.head_size * np.dtype(np.float32).itemsize
    return sum(row * sizes.stage_layers(stage) * count for stage, count in rows.items())
