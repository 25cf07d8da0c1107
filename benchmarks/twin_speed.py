"""How much faster and smaller EARN's bundle is than its dense twin's, in the paper's terms and in ours."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from earn.export.bundle import export_bundle
from earn.model.earn_model import EarnModel
from earn.runtime.cache import cache_bytes
from earn.runtime.evaluation import median_ms
from earn.runtime.recommender import Recommender

K, BEAMS, BATCH = 10, 20, 64
REQUESTS, ROUNDS = 200, 3


def speed(models: Mapping[str, EarnModel], histories: Sequence[Sequence[str]], scoring: str) -> dict[str, Any]:
    """Compares the bundles of models["earn"] and models["dense"], in fp32 in ONNX Runtime on the CPU.

    Returns:
        speedup                 of the median request, one at a time, 20 beams, both asked in turn
        p50_ms                  that request's milliseconds [EARN, dense]
        cache_bytes             of one request's caches, a full prompt and 20 beams' generated rows [EARN, dense]; all
                                beams share the prompt's rows
        cache_reduction         of these bytes
        batch_speedup           of the throughput in batches of 64 users (the paper takes the largest batch that fits)
        sequence_cache_reduction   of the rows of one sequence: N*L become k*L + (N-k)*r (paper, section 3.4)
        tokens_per_second       codes of one identifier per user, of users answered in these batches [EARN, dense]
    """
    with TemporaryDirectory() as folder:
        bundles: dict[str, Recommender] = {}
        for name, model in models.items():
            export_bundle(model, Path(folder) / name, histories[:8], scoring)
            bundles[name] = Recommender.load(Path(folder) / name)
        typical = median_ms(bundles, histories, K, BEAMS, True, REQUESTS)
        seconds = _batch_seconds(bundles, histories)
    manifests = {name: bundle.manifest for name, bundle in bundles.items()}
    caches = {name: cache_bytes(row.sizes, row.limits, row.limits.prompt, BEAMS) for name, row in manifests.items()}
    rows = {name: _sequence_rows(bundle) for name, bundle in bundles.items()}
    depth = bundles["earn"].catalog.depth
    return {
        "speedup": round(typical["dense"] / typical["earn"], 3),
        "p50_ms": [round(typical[name], 3) for name in ("earn", "dense")],
        "cache_bytes": [caches["earn"], caches["dense"]],
        "cache_reduction": round(1 - caches["earn"] / caches["dense"], 4),
        "batch_speedup": round(seconds["dense"] / seconds["earn"], 3),
        "sequence_cache_reduction": round(1 - rows["earn"] / rows["dense"], 4),
        "tokens_per_second": [round(depth / seconds[name]) for name in ("earn", "dense")],
    }


def _batch_seconds(bundles: Mapping[str, Recommender], histories: Sequence[Sequence[str]]) -> dict[str, float]:
    """Median seconds per user in batches, both sides in turn."""
    taken: dict[str, list[float]] = {name: [] for name in bundles}
    for _ in range(ROUNDS):
        for start in range(0, max(1, len(histories) - BATCH + 1), BATCH):
            users = histories[start : start + BATCH]
            for name, bundle in bundles.items():
                begun = time.perf_counter()
                bundle.recommend_batch(users, K, BEAMS, exclude_history=True)
                taken[name].append((time.perf_counter() - begun) / len(users))
    return {name: float(np.median(times)) for name, times in taken.items()}


def _sequence_rows(recommender: Recommender) -> int:
    """Rows of keys and values of one sequence with a full prompt, over all layers."""
    sizes, limits = recommender.manifest.sizes, recommender.manifest.limits
    late = sizes.layers - sizes.early_layers
    return sizes.early_layers * limits.prompt + late * (limits.prefix + limits.readout)
