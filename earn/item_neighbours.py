"""What is like each item, which a bundle may bring to blend its lists with: `neighbours.npz`, written by `earn blend`.

    items     int32 [n,m]    of each of the n items those most like it, the most first; -1 where there are fewer than m
    likeness  float32 [n,m]  how much, above 0; 0 beside a -1
    settings  float32 [2]    decay and weight

    s(j)  = sum over the history's items i of decay^age likeness(i, j), the newest item's age being 0
    q(j)  = s(j) / sum of s over all items
    score = log((1 - weight) p(j) + weight q(j)), p(j) being what the model gives item j; 0 where its list lacks it

Nothing is learned here. Weight and decay are those that rank best for validation users. Items that were added since are
like none, and are ranked by the model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.arrays import ArrayForm, read_arrays, write_arrays
from earn.errors import EarnError
from earn.files import written_whole
from earn.manifest import NEIGHBOURS_FILE, Manifest

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
Ranked = list[tuple[int, float]]  # items and their scores, best first
Near = tuple[Ints, Doubles]  # items that are like a history, ascending, and their q

MOST_NEIGHBOURS = 1024  # of an item
REMEDY = "Write them again: earn blend."
_FORMS = {"items": ArrayForm("<i4", 2), "likeness": ArrayForm("<f4", 2), "settings": ArrayForm("<f4", 1)}


@dataclass(frozen=True)
class ItemNeighbours:
    """What is like each item, and how much that counts."""

    items: NDArray[np.int32]  # [n,m]
    likeness: NDArray[np.float32]  # [n,m]
    decay: float
    weight: float

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, catalog_items: int) -> ItemNeighbours | None:
        """Those of a bundle with so many items; None where it has none.

        Raises:
            EarnError: the file is damaged, or another bundle's.
        """
        if NEIGHBOURS_FILE not in manifest.files:
            return None
        path = folder / NEIGHBOURS_FILE
        try:
            with path.open("rb") as file:
                arrays = read_arrays(file, _FORMS, path.stat().st_size)  # they are saved as they are, not packed
            decay, weight = arrays["settings"].tolist()
            found = cls(arrays["items"], arrays["likeness"], decay, weight)
        except (OSError, KeyError, ValueError) as error:
            raise EarnError(f"{path}: these are no neighbours of items ({error}). {REMEDY}") from error
        found.check(catalog_items, str(path))
        return found

    def check(self, catalog_items: int, where: str) -> None:
        """Raises EarnError where the numbers are none of neighbours of a catalog with so many items."""
        if problem := self._problem(catalog_items):
            raise EarnError(f"{where}: {problem}. {REMEDY}")

    def _problem(self, catalog_items: int) -> str:
        """What is wrong with the numbers; "" if nothing is."""
        is_there = self.items >= 0
        if self.items.shape != self.likeness.shape or self.items.shape[1] > MOST_NEIGHBOURS:
            return f"it has items {list(self.items.shape)} and likeness {list(self.likeness.shape)}"
        if len(self.items) > catalog_items or not np.all((self.items >= -1) & (self.items < len(self.items))):
            return f"its items are not of a catalog of {catalog_items}"
        if not np.isfinite(self.likeness).all() or not np.array_equal(self.likeness > 0, is_there):
            return "its likeness is not above 0 where there are items, and 0 elsewhere"
        in_order = np.sort(self.items, axis=1)
        if np.any((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)):
            return "it names a neighbour of an item twice"
        if not (0 < self.decay <= 1 and 0 < self.weight < 1):
            return f"its decay is {self.decay:g} and its weight {self.weight:g}, where both lie between 0 and 1"
        return ""

    def resized(self, items: int) -> ItemNeighbours:
        """Those of a catalog that has so many items now: those cut off are nobody's neighbours any more."""
        is_left = (self.items < items) & (self.items >= 0)
        order = np.argsort(~is_left[:items], axis=1, kind="stable")  # what is left moves up

        def kept(numbers: NDArray[Any], gone: int) -> NDArray[Any]:
            return np.take_along_axis(np.where(is_left, numbers, gone)[:items], order, axis=1).astype(numbers.dtype)

        return replace(self, items=kept(self.items, -1), likeness=kept(self.likeness, 0))

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        settings = np.array([self.decay, self.weight], "<f4")
        with written_whole(path) as beside, beside.open("wb") as file:
            write_arrays(file, {"items": self.items, "likeness": self.likeness, "settings": settings})

    def near(self, history: Sequence[int]) -> Near:
        """What is like a history of item indices, oldest first."""
        known = np.array(history, np.int64)
        weights = self.decay ** np.arange(len(known), dtype=np.float64)[::-1]
        is_known = known < len(self.items)
        rows, likeness = self.items[known[is_known]], self.likeness[known[is_known]] * weights[is_known, None]
        items, place = np.unique(rows[rows >= 0], return_inverse=True)
        sums = np.bincount(place, likeness[rows >= 0], len(items))
        counts = sums > 0  # else too long ago for any number
        return items[counts].astype(np.int64), sums[counts] / max(sums.sum(), np.finfo(np.float64).tiny)

    def blend(
        self, ranked: Ranked, bound: float, found: Near, wanted: Callable[[Ints], NDArray[Any]], k: int
    ) -> tuple[Ranked, bool]:
        """The k best items by model and neighbours, and whether no other can be better.

        Args:
            ranked: the model's items and their log-probabilities.
            bound: what no other item's log-probability is above; -inf where there are no others.
            found: what `near` gives for the items that the model read.
            wanted: leaves those items that may come back.
            k: items to return.
        """
        near, shares = found
        if not len(near):
            return ranked[:k], bound == -np.inf or (len(ranked) >= k and bound < ranked[k - 1][1])
        own, scores = np.array([item for item, _ in ranked], np.int64), [score for _, score in ranked]
        left = np.isin(near, wanted(near))
        items = np.union1d(own, near[left])
        model, neighbours = np.full(len(items), -np.inf), np.full(len(items), -np.inf)
        model[items.searchsorted(own)] = np.log1p(-self.weight) + np.array(scores)
        neighbours[items.searchsorted(near[left])] = np.log(self.weight * shares[left])
        both = np.logaddexp(model, neighbours)
        best = np.argsort(-both, kind="stable")[:k]
        unlisted = neighbours[~np.isin(items, own)].max(initial=-np.inf)
        others = np.logaddexp(np.log1p(-self.weight) + bound, unlisted)
        is_exact = bound == -np.inf or bool(len(best) == k and others < both[best[-1]])
        return list(zip(items[best].tolist(), both[best].tolist(), strict=True)), is_exact
