"""Vectors of items whose cosines say which items are chosen near each other, and which are called alike.

    C[i,j]   sum over all users of DECAY^(gap - 1), items i and j being `gap` <= REACH places apart in a history
    S        C[i,j] / sqrt(n_i n_j) with n_i the users' choices of i, plus WORD_WEIGHT times the cosine of the tf-idf of
             titles and metadata
    vector   the rows of the leading eigenvectors of S, each scaled to length 1

Eigenvalues are left out: weighted by them, few broad directions would drown the many narrow ones that tell neighbours
from others. S is never made as a matrix; its eigenvectors come from subspace iteration (Halko and others,
arXiv 0909.4061), which multiplies by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.data.formats import Interactions
from earn.data.identifiers import word_matrix
from earn.data.splits import flat
from earn.errors import EarnError
from earn.quantizer import unit

REACH = 8  # places
DECAY = 0.7  # per place
WORD_WEIGHT = 0.3
SPARE = 16  # directions more than asked for, so that those asked for are exact sooner
ROUNDS = 4  # of the iteration


@dataclass(frozen=True)
class Likeness:
    """S (module docstring), as its two parts."""

    near: Any  # sparse [items, items]
    words: Any | None  # sparse [items, words], rows of length 1; None: nothing has a title or metadata

    def times(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """S times columns [items, n]; S is symmetric."""
        product: NDArray[np.float64] = self.near @ columns
        return product if self.words is None else product + WORD_WEIGHT * (self.words @ (self.words.T @ columns))

    def of_others(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same without what an item is like itself."""
        return self.times(columns) - self._own[:, None] * columns

    @cached_property
    def _own(self) -> NDArray[np.float64]:
        """The diagonal of S [items]: what stands near itself is left out already."""
        if self.words is None:
            return np.zeros(self.near.shape[0])
        own: NDArray[np.float64] = WORD_WEIGHT * np.asarray(self.words.multiply(self.words).sum(axis=1)).ravel()
        return own

    @property
    def numbers(self) -> int:
        """How many numbers the parts hold."""
        return int(self.near.nnz + (0 if self.words is None else self.words.nnz))


def likeness(interactions: Interactions, train_sequences: Sequence[NDArray[np.int64]]) -> Likeness:
    """How much items are chosen near each other and called alike; the arguments are those of `neighbour_vectors`.

    Raises:
        EarnError: nothing is known about any item.
    """
    found = Likeness(_near(train_sequences, len(interactions.item_ids)), word_matrix(interactions))
    if not found.near.nnz and found.words is None:
        raise EarnError(
            f"{interactions.name}: no training history of two items, title or metadata says anything about the items. "
            "Give a longer training part, or titles."
        )
    return found


def neighbour_vectors(
    interactions: Interactions, train_sequences: Sequence[NDArray[np.int64]], components: int, seed: int = 0
) -> NDArray[np.float64]:  # [items, components]
    """Each item's vector (module docstring), of length 1, or 0 where nothing is known of it.

    Args:
        interactions: the items with titles and metadata; the sequences in it are not read.
        train_sequences: item indices per user, the training part only.
        components: of a vector; those beyond the number of items are 0.
        seed: fixes the result.

    Raises:
        EarnError: nothing is known about any item.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    items, alike = len(interactions.item_ids), likeness(interactions, train_sequences)
    with threadpool_limits(1):  # sums of several threads are added in the order in which they end
        vectors = _leading_eigenvectors(alike.times, items, min(components, items), seed)
    return np.pad(unit(vectors), ((0, 0), (0, components - vectors.shape[1])))


def _near(sequences: Sequence[NDArray[np.int64]], items: int) -> Any:
    """C, scaled by the items' counts (module docstring), sparse [items, items]."""
    from scipy.sparse import csr_matrix, diags

    user, whole = flat(sequences)
    sums = csr_matrix((items, items))
    for gap in range(1, REACH + 1):
        earlier, later = whole[:-gap], whole[gap:]
        together = (user[:-gap] == user[gap:]) & (earlier != later)
        weights = np.full(int(together.sum()), DECAY ** (gap - 1))
        sums += csr_matrix((weights, (earlier[together], later[together])), shape=(items, items))
    scale = diags(1 / np.sqrt(np.maximum(1, np.bincount(whole, minlength=items))))
    return (scale @ (sums + sums.T) @ scale).tocsr()


def _leading_eigenvectors(times: Any, items: int, count: int, seed: int) -> NDArray[np.float64]:  # [items, count]
    """Of the symmetric matrix that `times` multiplies by: those of the largest eigenvalues, leaving out those of 0."""
    basis = np.random.default_rng(seed).standard_normal((items, min(items, count + SPARE)))
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(times(basis))
    small = basis.T @ times(basis)
    values, turns = np.linalg.eigh((small + small.T) / 2)
    largest = np.argsort(-values)[:count]
    kept = largest[values[largest] > 1e-9 * max(values[largest[0]], 1e-300)]
    vectors: NDArray[np.float64] = basis @ turns[:, kept]
    return vectors
