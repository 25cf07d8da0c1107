"""The item trie: all identifiers as a prefix tree in flat arrays (CSR), built in one pass per depth.

Nodes are numbered breadth first and, within a depth, in the order of their prefixes; node 0 is the root. So the
children of a node are neighbours, and so are the items below it once they are sorted by their identifiers.

A trie is kept beside its identifiers in a file and mapped into memory. What is read so is checked to be their trie.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Codes = NDArray[np.int32]
Bools = NDArray[np.bool_]

MOST_NODES = np.iinfo(np.int32).max
PIECE = 1 << 18  # items that are checked together
FEW_NODES = 1 << 17  # of a trie that answers for all its nodes at once, in at most two megabytes


@dataclass(frozen=True)
class ItemTrie:
    """The identifiers of a catalog; arrays over c nodes and the catalog's items."""

    token: Codes  # [c] the token that leads to a node; -1 at the root
    parent: Codes  # [c] the node above; -1 at the root
    child_start: Codes  # [c+1] children of node x are the nodes child_start[x] .. child_start[x+1]-1
    item_start: Codes  # [c] items below node x are sorted_items[item_start[x] : item_start[x] + below[x]]
    below: Codes  # [c] items that a node leads to
    leaf: Codes  # [items] the node that ends an item's identifier
    sorted_items: Codes  # [items] items by their identifiers, then by index

    @classmethod
    def build(cls, codes: Codes) -> ItemTrie:
        """The trie of the identifiers `codes` [items, depth], -1 after an identifier's end."""
        items, depth = codes.shape
        order = np.lexsort(codes.T[::-1])
        ordered = codes[order]
        above = np.zeros(items, np.int64)  # node of each item one depth up
        levels, count = [(np.array([-1]), np.array([-1]), np.array([0]), np.array([items]))], 1
        for d in range(depth):
            rows = np.flatnonzero(ordered[:, d] >= 0)
            token, parent = ordered[rows, d], above[rows]
            is_new = np.ones(len(rows), bool)
            is_new[1:] = (token[1:] != token[:-1]) | (parent[1:] != parent[:-1])
            new = np.flatnonzero(is_new)
            above[rows] = count - 1 + np.cumsum(is_new)
            levels.append((token[new], parent[new], rows[new], np.diff(new, append=len(rows))))
            count += len(new)
        leaf = np.empty(items, np.int64)
        leaf[order] = above
        token, parent, item_start, below = map(np.concatenate, zip(*levels, strict=True))
        child_start = np.searchsorted(parent[1:], np.arange(count + 1)) + 1
        arrays = (token, parent, child_start, item_start, below, leaf, order)
        return cls(*(array.astype(np.int32) for array in arrays))

    def check(self, codes: Codes) -> ItemTrie:
        """Itself, if it is the trie of these identifiers [items, depth].

        Raises:
            ValueError: it is another one, or none.
        """
        sizes = {len(array) for array in (self.token, self.parent, self.below, self.item_start)}
        counts = {len(array) for array in (self.leaf, self.sorted_items)}
        if sizes != {len(self.child_start) - 1} or counts != {len(codes)} or not 2 <= len(self) <= MOST_NODES:
            raise ValueError("the trie's arrays are not of one trie with these items")
        if not (self._is_tree() and self._names_items() and self._spells(codes)):
            raise ValueError("the trie is not that of the identifiers")
        return self

    def _is_tree(self) -> bool:
        """Whether parents and children say the same, and the children of one node have ascending tokens."""
        start, nodes = self.child_start, np.arange(len(self), dtype=np.int32)
        if start[0] != 1 or start[-1] != len(self) or (start[:-1] <= nodes).any() or (start[1:] < start[:-1]).any():
            return False
        if (self.token[0], self.parent[0]) != (-1, -1) or (self.parent[1:] != np.repeat(nodes, np.diff(start))).any():
            return False
        return bool(((self.token[2:] > self.token[1:-1]) | ~self._is_sibling).all())

    def _names_items(self) -> bool:
        """Whether each node has the items of its children, side by side, and each leaf those that end there."""
        start, stop = self.item_start, self.item_start + self.below
        inner = np.flatnonzero(np.diff(self.child_start))
        first, last = self.child_start[inner], self.child_start[inner + 1] - 1
        if (start[0], stop[0]) != (0, len(self.leaf)) or (self.below < 1).any():
            return False
        if (start[first] != start[inner]).any() or (stop[last] != stop[inner]).any():
            return False
        if ((start[2:] != stop[1:-1]) & self._is_sibling).any():
            return False
        for items in (self.leaf, self.sorted_items):
            if items.min() < 0 or items.max() >= (len(self) if items is self.leaf else len(items)):
                return False
        node, place = self.leaf[self.sorted_items], np.arange(len(self.leaf), dtype=np.int32)
        is_ascending = (self.sorted_items[1:] > self.sorted_items[:-1]) | (node[1:] != node[:-1])
        is_inside = (start[node] <= place) & (place < stop[node]) & self.is_leaf(node)
        return bool(is_inside.all() and is_ascending.all())

    def _spells(self, codes: Codes) -> bool:
        """Whether the way up from each item's leaf gives the item's identifier, from its end."""
        for first in range(0, len(codes), PIECE):
            items = self.sorted_items[first : first + PIECE]  # whose nodes are neighbours: memory is read in order
            node = self.leaf[items]
            for column in codes[items].T[::-1]:
                is_there = column >= 0
                if (self.token[node] != column)[is_there].any():
                    return False
                node = np.where(is_there, self.parent[node], node)
            if node.any():
                return False
        return True

    @property
    def _is_sibling(self) -> Bools:
        """Of the nodes from the third on, whether the one before has the same parent."""
        siblings: Bools = self.parent[2:] == self.parent[1:-1]
        return siblings

    def __len__(self) -> int:
        return len(self.token)

    @cached_property
    def level_start(self) -> Ints:
        """[depth+2] the first node of each level, the root's first; then the number of nodes."""
        starts = [0, 1]
        while starts[-1] < len(self):
            starts.append(int(self.child_start[starts[-1]]))
        return np.array(starts)

    @cached_property
    def level_tokens(self) -> tuple[Ints, ...]:
        """Per depth the tokens that may stand there, ascending."""
        tokens = int(self.token.max()) + 1
        levels = zip(self.level_start[1:-1], self.level_start[2:], strict=True)
        return tuple(np.flatnonzero(np.bincount(self.token[start:stop], minlength=tokens)) for start, stop in levels)

    @property
    def depth(self) -> int:
        """Tokens of the longest identifier."""
        return len(self.level_start) - 2

    def level(self, nodes: Ints) -> Ints:
        """Tokens from the root to each of these nodes."""
        return np.searchsorted(self.level_start, nodes, "right") - 1

    def children(self, nodes: Ints) -> tuple[Ints, Ints]:
        """The first child of each of these nodes, and how many there are; they are neighbours."""
        start = self._starts[nodes].astype(np.int64, copy=False)
        return start, self._starts[nodes + 1] - start

    def is_leaf(self, nodes: Ints | Codes) -> Bools:
        """Which nodes end an identifier."""
        leaf: Bools = self.child_start[nodes] == self.child_start[nodes + 1]
        return leaf

    def determined(self, nodes: Ints) -> Ints:
        """Of each node the one leaf that all its descendants lead to, -1 where they branch; a leaf is its own."""
        return self._leaf_below(nodes) if self._leaves is None else self._leaves[nodes]

    @cached_property
    def _starts(self) -> Ints | Codes:
        """`child_start`, in the type that searches want where that takes little memory."""
        return self.child_start.astype(np.int64) if len(self) <= FEW_NODES else self.child_start

    @cached_property
    def _leaves(self) -> Ints | None:
        """`determined` of all nodes, where they are few."""
        return self._leaf_below(np.arange(len(self))) if len(self) <= FEW_NODES else None

    def _leaf_below(self, nodes: Ints) -> Ints:
        start = self.item_start[nodes]
        first = self.leaf[self.sorted_items[start]]
        last = self.leaf[self.sorted_items[start + self.below[nodes] - 1]]
        return np.where(first == last, first, -1).astype(np.int64)

    def items(self, node: int) -> Codes:
        """The items below a node, by their identifiers; of a leaf those that it names."""
        start = int(self.item_start[node])
        return self.sorted_items[start : start + int(self.below[node])]
