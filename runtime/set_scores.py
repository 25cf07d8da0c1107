"""Scores of all items from the logits of all digits (see earn.digits), and the best of them: no search, no beams."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.digits import Digits
from earn.errors import EarnError
from earn.runtime.item_filters import indices_of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SetScores:
    """The digits of a catalog, laid out for one sum per item."""

    codes: NDArray[np.int64]  # [m,items]
    starts: NDArray[np.int64]  # [m]
    sizes: NDArray[np.int64]  # [m]
    weights: Floats  # [v] of each token's log-probability

    @classmethod
    def of(cls, catalog: Catalog, logits: int) -> SetScores:
        """The digits of a catalog whose model gives so many logits.

        Raises:
            EarnError: its identifiers are no digits, or it has another number of tokens.
        """
        if len(catalog.tokens) != logits:
            raise EarnError(
                f"The catalog has {len(catalog.tokens)} tokens, and the model gives {logits} logits. Export the "
                "checkpoint again."
            )
        digits = Digits.of(catalog)
        weights = np.repeat(digits.weights, digits.sizes).astype(np.float32)
        return cls(np.ascontiguousarray(digits.codes.T), digits.starts, digits.sizes, weights)

    def of_items(self, logits: Floats) -> Floats:
        """The items' scores [items] from one user's logits [v]: weighted sums of log-probabilities."""
        shifted = logits - np.repeat(np.maximum.reduceat(logits, self.starts), self.sizes)
        normaliser = np.log(np.add.reduceat(np.exp(shifted), self.starts))
        weighted = (shifted - np.repeat(normaliser, self.sizes)) * self.weights
        scores: Floats = weighted[self.codes[0]]
        for digit in self.codes[1:]:
            scores += weighted[digit]
        return scores


def best_items(scores: Floats, k: int, excluded: Collection[int] = ()) -> list[tuple[int, float]]:
    """The k best items and their scores, best first, ties in the catalog's order; fewer if there are no more.

    Args:
        scores: [items].
        excluded: items that must not be among them.
    """
    allowed = scores.copy()
    left_out = indices_of(excluded)
    allowed[left_out] = -np.inf
    most = min(k, len(scores) - len(left_out))
    if most < 1:
        return []
    least = np.partition(allowed, len(allowed) - most)[len(allowed) - most]
    found = np.flatnonzero(allowed >= least)  # with all that tie for the last place
    order = found[np.argsort(-allowed[found], kind="stable")][:most]
    return [(int(item), float(scores[item])) for item in order]
