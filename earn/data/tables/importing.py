"""From tables to histories.

    read        batch by batch: users and items as int32 codes, times as int64 nanoseconds
    filter      rating, time from and until
    order       by user, and within a user by time; equal times keep the table's order or are shuffled
    repeats     none, consecutive or all later ones of a user's item are dropped
    k-core      users and items with fewer interactions are dropped until none is left

Each step says how much it kept. Users and items are numbered by first appearance; with a table of items, items are in
that table's order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from earn.data.import_options import ImportOptions
from earn.data.interactions import Interactions, Ties
from earn.data.tables.batches import Batch, Source
from earn.data.tables.columns import choose, given_columns
from earn.data.tables.items import Items
from earn.data.tables.values import UNITLESS, Clock, Ids, ratings
from earn.errors import EarnError

Say = Callable[[str], None]
TIES, REPEATS = "ties in time within a user", "exact repeats"  # names of counts
NO_TIMES = "none"  # the kind of times of a file that has none


@dataclass(frozen=True)
class Imported:
    """Histories, and what was done to get them."""

    interactions: Interactions
    facts: Mapping[str, Any]  # what was read and counted, for import.json


def ties_of(facts: Mapping[str, Any]) -> Ties | None:
    """The ties that the facts of an import count; None where its tables have no times."""
    counts = facts.get("counts", {})
    if all(file["times"] == NO_TIMES for file in facts.get("files", [])):
        return None
    return Ties(counts.get(TIES, 0), counts.get(REPEATS, 0))


def import_sources(
    name: str, sources: Sequence[Source], items: Items | None, options: ImportOptions, say: Say
) -> Imported:
    """Reads tables into histories (module docstring).

    Args:
        name: of the data set.
        sources: the tables, as one.
        items: what is known about the items, if anything.
        options: how.
        say: gets a line per step.

    Raises:
        EarnError: a column is missing, a cell is not what it should be (names file and line), or nothing is left.
    """
    log = _Log(name, options, say)
    for source in sources:
        log.read(source, items is not None)
    return log.finish(items)


class _Rows(NamedTuple):
    """Interactions as columns [rows]."""

    users: NDArray[np.int32]  # codes
    items: NDArray[np.int32]  # codes
    times: NDArray[np.int64]  # nanoseconds; 0 where the tables have none

    def take(self, chosen: NDArray[Any]) -> _Rows:
        """The rows of these indices, or those where a mask is true."""
        return _Rows(*(column[chosen] for column in self))


class _Log:
    """What was read of the tables so far."""

    def __init__(self, name: str, options: ImportOptions, say: Say) -> None:
        self._name, self._options, self._say = name, options, say
        self._user_ids, self._item_ids = Ids("user"), Ids("item")
        self._titles: dict[int, str] = {}  # by item code
        self._columns: tuple[list[NDArray[Any]], ...] = ([], [], [])  # parts of the columns of _Rows
        self._counts: dict[str, int] = {}
        self._files: list[dict[str, Any]] = []
        self._span = [np.iinfo(np.int64).max, -1]

    def read(self, source: Source, has_items: bool) -> None:
        """Appends a table; where there is a table of items, a title that was named may be there instead."""
        options, given = self._options, given_columns(self._options.columns)
        if has_items and given.get("title") not in source.names:
            given.pop("title", None)
        needed = ["user", "item"]
        if options.order == "time" and ("time" in given or "time" in source.roles or not source.roles):
            needed.append("time")
        if options.min_rating is not None:
            needed.append("rating")
        roles = choose(source, given, needed, ["title"])
        clock, rows, kept = Clock(options.unit), 0, 0
        for batch in source.batches(list(roles.values())):
            kept += self._append(batch, roles, clock)
            rows += len(batch.numbers)
        if not rows:
            raise EarnError(f"{source.name}: only a header, no rows. Add at least one.")
        kind = clock.kind if "time" in roles and clock.kind else NO_TIMES
        self._count("rows read", rows)
        columns = ", ".join(f"{role} {name}" for role, name in roles.items())
        self._say(f"{source.name}: {source.says}; {rows:,} rows; columns: {columns}; {self._times(kind)}")
        self._files.append({"file": source.name, "rows": rows, "columns": roles, "times": kind})
        self._check_kinds(source.name)
        if kept < rows:
            self._say(f"{source.name}: {rows - kept:,} rows left out")

    def _times(self, kind: str) -> str:
        if kind == NO_TIMES:
            return "no times, rows are taken to be in order"
        if kind == UNITLESS or self._span[1] < 0:
            return f"times: {kind}"
        first, last = (str(np.datetime64(time, "ns").astype("datetime64[D]")) for time in self._span)
        return f"times: {kind}, {first} to {last}"

    def _check_kinds(self, name: str) -> None:
        if len({"time" in file["columns"] for file in self._files}) > 1:
            raise EarnError(f"{self._name}: some files have times and others have none. Give files of one kind.")
        kinds = {file["times"] for file in self._files} - {NO_TIMES}
        if len(kinds) > 1 and UNITLESS in kinds:
            raise EarnError(
                f"{name}: its times are {UNITLESS}, those of other files are not, or the other way round. "
                "Write all times in one unit."
            )

    def _append(self, batch: Batch, roles: Mapping[str, str], clock: Clock) -> int:
        """Appends the rows that the options keep; how many."""
        options = self._options
        column = {role: batch.columns[name] for role, name in roles.items()}
        users = self._user_ids.codes(column["user"], batch.where)
        items = self._item_ids.codes(column["item"], batch.where)
        times = np.zeros(len(users), np.int64)
        missing = {"user": users < 0, "item": items < 0}
        if "time" in roles:
            times, missing["time"] = clock.read(column["time"], batch.where)
        keep = np.ones(len(users), np.bool_)
        if options.min_rating is not None:
            values, missing["rating"] = ratings(column["rating"], batch.where)
            self._drop(keep, values < options.min_rating, f"rated below {options.min_rating:g}")
        for role, absent in missing.items():
            if absent.any() and not options.drop_missing:
                row = int(np.argmax(absent))
                value = column[role][row].as_py()
                raise EarnError(
                    f"{batch.where(row)}: the {role} is missing ({value!r}). Fill it in, remove the row, or leave "
                    "such rows out: --drop-missing."
                )
            self._drop(keep, absent, f"without {role}")
        if "time" in roles and clock.kind is not None:
            if options.since is not None:
                self._drop(keep, times < _bound("since", options.since, clock.kind), f"before {options.since}")
            if options.until is not None:
                self._drop(keep, times >= _bound("until", options.until, clock.kind), f"from {options.until}")
            if keep.any():
                self._span = [min(self._span[0], int(times[keep].min())), max(self._span[1], int(times[keep].max()))]
        if "title" in roles:
            self._note_titles(items, column["title"])
        read: tuple[NDArray[Any], ...] = users, items, times
        for parts, part in zip(self._columns, read, strict=True):
            parts.append(part[keep])
        return int(keep.sum())

    def _drop(self, keep: NDArray[np.bool_], drop: NDArray[np.bool_], why: str) -> None:
        if dropped := int((keep & drop).sum()):
            self._count(why, dropped)
            keep &= ~drop

    def _note_titles(self, items: NDArray[np.int32], titles: Any) -> None:
        """Takes the title of every item's first row that has one."""
        codes, rows = np.unique(items, return_index=True)
        for code, row in zip(codes.tolist(), rows.tolist(), strict=True):
            if code >= 0 and not self._titles.get(code):
                self._titles[code] = " ".join(str(titles[row].as_py() or "").split())

    def _count(self, what: str, count: int) -> None:
        self._counts[what] = self._counts.get(what, 0) + count

    def finish(self, known: Items | None) -> Imported:
        """Orders, filters and numbers what was read."""
        for what, count in self._counts.items():
            if what != "rows read":
                self._say(f"left out: {count:,} {what}")
        columns = []
        for parts in self._columns:  # one after the other: no more than one column is held twice
            columns.append(np.concatenate(parts))
            parts.clear()
        rows = _Rows(*columns)
        self._require(rows)
        if self._user_ids.from_floats or self._item_ids.from_floats:
            self._say("ids came as floating-point numbers: 2.0 is read as 2")
        rows = rows.take(np.lexsort((rows.times, rows.users)))  # stable: equal ones in the table's order
        if any(file["times"] != NO_TIMES for file in self._files):
            self._settle_ties(rows)
        return self._numbered(self._core(self._without_repeats(rows)), known)

    def _require(self, rows: _Rows) -> None:
        if not rows.users.size:
            raise EarnError(f"{self._name}: no interaction is left after the filters. Loosen them.")

    def _pairs(self, first: NDArray[Any], items: NDArray[np.int32]) -> NDArray[np.int64]:
        """A number for each pair with an item."""
        return first.astype(np.int64) * len(self._item_ids) + items

    def _settle_ties(self, rows: _Rows) -> None:
        """Counts ties in time and exact repeats, and shuffles the ties in place if that was chosen."""
        users, items, times = rows
        same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        if not tied.size:
            return
        group = np.cumsum(np.append(True, ~same), dtype=np.int32)[tied]
        repeats = len(tied) - len(np.unique(self._pairs(group, items[tied])))
        self._counts |= {TIES: len(tied), REPEATS: repeats}
        order = "kept in the table's order; --ties shuffle"
        if self._options.ties == "shuffle":
            keys = _keys(self._user_ids, self._item_ids, users[tied], items[tied], self._options.seed)
            items[tied] = items[tied][np.lexsort((keys, group))]
            order = f"shuffled (seed {self._options.seed})"
        self._say(f"{len(tied):,} of {len(users):,} interactions share their time with others of the user: {order}")
        if repeats:
            hint = "; they are kept: --dedupe consecutive or all" if self._options.dedupe == "none" else ""
            self._say(f"{repeats:,} are exact repeats (user, item and time){hint}")

    def _without_repeats(self, rows: _Rows) -> _Rows:
        if self._options.dedupe == "none":
            return rows
        pairs = self._pairs(rows.users, rows.items)
        if self._options.dedupe == "all":
            keep = np.zeros(len(pairs), np.bool_)
            keep[np.unique(pairs, return_index=True)[1]] = True  # the oldest of each
        else:
            keep = np.append(True, pairs[1:] != pairs[:-1])
        self._counts["repeats dropped"] = dropped = int((~keep).sum())
        self._say(f"left out: {dropped:,} repeats ({self._options.dedupe})")
        return rows.take(keep)

    def _core(self, rows: _Rows) -> _Rows:
        before, k = len(rows.users), self._options.k_core
        while k > 1:
            keep = (np.bincount(rows.users) >= k)[rows.users] & (np.bincount(rows.items) >= k)[rows.items]
            if keep.all():
                break
            rows = rows.take(keep)
            self._require(rows)
        if dropped := before - len(rows.users):
            self._counts[f"outside the {k}-core"] = dropped
            self._say(f"left out: {dropped:,} outside the {k}-core")
        return rows

    def _numbered(self, rows: _Rows, known: Items | None) -> Imported:
        """Users and items that are left get numbers without gaps."""
        users, lengths = np.unique(rows.users, return_counts=True)
        user_texts, item_texts = self._user_ids.texts, self._item_ids.texts
        items = np.unique(rows.items).tolist()
        if known is not None:
            place = known.index
            items.sort(key=lambda code: place.get(item_texts[code], len(place)))
        number = np.zeros(len(item_texts), np.int64)
        number[items] = np.arange(len(items))
        item_ids, titles = [item_texts[code] for code in items], [self._titles.get(code, "") for code in items]
        metadata = [""] * len(items)
        if known is not None:
            titles, metadata = known.words(item_ids, titles, self._say)
        counts = {"users": len(users), "items": len(items), "interactions": len(rows.items)}
        self._say(", ".join(f"{count:,} {what}" for what, count in counts.items()))
        facts = {"files": self._files, "items_file": known.source if known else None, "counts": self._counts | counts}
        interactions = Interactions(
            self._name,
            tuple(item_ids),
            tuple(titles),
            tuple(metadata),
            tuple(user_texts[code] for code in users.tolist()),
            tuple(np.split(number[rows.items], np.cumsum(lengths)[:-1])),
            catalog=None,
            ties=ties_of(facts),
        )
        return Imported(interactions, facts)


def _keys(
    user_ids: Ids, item_ids: Ids, users: NDArray[np.int32], items: NDArray[np.int32], seed: int
) -> NDArray[np.uint64]:
    """A number per interaction that depends on the ids and the seed alone, not on the table's order."""
    user_sums, item_sums = (
        np.array([zlib.crc32(text.encode()) for text in ids.texts], np.uint64) for ids in (user_ids, item_ids)
    )
    keys = (user_sums[users] << np.uint64(32)) ^ item_sums[items] ^ np.uint64(seed * 0x9E3779B97F4A7C15 % (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    mixed: NDArray[np.uint64] = keys ^ (keys >> np.uint64(31))
    return mixed


def _bound(name: str, text: str, kind: str) -> int:
    """A bound in nanoseconds; numbers have the unit of the table's times."""
    import pyarrow as pa

    clock = Clock()
    (time,), missing = clock.read(pa.array([text]), lambda _: f"--{name}")
    if missing.any():
        raise EarnError(f"--{name} is empty. Give a time.")
    if (clock.kind == UNITLESS) != (kind == UNITLESS):
        raise EarnError(
            f"--{name} {text}: the table's times are {kind}, this is {clock.kind}. Give it in the same unit."
        )
    return int(time)
