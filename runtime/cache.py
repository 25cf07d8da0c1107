"""The append-only key-value cache of one stage, in memory that is taken once and filled where it lies.

Rows are only ever added: the constant head, the prompt, then the generated rows of every step. Beams are rows of one
sequence, so a beam that changes its parent moves nothing. Rows are the outermost axis, so that those in use, and those
that come next, are one piece of memory each: engines read the first and write the second without a copy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from earn.specs import Limits, Sizes, generated_rows

Array = NDArray[np.float32]


class KeyValueCache:
    """Keys and values of one stage's layers for a batch: [rows,b,2l,g,e]."""

    def __init__(self, sizes: Sizes, stage: str, rows: int, batch: int = 1) -> None:
        """Takes room for `rows` rows and holds none."""
        width = (2 * sizes.stage_layers(stage), sizes.key_value_heads, sizes.head_size)
        self._memory = np.empty((rows, batch, *width), np.float32)
        self.rows = 0  # in use

    @property
    def past(self) -> Array:
        """The rows in use."""
        return self._memory[: self.rows]

    def grow(self, rows: int) -> Array:
        """Takes the next rows into use and returns them, to be written.

        Raises:
            ValueError: there is no room for them.
        """
        after = self.rows + rows
        if after > len(self._memory):
            raise ValueError(f"The cache has room for {len(self._memory)} rows, not for {after}.")
        new = self._memory[self.rows : after]
        self.rows = after
        return new

    def extend(self, past: Array) -> None:
        """Adds rows computed before, [rows,b,2l,g,e]; those of one user serve a whole batch."""
        self.grow(len(past))[:] = past

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
