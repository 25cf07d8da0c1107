"""Tables in batches: delimited text, json lines, parquet, data frames and rows.

A file's contents say what it is, not its name. Text is UTF-8 or UTF-16 with any line ends, and every file may be
gzipped. Cells between `,` or `;` may be quoted as in RFC 4180. Text with tabs, `::`, `|` or blanks is split wherever
they stand, and a cell that is quoted as a whole is unquoted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from earn.data.tables.columns import HEADLESS, Headless, headless
from earn.errors import EarnError
from earn.files import open_bytes, open_text

BATCH = 1 << 18  # rows
TEXT_BATCH = 1 << 10  # rows of text: while they are Python objects, more of them only cost the garbage collector
SAMPLE_LINES = 20
SEPARATORS = ("\t", "::", ",", ";", "|", " ")
QUOTING = (",", ";")
SEPARATOR_NAMES = {"\t": "tabs", " ": "blanks"}


@dataclass(frozen=True)
class Batch:
    """Rows of a table."""

    columns: Mapping[str, Any]  # name -> pyarrow.Array [rows]
    source: str  # for messages
    numbers: Sequence[int]  # [rows], the rows' lines in a text file or numbers from 1 elsewhere
    unit: str  # what these numbers count: "line" or "row"

    def where(self, row: int) -> str:
        """The words for a row in messages."""
        return f"{self.source}, {self.unit} {self.numbers[row]}"


class Source(Protocol):
    """A table that is read in batches."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def says(self) -> str:
        """What it is, for people."""

    @property
    def names(self) -> Sequence[str]:
        """Its columns."""

    @property
    def roles(self) -> Mapping[str, str]:
        """role -> name of a column, where the kind of file fixes them."""

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns."""


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


class Text:
    """Delimited text, with or without a header."""

    def __init__(
        self, path: Path, encoding: str | None, sample: str, given: Mapping[str, str], forms: Sequence[Headless]
    ) -> None:
        self.name = str(path)
        self._path, self._encoding = path, encoding
        self._separator = _separator(path, sample)
        _, first = next(_rows(io.StringIO(sample, _newline(self._separator)), self._separator, self.name))
        self._headless, form = headless(first, self._separator, given, forms)
        self.names = [str(number) for number in range(1, len(first) + 1)] if self._headless else first
        self.roles = form.roles if form else {}
        self.says = f"text, columns separated by {SEPARATOR_NAMES.get(self._separator, self._separator)}"
        self.says += f", {form.says}" if form else ", no header" if self._headless else ""

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns, as texts."""
        import pyarrow as pa

        indices = [list(self.names).index(name) for name in names]
        with open_text(self._path, self._encoding, _newline(self._separator)) as file:
            rows = _rows(file, self._separator, self.name)
            if not self._headless:
                next(rows)
            while piece := list(islice(rows, min(BATCH, TEXT_BATCH))):
                lines, cells = [line for line, _ in piece], [row for _, row in piece]
                self._check(lines, cells)
                arrays = {
                    name: pa.array([row[index] for row in cells], pa.string())
                    for name, index in zip(names, indices, strict=True)
                }
                yield Batch(arrays, self.name, lines, "line")

    def _check(self, lines: Sequence[int], cells: Sequence[list[str]]) -> None:
        """Refuses a row that has too few or too many cells."""
        count = len(self.names)
        if set(map(len, cells)) == {count}:
            return
        line, row = next((line, row) for line, row in zip(lines, cells, strict=True) if len(row) != count)
        raise EarnError(
            f"{self.name}, line {line}: {len(row)} cells, but the first line has {count}. Separate cells by "
            f"{SEPARATOR_NAMES.get(self._separator, self._separator)}, quote cells that hold it."
        )


def _newline(separator: str) -> str | None:
    """As of `open`: the csv module wants line ends as they are; else all kinds of them become one."""
    return "" if separator in QUOTING else None


def _rows(file: TextIO, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """The line and the cells of each row that is not empty; the file is opened with `_newline(separator)`."""
    if separator not in QUOTING:
        for line, text in enumerate(file, start=1):
            if text := text.rstrip("\n"):
                cells = text.split(separator)
                yield line, [unquoted(cell) for cell in cells] if '"' in text else cells
        return
    reader = csv.reader(file, delimiter=separator, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise EarnError(
            f'{name}, line {reader.line_num}: not valid csv ({error}). Quote cells as "...", and write a quote inside '
            'them twice: "".'
        ) from error


def unquoted(cell: str) -> str:
    """The cell without the quotes that a csv writer set around it; any other cell as it stands."""
    inner = cell[1:-1]
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _separator(path: Path, sample: str) -> str:
    """The separator that splits every line of the sample into the same number of cells, at least two."""
    whole = len(sample) < 1 << 16
    for separator in SEPARATORS:
        lines = io.StringIO(sample, _newline(separator))
        try:
            rows = [row for _, row in islice(_rows(lines, separator, str(path)), SAMPLE_LINES + 1)]
        except EarnError:
            continue
        counts = {len(row) for row in (rows if whole and len(rows) <= SAMPLE_LINES else rows[:-1])}
        if len(counts) == 1 and min(counts) > 1:
            return separator
    header = sample.lstrip().splitlines()[0]
    fallback = next((separator for separator in SEPARATORS if separator in header), None)
    if fallback is None:
        raise EarnError(
            f"{path}: is no table: its first line {header[:60]!r} has one cell. Give columns for user, item and time, "
            "with a name each in the first line, separated by commas or tabs."
        )
    return fallback  # some line has too few or too many cells; reading names it


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
