from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from earn.calibration.error_feedback import BLOCK, DAMPING, STEPS, Floats, Steps, round_with_feedback
from earn.errors import EarnError

ROWS, COLUMNS = 2 * BLOCK + 5, 6  # the last block is not full


@pytest.fixture
def weight() -> Floats:
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)


@pytest.fixture
def activation() -> Floats:
    """Channels that go up and down together."""
    generator = np.random.default_rng(1)
    return (generator.standard_normal((300, 8)) @ generator.standard_normal((8, ROWS))).astype(np.float32)


def rounded_one(weight: Floats, moments: Floats, steps: Steps = STEPS[4]) -> Floats:
    return next(round_with_feedback([weight], moments, steps, "layers.3.down_proj"))


def nearest(weight: Floats) -> Floats:
    return rounded_one(weight, np.eye(ROWS, dtype=np.float32))


def test_channels_that_have_nothing_in_common_are_rounded_to_the_nearest_step(weight: Floats) -> None:
    rounded = nearest(weight)
    for start in range(0, ROWS, BLOCK):
        block = weight[start : start + BLOCK]
        largest = block[np.abs(block).argmax(axis=0), np.arange(COLUMNS)]
        steps = np.clip(np.rint(block / (largest / -8)), -8, 7)
        np.testing.assert_allclose(rounded[start : start + BLOCK], steps * (largest / -8), rtol=1e-6)


@pytest.mark.parametrize("bits", STEPS)
def test_it_is_the_slow_algorithm(weight: Floats, activation: Floats, bits: int) -> None:
    """Each row's error is shared out by the inverse of the moments of the rows that are left, computed anew."""
    moments = (activation.T @ activation).astype(np.float64)
    moments += DAMPING * np.diag(moments).mean() * np.eye(ROWS)
    steps, left, want = STEPS[bits], weight.astype(np.float64), np.empty((ROWS, COLUMNS))
    scale: NDArray[np.float64] = np.ones(COLUMNS)
    for row in range(ROWS):
        if row % (steps.rows or ROWS) == 0:
            block = left[row : row + (steps.rows or ROWS)]
            largest = np.abs(block).argmax(axis=0) + row
            scale = left[largest, np.arange(COLUMNS)] / steps.lowest
        whole = np.clip(np.rint(left[row] / scale), steps.lowest, steps.highest)
        want[row] = scale * np.where(row == largest, steps.lowest, whole)
        inverse = np.linalg.inv(moments[row:, row:])
        left[row:] -= np.outer(inverse[0] / inverse[0, 0], left[row] - want[row])
    np.testing.assert_allclose(rounded_one(weight, activation.T @ activation, steps), want, atol=1e-4)


def test_products_are_nearer_than_those_of_the_nearest_steps(weight: Floats, activation: Floats) -> None:
    rounded = rounded_one(weight, activation.T @ activation)
    errors = [np.abs(activation @ (each - weight)).mean() for each in (rounded, nearest(weight))]
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("bits", STEPS)
@pytest.mark.parametrize("seed", range(4))
def test_the_quantizer_finds_the_same_scales_again(seed: int, bits: int) -> None:
    """Else it would round a second time, to other steps."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((300, 4)) @ generator.standard_normal((4, 256))
    activation = (common + 0.05 * generator.standard_normal((300, 256))).astype(np.float32)
    weight = generator.standard_normal((256, 64)).astype(np.float32)
    rounded = rounded_one(weight, activation.T @ activation, STEPS[bits])
    again = rounded_one(rounded, np.eye(256, dtype=np.float32), STEPS[bits])  # each to its nearest step
    np.testing.assert_allclose(again, rounded, atol=1e-6)


def test_where_nothing_goes_in_weights_are_rounded_all_the_same(weight: Floats) -> None:
    np.testing.assert_array_equal(rounded_one(weight, np.zeros((ROWS, ROWS), np.float32)), nearest(weight))


@pytest.mark.parametrize("bits", STEPS)
def test_zeros_stay(weight: Floats, activation: Floats, bits: int) -> None:
    weight[:, 2] = 0
    assert not rounded_one(weight, activation.T @ activation, STEPS[bits])[:, 2].any()


def test_activations_that_are_no_numbers_are_an_error_that_names_the_layer(weight: Floats) -> None:
    with pytest.raises(EarnError, match=r"goes into layers\.3\.down_proj is not finite"):
        rounded_one(weight, np.full((ROWS, ROWS), np.inf, np.float32))
