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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.data.import_options import ImportOptions
from earn.data.interactions import Interactions, Ties
from earn.data.tables.batches import Batch, Source
from earn.data.tables.columns import USUAL_NAMES, choose, given_columns
from earn.data.tables.items import Items
from earn.data.tables.values import KINDS, Clock, Ids, ratings
from earn.errors import EarnError

Say = Callable[[str], None]
TIES, REPEATS = "ties in time within a user", "exact repeats"  # names of counts


@dataclass(frozen=True)
class Imported:
    """Histories by user, and what was done to get them."""

    name: str
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    titles: Sequence[str]  # one per item, "" where unknown
    metadata: Sequence[str]  # likewise
    offsets: NDArray[np.int64]  # [users + 1]: user u has items[offsets[u]:offsets[u + 1]]
    items: NDArray[np.int32]  # [interactions], item indices, oldest first within a user
    facts: Mapping[str, Any] = field(default_factory=dict)  # what was read and counted, for import.json

    def interactions(self) -> Interactions:
        """The histories as every reader gives them."""
        sequences = np.split(self.items.astype(np.int64), self.offsets[1:-1])
        return Interactions(
            self.name,
            tuple(self.item_ids),
            tuple(self.titles),
            tuple(self.metadata),
            tuple(self.user_ids),
            tuple(sequences),
            None,
            ties=ties_of(self.facts),
        )


def ties_of(facts: Mapping[str, Any]) -> Ties | None:
    """The ties that the facts of an import count; None where its tables have no times."""
    counts = facts.get("counts", {})
    if all(file["times"] == "none" for file in facts.get("files", [])):
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


class _Log:
    """Interactions as columns: codes of users and items [rows], times [rows] or None."""

    def __init__(self, name: str, options: ImportOptions, say: Say) -> None:
        self._name, self._options, self._say = name, options, say
        self._user_ids, self._item_ids = Ids("user"), Ids("item")
        self._titles: dict[int, str] = {}  # by item code
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64] | None]] = []
        self._kinds: set[str] = set()
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
        usual = {role: (name,) for role, name in source.roles.items()} or USUAL_NAMES
        roles = choose(source.name, source.names, given, needed, ["title"], usual)
        names = list(roles.values())
        clock, rows, kept = Clock(options.unit), 0, 0
        for batch in source.batches(names):
            kept += self._append(batch, roles, clock)
            rows += len(batch.numbers)
        if not rows:
            raise EarnError(f"{source.name}: only a header, no rows. Add at least one.")
        if clock.kind is not None:
            self._kinds.add(clock.kind)
        self._check_kinds(source.name)
        self._count("rows read", rows)
        columns = ", ".join(f"{role} {name}" for role, name in roles.items())
        self._say(f"{source.name}: {source.says}; {rows:,} rows; columns: {columns}{self._times(clock)}")
        self._files.append({"file": source.name, "rows": rows, "columns": roles, "times": clock.kind or "none"})
        if kept < rows:
            self._say(f"{source.name}: {rows - kept:,} rows left out")

    def _times(self, clock: Clock) -> str:
        if clock.kind is None:
            return "; no times, rows are taken to be in order"
        if clock.kind == KINDS[0] or self._span[1] < 0:
            return f"; times: {clock.kind}"
        first, last = (str(np.datetime64(time, "ns").astype("datetime64[D]")) for time in self._span)
        return f"; times: {clock.kind}, {first} to {last}"

    def _check_kinds(self, name: str) -> None:
        if KINDS[0] in self._kinds and len(self._kinds) > 1:
            raise EarnError(
                f"{name}: its times are {KINDS[0]}, those of other files are not, or the other way round. "
                "Write all times in one unit."
            )

    def _append(self, batch: Batch, roles: Mapping[str, str], clock: Clock) -> int:
        """Appends the rows that the options keep; how many."""
        options = self._options
        column = {role: batch.columns[name] for role, name in roles.items()}
        users = self._user_ids.codes(column["user"], batch.where)
        items = self._item_ids.codes(column["item"], batch.where)
        missing = {"user": users < 0, "item": items < 0}
        times = None
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
        if times is not None:
            self._drop_outside(keep, times, clock)
            if keep.any():
                self._span = [min(self._span[0], int(times[keep].min())), max(self._span[1], int(times[keep].max()))]
        if "title" in roles:
            self._note_titles(items, column["title"])
        if not keep.all():
            users, items, times = users[keep], items[keep], None if times is None else times[keep]
        self._parts.append((users, items, times))
        return len(users)

    def _drop(self, keep: NDArray[np.bool_], drop: NDArray[np.bool_], why: str) -> None:
        if dropped := int((keep & drop).sum()):
            self._count(why, dropped)
            keep &= ~drop

    def _drop_outside(self, keep: NDArray[np.bool_], times: NDArray[np.int64], clock: Clock) -> None:
        for text, name, is_outside in (
            (self._options.since, "since", np.less),
            (self._options.until, "until", np.greater_equal),
        ):
            if text is not None and clock.kind is not None:
                bound = _bound(name, text, clock.kind)
                self._drop(keep, is_outside(times, bound), f"{'before' if name == 'since' else 'from'} {text}")

    def _note_titles(self, items: NDArray[np.int32], titles: Any) -> None:
        """Takes the title of every item's first row that has one."""
        codes, rows = np.unique(items, return_index=True)
        new = [(code, row) for code, row in zip(codes.tolist(), rows.tolist(), strict=True) if code >= 0]
        for code, row in new:
            if not self._titles.get(code):
                self._titles[code] = str(titles[row].as_py() or "")

    def _count(self, what: str, count: int) -> None:
        self._counts[what] = self._counts.get(what, 0) + count

    def finish(self, known: Items | None) -> Imported:
        """Orders, filters and numbers what was read."""
        for what, count in self._counts.items():
            if what != "rows read":
                self._say(f"left out: {count:,} {what}")
        users, items, times = self._joined()
        self._require(users)
        if self._user_ids.from_floats or self._item_ids.from_floats:
            self._say("ids came as floating-point numbers: 2.0 is read as 2")
        users, items, times = _in_order(users, items, times)
        if times is not None:
            users, items = self._without_ties(users, items, times)
        users, items = self._without_repeats(users, items)
        users, items = self._core(users, items)
        return self._numbered(users, items, known)

    def _joined(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64] | None]:
        """All parts as one, column by column so that no more than one column is held twice."""
        parts, self._parts = self._parts, []
        users_parts, items_parts, times_parts = (list(column) for column in zip(*parts, strict=True))
        del parts
        users = np.concatenate(users_parts)
        users_parts.clear()
        items = np.concatenate(items_parts)
        items_parts.clear()
        if any(part is None for part in times_parts):
            if not all(part is None for part in times_parts):
                raise EarnError(f"{self._name}: some files have times and others have none. Give files of one kind.")
            return users, items, None
        return users, items, np.concatenate(times_parts)

    def _require(self, users: NDArray[np.int32]) -> None:
        if not users.size:
            raise EarnError(f"{self._name}: no interaction is left after the filters. Loosen them.")

    def _without_ties(
        self, users: NDArray[np.int32], items: NDArray[np.int32], times: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Counts ties in time and exact repeats, and shuffles the ties if that was chosen."""
        same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
        tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
        if not tied.any():
            return users, items
        rows = np.flatnonzero(tied)
        group = np.cumsum(np.concatenate([[True], ~same]), dtype=np.int32)[rows]
        by_item = np.lexsort((items[rows], group))
        sorted_items, sorted_groups = items[rows][by_item], group[by_item]
        repeats = int(((sorted_items[1:] == sorted_items[:-1]) & (sorted_groups[1:] == sorted_groups[:-1])).sum())
        self._counts |= {TIES: len(rows), REPEATS: repeats}
        is_shuffled = self._options.ties == "shuffle"
        if is_shuffled:
            keys = _keys(self._user_ids.texts, self._item_ids.texts, users[rows], items[rows], self._options.seed)
            items[rows] = items[rows][np.lexsort((keys, group))]
        order = f"shuffled (seed {self._options.seed})" if is_shuffled else "kept in the table's order; --ties shuffle"
        self._say(f"{len(rows):,} of {len(users):,} interactions share their time with others of the user: {order}")
        if repeats:
            self._say(f"{repeats:,} are exact repeats (user, item and time)" + self._dedupe_hint())
        return users, items

    def _dedupe_hint(self) -> str:
        return "; they are kept: --dedupe consecutive or all" if self._options.dedupe == "none" else ""

    def _without_repeats(
        self, users: NDArray[np.int32], items: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if self._options.dedupe == "none":
            return users, items
        if self._options.dedupe == "all":
            order = np.lexsort((items, users))  # stable: of equal pairs the oldest comes first
            drop = np.zeros(len(users), np.bool_)
            drop[order[1:]] = (items[order][1:] == items[order][:-1]) & (users[order][1:] == users[order][:-1])
        else:
            drop = np.concatenate([[False], (items[1:] == items[:-1]) & (users[1:] == users[:-1])])
        self._counts["repeats dropped"] = int(drop.sum())
        self._say(f"left out: {drop.sum():,} repeats ({self._options.dedupe})")
        return users[~drop], items[~drop]

    def _core(self, users: NDArray[np.int32], items: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        before, k = len(users), self._options.k_core
        while k > 1:
            keep = (np.bincount(users) >= k)[users] & (np.bincount(items) >= k)[items]
            if keep.all():
                break
            users, items = users[keep], items[keep]
            self._require(users)
        if len(users) < before:
            self._counts[f"outside the {k}-core"] = before - len(users)
            self._say(f"left out: {before - len(users):,} outside the {k}-core")
        return users, items

    def _numbered(self, users: NDArray[np.int32], items: NDArray[np.int32], known: Items | None) -> Imported:
        """Users and items that are left get numbers without gaps."""
        user_codes, user_lengths = np.unique(users, return_counts=True)
        seen = np.flatnonzero(np.bincount(items, minlength=len(self._item_ids)))
        user_texts, item_texts = self._user_ids.texts, self._item_ids.texts
        if known is not None:
            place = known.index
            seen = np.array(sorted(seen.tolist(), key=lambda code: place.get(item_texts[code], len(place))), np.int64)
        number = np.zeros(len(item_texts), np.int32)
        number[seen] = np.arange(len(seen), dtype=np.int32)
        item_ids = [item_texts[code] for code in seen.tolist()]
        own = [" ".join(self._titles.get(code, "").split()) for code in seen.tolist()]
        titles, metadata = (own, [""] * len(own)) if known is None else known.words(item_ids, own, self._say)
        counts = {"users": len(user_codes), "items": len(item_ids), "interactions": len(items)}
        self._say(", ".join(f"{count:,} {what}" for what, count in counts.items()))
        facts = {"files": self._files, "items_file": known.source if known else None, "counts": self._counts | counts}
        return Imported(
            self._name,
            [user_texts[code] for code in user_codes.tolist()],
            item_ids,
            titles,
            metadata,
            np.concatenate([[0], np.cumsum(user_lengths)]).astype(np.int64),
            number[items],
            facts,
        )


def _in_order(
    users: NDArray[np.int32], items: NDArray[np.int32], times: NDArray[np.int64] | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64] | None]:
    """By user, then time; equal ones in the table's order."""
    rising = users[1:] > users[:-1]
    if times is not None:
        rising |= (users[1:] == users[:-1]) & (times[1:] >= times[:-1])
    else:
        rising |= users[1:] == users[:-1]
    if rising.all():
        return users, items, times
    order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
    items = items[order]
    times = None if times is None else times[order]
    return users[order], items, times


def _keys(
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    seed: int,
) -> NDArray[np.uint64]:
    """A number per interaction that depends on the ids and the seed alone, not on the table's order."""
    user_sums = np.array([zlib.crc32(text.encode()) for text in user_ids], np.uint64)
    item_sums = np.array([zlib.crc32(text.encode()) for text in item_ids], np.uint64)
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
    if (clock.kind == KINDS[0]) != (kind == KINDS[0]):
        raise EarnError(
            f"--{name} {text}: the table's times are {kind}, this is {clock.kind}. Give it in the same unit."
        )
    return int(time)
