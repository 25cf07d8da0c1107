"""Tables in batches: delimited text, json lines, parquet, data frames and rows.

A file's contents say what it is, not its name. Text is UTF-8 or UTF-16 with any line ends, and every file may be
gzipped. Cells between `,` or `;` may be quoted as in RFC 4180. Text with tabs, `::`, `|` or blanks is split wherever
they stand, and a cell that is quoted as a whole is unquoted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from earn.data.tables.batches import Batch, Source
from earn.data.tables.columns import HEADLESS, Headless
from earn.data.tables.text import Text
from earn.data.tables.values import texts
from earn.errors import EarnError
from earn.files import open_bytes, open_text

BATCH = 1 << 18  # rows


def open_source(
    path: Path,
    given: Mapping[str, str],
    encoding: str | None = None,
    forms: Sequence[Headless] = HEADLESS,
) -> Source:
    """The table in a file.

    Args:
        path: the file.
        given: role -> name that the caller gave, which tells whether a text file has a header.
        encoding: of a text file; None: UTF-8 or UTF-16.
        forms: the usual text files without a header.

    Raises:
        EarnError: the file is empty, cannot be read, or is no table.
    """
    with open_bytes(path) as file:
        start = file.peek(4)[:4]
    if start == b"PAR1":
        return Parquet(path)
    with open_text(path, encoding) as text:
        sample = text.read(1 << 16)
    first = sample.lstrip()[:1]
    if not first:
        raise EarnError(f"{path}: the file is empty. Give a table with a user, an item and a time per row.")
    return Json(path, encoding) if first in "{[" else Text(path, encoding, sample, given, forms)


class Json(Source):
    """One JSON object per line, or one list of objects."""

    says = "json"

    def __init__(self, path: Path, encoding: str | None) -> None:
        self.name = str(path)
        self._path, self._encoding, self._unit = path, encoding, "line"
        self.names = list(dict.fromkeys(chain.from_iterable(row for _, row in islice(self._objects(), 1000))))

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each object with its line, or with its number from 1 in a list."""
        with open_text(self._path, self._encoding, newline=None) as file:
            lines = ((line, text) for line, text in enumerate(file, start=1) if text.strip())
            line, first = next(lines)
            values: Iterable[tuple[int, Any]]
            if first.lstrip().startswith("["):
                self._unit = "element"
                values = enumerate(_json(first + file.read(), self.name), start=1)
            else:
                pairs = chain([(line, first)], lines)
                values = ((line, _json(text, f"{self.name}, line {line}")) for line, text in pairs)
            for number, row in values:
                if not isinstance(row, dict):
                    where = f"{self.name}, {self._unit} {number}"
                    raise EarnError(f"{where}: {str(row)[:40]} is no object. Give one object per row.")
                yield number, row

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns; a key that an object lacks is null."""
        objects = self._objects()
        while piece := list(islice(objects, BATCH)):
            columns = {name: _array([_without_objects(row.get(name)) for _, row in piece]) for name in names}
            yield Batch(columns, self.name, [number for number, _ in piece], self._unit)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        hint = " It looks like a Python literal; write it with json.dumps." if text.lstrip().startswith("{'") else ""
        raise EarnError(
            f"{where}: not valid JSON ({error}). Give one object per line, or one list of objects.{hint}"
        ) from error


class Frame(Source):
    """A pyarrow table, or whatever gives one: a data frame of pandas or polars."""

    says = "data frame"

    def __init__(self, frame: Any, name: str) -> None:
        self.name = name
        self._frame = frame
        self.names = [str(column) for column in getattr(frame, "column_names", frame.columns)]

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns; rows are numbered from 0, as data frames do."""
        import pyarrow as pa

        table = pa.table({name: self._column(self._frame[name]) for name in names})
        return _numbered((dict(zip(names, piece.columns, strict=True)) for piece in table.to_batches(BATCH)), self.name)

    def _column(self, column: Any) -> Any:
        import pyarrow as pa

        if isinstance(column, pa.ChunkedArray | pa.Array):
            return column
        return column.to_arrow() if hasattr(column, "to_arrow") else _array(column)


class Rows(Source):
    """Rows as mappings, or as tuples (user, item, time)."""

    says = "rows"
    TUPLE = ("user", "item", "time")

    def __init__(self, rows: Iterable[Any], name: str) -> None:
        self.name = name
        iterator = iter(rows)
        first = next(iterator, None)
        if first is None:
            raise EarnError(f"{name}: there are no rows. Give at least one.")
        self._rows = map(self._mapping, chain([first], iterator), count())
        self.names = [*map(str, first)] if isinstance(first, Mapping) else self.TUPLE

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns; rows are numbered from 0."""
        pieces = iter(lambda: list(islice(self._rows, BATCH)), [])
        return _numbered(
            ({name: _array([row.get(name) for row in rows]) for name in names} for rows in pieces), self.name
        )

    def _mapping(self, row: Any, number: int) -> Mapping[str, Any]:
        if isinstance(row, Mapping):
            return row
        if isinstance(row, str | bytes) or len(row) != len(self.TUPLE):
            raise EarnError(f"{self.name}, row {number}: {str(row)[:60]} is not (user, item, time). Give these three.")
        return dict(zip(self.TUPLE, row, strict=True))


class Parquet(Source):
    """A parquet file, gzipped or not."""

    says = "parquet"

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.name = str(path)
        with path.open("rb") as file:
            is_plain = file.read(4) == b"PAR1"
        try:
            if is_plain:
                self._file = parquet.ParquetFile(path, memory_map=False)
            else:
                with open_bytes(path) as packed:
                    self._file = parquet.ParquetFile(pa.BufferReader(packed.read()))
        except pa.ArrowException as error:
            raise EarnError(f"{path}: not a readable parquet file ({error}). Write it again.") from error
        self.names = self._file.schema_arrow.names

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns; rows are numbered from 1."""
        pieces = self._file.iter_batches(BATCH, columns=list(names))
        return _numbered(({name: piece.column(name) for name in names} for piece in pieces), self.name, 1)


def _numbered(pieces: Iterable[Mapping[str, Any]], source: str, number: int = 0) -> Iterator[Batch]:
    """Batches of these columns, whose rows are numbered from `number` on."""
    for columns in pieces:
        end = number + len(next(iter(columns.values())))
        yield Batch(columns, source, range(number, end), "row")
        number = end


def _array(values: Iterable[Any]) -> Any:
    """Python values as an array; where their types differ, as texts."""
    import pyarrow as pa

    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([" ".join(texts(value, with_numbers=True)) or None for value in values], pa.string())


def _without_objects(value: Any) -> Any:
    """A JSON value, but null for an object or a list of them: no role has such values, and their keys are many."""
    first = value[0] if isinstance(value, list) and value else value
    return None if isinstance(first, dict) else value
