"""The item trie: all identifiers as a prefix tree in flat arrays (CSR), built in one pass per depth.

Nodes are numbered breadth first and, within a depth, in the order of their prefixes; node 0 is the root. So the
children of a node are neighbours, and so are the items below it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ItemTrie:
    """The identifiers of a catalog; arrays over c nodes and the catalog's items."""

    token: Ints  # [c] the token that leads to a node; -1 at the root
    parent: Ints  # [c] the node above; -1 at the root
    level: Ints  # [c] tokens from the root to a node
    child_start: Ints  # [c+1] children of node x are the nodes child_start[x] .. child_start[x+1]-1
    item_start: Ints  # [c+1] items named by node x are leaf_items[item_start[x] : item_start[x+1]]
    leaf_items: Ints  # [items] item indices, by leaf, then by index
    path: Ints  # [items, depth] the nodes of each item's identifier, -1 after its end
    below: Ints  # [c] items that a node leads to
    determined: Ints  # [c] the one leaf that a node's descendants lead to, -1 where they branch
    level_tokens: tuple[Ints, ...]  # per depth: the tokens that may stand there, ascending

    @classmethod
    def build(cls, codes: NDArray[np.int32]) -> ItemTrie:
        """The trie of the identifiers `codes` [items, depth], -1 after an identifier's end."""
        items, depth = codes.shape
        order = np.lexsort(codes.T[::-1])
        ordered = codes[order].astype(np.int64)
        above = np.zeros(items, np.int64)  # node of each item one depth up
        path = np.full((items, depth), -1, np.int64)
        tokens, parents, levels, count = [np.array([-1])], [np.array([-1])], [], 1
        for d in range(depth):
            rows = np.flatnonzero(ordered[:, d] >= 0)
            token, parent = ordered[rows, d], above[rows]
            is_new = np.ones(len(rows), bool)
            is_new[1:] = (token[1:] != token[:-1]) | (parent[1:] != parent[:-1])
            above[rows] = count - 1 + np.cumsum(is_new)
            path[order[rows], d] = above[rows]
            tokens.append(token[is_new])
            parents.append(parent[is_new])
            levels.append(np.unique(token))
            count += int(is_new.sum())
        leaf = np.empty(items, np.int64)
        leaf[order] = above
        parent = np.concatenate(parents)
        child_start = np.searchsorted(parent[1:], np.arange(count + 1)) + 1
        return cls(
            token=np.concatenate(tokens),
            parent=parent,
            level=np.repeat(np.arange(len(tokens)), list(map(len, tokens))),
            child_start=child_start,
            item_start=np.searchsorted(np.sort(leaf), np.arange(count + 1)),
            leaf_items=np.lexsort((np.arange(items), leaf)),
            path=path,
            below=np.concatenate(([items], np.bincount(path[path >= 0], minlength=count)[1:])),
            determined=_determined(child_start, parent),
            level_tokens=tuple(levels),
        )

    def __len__(self) -> int:
        return len(self.token)

    @property
    def depth(self) -> int:
        """Tokens of the longest identifier."""
        return len(self.level_tokens)

    def is_leaf(self, nodes: Ints) -> NDArray[np.bool_]:
        """Which nodes end an identifier."""
        leaf: NDArray[np.bool_] = self.child_start[nodes] == self.child_start[nodes + 1]
        return leaf

    def items(self, node: int) -> Ints:
        """The items that a leaf names."""
        return self.leaf_items[self.item_start[node] : self.item_start[node + 1]]


@dataclass(frozen=True)
class Exclusions:
    """Items that the users of a batch do not want, as what is gone below the nodes of the trie."""

    trie: ItemTrie
    key: Ints  # ascending: index of the user times c, plus a node that an excluded item's identifier goes through
    gone: Ints  # how many of the user's excluded items lie below that node

    @classmethod
    def of(cls, trie: ItemTrie, excluded: Sequence[Collection[int]]) -> Exclusions:
        """One collection of item indices per user."""
        keys = [np.zeros(0, np.int64)]
        for user, items in enumerate(excluded):
            nodes = trie.path[sorted(set(items))]
            keys += [user * len(trie) + nodes[nodes >= 0], np.full(len(nodes), user * len(trie))]  # and the root
        return cls(trie, *np.unique(np.concatenate(keys), return_counts=True))

    @property
    def any(self) -> bool:
        """Whether anything is excluded."""
        return len(self.key) > 0

    def left(self, user: Ints, node: Ints) -> Ints:
        """How many items each of these nodes still leads to for its user."""
        left = self.trie.below[node]
        if self.any:
            index, is_there = find(self.key, user * len(self.trie) + node)
            left = left - np.where(is_there, self.gone[index], 0)
        return left


def find(ascending: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where the wanted numbers stand in an ascending array that is not empty, and which of them do."""
    index = np.minimum(ascending.searchsorted(wanted), len(ascending) - 1)
    return index, ascending[index] == wanted


def _determined(child_start: Ints, parent: Ints) -> Ints:
    """Per node the only leaf below it, or -1; a leaf is its own."""
    children = np.diff(child_start)
    determined = np.where(children == 0, np.arange(len(children)), -1)
    single = np.flatnonzero(children == 1)
    for node in single[::-1]:  # children have higher numbers, so they are ready
        determined[node] = determined[child_start[node]]
    return determined
