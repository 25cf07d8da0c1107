"""LC-Rec and LETTER, a folder; each file lies in it or in its subfolder raw/.

*.inter.json   {"user": [item, ...], ...}            the user's items, oldest first
*.index.json   {"item": ["<a_1>", "<b_2>", ...]}     identifiers; they fix the items and their order; OpenOneRec's
                                                     <|sid_begin|> and <|sid_end|> around them may be there or not
items.tsv      columns item_id, title; any other column except asin is metadata     (optional)
*.item.json    {"item": {"title": ..., "categories": ..., ...}}                     (optional, instead)
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from earn.catalog import one_line, read_index
from earn.console import note
from earn.data.formats.folders import matches, needed_match, only_match
from earn.data.formats.tables import read_items_tsv
from earn.data.interactions import Interactions, Words, from_histories
from earn.data.tables.values import id_text, texts
from earn.errors import EarnError
from earn.files import read_json


def is_lcrec(path: Path) -> bool:
    """Whether the path is a folder in the LC-Rec format."""
    return path.is_dir() and bool(matches(path, "*.inter.json", "raw"))


def read_lcrec(folder: Path) -> Interactions:
    """Reads a folder in the LC-Rec format (module docstring).

    Raises:
        EarnError: a file is missing, stands there twice or is not of its form; names the file and the key.
    """
    remedy = "Put the file there, or give the data as RecBole atomic files, which need no identifiers."
    inter, index = (needed_match(folder, pattern, "raw", remedy) for pattern in ("*.inter.json", "*.index.json"))
    words = _words(folder)
    catalog = read_index(index, {item_id: word.title for item_id, word in words.items()})
    users = _object(inter, '{"user": [item, ...]}')
    known = set(catalog.item_ids)
    histories = {user: _history(inter, user, items, known, index) for user, items in users.items()}
    return from_histories(folder.resolve().name, catalog.item_ids, histories, words, catalog)


def _history(path: Path, user: str, items: object, known: Collection[str], index: Path) -> list[str]:
    try:
        item_ids = [id_text(item) for item in items] if isinstance(items, list) else None
    except ValueError:
        item_ids = None
    if item_ids is None:
        raise EarnError(f"{path}: user {user!r} holds {str(items)[:60]}. Give a list of items, oldest first.")
    if not item_ids:
        raise EarnError(f"{path}: user {user!r} has no items. Remove the user.")
    for number, item in enumerate(item_ids, start=1):
        if item is None:
            raise EarnError(f"{path}: user {user!r}: item {number} is missing (NaN, null). Remove it.")
        if item not in known:
            raise EarnError(
                f"{path}: user {user!r} holds item {item}, which {index.name} lacks. "
                "Give it an identifier there or remove the interaction."
            )
    return [item for item in item_ids if item is not None]


def _words(folder: Path) -> dict[str, Words]:
    files = [path for name in ("items.tsv", "*.item.json") if (path := only_match(folder, name, "raw")) is not None]
    if len(files) > 1:
        raise EarnError(f"{folder}: both {' and '.join(path.name for path in files)} hold titles. Keep one.")
    if not files:
        return {}
    return read_items_tsv(files[0]) if files[0].suffix == ".tsv" else read_item_json(files[0])


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
