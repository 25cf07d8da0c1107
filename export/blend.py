"""Gives a bundle neighbours to blend its lists with (see earn.item_neighbours), if validation users gain by it.

likeness    S of earn.data.neighbours; of each item the largest that are above 0, see `neighbours_of`
weight 0    the model alone
chosen      the decay and weight with the highest NDCG@10 of validation users; of equals the smaller weight
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.data.dataset import Dataset
from earn.data.neighbours import Likeness, likeness
from earn.item_neighbours import ItemNeighbours, Ranked
from earn.metrics import Example, ndcg, target_rank
from earn.runtime.item_filters import Excluded, wanted_of
from earn.runtime.recommender import Recommender

LEAST, MOST = 32, 256  # neighbours of an item
PAIRS = 1 << 20  # of all items together: 8 MiB, where LEAST of each are not more
DECAYS = (1.0, 0.8, 0.6, 0.4, 0.2)
WEIGHTS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
AT_ONCE = 1 << 24  # numbers of likeness in memory

Progress = Callable[[str], Callable[[int, int], None]]  # what goes on -> a callback (done, all)
Asked = tuple[Ranked, list[int], int, Excluded]  # the model's list, the history, the target, what may not come back


@dataclass(frozen=True)
class Blend:
    """What was tried, and the best of it."""

    neighbours: ItemNeighbours
    by_setting: dict[tuple[float, float], float]  # NDCG@10 by decay and weight; by (1, 0) the model's alone

    @property
    def model(self) -> float:
        """That of the model alone."""
        return self.by_setting[1.0, 0.0]

    @property
    def best(self) -> float:
        """That of the setting which was chosen."""
        return max(self.by_setting.values())


def choose_blend(
    recommender: Recommender, dataset: Dataset, users: Sequence[Example], exclude_history: bool, progress: Progress
) -> Blend:
    """Finds what is like each item, and how much that should count for these users.

    Args:
        recommender: of a bundle; neighbours that it has are left out of account.
        dataset: of the same items.
        users: of the validation split.
        exclude_history: whether lists leave out what the history holds.
        progress: for items and for users.
    """
    asked = _ask(with_neighbours(recommender, None), dataset, users, exclude_history, progress)
    whole = likeness(dataset.interactions, dataset.split.train)
    items, alike = nearest(whole, neighbours_of(len(dataset.interactions.item_ids)), progress("items"))
    found = _in_catalog(ItemNeighbours(items, alike, 1.0, 1.0), dataset, recommender.catalog)
    most_history = recommender.manifest.limits.history
    by_setting = {(1.0, 0.0): _mean([[item for item, _ in ranked[:10]] for ranked, *_ in asked], asked)}
    for decay in DECAYS:
        near = [replace(found, decay=decay).near(history[-most_history:]) for _, history, *_ in asked]
        for weight in WEIGHTS:
            own, lists = replace(found, decay=decay, weight=weight), []
            for (ranked, _, _, unwanted), like in zip(asked, near, strict=True):
                best, _ = own.blend(ranked, -np.inf, like, partial(wanted_of, unwanted=unwanted), 10)
                lists.append([item for item, _ in best])
            by_setting[decay, weight] = _mean(lists, asked)
    decay, weight = max(by_setting, key=lambda setting: (by_setting[setting], -setting[1]))
    return Blend(replace(found, decay=decay, weight=weight), by_setting)


def with_neighbours(recommender: Recommender, neighbours: ItemNeighbours | None) -> Recommender:
    """A recommender over the same model that blends with these, or with none; this one stays as it is."""
    other = copy(recommender)
    other.lists = replace(recommender.lists, neighbours=neighbours)
    return other


def _ask(
    recommender: Recommender, dataset: Dataset, users: Sequence[Example], exclude_history: bool, progress: Progress
) -> list[Asked]:
    """The model's own lists, as wide as its search usually is."""
    width = recommender.search_width(1, None)
    found: list[Asked] = []
    done = progress("users")
    batch = recommender.manifest.limits.batch
    for start in range(0, len(users), batch):
        chosen = users[start : start + batch]
        histories = dataset.histories(chosen)
        lists = recommender.recommend_batch(histories, width, width, exclude_history=exclude_history)
        targets = recommender.indices([dataset.interactions.item_ids[user.target] for user in chosen])
        for items, history, target in zip(lists, histories, targets, strict=True):
            indices = recommender.indices([item.item_id for item in items])
            ranked = list(zip(indices, [item.score for item in items], strict=True))
            known = recommender.indices(history)
            single = recommender.excluded((), known if exclude_history else ())
            found.append((ranked, known, target, recommender.filters.unwanted(single, None, None, "skip")))
        done(len(found), len(users))
    return found


def _mean(lists: Sequence[Sequence[int]], asked: Sequence[Asked]) -> float:
    """NDCG@10 of the lists."""
    ranks = [target_rank(items, target) for items, (_, _, target, _) in zip(lists, asked, strict=True)]
    return float(ndcg(np.array(ranks), 10).mean())


def neighbours_of(items: int) -> int:
    """How many neighbours each of so many items has: the more the better, as far as the file stays small."""
    return min(MOST, max(LEAST, PAIRS // items), items)


def nearest(
    alike: Likeness, width: int, progress: Callable[[int, int], None]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Of each item those most like it, the most first, and how much; -1 and 0 beyond the last: each [items,width]."""
    count = alike.near.shape[0]
    items, found = np.full((count, width), -1, np.int32), np.zeros((count, width), np.float32)
    step = max(1, AT_ONCE // count)
    for start in range(0, count, step):
        own = np.arange(start, min(start + step, count))
        columns = np.zeros((count, len(own)))
        columns[own, np.arange(len(own))] = 1
        rows = alike.of_others(columns).T  # S is symmetric
        best = np.sort(np.argpartition(-rows, width - 1, axis=1)[:, :width], axis=1)
        order = np.argsort(-np.take_along_axis(rows, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        values = np.take_along_axis(rows, best, axis=1).astype(np.float32)
        items[own] = np.where(values > 0, best, -1)
        found[own] = np.maximum(values, 0)
        progress(int(own[-1]) + 1, count)
    return items, found


def _in_catalog(neighbours: ItemNeighbours, dataset: Dataset, catalog: Catalog) -> ItemNeighbours:
    """Neighbours of the data's items as those of a catalog, which may have them in another order, and more."""
    index = catalog.find(dataset.interactions.item_ids)
    items = np.full((len(catalog), neighbours.items.shape[1]), -1, np.int32)
    alike = np.zeros(items.shape, np.float32)
    items[index] = np.where(neighbours.items < 0, -1, index[neighbours.items])
    alike[index] = neighbours.likeness
    return replace(neighbours, items=items, likeness=alike)
