"""LC-Rec and LETTER, a folder; each file lies in it or in its subfolder raw/.

*.inter.json   {"user": [item, ...], ...}            the user's items, oldest first
*.index.json   {"item": ["<a_1>", "<b_2>", ...]}     identifiers; they fix the items and their order; OpenOneRec's
                                                     <|sid_begin|> and <|sid_end|> around them may be there or not
items.tsv      columns item_id, title; any other column except asin is metadata     (optional)
*.item.json    {"item": {"title": ..., "categories": ..., ...}}                     (optional, instead)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.catalog import one_line, read_index
from earn.console import note
from earn.data.formats.folders import matches, only_match
from earn.data.formats.tables import read_items_tsv
from earn.data.interactions import Interactions, Words, with_words
from earn.data.tables.values import id_text, texts
from earn.errors import EarnError
from earn.files import read_json


def is_lcrec(path: Path) -> bool:
    """Whether the path is a folder in the LC-Rec format."""
    return path.is_dir() and bool(matches(path, "*.inter.json"))


def read_lcrec(folder: Path) -> Interactions:
    """Reads a folder in the LC-Rec format (module docstring).

    Raises:
        EarnError: a file is missing, stands there twice or is not of its form; names the file and the key.
    """
    inter, index = only_match(folder, "*.inter.json"), only_match(folder, "*.index.json")
    if inter is None or index is None:
        raise EarnError(
            f"{folder}: holds no {'*.index.json' if inter else '*.inter.json'}, nor does its raw/. "
            "Put the file there, or give the data as RecBole atomic files, which need no identifiers."
        )
    words = _words(folder)
    catalog = read_index(index, {item_id: word.title for item_id, word in words.items()})
    users = _object(inter, '{"user": [item, ...]}')
    index_of = {item_id: item for item, item_id in enumerate(catalog.item_ids)}
    sequences = tuple(_sequence(inter, user, items, index_of, index) for user, items in users.items())
    return with_words(folder.resolve().name, tuple(catalog.item_ids), words, tuple(users), sequences, catalog)


def _sequence(path: Path, user: str, items: object, index_of: Mapping[str, int], index: Path) -> NDArray[np.int64]:
    try:
        item_ids = [id_text(item) for item in items] if isinstance(items, list) else None
    except ValueError:
        item_ids = None
    if item_ids is None:
        raise EarnError(f"{path}: user {user!r} holds {str(items)[:60]}. Give a list of items, oldest first.")
    if not item_ids:
        raise EarnError(f"{path}: user {user!r} has no items. Remove the user.")
    if None in item_ids:
        raise EarnError(f"{path}: user {user!r}: item {item_ids.index(None) + 1} is missing (NaN, null). Remove it.")
    unknown = next((item for item in item_ids if item not in index_of), None)
    if unknown is not None:
        raise EarnError(
            f"{path}: user {user!r} holds item {unknown}, which {index.name} lacks. "
            "Give it an identifier there or remove the interaction."
        )
    return np.array([index_of[item] for item in item_ids if item is not None], np.int64)


def _words(folder: Path) -> dict[str, Words]:
    readers: dict[str, Callable[[Path], dict[str, Words]]] = {
        "items.tsv": read_items_tsv,
        "*.item.json": read_item_json,
    }
    files = [(path, read) for pattern, read in readers.items() if (path := only_match(folder, pattern)) is not None]
    if len(files) > 1:
        raise EarnError(f"{folder}: both {' and '.join(path.name for path, _ in files)} hold titles. Keep one.")
    return files[0][1](files[0][0]) if files else {}


def read_item_json(path: Path) -> dict[str, Words]:
    """Each item's words in an *.item.json (module docstring), by item id.

    Raises:
        EarnError: not of that form.
    """
    words = {}
    for item, fields in _object(path, '{"item": {"title": ...}}').items():
        if not isinstance(fields, dict) or not isinstance(fields.get("title"), str | list | None):
            raise EarnError(f'{path}: item {item!r} holds {str(fields)[:60]}. Give it an object {{"title": "..."}}.')
        metadata = one_line(" ".join(texts([value for key, value in fields.items() if key != "title"])))
        words[item] = Words(one_line(" ".join(texts(fields.get("title")))), metadata)
    if untitled := sum(not word.title for word in words.values()):
        note(f"      {path}: {untitled} of {len(words)} items have no title")
    return words


def _object(path: Path, form: str) -> dict[str, object]:
    value = read_json(path)
    if not isinstance(value, dict) or not value:
        raise EarnError(f"{path}: holds {str(value)[:40]}, not an object of the form {form}. Mend or replace the file.")
    return value
