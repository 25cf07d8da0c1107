"""The append-only key-value cache of one stage, and how many bytes a request holds.

Rows are only ever added: the constant head, the prompt, then the generated rows of every step. Beams are rows of one
sequence, so a beam that changes its parent moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from earn.specs import Limits, Sizes, new_key_value_names, past_key_value_names

Array = NDArray[np.float32]


class KeyValueCache:
    """Keys and values of one stage: per layer and part an array [b,g,s,e]."""

    def __init__(self, layers: int, parts: Sequence[Array]) -> None:
        self._past = past_key_value_names(layers)
        self._new = new_key_value_names(layers)
        self._parts = list(parts)

    @classmethod
    def empty(cls, layers: int, batch: int, sizes: Sizes) -> KeyValueCache:
        """A cache of no rows."""
        shape = (batch, sizes.key_value_heads, 0, sizes.head_size)
        return cls(layers, [np.zeros(shape, np.float32) for _ in range(2 * layers)])

    def repeated(self, batch: int) -> KeyValueCache:
        """The cache of one user for `batch` users; nothing is copied before it grows."""
        return KeyValueCache(
            len(self._parts) // 2, [np.broadcast_to(part, (batch, *part.shape[1:])) for part in self._parts]
        )

    def feeds(self) -> dict[str, Array]:
        """The stage's inputs."""
        return dict(zip(self._past, self._parts, strict=True))

    def append(self, outputs: Mapping[str, Array]) -> None:
        """Adds the rows that the stage gave out."""
        self._parts = [
            np.concatenate((part, outputs[name]), axis=2) for part, name in zip(self._parts, self._new, strict=True)
        ]

    @property
    def bytes(self) -> int:
        """Bytes that the cache holds."""
        return sum(part.nbytes for part in self._parts)


def cache_bytes(sizes: Sizes, limits: Limits, prompt: int, beams: int) -> int:
    """Bytes of both stages' caches for one user after the last step: a prompt of `prompt` tokens and `beams` beams.

    Paper, section 3.4: N*L rows become k*L + (N-k)*r; here the generated rows come to both.
    """
    generated = beams * (limits.depth - 1)
    rows = {"early": prompt + generated, "late": limits.prefix + limits.readout + generated}
    row = 2 * sizes.key_value_heads * sizes.head_size * np.dtype(np.float32).itemsize
    return sum(row * sizes.stage_layers(stage) * count for stage, count in rows.items())
