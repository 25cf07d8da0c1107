"""Delimited text: csv, tsv, ::, | and blanks.

Text without quotes, which tables of interactions are as a rule, is read in blocks by pyarrow. From the first block on
that holds a quote, or a row that pyarrow refuses, Python reads it row by row, slowly, and names the line of what is
wrong. Both give the same cells. Cells between `,` or `;` are quoted as in RFC 4180; others are unquoted as a whole.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from earn.data.tables.batches import Batch, Source
from earn.data.tables.columns import Headless, headless
from earn.errors import EarnError
from earn.files import open_text

BLOCK = 1 << 23  # characters that pyarrow reads at once
ROWS = 1 << 10  # read at once by Python: while they are Python objects, more of them only cost the garbage collector
SAMPLE_LINES = 20
SEPARATORS = ("\t", "::", ",", ";", "|", " ")
QUOTING = (",", ";")
SEPARATOR_NAMES = {"\t": "tabs", " ": "blanks"}
UNIT = "\x1f"  # ASCII's unit separator, which stands for a separator of two characters


class Text(Source):
    """Delimited text, with or without a header."""

    def __init__(
        self, path: Path, encoding: str | None, sample: str, given: Mapping[str, str], forms: Sequence[Headless]
    ) -> None:
        self.name = str(path)
        self._path, self._encoding, self._separator = path, encoding, _separator(path, sample)
        self._shown = SEPARATOR_NAMES.get(self._separator, self._separator)
        self._header_lines, self.names = next(_rows(io.StringIO(sample, ""), self._separator, self.name))
        self.says = f"text, columns separated by {self._shown}"
        if form := headless(self.names, self._separator, given, forms):
            self._header_lines, self.names = 0, [str(number) for number in range(1, len(self.names) + 1)]
            self.roles = form.roles
            self.says += f", {form.says}"

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns, as texts."""
        indices = [self.names.index(name) for name in names]
        with open_text(self._path, self._encoding, "") as file:
            line = self._header_lines
            for _ in range(line):
                file.readline()
            while block := _block(file):
                columns = self._parsed(block, indices)
                if columns is None:
                    yield from self._row_by_row(chain(io.StringIO(block, ""), file), line, names, indices)
                    return
                yield Batch(dict(zip(names, columns, strict=True)), self.name, _filled_lines(block, line), "line")
                line += block.count("\n")

    def _parsed(self, block: str, indices: Sequence[int]) -> list[Any] | None:
        """These columns of a block of lines, as pyarrow reads them; None where it might read other cells."""
        import pyarrow as pa
        from pyarrow import csv as arrow

        separator = self._separator
        if '"' in block or UNIT in block:
            return None
        if len(separator) > 1:
            block, separator = block.replace(separator, UNIT), UNIT
        data = block.encode()
        names = [str(index) for index in range(len(self.names))]
        wanted = [names[index] for index in indices]
        try:
            table = arrow.read_csv(
                pa.BufferReader(data),
                arrow.ReadOptions(column_names=names, block_size=len(data) + 1),
                arrow.ParseOptions(delimiter=separator, quote_char=False),
                arrow.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid:
            return None
        return [pa.concat_arrays(table[name].chunks) for name in wanted]

    def _row_by_row(
        self, lines: Iterable[str], line: int, names: Sequence[str], indices: Sequence[int]
    ) -> Iterator[Batch]:
        import pyarrow as pa

        rows, count = _rows(lines, self._separator, self.name, line), len(self.names)
        while piece := list(islice(rows, ROWS)):
            for number, cells in piece:
                if len(cells) != count:
                    raise EarnError(
                        f"{self.name}, line {number}: {len(cells)} cells, but the first line has {count}. Separate "
                        f"cells by {self._shown}, quote cells that hold it."
                    )
            columns = {
                name: pa.array([cells[index] for _, cells in piece], pa.string())
                for name, index in zip(names, indices, strict=True)
            }
            yield Batch(columns, self.name, [number for number, _ in piece], "line")


def _block(file: TextIO) -> str:
    """The next whole lines of the file, each ending in LF; "" at its end."""
    text = file.read(BLOCK)
    if text:
        text += file.readline()
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _filled_lines(block: str, before: int) -> Sequence[int]:
    """The numbers of the lines of a block that are not empty; so many lines stand before it."""
    if not block.startswith("\n") and "\n\n" not in block:
        return range(before + 1, before + 1 + block.count("\n") + (not block.endswith("\n")))
    return [number for number, text in enumerate(block.split("\n"), start=before + 1) if text]


def _rows(lines: Iterable[str], separator: str, name: str, before: int = 0) -> Iterator[tuple[int, list[str]]]:
    """The line and the cells of each row that is not empty; lines come with their ends as they are."""
    if separator not in QUOTING:
        for line, text in enumerate(lines, start=before + 1):
            if text := text.rstrip("\r\n"):
                cells = text.split(separator)
                yield line, [unquoted(cell) for cell in cells] if '"' in text else cells
        return
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for row in reader:
            if row:
                yield before + reader.line_num, row
    except csv.Error as error:
        raise EarnError(
            f'{name}, line {before + reader.line_num}: not valid csv ({error}). Quote cells as "...", and write a '
            'quote inside them twice: "".'
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
        try:
            rows = [row for _, row in islice(_rows(io.StringIO(sample, ""), separator, str(path)), SAMPLE_LINES + 1)]
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
