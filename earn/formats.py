"""Readers of the file formats in which sequential recommendation data is shared.

LC-Rec and LETTER, a folder; each file lies in it or in its subfolder raw/:
    *.inter.json   {"user": [item, ...], ...}            the user's items, oldest first
    *.index.json   {"item": ["<a_1>", "<b_2>", ...]}     identifiers; they fix the items and their order
    items.tsv      columns item_id, title; any other column except asin is metadata     (optional)
    *.item.json    {"item": {"title": ..., "categories": ..., ...}}                     (optional, instead)

RecBole atomic files, tab separated, the first line names the columns as name:type, with the types token,
token_seq, float and float_seq:
    *.inter        user_id:token, item_id:token, timestamp:float; other columns are not read
    *.item         item_id:token; the title is the first column with "title" in its name, else one of
                   TITLE_COLUMNS; every other column of type token or token_seq is metadata     (optional)
    *.index.json   as above                                                                     (optional)
A user's interactions are sorted by timestamp; those of one time keep the file's order. The items are those of
*.item, in its order; without such a file those of *.inter, by first appearance.

What is wrong in a file raises an `EarnError` that names file, line (in JSON, the key) and remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog, one_line, read_index
from earn.errors import EarnError
from earn.files import read_json, read_text

COLUMN_TYPES = ("token", "token_seq", "float", "float_seq")
TITLE_COLUMNS = ("name", "item_name")  # beside every column whose name holds "title"


@dataclass(frozen=True)
class Interactions:
    """Who did what in which order.

    Raises:
        EarnError: fields disagree in length, an item index is out of range, or the catalog has other items.
    """

    name: str  # of the data set, for tables and messages
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]  # one line per item, "" where unknown
    metadata: tuple[str, ...]  # words per item that help to build identifiers, "" where unknown
    user_ids: tuple[str, ...]
    sequences: tuple[NDArray[np.int64], ...]  # one per user: item indices, oldest first
    catalog: Catalog | None  # when the source brings identifiers; its items are item_ids, in that order

    def __post_init__(self) -> None:
        if not len(self.item_ids) == len(self.titles) == len(self.metadata):
            raise EarnError(
                f"{self.name}: {len(self.item_ids)} items, {len(self.titles)} titles and "
                f"{len(self.metadata)} metadata. Give one of each per item."
            )
        if len(self.user_ids) != len(self.sequences):
            raise EarnError(
                f"{self.name}: {len(self.user_ids)} users, {len(self.sequences)} sequences. Give one per user."
            )
        if self.catalog is not None and self.catalog.item_ids != self.item_ids:
            raise EarnError(f"{self.name}: the catalog's items are not the data's, in that order. Rebuild the catalog.")
        for user, sequence in zip(self.user_ids, self.sequences, strict=True):
            if not sequence.size or sequence.min() < 0 or sequence.max() >= len(self.item_ids):
                raise EarnError(
                    f"{self.name}: user {user!r} has no item or one outside 0..{len(self.item_ids) - 1}. "
                    "Remove the user or mend the indices."
                )


@dataclass(frozen=True)
class Words:
    """What a file says about one item."""

    title: str = ""
    metadata: str = ""


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


# --- LC-Rec and LETTER --------------------------------------------------------------------------------------


def is_lcrec(path: Path) -> bool:
    """Whether the path is a folder in the LC-Rec format."""
    return path.is_dir() and bool(_matches(path, "*.inter.json"))


def read_lcrec(folder: Path) -> Interactions:
    """Reads a folder in the LC-Rec format (module docstring)."""
    inter, index = _single(folder, "*.inter.json"), _single(folder, "*.index.json")
    if inter is None or index is None:
        raise EarnError(
            f"{folder}: holds no {'*.index.json' if inter else '*.inter.json'}, nor does its raw/. "
            "Put the file there, or give the data as RecBole atomic files, which need no identifiers."
        )
    words = _lcrec_words(folder)
    catalog = read_index(index, {item_id: word.title for item_id, word in words.items()})
    users = _object(inter, '{"user": [item, ...]}')
    sequences = tuple(_lcrec_sequence(inter, user, items, catalog, index) for user, items in users.items())
    return _interactions(folder.resolve().name, catalog.item_ids, words, tuple(users), sequences, catalog)


def _lcrec_sequence(path: Path, user: str, items: object, catalog: Catalog, index: Path) -> NDArray[np.int64]:
    if not isinstance(items, list) or not all(type(item) in (int, str) for item in items):
        raise EarnError(f"{path}: user {user!r} holds {str(items)[:60]}. Give a list of items, oldest first.")
    if not items:
        raise EarnError(f"{path}: user {user!r} has no items. Remove the user.")
    unknown = next((item for item in items if str(item) not in catalog.index), None)
    if unknown is not None:
        raise EarnError(
            f"{path}: user {user!r} holds item {unknown}, which {index.name} lacks. "
            "Give it an identifier there or remove the interaction."
        )
    return np.array([catalog.index[str(item)] for item in items], np.int64)


def _lcrec_words(folder: Path) -> dict[str, Words]:
    readers: dict[str, Callable[[Path], dict[str, Words]]] = {
        "items.tsv": _tsv_words,
        "*.item.json": _json_words,
    }
    found = [(path, read) for pattern, read in readers.items() if (path := _single(folder, pattern)) is not None]
    if len(found) > 1:
        raise EarnError(f"{folder}: both {' and '.join(path.name for path, _ in found)} hold titles. Keep one.")
    return found[0][1](found[0][0]) if found else {}


def _tsv_words(path: Path) -> dict[str, Words]:
    table = _read_table(path, typed=False)
    table.need("item_id", "title")
    return _table_words(table, "title", [name for name in table.columns if name not in ("item_id", "title", "asin")])


def _json_words(path: Path) -> dict[str, Words]:
    words = {}
    for item, fields in _object(path, '{"item": {"title": ...}}').items():
        if not isinstance(fields, dict) or not isinstance(fields.get("title", ""), str):
            raise EarnError(f'{path}: item {item!r} holds {str(fields)[:60]}. Give it an object {{"title": "..."}}.')
        metadata = one_line(" ".join(_texts([value for key, value in fields.items() if key != "title"])))
        words[item] = Words(one_line(fields.get("title", "")), metadata)
    return words


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value: categories come as one text, as a list or as a list of lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


# --- RecBole atomic files -----------------------------------------------------------------------------------


def is_recbole(path: Path) -> bool:
    """Whether the path is a RecBole interaction file or a folder that holds one."""
    return (path.is_dir() and any(path.glob("*.inter"))) or (path.is_file() and path.suffix == ".inter")


def read_recbole(path: Path) -> Interactions:
    """Reads RecBole atomic files (module docstring); `path` is an *.inter file or a folder that holds one."""
    inter = path if path.is_file() else _one_of(path, sorted(path.glob("*.inter")))
    if inter is None:
        raise EarnError(f"{path}: holds no *.inter file. Put the interactions there.")
    item, index = _beside(inter, ".item"), _beside(inter, ".index.json")
    words = _recbole_words(item) if item is not None else {}
    table = _read_table(inter, typed=True)
    table.need("user_id", "item_id", "timestamp")
    histories: dict[str, list[tuple[float, str]]] = {}
    appeared: dict[str, None] = {}
    for line, row in table.rows:
        user_id, item_id = _id(table, line, row, "user_id"), _id(table, line, row, "item_id")
        if item is not None and item_id not in words:
            raise EarnError(
                f"{inter}, line {line}: item {item_id!r} is not in {item.name}. Add it there or remove this line."
            )
        appeared.setdefault(item_id)
        histories.setdefault(user_id, []).append((_timestamp(inter, line, row["timestamp"]), item_id))
    item_ids = tuple(words) if item is not None else tuple(appeared)
    place = {item_id: number for number, item_id in enumerate(item_ids)}
    sequences = tuple(
        # sorted() is stable: interactions of one time stay in the file's order
        np.array([place[item_id] for _, item_id in sorted(history, key=lambda entry: entry[0])], np.int64)
        for history in histories.values()
    )
    catalog = _catalog_for(index, item_ids, words) if index is not None else None
    return _interactions(inter.stem, item_ids, words, tuple(histories), sequences, catalog)


def _recbole_words(path: Path) -> dict[str, Words]:
    table = _read_table(path, typed=True)
    table.need("item_id")
    titles = [name for name in table.columns if "title" in name.lower()]
    titles += [name for name in TITLE_COLUMNS if name in table.columns]
    title = titles[0] if titles else None
    kept = [name for name, type_ in table.columns.items() if type_ in ("token", "token_seq")]
    return _table_words(table, title, [name for name in kept if name not in ("item_id", title)])


def _catalog_for(index: Path, item_ids: Sequence[str], words: dict[str, Words]) -> Catalog:
    read = read_index(index)
    lacking = next((item_id for item_id in item_ids if item_id not in read.index), None)
    if lacking is not None:
        raise EarnError(
            f"{index}: item {lacking!r} of the data has no identifier. "
            "Add it, or take the file away to have identifiers built."
        )
    identifiers = tuple(read.identifiers[read.index[item_id]] for item_id in item_ids)
    return Catalog(tuple(item_ids), identifiers, tuple(words.get(item_id, Words()).title for item_id in item_ids))


def _id(table: Table, line: int, row: dict[str, str], column: str) -> str:
    if not row[column]:
        raise EarnError(f"{table.path}, line {line}: the {column} is empty. Fill it in or remove the line.")
    return row[column]


def _timestamp(path: Path, line: int, text: str) -> float:
    try:
        # whole numbers stay whole: a double would merge neighbouring nanoseconds
        time = int(text) if text.lstrip("-").isdigit() else float(text)
        if math.isfinite(time):
            return time
    except (ValueError, OverflowError):
        pass
    raise EarnError(
        f"{path}, line {line}: the timestamp {text!r} is not a number. Write it in seconds, such as 881250949."
    )


# --- Shared -------------------------------------------------------------------------------------------------


def _interactions(
    name: str,
    item_ids: tuple[str, ...],
    words: dict[str, Words],
    user_ids: tuple[str, ...],
    sequences: tuple[NDArray[np.int64], ...],
    catalog: Catalog | None,
) -> Interactions:
    known = [words.get(item_id, Words()) for item_id in item_ids]
    titles, metadata = tuple(word.title for word in known), tuple(word.metadata for word in known)
    return Interactions(name, item_ids, titles, metadata, user_ids, sequences, catalog)


def _read_table(path: Path, typed: bool) -> Table:
    # not splitlines(): titles may hold characters that it takes for line ends
    lines = [line.rstrip("\r") for line in read_text(path).split("\n")]
    if not lines[0].strip():
        raise EarnError(
            f"{path}, line 1: the file is empty or lacks its header. Name the columns there, separated by tabs."
        )
    columns = _columns(path, lines[0].split("\t"), typed)
    rows = []
    for line, text in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in text.split("\t")]
        if not text:
            continue
        if len(cells) != len(columns):
            raise EarnError(
                f"{path}, line {line}: {len(cells)} fields, but the header names {len(columns)} columns. "
                "Separate the fields by tabs, and leave none out."
            )
        rows.append((line, dict(zip(columns, cells, strict=True))))
    if not rows:
        raise EarnError(f"{path}: only a header, no rows. Add at least one.")
    return Table(path, columns, tuple(rows))


def _columns(path: Path, header: Iterable[str], typed: bool) -> dict[str, str]:
    columns: dict[str, str] = {}
    for field in header:
        name, _, type_ = field.strip().partition(":")
        if typed and type_ not in COLUMN_TYPES:
            raise EarnError(
                f"{path}, line 1: the column {field!r} has no type. "
                f"Write name:type, separated by tabs, with one of the types {', '.join(COLUMN_TYPES)}."
            )
        if name in columns:
            raise EarnError(f"{path}, line 1: the column {name!r} stands twice. Keep one of them.")
        columns[name] = type_
    return columns


def _table_words(table: Table, title: str | None, metadata: Sequence[str]) -> dict[str, Words]:
    words: dict[str, Words] = {}
    for line, row in table.rows:
        item_id = _id(table, line, row, "item_id")
        if item_id in words:
            raise EarnError(f"{table.path}, line {line}: item {item_id!r} stands twice. Keep one of its lines.")
        text = " ".join(row[name] for name in metadata)
        words[item_id] = Words(one_line(row[title]) if title else "", one_line(text))
    return words


def _object(path: Path, form: str) -> dict[str, object]:
    value = read_json(path)
    if not isinstance(value, dict) or not value:
        raise EarnError(f"{path}: holds {str(value)[:40]}, not an object of the form {form}. Mend or replace the file.")
    return value


def _matches(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) + sorted((folder / "raw").glob(pattern))


def _single(folder: Path, pattern: str) -> Path | None:
    """The one file in the folder or its raw/ that matches, if any."""
    return _one_of(folder, _matches(folder, pattern))


def _one_of(folder: Path, paths: Sequence[Path]) -> Path | None:
    if len(paths) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in paths)
        raise EarnError(
            f"{folder}: holds {len(paths)} files where one is expected: {names}. Keep one, or name a single data set."
        )
    return paths[0] if paths else None


def _beside(inter: Path, suffix: str) -> Path | None:
    """What belongs to an *.inter file: the file of its name, else the only one beside the only data set."""
    same = inter.with_suffix(suffix)
    if same.is_file():
        return same
    if len(list(inter.parent.glob("*.inter"))) > 1:
        return None
    return _one_of(inter.parent, sorted(inter.parent.glob(f"*{suffix}")))
