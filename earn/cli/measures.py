"""What the quickstart measures: quality, latency and size of both twins, each by one function for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from earn.console import progress
from earn.data import Example, popularity
from earn.metrics import CUTOFFS, NOT_FOUND, summarise
from earn.runtime.cache import cache_bytes
from earn.runtime.evaluation import median_ms, target_ranks
from earn.runtime.recommender import Recommender

if TYPE_CHECKING:
    from earn.data.dataset import Dataset
    from earn.manifest import Manifest
    from earn.model.earn_model import EarnModel

K, BEAMS = 10, 20  # of a timed request; the cache's size is that of as many beams
TIMED_REQUESTS, WARM_UP_REQUESTS = 200, 10  # per bundle

Quality = dict[str, float]  # recall@10 and ndcg@10


def quality(
    models: Mapping[str, EarnModel],
    bundles: Mapping[str, Recommender],
    dataset: Dataset,
    users: Sequence[Example],
) -> dict[str, Any]:
    """Quality of popularity and of each bundle, and of its model in torch where there is one.

    No list holds items of its user's history.
    """
    from earn.export.stages import torch_recommender

    def searched(recommender: Recommender, label: str) -> Quality:
        return at_ten(target_ranks(recommender, users, dataset.interactions.item_ids, True, progress(label)))

    figures: dict[str, Any] = {"popularity": at_ten(popularity_ranks(dataset, users))}
    for name, recommender in bundles.items():
        found = searched(recommender, f"{name}, bundle")
        if name in models:
            figures[name] = {"torch": searched(torch_recommender(models[name]), f"{name}, torch"), "bundle": found}
        else:
            figures[name] = found
    return figures


def at_ten(ranks: NDArray[np.int64]) -> Quality:
    """Recall@10 and NDCG@10 of targets' ranks."""
    figures = summarise(ranks)
    return {name: figures[name] for name in ("recall@10", "ndcg@10")}


def popularity_ranks(dataset: Dataset, users: Sequence[Example]) -> NDArray[np.int64]:
    """The targets' ranks when all are shown the most popular items their history lacks; from 0, NOT_FOUND beyond."""
    place = np.argsort(popularity(dataset.split, len(dataset.interactions.item_ids)))
    ranks = [_rank(place, example) for example in users]
    return np.array([rank if rank < max(CUTOFFS) else NOT_FOUND for rank in ranks], np.int64)


def _rank(place: NDArray[np.int64], example: Example) -> int:
    """The target's place once the history's items are taken out of a ranking; `place` is each item's place in it."""
    if example.target in example.history:
        return max(CUTOFFS)  # it was taken out itself
    ahead = place[np.unique(example.history)] < place[example.target]
    return int(place[example.target] - ahead.sum())


def p50_ms(bundles: Mapping[str, Recommender], histories: Sequence[Sequence[str]]) -> dict[str, float]:
    """The median latency of one request to each bundle, asked in turn with the same histories.

    It is the request that `quality` makes of a bundle: items of the history may not come back.
    """
    return median_ms(bundles, histories, K, BEAMS, True, TIMED_REQUESTS, WARM_UP_REQUESTS)


def bundle_sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes of the cache at a full prompt, and of the bundle."""
    cache = cache_bytes(manifest.sizes, manifest.limits, manifest.limits.prompt, BEAMS)
    return {"cache_bytes": cache, "bundle_bytes": manifest.bundle_bytes}
