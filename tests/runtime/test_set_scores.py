"""The best items of a set of digits: equal to every item summed, whatever the catalog's size and its digits'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from earn.digits import Digits
from earn.runtime import set_scores
from earn.runtime.set_scores import SetScores

LAYOUTS = {  # items, and values per digit
    "few": (6, [3, 2]),
    "alike": (40, [1, 1]),
    "with an item's own": (40, [3, 3, 40]),
    "wide": (300, [256, 300, 7]),
    "several tables": (5000, [16, 16, 16, 16, 16]),
    "one table of all": (5000, [2, 3, 5]),
}


def digits_of(items: int, sizes: Sequence[int]) -> Digits:
    """Random digits; the last stands for the item itself where it has so many values."""
    generator, counts = np.random.default_rng(0), np.array(sizes, np.int64)
    columns = [np.arange(items) if size == items else generator.integers(0, size, items) for size in sizes]
    weights = [float(len(sizes) - 1) if size == items else 1.0 for size in sizes]
    starts = np.cumsum(counts) - counts
    codes = np.column_stack(columns).astype(np.int64)
    return Digits(codes + starts, starts, counts, np.array(weights))


def every_score(digits: Digits, logits: NDArray[np.float32]) -> list[float]:
    """Item by item and digit by digit in float64."""
    chances = []
    for start, size, weight in zip(digits.starts, digits.sizes, digits.weights, strict=True):
        exact = logits[start : start + size].astype(np.float64)
        chances += (weight * (exact - exact.max() - np.log(np.exp(exact - exact.max()).sum()))).tolist()
    return [sum(chances[code] for code in row) for row in digits.codes.tolist()]


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 100.0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", [64, set_scores.BLOCK])
def test_lists_are_those_of_every_item_summed(
    layout: str, spread: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_scores, "BLOCK", block)
    monkeypatch.setattr(set_scores, "CHUNKS", block)
    digits = digits_of(*LAYOUTS[layout])
    scores, generator = SetScores.over(digits), np.random.default_rng(1)
    for k in (1, 10, 200):
        logits = (spread * generator.normal(size=digits.sizes.sum())).astype(np.float32)
        excluded = set(generator.integers(0, len(scores), 4).tolist())
        want = every_score(digits, logits)
        order = sorted(set(range(len(want))) - excluded, key=lambda item: (-want[item], item))[:k]
        got = scores.best(logits, k, excluded)
        assert [item for item, _ in got] == order
        assert [score for _, score in got] == pytest.approx([want[item] for item in order], rel=1e-12, abs=1e-12)


def test_ties_keep_the_catalogs_order_and_what_is_excluded_is_left_out() -> None:
    values = np.array([0, 2, 1, 2, 1, 1])
    scores = SetScores.over(Digits(values[:, None], np.array([0]), np.array([3]), np.ones(1)))
    logits = np.array([0.0, 1.0, 2.0], np.float32)

    def items(k: int, excluded: Sequence[int] = ()) -> list[int]:
        return [item for item, _ in scores.best(logits, k, excluded)]

    assert items(4) == [1, 3, 2, 4]
    assert items(3, [1, 2]) == [3, 4, 5]
    assert items(9, [0, 0]) == [1, 3, 2, 4, 5]
    assert items(2, range(6)) == []


def test_a_digit_with_a_value_far_below_the_others_changes_no_list() -> None:
    digits = digits_of(5000, [16, 16])
    logits = np.random.default_rng(2).normal(size=32).astype(np.float32)
    logits[7] = -1e9
    want = every_score(digits, logits)
    order = sorted(range(5000), key=lambda item: (-want[item], item))[:20]
    assert [item for item, _ in SetScores.over(digits).best(logits, 20)] == order


@pytest.mark.parametrize("sizes", [[256] * 16, [256, 300, 5000]])
def test_a_large_catalog_takes_few_bytes(sizes: list[int]) -> None:
    digits = digits_of(1 << 17, sizes)
    scores = SetScores.over(digits)
    together = [list(table.digits) for table in scores.tables]
    assert together == ([[digit, digit + 1] for digit in range(0, 16, 2)] if len(sizes) == 16 else [[0], [1], [2]])
    assert {table.rows.dtype.itemsize for table in scores.tables} <= {1, 2}
