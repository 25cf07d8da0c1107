"""Ranking metrics with one relevant item per user.

Recall@n = 1 if the target stands among the first n, else 0
NDCG@n   = 1 / log2(place + 1) if it does (place counts from 1), else 0        both averaged over users
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (5, 10, 20)
NOT_FOUND = -1


@dataclass(frozen=True)
class Example:
    """One question to a recommender, with its answer."""

    user: str
    history: NDArray[np.int64]  # item indices, oldest first
    target: int  # the item index that came next


def target_rank(ranking: Sequence[Any], target: object) -> int:
    """The target's place in a ranking, from 0; NOT_FOUND if it is not there."""
    return ranking.index(target) if target in ranking else NOT_FOUND


def recall(ranks: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:
    """Recall at the cutoff of each user, from the targets' ranks (from 0, NOT_FOUND where missing)."""
    return ((ranks >= 0) & (ranks < cutoff)).astype(np.float64)


def ndcg(ranks: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:
    """NDCG at the cutoff of each user, likewise."""
    gain: NDArray[np.float64] = recall(ranks, cutoff) / np.log2(np.maximum(ranks, 0) + 2)
    return gain


def summarise(ranks: NDArray[np.int64]) -> dict[str, float]:
    """Recall and NDCG at every cutoff, averaged over users: {"recall@5": ..., "ndcg@20": ...}."""
    measures = {"recall": recall, "ndcg": ndcg}
    return {
        f"{name}@{cutoff}": float(measure(ranks, cutoff).mean()) if len(ranks) else 0.0
        for name, measure in measures.items()
        for cutoff in CUTOFFS
    }


def bootstrap_interval(
    values: NDArray[np.float64], seed: int = 0, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """The percentile bootstrap interval of the values' mean; of paired differences it is the paired interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
    """
    generator = np.random.default_rng(seed)
    means = [float(values[generator.integers(0, len(values), len(values))].mean()) for _ in range(resamples)]
    tail = 50 * (1 - confidence)
    lowest, highest = np.percentile(means, [tail, 100 - tail])
    return float(lowest), float(highest)
