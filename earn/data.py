"""Interaction data: where it comes from, how it is split, and what is popular.

A source is the name of a data set that is fetched (`ml-100k`), or a path to files in one of the formats that
`earn.formats` describes. A string that is a known name means that data set; write ./ml-100k for a folder of that name.
A path that does not exist is looked for in the folder that $EARN_DATA names.

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

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.download import fetch_ml100k
from earn.errors import EarnError
from earn.formats import (
    Interactions,
    is_lcrec,
    is_recbole,
    is_timesplit,
    read_lcrec,
    read_recbole,
    read_timesplit,
)

__all__ = [
    "Example",
    "Interactions",
    "Split",
    "find_source",
    "leave_one_out",
    "load_interactions",
    "popularity",
    "split_of",
]


@dataclass(frozen=True)
class Format:
    """A row of the table that decides which reader a source gets."""

    name: str
    looks_for: str  # what makes a path this format, for messages
    fits: Callable[[Path], bool]
    read: Callable[[Path], Interactions]


FORMATS = (
    Format(
        "LC-Rec or LETTER",
        "a folder with *.inter.json and *.index.json in it or in its raw/",
        is_lcrec,
        read_lcrec,
    ),
    Format("RecBole", "an *.inter file, or a folder with one", is_recbole, read_recbole),
    Format(
        "AtSpeed",
        "a folder with sequential_train.txt, sequential_valid.txt, sequential_test.txt and one *.json in it or in its "
        "raw/",
        is_timesplit,
        read_timesplit,
    ),
)
NAMED: dict[str, Callable[[], Path]] = {"ml-100k": fetch_ml100k}  # name -> puts the files on this machine

DATA_VARIABLE = "EARN_DATA"  # of the environment: names a folder of data sets


@dataclass(frozen=True)
class Example:
    """One question to a recommender, with its answer."""

    user: str
    history: NDArray[np.int64]  # item indices, oldest first
    target: int  # the item index that came next


@dataclass(frozen=True)
class Split:
    """What to train on, and what to ask (module docstring)."""

    train: tuple[NDArray[np.int64], ...]  # one sequence per user who has training items
    valid: tuple[Example, ...]
    test: tuple[Example, ...]  # the history includes the validation items


def find_source(source: str | Path) -> Path:
    """Where a source's files are (module docstring); those of a known name are fetched first if need be.

    Raises:
        EarnError: no such source, or it cannot be fetched.
    """
    if isinstance(source, str) and source in NAMED:
        return NAMED[source]()
    path, folder = Path(source).expanduser(), os.environ.get(DATA_VARIABLE)
    places = [path] if not folder else [path, Path(folder).expanduser() / path]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        elsewhere = f"nor is it in ${DATA_VARIABLE} ({folder})" if folder else f"and ${DATA_VARIABLE} is not set"
        raise EarnError(
            f"{source}: there is no such file or folder here, {elsewhere}. Give a path that exists, set "
            f"{DATA_VARIABLE} to the folder that holds it, or give a known name: {', '.join(NAMED)}."
        )
    return found


def load_interactions(source: str | Path) -> Interactions:
    """Reads a source (module docstring).

    Raises:
        EarnError: no such source, no or several formats fit it, or its files are not right.
    """
    path = find_source(source)
    fitting = [row for row in FORMATS if row.fits(path)]
    if len(fitting) != 1:
        wanted = "; ".join(f"{row.looks_for} ({row.name})" for row in fitting or FORMATS)
        found = "more than one format fits it" if fitting else "no known format fits it"
        raise EarnError(f"{path}: {found}. Give exactly one of: {wanted}.")
    return fitting[0].read(path)


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


def popularity(split: Split, items: int) -> NDArray[np.int64]:
    """All item indices [items], the one with most training interactions first; ties by index."""
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *split.train]), minlength=items)
    return np.argsort(-counts, kind="stable").astype(np.int64)
