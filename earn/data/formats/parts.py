"""Data that comes in three parts, train, valid and test, which are kept as the split; a folder.

    RecBole benchmark files   x.train.inter, x.valid.inter, x.test.inter
    Amazon Reviews 2023       x.train.csv, x.valid.csv, x.test.csv
    MiniOneRec                train/*.csv, valid/*.csv, test/*.csv, index/*.index.json, index/*.item.json

Beside them, optional: *.item (RecBole), *.item.json, *.index.json with identifiers; in the folder or in its index/.

A row has a user, an item and, where there is one, a time; a user's rows are sorted by it. A row may have a history as
well, `a b c` or `[1, 2, 3]`: what the user chose before, oldest first, perhaps the newest part of that alone. Then the
row is an example of the item that comes next, and each history must be what the user's rows before it say; the history
of a user's first row is where the sequence begins.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from earn.catalog import read_index
from earn.data.formats.folders import needed_match, only_match
from earn.data.formats.lcrec import read_item_json
from earn.data.formats.recbole import read_item_file
from earn.data.interactions import Interactions, Ties, Words, from_histories
from earn.data.tables.columns import USUAL_NAMES, choose
from earn.data.tables.sources import open_source
from earn.data.tables.values import Clock, Ids
from earn.errors import EarnError

PARTS = ("train", "valid", "test")
LAYOUTS = ("*.{}.inter", "*.{}.csv", "{}/*.csv")
NAMES = {**USUAL_NAMES, "history": ("item_id_list", "history_item_id", "history")}
WORDS: Mapping[str, Callable[[Path], dict[str, Words]]] = {"*.item": read_item_file, "*.item.json": read_item_json}


@dataclass(frozen=True)
class Row:
    """An interaction, or an example of the item that comes next."""

    where: str
    item: str
    time: int | None  # None where the table has no times
    history: tuple[str, ...]  # empty where there is none


def is_in_parts(path: Path) -> bool:
    """Whether the path is a folder in one of these layouts."""
    return path.is_dir() and _layout(path) is not None


def read_parts(folder: Path) -> Interactions:
    """Reads a folder of three parts (module docstring).

    Raises:
        EarnError: a part is missing, is no such table, or its histories are not those of the rows before.
    """
    layout = _layout(folder) or LAYOUTS[0]
    sequences: dict[str, list[str]] = {}
    held_out: dict[str, list[int]] = {}
    timed: dict[str, list[tuple[float, str]]] = {}  # of each user: time and item
    for part, name in enumerate(PARTS):
        for user, rows in _rows_by_user(needed_match(folder, layout.format(name))).items():
            counts = held_out.setdefault(user, [0, 0, 0])
            for row in sorted(rows, key=lambda row: row.time or 0):  # stable: the file's order at equal times
                _append(sequences, user, row)
                counts[part] += 1
                if row.time is not None:
                    timed.setdefault(user, []).append((row.time, row.item))
    ties = Ties.among(timed.values()) if timed else None
    if ties is not None:
        ties.say(str(folder), keeps_split=True)
    return _with_items(folder, sequences, tuple((valid, test) for _, valid, test in held_out.values()), ties)


def _layout(folder: Path) -> str | None:
    return next((layout for layout in LAYOUTS if any(folder.glob(layout.format(PARTS[0])))), None)


def _append(sequences: dict[str, list[str]], user: str, row: Row) -> None:
    """Appends a row to the user's sequence, which its history must end."""
    history = list(row.history)
    sequence = sequences.setdefault(user, history.copy())
    if history and sequence[-len(history) :] != history:
        raise EarnError(
            f"{row.where}: the history of user {user!r} ends with {history[-3:]}, but the rows before say "
            f"{sequence[-3:]}. Give each user's rows in order, every interaction once."
        )
    sequence.append(row.item)


def _rows_by_user(path: Path) -> dict[str, list[Row]]:
    source = open_source(path, {})
    roles = choose(source, {}, ["user", "item"], ["time", "history"], NAMES)
    users, items, clock = Ids("user"), Ids("item"), Clock()
    by_user: dict[str, list[Row]] = {}
    for batch in source.batches([*roles.values()]):
        column = {role: batch.columns[name] for role, name in roles.items()}
        codes = users.codes(column["user"], batch.where), items.codes(column["item"], batch.where)
        missing = (codes[0] < 0) | (codes[1] < 0)
        if missing.any():
            raise EarnError(f"{batch.where(int(np.argmax(missing)))}: the user or the item is missing. Fill it in.")
        times = clock.read(column["time"], batch.where)[0].tolist() if "time" in column else [None] * len(missing)
        texts = column["history"].to_pylist() if "history" in column else [None] * len(missing)
        user_ids, item_ids = users.texts, items.texts
        for index, (user, item, time) in enumerate(zip(codes[0].tolist(), codes[1].tolist(), times, strict=True)):
            where = batch.where(index)
            history = tuple(_history(texts[index] or "", where))
            by_user.setdefault(user_ids[user], []).append(Row(where, item_ids[item], time, history))
    return by_user


def _history(text: str, where: str) -> Iterator[str]:
    if not text.lstrip().startswith("["):
        yield from text.split()
        return
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise EarnError(f"{where}: the history {text[:60]!r} is no list. Write [1, 2] or: a b c") from error
    yield from map(str, values)


def _with_items(
    folder: Path, sequences: Mapping[str, Sequence[str]], held_out: tuple[tuple[int, int], ...], ties: Ties | None
) -> Interactions:
    words: dict[str, Words] = {}
    for pattern, read in WORDS.items():
        path = only_match(folder, pattern, "index")
        words |= read(path) if path is not None else {}
    index = only_match(folder, "*.index.json", "index")
    catalog = None if index is None else read_index(index, {item: word.title for item, word in words.items()})
    seen = dict.fromkeys(item for sequence in sequences.values() for item in sequence)
    item_ids = [*dict.fromkeys([*words, *seen])] if catalog is None else catalog.item_ids
    known = set(item_ids)
    lacking = next((item for item in seen if item not in known), None)
    if lacking is not None:
        raise EarnError(f"{index}: item {lacking!r} of the data has no identifier. Add it, or take the file away.")
    return from_histories(folder.resolve().name, item_ids, sequences, words, catalog, held_out, ties)
