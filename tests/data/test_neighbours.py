"""Vectors of items: held to the eigenvectors of the whole matrix, which is made here pair by pair."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from earn.data.identifiers import word_matrix
from earn.data.neighbours import DECAY, REACH, WORD_WEIGHT, likeness, neighbour_vectors
from earn.errors import EarnError
from tests.data.test_digits import interactions


def test_vectors_are_the_leading_eigenvectors_of_what_is_chosen_and_called_alike() -> None:
    data = interactions(24)
    near = np.zeros((24, 24))
    for sequence in data.sequences:
        for place, item in enumerate(sequence):
            for gap, other in enumerate(sequence[place + 1 :], 1):
                if gap <= REACH and item != other:
                    near[item, other] += DECAY ** (gap - 1)
                    near[other, item] += DECAY ** (gap - 1)
    counts = Counter(np.concatenate(data.sequences).tolist())
    scale = np.sqrt([max(1, counts[item]) for item in range(24)])
    sparse = word_matrix(data)
    assert sparse is not None
    words = sparse.toarray()
    whole = near / np.outer(scale, scale) + WORD_WEIGHT * words @ words.T
    alike = likeness(data, data.sequences)
    np.testing.assert_allclose(alike.times(np.eye(24)), whole, atol=1e-12)
    np.testing.assert_allclose(alike.of_others(np.eye(24)), whole - np.diag(np.diag(whole)), atol=1e-12)
    values, vectors = np.linalg.eigh(whole)
    want = vectors[:, np.argsort(-values)[:24]]
    want = want[:, np.sort(values)[::-1] > 1e-9 * values.max()]
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    got = neighbour_vectors(data, data.sequences, 32)
    assert got.shape == (24, 32)
    np.testing.assert_allclose(got @ got.T, want @ want.T, atol=1e-6)
    assert np.array_equal(got, neighbour_vectors(data, data.sequences, 32))


def test_words_alone_and_histories_alone_are_enough() -> None:
    data = interactions()
    of_words = neighbour_vectors(data, (), 2)
    kinds = [re.sub(r" n\d+", "", title) for title in data.titles]
    same = np.array([[one == other for other in kinds] for one in kinds])
    assert (of_words @ of_words.T)[same].min() > (of_words @ of_words.T)[~same].max()
    silent = replace(data, titles=("",) * 30)
    of_users = neighbour_vectors(silent, data.sequences, 2)
    assert (of_users @ of_users.T)[same].mean() > (of_users @ of_users.T)[~same].mean() + 0.5
    with pytest.raises(EarnError, match="says anything about the items"):
        neighbour_vectors(silent, data.sequences[:0], 2)
