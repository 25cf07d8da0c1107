"""Draws the histories to calibrate with, spread over lengths and popularity, and other users for the gate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from earn.calibration.gate import HeldOut
from earn.data import Dataset
from earn.errors import EarnError
from earn.metrics import Example

SAMPLES = 128  # histories to calibrate with
HELD_OUT = 1000  # users for the gate
LEAST_SAMPLES = 32  # fewer histories miss the values that decide a range
LEAST_HELD_OUT = 32  # fewer users say nothing about overlap
STRATA = 4  # parts by length, and by popularity within each


def draw_samples(
    dataset: Dataset, samples: int = SAMPLES, users: int = HELD_OUT, seed: int = 0, exclude_history: bool = False
) -> tuple[list[list[str]], HeldOut]:
    """Histories of a data set's test users to calibrate with, and other users for the gate; see `choose`."""
    ids = dataset.interactions.item_ids
    counts = np.bincount(np.concatenate(dataset.split.train), minlength=len(ids))
    calibration, held_out = choose(dataset.examples(), counts, samples, users, seed)
    return dataset.histories(calibration), HeldOut.of(held_out, ids, exclude_history)


def choose(
    examples: Sequence[Example], counts: NDArray[np.int64], samples: int, users: int, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """Draws users to calibrate with and users to hold out; nobody is in both groups.

    The first are spread evenly over STRATA parts by length of the history, and within each over as many by the mean
    popularity of its items, so that rare strata are sampled. The held-out ones are drawn at random from the rest.

    Args:
        examples: one per user.
        counts: [items] interactions of each item in training.
        samples: histories to calibrate with.
        users: most users to hold out; all that are left if there are fewer.

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
    calibration = _spread(_strata(examples, counts), samples, generator)
    rest = np.setdiff1d(np.arange(len(examples)), calibration)
    held_out = np.sort(generator.permutation(rest)[:users])
    return [examples[index] for index in calibration], [examples[index] for index in held_out]


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
    """So many indices, drawn from all strata in turn; those that run out are passed over."""
    order = generator.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    first = np.searchsorted(strata[order], strata[order])
    turn = np.arange(len(order)) - first  # how many of the same stratum come before
    return np.sort(order[np.argsort(turn, kind="stable")][:count])
