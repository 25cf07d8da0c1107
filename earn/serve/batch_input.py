"""The input of a batch run: parquet files with a row per user, cut into blocks.

user       any type              whose history it is; copied to the output as it is
items      list of text or int   item ids, oldest first
exclude    list of text or int   item ids that may not come back; the column may be missing
allow      text                  a tag or a filter in JSON (earn.filters): what alone may come back; may be missing
block      text                  likewise: what may not come back
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from earn.errors import EarnError, to_install

ANSWERS, REJECTED = "recommendations", "rejected"  # folders of a run's output


@dataclass(frozen=True)
class Columns:
    """The names of the input's columns."""

    user: str = "user"  # of any type, copied as it is
    items: str = "items"  # lists of item ids, oldest first
    exclude: str = "exclude"  # lists of item ids that may not come back; the column may be missing
    allow: str = "allow"  # texts, of filters; the column may be missing
    block: str = "block"  # likewise


@dataclass(frozen=True)
class Row:
    """What a row of the input asks; None where it says nothing."""

    history: Sequence[str | int | None] | None
    exclude: Sequence[str | int | None] | None
    allow: str | None
    block: str | None


@dataclass(frozen=True)
class InputFile:
    """A parquet file, and how it is told from another one of the same name."""

    path: str
    rows: int
    bytes: int
    columns: tuple[str, ...]
    footer: str  # SHA-256 of its footer, which holds the places and statistics of all its values


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one row group of a file."""

    index: int
    file: InputFile
    group: int  # the row group
    start: int  # first row within the group
    rows: int
    first_row: int  # within the file

    def path(self, out: Path, kind: str) -> Path:
        """Where the block's answers, or what was rejected of it, belong."""
        return out / kind / f"block-{self.index:06d}.parquet"


def parquet_files(places: Sequence[Path]) -> list[Path]:
    """The parquet files that are named or lie in folders that are, by name within a folder.

    Raises:
        EarnError: a place holds none.
    """
    files: list[Path] = []
    for place in places:
        found = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
        if not found or not all(path.is_file() for path in found):
            raise EarnError(f"{place}: there is no parquet file. Check the path.")
        files += found
    return files


def blocks_of(files: Sequence[Path], block_users: int, columns: Columns) -> Iterator[Block]:
    """The blocks of some files, which follow from the files alone.

    Raises:
        EarnError: a file is no parquet file, or lacks a column or has another type in it.
    """
    index = 0
    for path in files:
        parquet = _open(path)
        _check_schema(path, parquet.schema_arrow, columns)
        names = tuple(parquet.schema_arrow.names)
        file = InputFile(str(path.resolve()), parquet.metadata.num_rows, path.stat().st_size, names, _footer_sum(path))
        first_row = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            for start in range(0, rows, block_users):
                taken = min(block_users, rows - start)
                yield Block(index, file, group, start, taken, first_row + start)
                index += 1
            first_row += rows


def _open(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise EarnError(f"Batches need pyarrow. Install it: {to_install('tables')}") from error
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise EarnError(f"{path}: cannot be read as parquet ({error}). Check the file.") from error


def _footer_sum(path: Path) -> str:
    """A parquet file ends with its footer, the footer's length in 4 bytes, and 4 letters."""
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.sha256(file.read(length)).hexdigest()


def _check_schema(path: Path, schema: Any, columns: Columns) -> None:
    """Refuses a file without the columns, or with item ids that are neither texts nor whole numbers."""
    names = schema.names
    for name in (columns.user, columns.items):
        if names.count(name) != 1:
            raise EarnError(
                f"{path}: needs one column {name!r}, has {', '.join(names) or 'none'}. Name the columns: "
                "--user-column, --items-column, --exclude-column."
            )
    for name in (columns.items, columns.exclude):
        if name in names and not _holds_ids(schema.field(name).type):
            raise EarnError(
                f"{path}: the column {name!r} is {schema.field(name).type}. Write lists of texts or of whole numbers."
            )
    for name in (columns.allow, columns.block):
        if name in names and not _is_text(schema.field(name).type):
            raise EarnError(f"{path}: the column {name!r} is {schema.field(name).type}. Write texts: a tag, or JSON.")


def _holds_ids(kind: Any) -> bool:
    from pyarrow import types

    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    value = kind.value_type.value_type if types.is_dictionary(kind.value_type) else kind.value_type
    return _is_text(value) or types.is_integer(value)


def _is_text(kind: Any) -> bool:
    """Whether a column holds texts, or nothing at all."""
    from pyarrow import types

    return any(of(kind) for of in (types.is_string, types.is_large_string, types.is_null))


@lru_cache(maxsize=1)  # its blocks come one after another
def row_group(path: str, footer: str, group: int, names: tuple[str, ...]) -> Any:
    """A row group's table with these columns, of the file with this footer."""
    parquet = _open(Path(path))
    if _footer_sum(Path(path)) != footer:
        raise EarnError(f"{path}: has changed since the run began. Start a new run in another folder.")
    return parquet.read_row_group(group, columns=list(names))


def rows_of(block: Block, columns: Columns) -> tuple[Any, list[Row]]:
    """The users (a column) and rows of a block.

    Raises:
        EarnError: the file cannot be read, or is another one than when the block was cut.
    """
    from pyarrow import ArrowException

    asked = (columns.items, columns.exclude, columns.allow, columns.block)
    names = (columns.user, *(name for name in asked if name in block.file.columns))
    try:
        table = row_group(block.file.path, block.file.footer, block.group, names).slice(block.start, block.rows)
    except (ArrowException, OSError) as error:
        raise EarnError(f"{block.file.path}: cannot be read ({error}). Check the file.") from error
    values = (table[name].to_pylist() if name in names else [None] * len(table) for name in asked)
    return table[columns.user], [Row(*each) for each in zip(*values, strict=True)]
