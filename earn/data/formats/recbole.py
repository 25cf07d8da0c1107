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

from earn.catalog import Catalog, read_index
from earn.console import note
from earn.data.formats.folders import needed_match, only_match
from earn.data.formats.tables import Table, read_table, table_words
from earn.data.interactions import Interactions, Ties, Words, from_histories
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
    inter = path if path.is_file() else needed_match(path, "*.inter")
    item, index = _beside(inter, ".item"), _beside(inter, ".index.json")
    words = read_item_file(item) if item is not None else {}
    table = read_table(inter, typed=True)
    table.need("user_id", "item_id", "timestamp")
    rows = _rows_by_user(table)
    ties = Ties.among(rows.values())
    ties.say(inter.name)
    # sorted() is stable: interactions of one time stay in the file's order
    histories = {user: [item for _, item in sorted(timed, key=lambda row: row[0])] for user, timed in rows.items()}
    item_ids = tuple(dict.fromkeys([*words, *(row["item_id"] for _, row in table.rows)]))
    if item is not None and len(item_ids) > len(words):
        note(
            f"      {item.name}: {len(item_ids) - len(words):,} items such as {item_ids[len(words)]!r} are not in it, "
            "so they have no titles"
        )
    catalog = _catalog_for(index, item_ids, words) if index is not None else None
    return from_histories(inter.stem, item_ids, histories, words, catalog, ties=ties)


def _rows_by_user(table: Table) -> dict[str, list[tuple[float, str]]]:
    """Each user's times and item ids, in the file's order."""
    rows: dict[str, list[tuple[float, str]]] = {}
    for line, row in table.rows:
        user_id, item_id = table.filled(line, row, "user_id"), table.filled(line, row, "item_id")
        rows.setdefault(user_id, []).append((_timestamp(table.path, line, row["timestamp"]), item_id))
    return rows


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
    return only_match(inter.parent, f"*{suffix}")
