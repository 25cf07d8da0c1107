"""Rounds a weight such that what the linear layer gives out changes least.

Rounding each number to its nearest step is best for the weight, not for its products with the activations. Here rows
are rounded one after the other, and the error of each is made up for by those that are still to come, as far as the
calibration's activations say that they can: channels that go up and down together can stand in for each other.

    GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323), algorithm 1

In 4 bits BLOCK rows of a column share a scale, in 8 bits all of them do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.errors import EarnError

BLOCK = 32  # rows
MOST_COLUMNS = 4096  # that are rounded at a time
DAMPING = 0.01  # added to the diagonal of the moments, as a share of its mean (section 3.3)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Steps:
    """The whole numbers that weights become, times a scale: the largest of those that share it is the lowest step."""

    lowest: int
    highest: int
    rows: int | None = None  # of a column that share a scale, a multiple of BLOCK; None: all


STEPS = {4: Steps(-8, 7, BLOCK), 8: Steps(-127, 127)}  # by bits, as ONNX Runtime's quantizers take them


def round_with_feedback(weights: Iterable[Floats], moments: Floats, steps: Steps, layer: str) -> Iterator[Floats]:
    """Weights that read the same activations, on their steps, still as floats: x @ them is near x @ weight.

    Args:
        weights: each [rows, columns].
        moments: X^T X of the activations X that go in, [rows, rows].
        layer: one of the linear layers, for the error.

    Raises:
        EarnError: the moments are no finite numbers.
    """
    if not np.isfinite(moments).all():
        raise EarnError(f"What goes into {layer} is not finite, or so large that its squares are not. Check the model.")
    factor = _factor(moments.astype(np.float64))
    for weight in weights:  # a column takes nothing from the others, so few are in float64 at a time
        columns = range(0, weight.shape[1], MOST_COLUMNS)
        yield np.hstack([_round(weight[:, start : start + MOST_COLUMNS], factor, steps) for start in columns])


def _round(weight: Floats, factor: NDArray[np.float64], steps: Steps) -> Floats:
    """A weight [rows, columns] by the factor [rows, rows] of its moments."""
    left = weight.astype(np.float64)  # what is still to be rounded, with the errors so far made up for
    rounded = np.empty_like(left)
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        if start % (steps.rows or len(left)) == 0:
            scale, largest = _scale(left[start : start + (steps.rows or len(left))], steps.lowest)
            largest += start
        errors = np.empty((end - start, left.shape[1]))
        for row in range(start, end):
            whole = np.clip(np.rint(left[row] / scale), steps.lowest, steps.highest)
            rounded[row] = scale * np.where(largest == row, steps.lowest, whole)  # else the quantizer's scale differs
            errors[row - start] = (left[row] - rounded[row]) / factor[row, row]
            left[row + 1 : end] -= np.outer(factor[row, row + 1 : end], errors[row - start])
        left[end:] -= factor[start:end, end:].T @ errors
    return rounded.astype(np.float32)


def _factor(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangular U [rows, rows] with U^T U = the inverse of the damped moments [rows, rows]."""
    diagonal = np.diag_indices_from(moments)
    moments[diagonal] += DAMPING * moments[diagonal].mean() or 1.0  # where nothing goes in nothing is made up for
    # With rows and columns in reverse the moments are L L^T, and U is the inverse of L in reverse. That is a third of
    # the work of inverting the moments first.
    factor: NDArray[np.float64] = _inverse(np.linalg.cholesky(moments[::-1, ::-1]))[::-1, ::-1]
    return factor


def _inverse(lower: NDArray[Any]) -> NDArray[np.float64]:
    """The inverse of a lower triangular matrix [rows, rows], half by half."""
    rows = len(lower)
    if rows <= BLOCK:
        return np.tril(np.linalg.inv(lower))
    half, inverse = rows // 2, np.zeros_like(lower)
    first, last = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -last @ lower[half:, :half] @ first
    return inverse


def _scale(block: NDArray[np.float64], lowest: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The scale [columns] of a block [rows, columns], as ONNX Runtime's quantizer takes it, and the row of the largest.

    It makes the largest number of a column the lowest step.

    Where all are 0 the scale is 1, and the row lies before all that are still to come.
    """
    row = np.abs(block).argmax(axis=0)
    largest = np.take_along_axis(block, row[None], axis=0)[0]
    return np.where(largest == 0, 1.0, largest / lowest), np.where(largest == 0, -1, row)
