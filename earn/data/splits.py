"""Splits: what to train on, what to ask in validation and test, and what is popular.

A split asks every user for the item that comes next. Where the source says which items are held out, a user with the
training items t1 .. ta, the validation items v1 .. vb and the test items w1 .. wc gives
    train   t1 .. ta
    valid   t1 .. ta -> v1
    test    t1 .. ta v1 .. vb -> w1
Only the first held-out item of a part is asked for, because it is the next one: what comes after it has a longer
history, and one question per user lets all users count alike. A part that is empty gives nothing, and there is no
question without a history.

Other sources are split by leave-one-out: a user's last item is for test and the one before for validation; a user with
fewer than three items only trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.data.formats import Interactions
from earn.metrics import CUTOFFS, NOT_FOUND, Example


@dataclass(frozen=True)
class Split:
    """What to train on, and what to ask (module docstring)."""

    train: tuple[NDArray[np.int64], ...]  # one sequence per user who has training items
    valid: tuple[Example, ...]
    test: tuple[Example, ...]  # the history includes the validation items


def split_of(interactions: Interactions) -> Split:
    """Splits as the source says, or else by leave-one-out (module docstring)."""
    if interactions.held_out is None:
        return leave_one_out(interactions)
    return _split(interactions, interactions.held_out)


def leave_one_out(interactions: Interactions) -> Split:
    """Splits by leave-one-out, whatever the source says (module docstring)."""
    return _split(interactions, [(1, 1) if len(items) > 2 else (0, 0) for items in interactions.sequences])


def _split(interactions: Interactions, held_out: Sequence[tuple[int, int]]) -> Split:
    train: list[NDArray[np.int64]] = []
    valid: list[Example] = []
    test: list[Example] = []
    users = zip(interactions.user_ids, interactions.sequences, held_out, strict=True)
    for user, items, (valid_items, test_items) in users:
        first_test = len(items) - test_items
        first_valid = first_test - valid_items
        if first_valid:
            train.append(items[:first_valid])
        if first_valid and valid_items:
            valid.append(Example(user, items[:first_valid], int(items[first_valid])))
        if first_test and test_items:
            test.append(Example(user, items[:first_test], int(items[first_test])))
    return Split(tuple(train), tuple(valid), tuple(test))


def item_counts(sequences: Sequence[NDArray[np.int64]], items: int) -> NDArray[np.int64]:
    """How often each item stands in the sequences [items]."""
    return np.bincount(flat(sequences)[1], minlength=items)


def flat(sequences: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sequences one after the other: of each place the sequence's number and the item."""
    numbers = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    return numbers, np.concatenate([np.zeros(0, np.int64), *sequences])


def popularity(split: Split, items: int) -> NDArray[np.int64]:
    """All item indices [items], the one with most training interactions first; ties by index."""
    return np.argsort(-item_counts(split.train, items), kind="stable").astype(np.int64)


def popularity_ranks(split: Split, items: int, users: Sequence[Example]) -> NDArray[np.int64]:
    """The targets' ranks [users] if everybody is shown the most popular items that the history lacks.

    Ranks count from 0; NOT_FOUND beyond the widest cutoff, and for a target that the history holds.
    """
    position = np.argsort(popularity(split, items))  # of each item in the ranking
    ranks = np.full(len(users), NOT_FOUND, np.int64)
    for index, example in enumerate(users):
        ahead = position[np.unique(example.history)] < position[example.target]
        rank = position[example.target] - ahead.sum()
        if rank < max(CUTOFFS) and example.target not in example.history:
            ranks[index] = rank
    return ranks
