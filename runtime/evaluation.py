"""Evaluates recommenders: quality by full ranking over the whole catalog (no sampled negatives), and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from earn.errors import EarnError
from earn.metrics import CUTOFFS, Example, target_rank
from earn.runtime.recommender import Recommender

BATCH = 64
WARM_UP_REQUESTS = 5


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

    Raises:
        EarnError: the bundle allows fewer beams than the widest cutoff.
    """
    most, allowed = max(CUTOFFS), recommender.manifest.limits.beams
    if allowed < most:
        raise EarnError(
            f"Evaluation asks for {most} items, and this bundle returns {allowed} at the most. "
            f"Export the checkpoint with --max-beams {most} or more."
        )
    ranks: list[int] = []
    for start in range(0, len(examples), BATCH):
        chosen = examples[start : start + BATCH]
        histories = [[item_ids[item] for item in example.history] for example in chosen]
        lists = recommender.recommend_batch(histories, most, most, exclude_history=exclude_history)
        for example, items in zip(chosen, lists, strict=True):
            ranks.append(target_rank([item.item_id for item in items], item_ids[example.target]))
        if progress:
            progress(len(ranks), len(examples))
    return np.array(ranks, np.int64)


def median_ms(
    recommenders: Mapping[str, Recommender],
    histories: Sequence[Sequence[str]],
    k: int,
    beams: int,
    exclude_history: bool,
    requests: int,
    warm_up: int = WARM_UP_REQUESTS,
    in_session: bool = False,
) -> dict[str, float]:
    """The median milliseconds of one request to each recommender.

    They are asked in turn with the same histories, so that what else the machine does falls on all of them.

    Args:
        requests: measured requests to each.
        warm_up: requests to each before them.
        in_session: in an open session instead: the user chose the history's newest item, show the new list. What came
            before was read before the clock starts, half a window at the most: the new item never makes it slide.
    """
    taken: dict[str, list[float]] = {name: [] for name in recommenders}
    for history in islice(cycle(histories), warm_up + requests):
        for name, recommender in recommenders.items():
            window = history[-max(2, recommender.manifest.limits.history // 2) :]
            session = recommender.session(window[:-1]) if in_session else None
            started = time.perf_counter()
            if session is None:
                recommender.recommend(history, k, beams, exclude_history=exclude_history)
            else:
                session.append(window[-1])
                session.recommend(k, beams, exclude_history=exclude_history)
            taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(times[warm_up:]) for name, times in taken.items()}
