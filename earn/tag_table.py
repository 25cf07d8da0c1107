"""Tags (earn.tags) from a table of items, as csv or tsv with a header.

A column of yes and no (1 and 0, true and false) is one tag of the column's name. Of any other column each value is a
tag `column:value`; several values in a cell have "|" between them. A column with bands is of numbers: the bands 5 and
20 of the column price are `price:<5`, `price:5-20` and `price:>=20`. An empty cell gives no tag.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from earn.catalog import Catalog
from earn.errors import EarnError
from earn.files import open_text
from earn.tags import Tags

YES, NO = {"1", "true", "yes", "y"}, {"0", "false", "no", "n", ""}


def read_tags(
    path: Path,
    catalog: Catalog,
    columns: Sequence[str] = (),
    bands: Mapping[str, Sequence[float]] | None = None,
    item_column: str | None = None,
) -> Tags:
    """The tags of a catalog's items from a table; its rows of other items say nothing.

    Args:
        path: the table.
        catalog: the catalog.
        columns: that become tags by their values.
        bands: of columns of numbers the ascending edges; these become tags too.
        item_column: the column of the items' ids; the first one if None.

    Raises:
        EarnError: no such table or column, no row of any item, or what `tags_of_table` raises.
    """
    bands = bands or {}
    names, table = _read(path)
    item_column = item_column or (names[0] if names else "")
    _check_columns(path, names, (item_column, *columns, *bands))
    item_ids = [row[item_column] for row in table]
    indices = catalog.index.find(item_ids).tolist()
    rows: dict[int, Mapping[str, str]] = {index: row for index, row in zip(indices, table, strict=True) if index >= 0}
    if not rows:
        raise EarnError(f"{path}: no row of the catalog's items by the column {item_column!r}. Name theirs: --item.")
    refuse_twice(path, [item_id for item_id, index in zip(item_ids, indices, strict=True) if index >= 0])
    try:
        return tags_of_table(rows, columns, bands, len(catalog))
    except EarnError as error:
        raise EarnError(f"{path}: {error}") from error


def read_columns(path: Path, needed: Sequence[str], others: Sequence[str] = ()) -> dict[str, list[str]]:
    """The cells of a table's columns, row by row; of `others` those that it has.

    Raises:
        EarnError: no such table, or a column that is needed is not there.
    """
    names, table = _read(path)
    _check_columns(path, names, needed)
    return {name: [row[name].strip() for row in table] for name in (*needed, *others) if name in names}


def refuse_twice(path: Path, item_ids: Sequence[str]) -> None:
    """Raises EarnError for a table in which an item has two rows: one of them would be lost without a word."""
    counts = Counter(item_ids)
    if len(counts) < len(item_ids):
        item_id, rows = counts.most_common(1)[0]
        raise EarnError(f"{path}: the item {item_id!r} has {rows} rows. Give each item one.")


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """A table's columns and rows.

    Raises:
        EarnError: no such table, two columns of one name, or a row with more cells than there are columns.
    """
    with open_text(path) as file:
        header = file.readline()
        delimiter = "\t" if header.count("\t") > header.count(",") else ","
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
            rows = list(csv.DictReader(file, names, delimiter=delimiter, restval=""))
        except csv.Error as error:
            raise EarnError(f"{path}: is no csv or tsv file ({error}). Check its quotes.") from error
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise EarnError(f"{path}: has the column {twice[0]!r} twice. Keep one of them.")
    for row in rows:
        if (more := row.pop(None, None)) is not None:
            cells = delimiter.join((*row.values(), *more))
            raise EarnError(f"{path}: a row has more cells than the header, {cells[:80]!r}. Put cells in quotes.")
    return names, rows


def _check_columns(path: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in names]:
        raise EarnError(f"{path}: has no column {missing[0]!r}. Its columns are {', '.join(names)}.")


def tags_of_table(
    rows: Mapping[int, Mapping[str, str]], columns: Sequence[str], bands: Mapping[str, Sequence[float]], items: int
) -> Tags:
    """The tags that a table's cells say; the head of this file has the rules.

    Args:
        rows: of each item index the cells by column.
        columns: that become tags by their values.
        bands: of columns of numbers the ascending edges; these become tags too.
        items: of the catalog.

    Raises:
        EarnError: a cell of a column with bands is no number; too many tags.
    """
    having: dict[str, list[int]] = {}
    for column in columns:
        cells = {item: row[column].strip() for item, row in rows.items()}
        values = {cell.lower() for cell in cells.values()}
        is_flag = values <= YES | NO and values != {""}
        for item, cell in cells.items():
            marked = [column] if cell.lower() in YES else []
            parts = [f"{column}:{part.strip()}" for part in cell.split("|") if part.strip()]
            for name in dict.fromkeys(marked if is_flag else parts):
                having.setdefault(name, []).append(item)
    for column, edges in bands.items():
        names = band_names(column, edges)
        for item, row in rows.items():
            if cell := row[column].strip():
                having.setdefault(names[_band(cell, edges, column)], []).append(item)
    return Tags.of({name: having[name] for name in sorted(having)}, items)


def band_names(column: str, edges: Sequence[float]) -> list[str]:
    """The tags of a column's bands, ascending.

    Raises:
        EarnError: there are no edges, or they do not ascend.
    """
    if not edges or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise EarnError(f"The bands of {column} are {list(edges)}. Give ascending numbers, such as 5,20.")
    texts = [f"{edge:g}" for edge in edges]
    between = [f"{column}:{low}-{high}" for low, high in pairwise(texts)]
    return [f"{column}:<{texts[0]}", *between, f"{column}:>={texts[-1]}"]


def _band(cell: str, edges: Sequence[float], column: str) -> int:
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    if np.isnan(value):
        raise EarnError(f"{column} is {cell!r} in the table, where a number belongs. Mend it, or leave it empty.")
    return int(np.searchsorted(edges, value, side="right"))
