"""What exclusions and filters (earn.filters) leave at a request: how many items below each node of the trie.

Filtered items are excluded items, many of them. So a user's items that may not come back are one of two: an array of
single items, or `Unwanted`, which joins such an array with a filter. An expression is evaluated once; what it
leaves below each node is computed once too, and both are kept for the requests that follow.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from earn.errors import EarnError
from earn.filters import EVERYTHING, NOTHING, Filter, Items, mask
from earn.tags import Tags
from earn.trie import Codes, Ints, ItemTrie

Mask = NDArray[np.bool_]
Wanted = Filter | Collection[str | int] | None  # an expression, or item ids
FEW = 1000  # items that are looked up at every request rather than counted once for all nodes
MOST_KEPT = 128 << 20  # bytes of evaluated expressions
MOST_EXPRESSIONS = 256


class ItemsLeft(Protocol):
    """How many items the users of a batch can still be given below nodes of the trie."""

    @property
    def any(self) -> bool:
        """Whether any item is gone."""

    def left(self, user: Ints, node: Ints) -> Ints:
        """How many items each of these nodes still leads to for its user."""


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


class ItemFilter:
    """An expression's items of one catalog."""

    def __init__(self, allowed: Mask) -> None:
        self.allowed = allowed  # [items]
        self.count = int(np.count_nonzero(allowed))
        self._counter: Callable[[Ints], Ints] | None = None  # made when the first search asks

    @cached_property
    def forbidden(self) -> Ints:
        """The items that it does not hold, ascending."""
        return np.flatnonzero(~self.allowed)

    def missing(self, trie: ItemTrie, node: Ints) -> Ints:
        """How many items below each of these nodes of the catalog's trie it does not hold."""
        if self._counter is None:
            self._counter = self._counts(trie)
        return self._counter(node)

    def _counts(self, trie: ItemTrie) -> Callable[[Ints], Ints]:
        """Counts by the items that it holds if these are few; else by how many are missing before each sorted item."""
        if self.count <= FEW:
            held = Exclusions.of(trie, [np.flatnonzero(self.allowed)])
            return lambda node: held.left(np.zeros_like(node), node)
        before = np.zeros(len(self.allowed) + 1, np.int32)
        np.cumsum(~self.allowed[trie.sorted_items], out=before[1:])

        def missing(node: Ints) -> Ints:
            start = trie.item_start[node].astype(np.int64)
            counts: Ints = before[start + trie.below[node]].astype(np.int64) - before[start]
            return counts

        return missing


@dataclass(frozen=True, eq=False)
class Unwanted:
    """Item indices that a user may not get: single ones, and all that a filter does not hold."""

    single: Ints  # ascending, each once
    filter: ItemFilter

    def __len__(self) -> int:
        return len(self.filter.allowed) - self.filter.count + len(self.single_allowed)

    @cached_property
    def single_allowed(self) -> Ints:
        """The single ones that the filter holds."""
        held: Ints = self.single[self.filter.allowed[self.single]]
        return held

    @property
    def indices(self) -> Ints:
        """All of them, each once."""
        return np.concatenate((self.filter.forbidden, self.single_allowed))


Excluded = Ints | Unwanted  # of one user; the array is ascending, and has each item once


def indices_of(unwanted: Collection[int] | Excluded) -> Ints:
    """Unwanted items as an array, each once."""
    return unwanted.indices if isinstance(unwanted, Unwanted) else distinct(unwanted)


def wanted_of(items: Ints | Codes, unwanted: Excluded) -> Ints | Codes:
    """Those of these items that are not unwanted, in their order."""
    if isinstance(unwanted, Unwanted):
        items, unwanted = items[unwanted.filter.allowed[items]], unwanted.single
    return items[~find(unwanted, items)[1]] if len(unwanted) else items


def items_left(trie: ItemTrie, unwanted: Sequence[Excluded]) -> ItemsLeft:
    """What the unwanted items of each user leave."""
    filters = [(user, items.filter) for user, items in enumerate(unwanted) if isinstance(items, Unwanted)]
    single = [items.single_allowed if isinstance(items, Unwanted) else items for items in unwanted]
    return _Filtered(trie, Exclusions.of(trie, single), filters) if filters else Exclusions.of(trie, single)


@dataclass(frozen=True)
class _Filtered:
    """Exclusions of single items, and the filters of some users."""

    trie: ItemTrie
    single: Exclusions
    filters: Sequence[tuple[int, ItemFilter]]  # by user

    @property
    def any(self) -> bool:
        return True

    def left(self, user: Ints, node: Ints) -> Ints:
        left = self.single.left(user, node)
        for number, item_filter in self.filters:
            mine = np.flatnonzero(user == number)
            left[mine] -= item_filter.missing(self.trie, node[mine])
        return left


class ItemFilters:
    """A catalog's filters, the newest of them kept ready. Threads may share it."""

    def __init__(
        self,
        items: int,
        tags: Tags,
        indices: Callable[[Collection[str | int], str], list[int]],
        offered: Mask | None = None,
    ) -> None:
        """Takes the number of items, their tags, what gives the indices of ids, and what is offered (None: all)."""
        self._items, self._tags, self._indices, self._offered = items, tags, indices, offered
        self._kept: OrderedDict[tuple[Filter, str], ItemFilter] = OrderedDict()
        self._lock = threading.Lock()
        self._most = max(2, min(MOST_EXPRESSIONS, MOST_KEPT // (32 * items)))  # a mask, indices, counts of nodes

    def unwanted(self, single: Ints, allow: Wanted, block: Wanted, unknown: str) -> Excluded:
        """All that a user may not get.

        Args:
            single: item indices, ascending, each once.
            allow: what may come back; None for everything.
            block: what may not; None for nothing.
            unknown: see `Recommender.recommend`; of the ids in both.

        Raises:
            EarnError: an unknown item or tag, or no filter.
        """
        allowed, blocked = as_filter(allow, EVERYTHING), as_filter(block, NOTHING)
        if isinstance(blocked, Items):
            single = distinct([*single, *self._named(blocked.item_ids, unknown)])
            blocked = NOTHING
        both = allowed if blocked == NOTHING else ~blocked if allowed == EVERYTHING else allowed & ~blocked
        is_everything = both == EVERYTHING and self._offered is None
        return single if is_everything else Unwanted(single, self._of(both, unknown))

    def check(self, allow: Wanted, block: Wanted, unknown: str = "error") -> None:
        """Says whether these are filters of this catalog; None is one.

        Raises:
            EarnError: an unknown item or tag, or no filter.
        """
        if allow is not None or block is not None:
            self.unwanted(np.zeros(0, np.int64), allow, block, unknown)

    def _named(self, item_ids: Collection[str | int], unknown: str) -> list[int]:
        """Indices of items; says so where a tag's name stands among them."""
        try:
            return self._indices(item_ids, unknown)
        except EarnError as error:
            tag = next((name for name in item_ids if name in self._tags.names), None)
            if tag is None:
                raise
            raise EarnError(f'{error} {tag!r} is a tag: write Tag({tag!r}), in JSON {{"tag": ...}}.') from error

    def _of(self, expression: Filter, unknown: str) -> ItemFilter:
        key = expression, unknown
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        held = mask(expression, self._items, self._tags.having, lambda item_ids: self._named(item_ids, unknown))
        if self._offered is not None:
            held = held & self._offered
        made = ItemFilter(held)
        with self._lock:
            made = self._kept.setdefault(key, made)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made


def as_filter(wanted: Wanted, default: Filter) -> Filter:
    """The expression of an expression, of item ids, or of None.

    Raises:
        EarnError: it is none of these.
    """
    if wanted is None:
        return default
    if isinstance(wanted, Filter):
        return wanted
    if isinstance(wanted, dict):
        raise EarnError(f"Got {wanted!r} where a filter belongs. Read JSON by earn.filters.from_json.")
    return Items(wanted)


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
