"""Items as sets of digits, for models that predict all digits at once. No torch.

An item has m digits, which are the tokens of its identifier: digit j has its own tokens, and every item has one of
them. Items may share all digits. Unlike the codes of a beam search, digits have no order: each is predicted on its own,
and an item's score is the sum of its digits' log-probabilities (SETRec, arXiv 2502.10833; RPG, arXiv 2506.05781).

A digit with a value per item names the item alone. Beside others it weighs as much as all of these together: in the
item's row, in the loss and in the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.arrays import row_blocks
from earn.catalog import Catalog
from earn.errors import EarnError


@dataclass(frozen=True)
class Digits:
    """The digits of a catalog's items."""

    codes: NDArray[np.int32] | NDArray[np.int64]  # [items,m] indices of the catalog's tokens
    starts: NDArray[np.int64]  # [m] the first token of each digit
    sizes: NDArray[np.int64]  # [m] how many tokens each digit has, which stand side by side
    weights: NDArray[np.float64]  # [m] of each digit in the sum

    @classmethod
    def of(cls, catalog: Catalog) -> Digits:
        """The digits that a catalog's identifiers are.

        Raises:
            EarnError: identifiers of different lengths, or one token stands for two digits.
        """
        codes = catalog.codes
        ends = [(block.min(axis=0), block.max(axis=0)) for block in row_blocks(codes)]
        least, most = map(np.array, zip(*ends, strict=True))
        starts, stops = least.min(axis=0).astype(np.int64), most.max(axis=0).astype(np.int64) + 1
        if starts[0] != 0 or stops[-1] != len(catalog.tokens) or (starts[1:] != stops[:-1]).any():
            raise EarnError(
                "The catalog's identifiers are no digits: they differ in length, or a token stands at two places. "
                "Build new ones, or train with another method."
            )
        sizes = stops - starts
        names_items = sizes == catalog.trained
        others = max(1, int((~names_items).sum()))  # what a digit with a value per item weighs; the others weigh 1
        return cls(codes, starts, sizes, np.where(names_items, float(others), 1.0))
