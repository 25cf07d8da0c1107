from __future__ import annotations

from math import log2

import numpy as np
import pytest

from earn.metrics import CUTOFFS, NOT_FOUND, ndcg, recall, summarise, target_rank

RANKS = np.array([0, 1, 4, 5, 9, 10, 19, 20, NOT_FOUND])


def test_the_rank_is_the_place_from_zero() -> None:
    assert target_rank(["a", "b", "c"], "c") == 2
    assert target_rank(["a", "b"], "c") == NOT_FOUND
    assert target_rank([], "c") == NOT_FOUND


def test_recall_counts_targets_among_the_first_and_ndcg_discounts_by_the_place() -> None:
    assert recall(RANKS, 5).tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert recall(RANKS, 20).tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert ndcg(RANKS, 10) == pytest.approx([1 / log2(place) for place in (2, 3, 6, 7, 11)] + [0] * 4)


def test_the_summary_averages_over_users() -> None:
    summary = summarise(RANKS)
    assert list(summary) == [f"{name}@{cutoff}" for name in ("recall", "ndcg") for cutoff in CUTOFFS]
    assert summary["recall@5"] == pytest.approx(3 / 9)
    assert summary["recall@20"] == pytest.approx(7 / 9)
    assert summary["ndcg@5"] == pytest.approx((1 + 1 / log2(3) + 1 / log2(6)) / 9)
    assert set(summarise(np.array([], np.int64)).values()) == {0.0}
