"""What exclusions leave of the item trie (see earn.trie)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.trie import Codes, Ints, ItemTrie

FEW = 1000  # items


@dataclass(frozen=True)
class Exclusions:
    """Items that the users of a batch do not want, as what is gone below the nodes of the trie."""

    trie: ItemTrie
    key: Ints  # ascending: index of the user times c, plus a node that an excluded item's identifier goes through
    gone: Ints  # how many of the user's excluded items lie below that node

    @classmethod
    def of(cls, trie: ItemTrie, excluded: Sequence[Collection[int]]) -> Exclusions:
        """One collection of item indices per user."""
        keys, gone = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for user, items in enumerate(excluded):
            if len(items):
                node, count = _above(trie, distinct(items))
                keys.append(user * len(trie) + node)
                gone.append(count)
        return cls(trie, np.concatenate(keys), np.concatenate(gone))

    @property
    def any(self) -> bool:
        """Whether anything is excluded."""
        return len(self.key) > 0

    def left(self, user: Ints, node: Ints) -> Ints:
        """How many items each of these nodes still leads to for its user."""
        left = self.trie.below[node].astype(np.int64)
        if self.any:
            index, is_there = find(self.key, user * len(self.trie) + node)
            left = left - np.where(is_there, self.gone[index], 0)
        return left


def distinct(items: Collection[int]) -> Ints:
    """The items as an ascending array, each once."""
    ordered = np.sort(np.fromiter(items, np.int64, len(items)) if not isinstance(items, np.ndarray) else items)
    once: Ints = ordered[np.diff(ordered, prepend=-1) != 0]  # np.unique takes 30 times as long for 100,000 numbers
    return once


def find(ascending: Ints, wanted: Ints | Codes) -> tuple[Ints, NDArray[np.bool_]]:
    """Where the wanted numbers stand in an ascending array that is not empty, and which of them do."""
    index = np.minimum(ascending.searchsorted(wanted), len(ascending) - 1)
    return index, ascending[index] == wanted


def _above(trie: ItemTrie, items: Ints) -> tuple[Ints, Ints]:
    """The nodes that lead to these items, ascending, and to how many of them each does.

    Level by level from the lowest: a deeper node has a higher number, and so have its children. Of a few items all
    nodes are counted at once, which takes fewer calls.
    """
    if len(items) <= FEW:
        paths = [trie.leaf[items]]
        for _ in range(trie.depth):
            paths.append(np.where(paths[-1] > 0, trie.parent[paths[-1]], -1))
        all_of_them = np.concatenate(paths)
        every, times = np.unique(all_of_them[all_of_them >= 0], return_counts=True)
        return every.astype(np.int64), times
    node, count = np.unique(trie.leaf[items], return_counts=True)
    levels = []
    for first in trie.level_start[-2::-1]:
        split = int(node.searchsorted(first))
        levels.append((node[split:], count[split:]))
        above = np.concatenate((node[:split], trie.parent[node[split:]]))
        parts = np.concatenate((count[:split], count[split:]))
        node, inverse = np.unique(above, return_inverse=True)
        count = np.bincount(inverse, parts, len(node)).astype(np.int64)
    nodes, counts = zip(*reversed(levels), strict=True)
    return np.concatenate(nodes).astype(np.int64), np.concatenate(counts)
