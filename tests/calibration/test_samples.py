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


def test_nobody_is_in_both_groups_and_the_draw_repeats() -> None:
    examples = users(400)
    first, again, other = (choose(examples, COUNTS, 64, 100, seed) for seed in (0, 0, 1))
    names = [[[example.user for example in group] for group in draw] for draw in (first, again, other)]
    calibration, held_out = map(set, names[0])
    assert (len(calibration), len(held_out)) == (64, 100)
    assert not calibration & held_out
    assert names[0] == names[1]
    assert names[0][0] != names[2][0]


def test_all_others_are_held_out_where_fewer_are_left_than_wanted() -> None:
    assert len(choose(users(100), COUNTS, 64, 1000)[1]) == 36


def test_rare_strata_are_sampled() -> None:
    examples = users(400)
    calibration, _ = choose(examples, COUNTS, 64, 100)
    share = np.mean([len(example.history) == 40 for example in examples])
    sampled = np.mean([len(example.history) == 40 for example in calibration])
    assert share == pytest.approx(0.05)
    assert sampled > 0.04  # every quarter by length gives a quarter of the samples
    rare = [example for example in calibration if example.history.max() < 5]
    assert len(rare) >= 64 / 16


def test_every_stratum_gives_equally_many() -> None:
    """Sixteen kinds of users, unequal in number only in what they buy: 4 lengths x 4 levels of popularity."""
    examples = [
        Example(f"{length}-{level}-{number}", np.full(length, 10 * level), 0)
        for length in (1, 2, 3, 4)
        for level in range(4)
        for number in range(10)
    ]
    calibration, _ = choose(examples, COUNTS, 32, 32)
    kinds = [example.user.rpartition("-")[0] for example in calibration]
    assert {kinds.count(kind) for kind in kinds} == {2}
    assert len(set(kinds)) == 16


@pytest.mark.parametrize(
    ("there", "samples", "held_out", "reason"),
    [
        (100, 2, 50, "2 samples are too few"),
        (100, 32, 1, "1 users are too few"),
        (60, LEAST_SAMPLES, 50, "There are 60 users, too few for 32"),
    ],
)
def test_too_few_is_an_error(there: int, samples: int, held_out: int, reason: str) -> None:
    with pytest.raises(EarnError, match=reason):
        choose(users(there), COUNTS, samples, held_out)
