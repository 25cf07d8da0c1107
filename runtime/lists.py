"""Users' lists: what the model ranks, blended with neighbours where a bundle brings some, under the catalog's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from earn.catalog import Catalog
from earn.item_neighbours import ItemNeighbours, Near, Ranked
from earn.runtime.item_filters import Excluded, wanted_of
from earn.texts import Texts

NOTHING: Near = (np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    The score is the log-probability of its identifier under the bundle's scoring rule, or the sum of its digits'; of a
    bundle with neighbours that of the blend (see earn.item_neighbours).
    """

    item_id: str
    score: float
    title: str  # "" where unknown


class Recommendations(list[Recommendation]):
    """A list of items, best first, that knows whether a wider search could have found another one."""

    def __init__(self, items: Iterable[Recommendation], exact: bool) -> None:
        super().__init__(items)
        self.exact = exact  # these are the best k items of the whole catalog: nothing better was ever dropped


@dataclass(frozen=True)
class Lists:
    """Makes the lists of a catalog's items."""

    catalog: Catalog
    neighbours: ItemNeighbours | None
    most_history: int  # items that the model reads, whose neighbours count

    def most(self, k: int, width: int) -> int:
        """How many of the model's items a list of k is made of, by a search of this width."""
        return int(k) if self.neighbours is None else width

    def near(self, history: Sequence[int]) -> Near:
        """What is like the newest of a history of item indices, oldest first: nothing without neighbours."""
        return NOTHING if self.neighbours is None else self.neighbours.near(history[-self.most_history :])

    def of(self, ranked: Ranked, dropped: float, near: Near, unwanted: Excluded, k: int, width: int) -> Recommendations:
        """A user's k best items.

        Args:
            ranked: the model's items and scores, best first: `most` of them or all, and others that are near.
            dropped: the best score that the search has dropped; -inf for none.
            near: what is like the history, see `near`.
            unwanted: items that may not come back.
            k: items to return.
            width: of the search.
        """
        if self.neighbours is None:
            return self.named(ranked, dropped == -np.inf or (len(ranked) == k and dropped < ranked[-1][1]))
        most = self.most(k, width)
        bound = max(dropped, ranked[most - 1][1]) if len(ranked) >= most else dropped
        wanted = partial(wanted_of, unwanted=unwanted)
        return self.named(*self.neighbours.blend(ranked, bound, near, wanted, k))

    def named(self, ranked: Ranked, is_exact: bool) -> Recommendations:
        """Items and their scores, best first, with the catalog's ids and titles."""
        items, scores = [item for item, _ in ranked], [score for _, score in ranked]
        ids, titles = (Texts.of(texts).take(items) for texts in (self.catalog.item_ids, self.catalog.titles))
        return Recommendations(map(Recommendation, ids, scores, titles), bool(is_exact))
