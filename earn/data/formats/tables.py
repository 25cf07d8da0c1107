"""Tab separated files whose first line names the columns, and the words about items in them.

    items.tsv      columns item_id, title; any other column except asin is metadata

RecBole's atomic files name each column as name:type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from earn.catalog import one_line
from earn.data.interactions import Words
from earn.data.tables.columns import RECBOLE_TYPES
from earn.data.tables.text import unquoted
from earn.data.tables.values import MISSING
from earn.errors import EarnError
from earn.files import read_lines

NO_METADATA = ("item_id", "title", "asin")  # columns of items.tsv


@dataclass(frozen=True)
class Table:
    """A tab separated file."""

    path: Path
    columns: dict[str, str]  # name -> type, "" where the header gives none; in the file's order
    rows: tuple[tuple[int, dict[str, str]], ...]  # line (1-based), name -> cell

    def need(self, *names: str) -> None:
        """Refuses a table that lacks one of these columns."""
        for name in names:
            if name not in self.columns:
                raise EarnError(
                    f"{self.path}, line 1: there is no column {name!r}, only {', '.join(self.columns)}. "
                    f"Name it in the first line, columns separated by tabs."
                )

    def filled(self, line: int, row: dict[str, str], column: str) -> str:
        """A row's cell that may not be empty."""
        if row[column] in MISSING:
            value = f"missing ({row[column]})" if row[column] else "empty"
            raise EarnError(f"{self.path}, line {line}: the {column} is {value}. Fill it in or remove the line.")
        return row[column]


def read_table(path: Path, typed: bool) -> Table:
    """Reads a table; where it is typed, every column must have one of RECBOLE_TYPES.

    Raises:
        EarnError: no header or rows, a column without its type or named twice, or a row with too few or many cells.
    """
    lines = enumerate(read_lines(path), start=1)
    (_, header), *rows = [
        (line, [unquoted(cell.strip()) for cell in text.split("\t")]) for line, text in lines if text or line == 1
    ]
    if not any(header):
        raise EarnError(
            f"{path}, line 1: the file is empty or lacks its header. Name the columns there, separated by tabs."
        )
    columns: dict[str, str] = {}
    for field in header:
        name, _, type_ = field.partition(":")
        if typed and type_ not in RECBOLE_TYPES:
            raise EarnError(
                f"{path}, line 1: the column {field!r} has no type. "
                f"Write name:type, separated by tabs, with one of the types {', '.join(RECBOLE_TYPES)}."
            )
        if name in columns:
            raise EarnError(f"{path}, line 1: the column {name!r} stands twice. Keep one of them.")
        columns[name] = type_
    for line, cells in rows:
        if len(cells) != len(columns):
            raise EarnError(
                f"{path}, line {line}: {len(cells)} fields, but the header names {len(columns)} columns. "
                "Separate the fields by tabs, and leave none out."
            )
    if not rows:
        raise EarnError(f"{path}: only a header, no rows. Add at least one.")
    return Table(path, columns, tuple((line, dict(zip(columns, cells, strict=True))) for line, cells in rows))


def table_words(table: Table, title: str | None, metadata: Sequence[str]) -> dict[str, Words]:
    """Each item's words, by item id.

    Args:
        table: has a column item_id.
        title: the column with the title, if any.
        metadata: the columns that are metadata.

    Raises:
        EarnError: an item id is empty or stands twice.
    """
    words: dict[str, Words] = {}
    for line, row in table.rows:
        item_id = table.filled(line, row, "item_id")
        if item_id in words:
            raise EarnError(f"{table.path}, line {line}: item {item_id!r} stands twice. Keep one of its lines.")
        text = " ".join(row[name] for name in metadata)
        words[item_id] = Words(one_line(row[title]) if title else "", one_line(text))
    return words


def read_items_tsv(path: Path) -> dict[str, Words]:
    """Each item's words in an items.tsv (module docstring), by item id.

    Raises:
        EarnError: not such a table.
    """
    table = read_table(path, typed=False)
    table.need("item_id", "title")
    return table_words(table, "title", [name for name in table.columns if name not in NO_METADATA])
