from __future__ import annotations

import math

import numpy as np
import pytest

from earn.calibration.gate import apply_gate
from earn.metrics import bootstrap_interval

ITEMS = [f"i{number}" for number in range(30)]


def test_overlaps_by_hand() -> None:
    before = [ITEMS[:20], ITEMS[:20]]
    after = [ITEMS[1:21], [*ITEMS[10:20], *ITEMS[:10]]]  # one item in twenty is new; the same set in another order
    verdict = apply_gate(before, after, ["i5", "i0"], least_overlap=0.97)
    assert verdict.beam_set_overlap == pytest.approx((19 / 20 + 1) / 2)
    assert verdict.top10_overlap == pytest.approx((9 / 10 + 0) / 2)
    np.testing.assert_allclose(verdict.overlaps, [0.95, 1])
    assert verdict.passed
    assert not apply_gate(before, after, ["i5", "i0"], least_overlap=0.98).passed


def test_recall_and_ndcg_by_hand() -> None:
    before = [ITEMS[:20], ITEMS[:20]]
    after = [[ITEMS[1], ITEMS[0], *ITEMS[2:20]], ITEMS[10:30]]
    verdict = apply_gate(before, after, ["i1", "i2"])
    assert (verdict.recall.before, verdict.recall.after) == (1, 0.5)
    assert verdict.ndcg.before == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / 2)
    assert verdict.ndcg.after == pytest.approx((1 + 0) / 2)
    low, high = verdict.interval
    assert low <= verdict.ndcg.after - verdict.ndcg.before <= high


def test_a_certain_loss_of_ndcg_fails_whatever_the_overlap() -> None:
    before, after = [ITEMS[:20]] * 50, [[*ITEMS[1:20], ITEMS[0]]] * 50  # everybody's target falls to the last place
    verdict = apply_gate(before, after, ["i0"] * 50)
    assert verdict.beam_set_overlap == 1
    assert verdict.interval[1] < 0
    assert not verdict.passed
    assert verdict.reasons == ["NDCG@10 falls from 1.0000 to 0.0000, by 1.0000 to 1.0000"]
    assert [*verdict.shortfalls] == ["NDCG@10"]


def test_a_loss_that_may_be_chance_passes() -> None:
    before = [ITEMS[:20]] * 40
    after = [[ITEMS[1], ITEMS[0], *ITEMS[2:20]]] * 40
    targets = ["i0"] * 21 + ["i1"] * 19  # one user more loses than gains
    verdict = apply_gate(before, after, targets)
    assert verdict.ndcg.after < verdict.ndcg.before
    assert verdict.passed


def test_no_change_passes() -> None:
    verdict = apply_gate([ITEMS[:20]] * 3, [ITEMS[:20]] * 3, ["x", "i1", "i2"])
    assert (verdict.beam_set_overlap, verdict.top10_overlap, verdict.interval) == (1, 1, (0, 0))
    assert verdict.passed
    assert verdict.reasons == []
    assert verdict.as_json()["ndcg@10"] == {
        "before": verdict.ndcg.before,
        "after": verdict.ndcg.after,
        "interval": [0, 0],
    }


def test_who_is_offered_nothing_before_and_after_loses_nothing() -> None:
    assert apply_gate([[], ITEMS[:20]], [[], ITEMS[:20]], ["x", "i1"]).beam_set_overlap == 1


def test_a_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(2, 3, 900)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 30, rel=0.1)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
