"""Files, rows and data frames as histories: what opens them, and which files of a folder belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from earn.console import note
from earn.data.import_options import ImportOptions
from earn.data.interactions import Interactions
from earn.data.remote import local
from earn.data.tables.columns import ITEM_TABLE_TITLES, USUAL_NAMES, find, given_columns
from earn.data.tables.importing import Imported, Say, import_sources
from earn.data.tables.items import read_items
from earn.data.tables.sources import open_source
from earn.errors import EarnError

SUFFIXES = (".csv", ".tsv", ".dat", ".data", ".jsonl", ".ndjson", ".parquet", ".pq")  # of the tables in a folder
INDENTED = "      "  # lines below a command's heading


def holds_tables(path: Path) -> bool:
    """Whether the path is a file, or a folder that holds files whose names look like tables."""
    return path.is_file() and path.suffix != ".inter" if not path.is_dir() else bool(table_files(path))


def table_files(folder: Path) -> list[Path]:
    """The folder's files whose names look like tables."""
    names = {path: path.name.removesuffix(".gz") for path in sorted(folder.iterdir()) if path.is_file()}
    return [path for path, name in names.items() if Path(name).suffix.lower() in SUFFIXES]


def read_tables(path: Path) -> Interactions:
    """Reads a table, or a folder of tables, as it stands, and says on stderr what was read.

    Raises:
        EarnError: as `import_files`.
    """
    return import_files([path], say=lambda line: note(INDENTED + line)).interactions


def import_files(
    paths: Sequence[str | Path],
    items: str | Path | None = None,
    options: ImportOptions | None = None,
    say: Say = note,
) -> Imported:
    """Reads files as one table of interactions.

    Args:
        paths: files or their addresses (`earn.data.remote`), or one folder whose tables belong together.
        items: a table with titles and metadata.
        options: columns, filters, repeats, ties.
        say: gets a line per step.

    Raises:
        EarnError: a file is no table, lacks a column or holds a bad cell, or nothing is left; names file and line.
    """
    options = options or ImportOptions()
    tables, words = [local(path) for path in paths], None if items is None else local(items)
    name = _stem(tables[0])
    if len(tables) == 1 and tables[0].is_dir():
        tables, found = _parts(tables[0], options)
        words = words or found
    missing = next((path for path in (*tables, *([words] if words else [])) if not path.is_file()), None)
    if missing is not None:
        raise EarnError(f"{missing}: there is no such file. Give files, or one folder of files.")
    sources = [open_source(path, given_columns(options.columns), options.encoding) for path in tables]
    known = read_items(words, options, say) if words is not None else None
    return import_sources(name, sources, known, options, say)


def _stem(path: Path) -> str:
    name = path.resolve().name
    return name if path.is_dir() else Path(name.removesuffix(".gz")).stem


def _parts(folder: Path, options: ImportOptions) -> tuple[list[Path], Path | None]:
    """The folder's interactions, all of the same columns, and its table of items, if it is plain which it is."""
    given = given_columns(options.columns)
    tables = {path: open_source(path, given, options.encoding) for path in table_files(folder)}
    if not tables:
        raise EarnError(f"{folder}: holds no table ({', '.join(SUFFIXES)}). Name a file.")
    usual = {**USUAL_NAMES, "title": ITEM_TABLE_TITLES}

    def has(path: Path, *roles: str) -> bool:
        return all(find(tables[path], role, {} if role == "title" else given, usual) for role in roles)

    interactions = [path for path in tables if has(path, "user", "item")]
    kinds = {tuple(tables[path].names) for path in interactions}
    if len(kinds) != 1:
        names = ", ".join(path.name for path in interactions or tables)
        problem = "holds tables of interactions with different columns" if kinds else "no table has a user and an item"
        raise EarnError(f"{folder}: {problem}: {names}. Name one file.")
    items = [path for path in tables if path not in interactions and has(path, "item", "title")]
    return interactions, items[0] if len(items) == 1 else None
