"""What exclusions leave of the item trie (see earn.trie)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.trie import Codes, Ints, ItemTrie


@dataclass(frozen=True)
class Exclusions:
    """Items that the users of a batch do not want, by where they stand among the trie's sorted items.

    The items below a node stand side by side there, so those that are gone below it are found by its first and last.
    """

    trie: ItemTrie
    key: Ints  # ascending: index of the user times the items, plus where the items of an excluded one's leaf begin

    @classmethod
    def of(cls, trie: ItemTrie, excluded: Sequence[Collection[int]]) -> Exclusions:
        """One collection of item indices per user."""
        keys = [np.zeros(0, np.int64)]
        for user, items in enumerate(excluded):
            if len(items):
                leaves = np.sort(trie.leaf[distinct(items)])  # almost the order of their items: memory is read in order
                starts = np.sort(trie.item_start[leaves], kind="stable")  # the kind that is fast where order is there
                keys.append(user * len(trie.leaf) + starts.astype(np.int64))
        return cls(trie, np.concatenate(keys))

    @property
    def any(self) -> bool:
        """Whether anything is excluded."""
        return len(self.key) > 0

    def left(self, user: Ints, node: Ints) -> Ints:
        """How many items each of these nodes still leads to for its user."""
        below = self.trie.below[node].astype(np.int64)
        if not self.any:
            return below
        start = user * len(self.trie.leaf) + self.trie.item_start[node]
        gone = self.key.searchsorted(start + below) - self.key.searchsorted(start)
        return below - gone


def distinct(items: Collection[int]) -> Ints:
    """The items as an ascending array, each once."""
    given: Ints = items if isinstance(items, np.ndarray) else np.fromiter(items, np.int64, len(items))
    if (given[1:] > given[:-1]).all():
        return given.astype(np.int64, copy=False)
    ordered = np.sort(given.astype(np.int32))  # twice as fast as of int64
    once: Ints = ordered[np.diff(ordered, prepend=-1) != 0].astype(np.int64)  # np.unique takes 30 times as long
    return once


def find(ascending: Ints, wanted: Ints | Codes) -> tuple[Ints, NDArray[np.bool_]]:
    """Where the wanted numbers stand in an ascending array that is not empty, and which of them do."""
    index = np.minimum(ascending.searchsorted(wanted), len(ascending) - 1)
    return index, ascending[index] == wanted
