"""What a training reads: windows of a user's items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from earn.errors import EarnError

Window = list[tuple[int, ...]]  # what is read, and predicted, one after the other, in token ids


class Windows:
    """Windows of at most `size` consecutive items that between them hold every item with its predecessor.

    The first window of a user ends with the newest item. How far the others overlap is drawn anew for every epoch, so
    that items are seen after histories of many lengths. Further windows, such as `title_windows`, stay as they are.
    """

    def __init__(
        self,
        sequences: Sequence[NDArray[np.int64]],
        identifiers: Sequence[tuple[int, ...]],
        size: int,
        seed: int,
        further: Sequence[Window] = (),
    ):
        self._sequences = [sequence for sequence in sequences if len(sequence) > 1]
        if not self._sequences:
            raise EarnError("No user has two training items, so there is nothing to train on. Give more interactions.")
        self._identifiers = identifiers
        self._size = size
        self._seed = seed
        self._further = further
        lengths = np.array([len(sequence) for sequence in self._sequences])
        step = size - 1  # neighbours share an item: what the newer window starts with, the older one predicts last
        counts = -(-(lengths - 1) // step)
        self._user = np.repeat(np.arange(len(lengths)), counts)
        self._number = np.arange(len(self._user)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._latest = lengths[self._user] - self._number * step  # ends without any overlap
        self._slack = (counts * step - (lengths - 1))[self._user]  # how much all windows of a user may overlap
        self.redraw(0)

    def redraw(self, epoch: int) -> None:
        """Draws the overlaps of an epoch."""
        generator = np.random.default_rng((self._seed, epoch))
        shift = generator.integers(0, self._slack + 1)
        shift[self._number == 0] = 0
        shift = shift[np.lexsort((shift, self._user))]  # growing from window to window, so that no gap opens
        self._end = self._latest + shift

    def __len__(self) -> int:
        return len(self._user) + len(self._further)

    def __getitem__(self, index: int) -> Window:
        if index >= len(self._user):
            return self._further[index - len(self._user)]
        end = int(self._end[index])
        items = self._sequences[self._user[index]][max(0, end - self._size) : end]
        return [self._identifiers[item] for item in items]
