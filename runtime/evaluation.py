"""Evaluates a recommender by full ranking: constrained search over the whole catalog, no sampled negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from earn.data import Example
from earn.metrics import CUTOFFS, target_rank
from earn.runtime.recommender import Recommender

BATCH = 64


def target_ranks(
    recommender: Recommender,
    examples: Sequence[Example],
    item_ids: Sequence[str],
    exclude_history: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """The rank of each example's target among the best 20, from 0; NOT_FOUND beyond.

    Args:
        item_ids: the ids behind the examples' item indices.
        exclude_history: whether items of the history may not come back.
        progress: called with the number of users done and the number of all.
    """
    most = max(CUTOFFS)
    ranks: list[int] = []
    for start in range(0, len(examples), BATCH):
        chosen = examples[start : start + BATCH]
        histories = [[item_ids[item] for item in example.history] for example in chosen]
        found = recommender.recommend_batch(histories, most, most, exclude_history=exclude_history)
        for example, items in zip(chosen, found, strict=True):
            ranks.append(target_rank([item.item_id for item in items], item_ids[example.target]))
        if progress:
            progress(len(ranks), len(examples))
    return np.array(ranks, np.int64)
