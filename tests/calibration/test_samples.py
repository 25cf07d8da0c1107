from __future__ import annotations

import numpy as np
import pytest

from earn.calibration.samples import LEAST_SAMPLES, choose
from earn.data import Example
from earn.errors import EarnError

ITEMS = 50
COUNTS = np.arange(ITEMS)  # the higher the number, the more popular


def users(count: int, seed: int = 0) -> list[Example]:
    """Histories of 1 to 40 items, most of them short; a tenth of the users like rare items alone."""
    generator = np.random.default_rng(seed)
    examples = []
    for user in range(count):
        length = 40 if user % 20 == 0 else int(generator.integers(1, 6))
        items = generator.integers(0, 5 if user % 10 == 5 else ITEMS, length)
        examples.append(Example(str(user), items, int(generator.integers(0, ITEMS))))
    return examples


def test_nobody_is_on_both_sides_and_the_draw_repeats() -> None:
    examples = users(400)
    first, again, other = (choose(examples, COUNTS, 64, 100, seed) for seed in (0, 0, 1))
    calibrating, judging = ({example.user for example in group} for group in (first.calibration, first.held_out))
    assert (len(calibrating), len(judging)) == (64, 100)
    assert not calibrating & judging
    assert [example.user for example in first.calibration] == [example.user for example in again.calibration]
    assert [example.user for example in first.held_out] == [example.user for example in again.held_out]
    assert [example.user for example in first.calibration] != [example.user for example in other.calibration]


def test_all_that_are_left_judge_where_fewer_are_there_than_wanted() -> None:
    assert len(choose(users(100), COUNTS, 64, 1000).held_out) == 36


def test_rare_kinds_are_heard() -> None:
    examples = users(400)
    chosen = choose(examples, COUNTS, 64, 100)
    share = np.mean([len(example.history) == 40 for example in examples])
    heard = np.mean([len(example.history) == 40 for example in chosen.calibration])
    assert share == pytest.approx(0.05)
    assert heard > 0.04  # every quarter by length gives a quarter of the samples
    rare = [example for example in chosen.calibration if example.history.max() < 5]
    assert len(rare) >= 64 / 16


def test_every_stratum_gives_alike() -> None:
    """Sixteen kinds of users, unequal in number only in what they buy: 4 lengths x 4 levels of popularity."""
    examples = [
        Example(f"{length}-{level}-{number}", np.full(length, 10 * level), 0)
        for length in (1, 2, 3, 4)
        for level in range(4)
        for number in range(10)
    ]
    chosen = choose(examples, COUNTS, 32, 32)
    kinds = [example.user.rpartition("-")[0] for example in chosen.calibration]
    assert {kinds.count(kind) for kind in kinds} == {2}
    assert len(set(kinds)) == 16


def test_too_few_is_an_error() -> None:
    with pytest.raises(EarnError, match="2 samples are too few"):
        choose(users(100), COUNTS, 2, 50)
    with pytest.raises(EarnError, match="1 users are too few to judge by"):
        choose(users(100), COUNTS, 32, 1)
    with pytest.raises(EarnError, match="There are 60 users, too few for 32"):
        choose(users(60), COUNTS, LEAST_SAMPLES, 50)
