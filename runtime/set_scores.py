"""The best items by the sums of their digits' log-probabilities (see earn.digits), exact over the whole catalog.

    logits [v]      -> weighted log-probabilities [v] in float64, normalised within each digit
    bounds [items]  -> what no item's score is above, in whole steps above the least sum: uint16, rounded up per digit
    candidates      -> items whose bound reaches the least score that the k-th best item can have
    list            -> the candidates' sums in float64, ties in the catalog's order

Bounds cost a gather per item and table, and are all that grows with the catalog. Neighbouring digits share a table of
their values' sums where the catalog has more items than it has rows. Tables and blocks of items fit a core's cache.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.arrays import row_blocks
from earn.catalog import Catalog
from earn.digits import Digits
from earn.errors import EarnError
from earn.runtime.item_filters import Unwanted, indices_of

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Items = NDArray[np.int64]
Bounds = NDArray[np.uint16]

TABLE_ROWS = 1 << 16  # of digits that share a table; 128 KB
BLOCK = 1 << 15  # items
CHUNKS = 1 << 12  # parts of a large catalog, of whose highest bounds the k-th is asked
MOST = np.iinfo(np.uint16).max
NO_ITEMS: Items = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Table:
    """Digits that are looked up together."""

    digits: range
    sizes: tuple[int, ...]  # values of each
    rows: NDArray[Any]  # [items] unsigned: the item's row, whose last digit counts fastest


@dataclass(frozen=True)
class SetScores:
    """The digits of a catalog, laid out to find the best of its items."""

    tables: tuple[Table, ...]
    starts: NDArray[np.int64]  # [m] the first logit of each digit
    sizes: NDArray[np.int64]  # [m]
    weights: Doubles  # [m]

    @classmethod
    def of(cls, catalog: Catalog, logits: int) -> SetScores:
        """The digits of a catalog whose model gives so many logits.

        Raises:
            EarnError: its identifiers are no digits, or it has another number of tokens.
        """
        if len(catalog.tokens) != logits:
            raise EarnError(
                f"The catalog has {len(catalog.tokens)} tokens, and the model gives {logits} logits. Export the "
                "checkpoint again."
            )
        return cls.over(Digits.of(catalog))

    @classmethod
    def over(cls, digits: Digits) -> SetScores:
        """Lays digits out."""
        items, sizes = len(digits.codes), digits.sizes.tolist()
        groups = _groups(sizes, min(TABLE_ROWS, items))
        tables = tuple(_table(group, tuple(sizes[group.start : group.stop]), items) for group in groups)
        for number, rows in enumerate(row_blocks(digits.codes, BLOCK)):
            codes, block = rows.T - digits.starts[:, None], slice(number * BLOCK, (number + 1) * BLOCK)
            for table in tables:
                own = tuple(codes[table.digits.start : table.digits.stop])
                table.rows[block] = np.ravel_multi_index(own, table.sizes)
        return cls(tables, digits.starts, digits.sizes, digits.weights)

    def __len__(self) -> int:
        return len(self.tables[0].rows)

    def best(
        self, logits: Floats, k: int, excluded: Collection[int] | Unwanted = (), also: Items = NO_ITEMS
    ) -> list[tuple[int, float]]:
        """The k best items and their scores, best first, ties in the catalog's order; fewer if there are no more.

        Args:
            logits: one user's [v].
            excluded: items that must not be among them.
            also: items that follow the k best, best first too, as far as they are not among them or excluded.
        """
        left_out = indices_of(excluded)
        most = min(k, len(self) - len(left_out))
        if most < 1:
            return []
        values = self._log_probabilities(logits)
        bounds = self._bounds(self._in_steps(values))
        bounds[left_out] = 0
        # A bound is less than a step per digit above the score, so whatever is lower than that cannot be among the k.
        found = np.flatnonzero(bounds >= max(0, _kth_of_chunks(bounds, most) - len(self.sizes)))
        found = found[~np.isin(found, left_out)] if not bounds[found].all() else found
        scores = self._sums(values, found)
        order = np.argsort(-scores, kind="stable")[:most]
        listed = list(zip(found[order].tolist(), scores[order].tolist(), strict=True))
        if len(also):
            others = np.setdiff1d(also, np.concatenate((left_out, found[order])))
            rest = self._sums(values, others)
            order = np.argsort(-rest, kind="stable")
            listed += zip(others[order].tolist(), rest[order].tolist(), strict=True)
        return listed

    def _log_probabilities(self, logits: Floats) -> Doubles:
        """Weighted log-probabilities [v] of all digits' values."""
        exact = logits.astype(np.float64)
        shifted = exact - np.repeat(np.maximum.reduceat(exact, self.starts), self.sizes)
        normaliser = np.log(np.add.reduceat(np.exp(shifted), self.starts))
        weighted: Doubles = (shifted - np.repeat(normaliser, self.sizes)) * np.repeat(self.weights, self.sizes)
        return weighted

    def _in_steps(self, values: Doubles) -> Bounds:
        """The values [v] in steps above their digit's least, rounded up; the highest sum of all digits fits uint16."""
        lowest, highest = np.minimum.reduceat(values, self.starts), np.maximum.reduceat(values, self.starts)
        step = float((highest - lowest).sum()) / (MOST - len(lowest)) or 1.0
        steps: Bounds = np.ceil((values - np.repeat(lowest, self.sizes)) / step).astype(np.uint16)
        return steps

    def _bounds(self, steps: Bounds) -> Bounds:
        """Every item's sum [items] of its digits' steps [v]."""
        digits = np.split(steps, self.starts[1:])
        values = [reduce(_sums_of_all, digits[table.digits.start : table.digits.stop]) for table in self.tables]
        bounds = np.zeros(len(self), np.uint16)
        part = np.empty(BLOCK, np.uint16)
        for start in range(0, len(self), BLOCK):
            block = bounds[start : start + BLOCK]
            for table, value in zip(self.tables, values, strict=True):
                rows = table.rows[start : start + BLOCK].astype(np.intp, copy=False)  # numpy gathers by intp alone
                value.take(rows, out=part[: len(block)], mode="clip")  # "raise" would gather into a copy
                block += part[: len(block)]
        return bounds

    def _sums(self, values: Doubles, items: Items) -> Doubles:
        """The scores of these items from all digits' values [v], digit by digit."""
        digits = np.split(values, self.starts[1:])
        scores = np.zeros(len(items))
        for table in self.tables:
            rows = table.rows[items]
            codes = np.unravel_index(rows, table.sizes) if len(table.sizes) > 1 else (rows,)
            for digit, code in zip(table.digits, codes, strict=True):
                scores += digits[digit][code]
        return scores


def _groups(sizes: Sequence[int], most: int) -> list[range]:
    """Neighbouring digits, as many to a group as have at most so many combinations of values."""
    groups, start, rows = [], 0, 1
    for digit, size in enumerate(sizes):
        if digit > start and rows * size > most:
            groups.append(range(start, digit))
            start, rows = digit, 1
        rows *= size
    return [*groups, range(start, len(sizes))]


def _table(digits: range, sizes: tuple[int, ...], items: int) -> Table:
    """A table without its rows: room for as few bytes as hold them, or as gathers want them."""
    small = items <= BLOCK  # its few bytes need not be turned into indices at every request
    kind = np.dtype(np.intp) if small else np.min_scalar_type(prod(sizes) - 1)
    return Table(digits, sizes, np.empty(items, kind))


def _sums_of_all(first: Bounds, second: Bounds) -> Bounds:
    """The sum of every value of one with every value of the other, the second's counting fastest."""
    sums: Bounds = np.add.outer(first, second).ravel()
    return sums


def _kth_of_chunks(bounds: Bounds, k: int) -> int:
    """What at least k items reach, and not many more: the k-th highest of the highest in each chunk."""
    chunks = min(len(bounds), max(CHUNKS, 4 * k))  # an item's is its number modulo so many: rows are compared whole
    highest = bounds[: len(bounds) // chunks * chunks].reshape(-1, chunks).max(0)
    return int(np.partition(highest, chunks - k)[chunks - k])
