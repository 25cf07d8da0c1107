"""Tables in batches: delimited text, json lines, parquet, data frames and rows.

A file's contents say what it is, not its name. Text is UTF-8 or UTF-16 with any line ends, and every file may be
gzipped. Cells between `,` or `;` may be quoted as in RFC 4180. Text with tabs, `::`, `|` or blanks is split wherever
they stand, and a cell that is quoted as a whole is unquoted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from earn.data.tables.batches import Batch, Source
from earn.data.tables.columns import HEADLESS, Headless
from earn.data.tables.text import Text
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


class Json:
    """One JSON object per line, or one list of objects."""

    roles: Mapping[str, str] = {}

    def __init__(self, path: Path, encoding: str | None) -> None:
        self.name, self.says = str(path), "json"
        self._path, self._encoding = path, encoding
        self.names = list(dict.fromkeys(chain.from_iterable(row for _, row in islice(self._objects(), 1000))))

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with open_text(self._path, self._encoding, newline=None) as file:
            lines = enumerate(file, start=1)
            number, first = next((number, line) for number, line in lines if line.strip())
            if first.lstrip().startswith("["):
                yield from self._list(first + file.read())
                return
            for line, text in chain([(number, first)], lines):
                if text.strip():
                    yield line, self._object(line, text)

    def _list(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise EarnError(f"{self.name}: not valid JSON ({error}). Mend the file.") from error
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise EarnError(f"{self.name}, element {number}: {str(row)[:40]} is no object. Give one per row.")
            yield number, row

    def _object(self, line: int, text: str) -> dict[str, Any]:
        try:
            row = json.loads(text)
        except ValueError as error:
            hint = (
                " It looks like a Python literal; write it with json.dumps." if text.lstrip().startswith("{'") else ""
            )
            raise EarnError(
                f"{self.name}, line {line}: not valid JSON ({error}). Give one object per line.{hint}"
            ) from error
        if not isinstance(row, dict):
            raise EarnError(f"{self.name}, line {line}: {text.strip()[:40]} is no object. Give one object per line.")
        return row

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns; a key that an object lacks is null."""
        objects = self._objects()
        while piece := list(islice(objects, BATCH)):
            columns = {name: [_without_objects(row.get(name)) for _, row in piece] for name in names}
            yield _batch(columns, self.name, [line for line, _ in piece], "line")


class Frame:
    """A pyarrow table, or whatever gives one: a data frame of pandas or polars."""

    says = "data frame"
    roles: Mapping[str, str] = {}

    def __init__(self, frame: Any, name: str) -> None:
        self.name = name
        self._frame = frame
        self.names = [str(column) for column in getattr(frame, "column_names", frame.columns)]

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns; rows are numbered from 0, as data frames do."""
        import pyarrow as pa

        columns = {name: self._column(self._frame[name]) for name in names}
        start = 0
        for piece in pa.table(columns).to_batches(BATCH):
            yield Batch(
                {name: piece.column(name) for name in names}, self.name, range(start, start + piece.num_rows), "row"
            )
            start += piece.num_rows

    def _column(self, column: Any) -> Any:
        import pyarrow as pa

        if isinstance(column, pa.ChunkedArray | pa.Array):
            return column
        if hasattr(column, "to_arrow"):
            return column.to_arrow()
        try:
            return pa.array(column, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # an object column of several types
            return _array(list(column))


class Rows:
    """Rows as mappings, or as tuples (user, item, time)."""

    says = "rows"
    roles: Mapping[str, str] = {}
    TUPLE = ("user", "item", "time")

    def __init__(self, rows: Iterable[Any], name: str) -> None:
        self.name = name
        iterator = iter(rows)
        first = next(iterator, None)
        if first is None:
            raise EarnError(f"{name}: there are no rows. Give at least one.")
        self._rows = chain([first], iterator)
        self.names = [*map(str, first)] if isinstance(first, Mapping) else [*self.TUPLE]

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns; rows are numbered from 0."""
        start = 0
        while piece := list(islice(self._rows, BATCH)):
            rows = [self._mapping(row, start + index) for index, row in enumerate(piece)]
            numbers = range(start, start + len(rows))
            yield _batch({name: [row.get(name) for row in rows] for name in names}, self.name, numbers, "row")
            start += len(rows)

    def _mapping(self, row: Any, number: int) -> Mapping[str, Any]:
        if isinstance(row, Mapping):
            return row
        if isinstance(row, str | bytes) or len(row) != len(self.TUPLE):
            raise EarnError(f"{self.name}, row {number}: {str(row)[:60]} is not (user, item, time). Give these three.")
        return dict(zip(self.TUPLE, row, strict=True))


class Parquet:
    """A parquet file."""

    says = "parquet"
    roles: Mapping[str, str] = {}

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
        """Batches with these columns."""
        start = 1
        for piece in self._file.iter_batches(BATCH, columns=list(names)):
            yield Batch(
                {name: piece.column(name) for name in names}, self.name, range(start, start + piece.num_rows), "row"
            )
            start += piece.num_rows


def _batch(columns: Mapping[str, Sequence[Any]], source: str, numbers: Sequence[int], unit: str) -> Batch:
    return Batch({name: _array(values) for name, values in columns.items()}, source, numbers, unit)


def _array(values: Sequence[Any]) -> Any:
    """Python values as an array; where their types differ, as texts."""
    import pyarrow as pa

    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([" ".join(_texts(value)) or None for value in values], pa.string())


def _texts(value: Any) -> Iterator[str]:
    """The texts and numbers in a value; in anything else there are none."""
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        yield str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _without_objects(value: Any) -> Any:
    """A JSON value, but null for an object or a list of them: no role has such values, and their keys are many."""
    first = value[0] if isinstance(value, list) and value else value
    return None if isinstance(first, dict) else value
