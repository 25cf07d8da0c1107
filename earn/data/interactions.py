"""What every reader gives: who did what in which order, and what is known about the items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.console import note
from earn.data.import_options import ImportOptions
from earn.errors import EarnError


@dataclass(frozen=True)
class Ties:
    """Interactions whose order the source does not say."""

    interactions: int  # that share their time with others of their user
    exact_repeats: int  # that repeat user, item and time of another one

    @classmethod
    def among(cls, rows: Iterable[Iterable[tuple[float, str]]]) -> Ties:
        """The ties of users' rows (time, item)."""
        tied = repeats = 0
        for row in map(list, rows):
            counts = Counter(time for time, _ in row)
            tied += sum(count for count in counts.values() if count > 1)
            repeats += len(row) - len(set(row))
        return cls(tied, repeats)

    def say(self, source: str, keeps_split: bool = False) -> None:
        """Prints what there is of either, and what mends it; an import would not keep a split that the data brings."""
        if self.interactions:
            note(
                f"      {source}: {self.interactions:,} interactions share their time with others of the user; the "
                "file's order is kept." + ("" if keeps_split else " To draw it: earn import --ties shuffle")
            )
        if self.exact_repeats:
            note(
                f"      {source}: {self.exact_repeats:,} are exact repeats (user, item and time)."
                + ("" if keeps_split else " To drop them: earn import --dedupe")
            )


@dataclass(frozen=True)
class Interactions:
    """Who did what in which order.

    Raises:
        EarnError: fields disagree in length, an item index is out of range, the catalog has other items, or more of a
            user's items are held out than there are.
    """

    name: str  # of the data set, for tables and messages
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]  # one line per item, "" where unknown
    metadata: tuple[str, ...]  # words per item that help to build identifiers, "" where unknown
    user_ids: tuple[str, ...]
    sequences: tuple[NDArray[np.int64], ...]  # one per user: item indices, oldest first
    catalog: Catalog | None  # when the source brings identifiers; its items are item_ids, in that order
    # When the source brings its split, one (validation, test) per user: so many of the newest items are for test, and
    # so many before these for validation; the rest is for training. None: the split is leave-one-out.
    held_out: tuple[tuple[int, int], ...] | None = None
    ties: Ties | None = None  # as the source had them, before any filter; None: it has no times

    @property
    def texts(self) -> list[str]:
        """Title and metadata of each item."""
        return [f"{title} {words}" for title, words in zip(self.titles, self.metadata, strict=True)]

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Any],
        name: str = "rows",
        options: ImportOptions | None = None,
        say: Callable[[str], None] = note,
    ) -> Interactions:
        """Interactions from rows: mappings with the usual names, or tuples (user, item, time).

        Args:
            rows: one per interaction, in any order.
            name: of the data set, for messages.
            options: columns, filters, repeats, ties (`earn.data.import_options`).
            say: gets a line per step.

        Raises:
            EarnError: a row is not what it should be; names its number, counted from 0.
        """
        from earn.data.tables.importing import import_sources
        from earn.data.tables.sources import Rows

        return import_sources(name, [Rows(rows, name)], None, options or ImportOptions(), say).interactions

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        name: str = "data frame",
        options: ImportOptions | None = None,
        say: Callable[[str], None] = note,
    ) -> Interactions:
        """Interactions from a data frame of pandas or polars, or a table of pyarrow; see `from_rows`.

        Raises:
            EarnError: a column is missing, or a row is not what it should be; names its number, counted from 0.
        """
        from earn.data.tables.importing import import_sources
        from earn.data.tables.sources import Frame

        return import_sources(name, [Frame(frame, name)], None, options or ImportOptions(), say).interactions

    def __post_init__(self) -> None:
        self._check_items()
        self._check_users()
        self._check_held_out()

    def _check_items(self) -> None:
        if not len(self.item_ids) == len(self.titles) == len(self.metadata):
            raise EarnError(
                f"{self.name}: {len(self.item_ids)} items, {len(self.titles)} titles and "
                f"{len(self.metadata)} metadata. Give one of each per item."
            )
        if self.catalog is not None and self.catalog.item_ids != self.item_ids:
            raise EarnError(f"{self.name}: the catalog's items are not the data's, in that order. Rebuild the catalog.")

    def _check_users(self) -> None:
        if len(self.user_ids) != len(self.sequences):
            raise EarnError(
                f"{self.name}: {len(self.user_ids)} users, {len(self.sequences)} sequences. Give one per user."
            )
        for user, sequence in zip(self.user_ids, self.sequences, strict=True):
            if not sequence.size or sequence.min() < 0 or sequence.max() >= len(self.item_ids):
                raise EarnError(
                    f"{self.name}: user {user!r} has no item or one outside 0..{len(self.item_ids) - 1}. "
                    "Remove the user or mend the indices."
                )

    def _check_held_out(self) -> None:
        if self.held_out is None:
            return
        if len(self.held_out) != len(self.user_ids):
            raise EarnError(
                f"{self.name}: {len(self.user_ids)} users, {len(self.held_out)} held_out. Give one per user, or None."
            )
        for user, sequence, held_out in zip(self.user_ids, self.sequences, self.held_out, strict=True):
            if min(held_out) < 0 or sum(held_out) > len(sequence):
                raise EarnError(
                    f"{self.name}: of the {len(sequence)} items of user {user!r}, {held_out} are held out for "
                    "validation and test. Give two numbers from 0 whose sum is at most the number of items."
                )


@dataclass(frozen=True)
class Words:
    """What a file says about one item."""

    title: str = ""
    metadata: str = ""


def from_histories(
    name: str,
    item_ids: Sequence[str],
    histories: Mapping[str, Sequence[str]],
    words: Mapping[str, Words],
    catalog: Catalog | None,
    held_out: tuple[tuple[int, int], ...] | None = None,
    ties: Ties | None = None,
) -> Interactions:
    """Interactions of users' histories, which are item ids, oldest first; words of other items are left out."""
    index_of = {item_id: index for index, item_id in enumerate(item_ids)}
    sequences = tuple(np.array([index_of[item] for item in history], np.int64) for history in histories.values())
    known = [words.get(item_id, Words()) for item_id in item_ids]
    titles, metadata = tuple(word.title for word in known), tuple(word.metadata for word in known)
    return Interactions(name, tuple(item_ids), titles, metadata, tuple(histories), sequences, catalog, held_out, ties)
