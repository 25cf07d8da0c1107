"""RecBole atomic files, tab separated; the first line names the columns as name:type (`earn.data.formats.tables`).

    *.inter        user_id:token, item_id:token, timestamp:float; other columns are not read
    *.item         item_id:token; the title is the first column with "title" in its name, else one of
                   TITLE_COLUMNS; every other column of type token or token_seq is metadata     (optional)
    *.index.json   {"item": ["<a_1>", "<b_2>", ...]}, identifiers as in LC-Rec                  (optional)

A user's interactions are sorted by timestamp; those of one time keep the file's order. The items are those of
*.item, in its order, then those that it lacks, by first appearance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from earn.catalog import Catalog, read_index
from earn.console import note
from earn.data.formats.folders import only_one
from earn.data.formats.tables import Table, read_table, table_words
from earn.data.interactions import Interactions, Ties, Words, with_words
from earn.data.tables.columns import NUMBER
from earn.errors import EarnError

TITLE_COLUMNS = ("name", "item_name")  # beside every column whose name holds "title"


def is_recbole(path: Path) -> bool:
    """Whether the path is a RecBole interaction file or a folder that holds one, not split into parts."""
    if path.is_dir():
        return any(path.glob("*.inter")) and not any(path.glob("*.train.inter"))
    return path.is_file() and path.suffix == ".inter"


def read_recbole(path: Path) -> Interactions:
    """Reads RecBole atomic files (module docstring); `path` is an *.inter file or a folder that holds one.

    Raises:
        EarnError: there is no such file or several, or one is not of its form; names the file and the line.
    """
    inter = path if path.is_file() else only_one(path, sorted(path.glob("*.inter")))
    if inter is None:
        raise EarnError(f"{path}: holds no *.inter file. Put the interactions there.")
    item, index = _beside(inter, ".item"), _beside(inter, ".index.json")
    words = read_item_file(item) if item is not None else {}
    table = read_table(inter, typed=True)
    table.need("user_id", "item_id", "timestamp")
    histories = _histories(table)
    ties = Ties.among(histories.values())
    ties.say(inter.name)
    item_ids = tuple(dict.fromkeys([*words, *(row["item_id"] for _, row in table.rows)]))
    if item is not None and len(item_ids) > len(words):
        note(
            f"      {item.name}: {len(item_ids) - len(words):,} items such as {item_ids[len(words)]!r} are not in it, "
            "so they have no titles"
        )
    index_of = {item_id: index for index, item_id in enumerate(item_ids)}
    sequences = tuple(
        # sorted() is stable: interactions of one time stay in the file's order
        np.array([index_of[item_id] for _, item_id in sorted(history, key=lambda entry: entry[0])], np.int64)
        for history in histories.values()
    )
    catalog = _catalog_for(index, item_ids, words) if index is not None else None
    return with_words(inter.stem, item_ids, words, tuple(histories), sequences, catalog, ties=ties)


def _histories(table: Table) -> dict[str, list[tuple[float, str]]]:
    """Each user's times and item ids, in the file's order."""
    histories: dict[str, list[tuple[float, str]]] = {}
    for line, row in table.rows:
        user_id, item_id = table.filled(line, row, "user_id"), table.filled(line, row, "item_id")
        histories.setdefault(user_id, []).append((_timestamp(table.path, line, row["timestamp"]), item_id))
    return histories


def read_item_file(path: Path) -> dict[str, Words]:
    """Each item's words in an *.item file (module docstring), by item id.

    Raises:
        EarnError: not such a table.
    """
    table = read_table(path, typed=True)
    table.need("item_id")
    titles = [name for name in table.columns if "title" in name.lower()]
    titles += [name for name in TITLE_COLUMNS if name in table.columns]
    title = titles[0] if titles else None
    kept = [name for name, type_ in table.columns.items() if type_ in ("token", "token_seq")]
    return table_words(table, title, [name for name in kept if name not in ("item_id", title)])


def _catalog_for(index: Path, item_ids: Sequence[str], words: dict[str, Words]) -> Catalog:
    read = read_index(index)
    found = read.index.find(item_ids)
    if (found < 0).any():
        raise EarnError(
            f"{index}: item {item_ids[int(found.argmin())]!r} of the data has no identifier. "
            "Add it, or take the file away to have identifiers built."
        )
    identifiers = tuple(read.identifiers[item] for item in found.tolist())
    return Catalog(tuple(item_ids), identifiers, tuple(words.get(item_id, Words()).title for item_id in item_ids))


def _timestamp(path: Path, line: int, text: str) -> float:
    try:
        # whole numbers stay whole: a double would merge neighbouring nanoseconds
        time = int(text) if text.lstrip("-").isdigit() else float(text)
        if NUMBER.fullmatch(text) and math.isfinite(time):  # not 1_000, nor digits of other scripts
            return time
    except (ValueError, OverflowError):
        pass
    raise EarnError(
        f"{path}, line {line}: the timestamp {text!r} is not a number. Write it in seconds, such as 881250949."
    )


def _beside(inter: Path, suffix: str) -> Path | None:
    """What belongs to an *.inter file: the file of its name, else the only one beside the only data set."""
    same = inter.with_suffix(suffix)
    if same.is_file():
        return same
    if len(list(inter.parent.glob("*.inter"))) > 1:
        return None
    return only_one(inter.parent, sorted(inter.parent.glob(f"*{suffix}")))
