"""Tags of a catalog's items, such as a category, a price band, a language: `tags.npz` of a bundle.

    names  uint8           the tags' names, UTF-8, one a line
    bits   uint8 [t,bytes] of each tag one bit per item, in the catalog's order, the first item's the highest
    items  int32 [1]       items of the catalog

They are made of a table of items, csv or tsv with a header. A column of yes and no (1 and 0, true and false) is one tag
of the column's name. Of any other column each value is a tag `column:value`; several values in a cell have "|" between
them. A column with bands is of numbers: the bands 5 and 20 of the column price are `price:<5`, `price:5-20` and
`price:>=20`. An empty cell gives no tag.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.arrays import ArrayForm, read_arrays
from earn.catalog import Catalog
from earn.errors import EarnError
from earn.files import open_text, written_whole

TAGS_FILE = "tags.npz"
MOST_TAGS = 10_000
MOST_UNPACKED = 64 << 20  # bytes of bits that a small file may claim
MOST_COMPRESSION = 64  # times a file's size that it may unpack to
YES, NO = {"1", "true", "yes", "y"}, {"0", "false", "no", "n", ""}
_FORMS = {"names": ArrayForm("|u1", 1), "bits": ArrayForm("|u1", 2), "items": ArrayForm("<i4", 1)}


@dataclass(frozen=True)
class Tags:
    """Which of a catalog's items have which tag.

    Raises:
        EarnError: a name is empty or stands twice, there are too many, or the bits are not those of as many items.
    """

    names: tuple[str, ...]
    bits: NDArray[np.uint8]  # [t,bytes]
    items: int

    def __post_init__(self) -> None:
        odd = [name for name in self.names if not name or "\n" in name]
        if odd or len(set(self.names)) != len(self.names) or len(self.names) > MOST_TAGS:
            raise EarnError(
                f"There are {len(self.names)} tags, {len(set(self.names))} of them different, {len(odd)} empty or of "
                f"several lines. Give at most {MOST_TAGS} different names of one line."
            )
        if self.bits.shape != (len(self.names), -(-self.items // 8)):
            raise EarnError(
                f"The tags' bits have the shape {list(self.bits.shape)}; {len(self.names)} tags of {self.items} items "
                "take one row of bits each. Write the tags again: earn tags."
            )

    @classmethod
    def of(cls, having: Mapping[str, Sequence[int] | NDArray[np.int64]], items: int) -> Tags:
        """Tags of a catalog with so many items; `having` gives the item indices of each tag."""
        bits = np.zeros((len(having), -(-items // 8)), np.uint8)
        for row, indices in enumerate(having.values()):
            held = np.zeros(items, bool)
            held[np.asarray(indices, np.int64)] = True
            bits[row] = np.packbits(held)
        return cls(tuple(having), bits, items)

    def resized(self, items: int) -> Tags:
        """Tags of a catalog that has so many items now: those added last have no tags, those cut off had theirs."""
        width, kept = -(-items // 8), min(items, self.items)
        bits = np.zeros((len(self.names), width), np.uint8)
        bits[:, : self.bits.shape[1]] = self.bits[:, :width]
        if kept % 8:
            bits[:, kept // 8] &= 0xFF << (8 - kept % 8) & 0xFF
        return Tags(self.names, bits, items)

    @cached_property
    def _row(self) -> Mapping[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def having(self, name: str) -> NDArray[np.bool_]:
        """The items [items] with a tag.

        Raises:
            EarnError: no item ever has it; names the nearest tags.
        """
        row = self._row.get(name) if isinstance(name, str) else None
        if row is None:
            near = difflib.get_close_matches(str(name), self.names, 3, 0.5) or list(self.names[:3])
            known = f"Its tags are such as {', '.join(map(repr, near))}." if near else "It has none: see earn tags."
            raise EarnError(f"The catalog has no tag {name!r}. {known}")
        return np.unpackbits(self.bits[row], count=self.items).astype(bool)

    def save(self, path: Path) -> None:
        """Writes `tags.npz` (format above), whole or not at all."""
        names = np.frombuffer("\n".join(self.names).encode(), np.uint8)
        with written_whole(path) as beside, beside.open("wb") as file:
            np.savez_compressed(file, names=names, bits=self.bits, items=np.array([self.items], "<i4"))

    @classmethod
    def load(cls, path: Path, items: int) -> Tags:
        """Reads `tags.npz` of a catalog with so many items.

        Raises:
            EarnError: not such a file, or another catalog's.
        """
        remedy = "Write the tags again: earn tags."
        try:
            with path.open("rb") as file:
                arrays = read_arrays(file, _FORMS, MOST_UNPACKED + MOST_COMPRESSION * path.stat().st_size)
            text, tagged = arrays["names"].tobytes().decode(), arrays["items"].tolist()
            tags = cls(tuple(text.split("\n")) if text else (), arrays["bits"], items)
        except (OSError, KeyError, ValueError) as error:
            raise EarnError(f"{path}: these are no tags of this catalog ({error}). {remedy}") from error
        if tagged != [items]:
            raise EarnError(f"{path}: these are tags of {tagged} items, and the catalog has {items}. {remedy}")
        return tags


def no_tags(items: int) -> Tags:
    """Those of a catalog without any."""
    return Tags.of({}, items)


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
