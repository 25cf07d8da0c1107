"""Which histories calibrate and which judge: real ones, spread over lengths and popularity, no user on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.calibration.gate import HeldOut
from earn.data import Dataset
from earn.errors import EarnError
from earn.metrics import Example

SAMPLES = 128  # histories to calibrate with
HELD_OUT = 1000  # users who judge
LEAST_SAMPLES = 32  # fewer histories miss the values that decide a range
LEAST_HELD_OUT = 32  # fewer users say nothing about overlap
STRATA = 4  # parts by length, and by popularity within each


@dataclass(frozen=True)
class Samples:
    """Two groups of users that have nobody in common."""

    calibration: tuple[Example, ...]
    held_out: tuple[Example, ...]


def draw_samples(
    dataset: Dataset, samples: int = SAMPLES, users: int = HELD_OUT, seed: int = 0, exclude_history: bool = False
) -> tuple[list[list[str]], HeldOut]:
    """Histories of a data set's test users to calibrate with, and other users to judge; see `choose`."""
    ids = dataset.interactions.item_ids
    counts = np.bincount(np.concatenate(dataset.split.train), minlength=len(ids))
    chosen = choose(dataset.examples(), counts, samples, users, seed)
    return dataset.histories(chosen.calibration), HeldOut.of(chosen.held_out, ids, exclude_history)


def choose(examples: Sequence[Example], counts: NDArray[np.int64], samples: int, users: int, seed: int = 0) -> Samples:
    """Draws both groups.

    The calibration's users are spread evenly over STRATA parts by length of the history and as many by the mean
    popularity of its items, so that rare kinds are heard; the held-out ones are drawn as they come, so that their
    means are those of all users.

    Args:
        examples: one per user.
        counts: [items] interactions of each item in training.
        samples: histories to calibrate with.
        users: most histories to judge by; all that are left if there are fewer.

    Raises:
        EarnError: too few samples or users are asked for, or there are too few.
    """
    if samples < LEAST_SAMPLES:
        raise EarnError(f"{samples} samples are too few to calibrate with. Take {LEAST_SAMPLES} or more.")
    if users < LEAST_HELD_OUT:
        raise EarnError(f"{users} users are too few to judge by. Take {LEAST_HELD_OUT} or more.")
    if len(examples) < samples + LEAST_HELD_OUT:
        raise EarnError(
            f"There are {len(examples)} users, too few for {samples} to calibrate with and {LEAST_HELD_OUT} others to "
            "judge by. Give more data, or take fewer samples."
        )
    generator = np.random.default_rng(seed)
    chosen = _spread(_strata(examples, counts), samples, generator)
    rest = np.setdiff1d(np.arange(len(examples)), chosen)
    judges = generator.permutation(rest)[:users]
    return Samples(tuple(examples[place] for place in chosen), tuple(examples[place] for place in np.sort(judges)))


def _strata(examples: Sequence[Example], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each example's stratum [examples]: parts of equal size by length, each in parts of equal size by popularity."""
    length = np.array([len(example.history) for example in examples])
    popularity = np.array([np.log1p(counts[example.history]).mean() for example in examples])
    by_length = _parts(length)
    by_popularity = np.zeros(len(examples), np.int64)
    for part in range(STRATA):
        inside = by_length == part
        by_popularity[inside] = _parts(popularity[inside])
    return by_length * STRATA + by_popularity


def _parts(values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.int64]:
    """0 for the smallest values to STRATA - 1 for the largest, equally many of each."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return rank * STRATA // max(1, len(values))


def _spread(strata: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """So many places, drawn from all strata in turn; those that run out are passed over."""
    order = generator.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    first = np.searchsorted(strata[order], strata[order])
    turn = np.arange(len(order)) - first  # a place's number within its stratum
    return np.sort(order[np.argsort(turn, kind="stable")][:count])
