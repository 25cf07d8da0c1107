"""The format of AtSpeed, split by time; a folder, in which each file lies or in its subfolder raw/.

    sequential_train.txt   one line per user: `user item item ...`, oldest first; items are numbered from 1
    sequential_valid.txt   likewise, what these users chose in the time that followed
    sequential_test.txt    likewise, what they chose last
    *.json                 {"item": ["<a_1>", "<b_2>", ...]}, identifiers, the only such file; items are numbered from 0
    items.tsv              columns item_id, title; any other column except asin is metadata;
                           items are numbered from 0                                                    (optional)

A user may have no items in some of the parts, or no line. The items are those of *.json, in its order and under its
numbers: what the text calls 1 has the id "0". Users keep the names that the text gives them.

The three parts are one history per user, and `Interactions.held_out` says where they end. Of each held-out part the
first item is asked for, for it is the one that comes next (`earn.data`); recall over all items of a part is another
figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from earn.catalog import Catalog, read_index
from earn.data.formats.folders import matches, needed_match, only_match
from earn.data.formats.tables import read_items_tsv
from earn.data.interactions import Interactions, from_histories
from earn.errors import EarnError
from earn.files import read_lines

PARTS = ("sequential_train.txt", "sequential_valid.txt", "sequential_test.txt")


def is_timesplit(path: Path) -> bool:
    """Whether the path is a folder in the format of AtSpeed."""
    return path.is_dir() and bool(matches(path, PARTS[0], "raw"))


def read_timesplit(folder: Path) -> Interactions:
    """Reads a folder in the format of AtSpeed (module docstring).

    Raises:
        EarnError: a file is missing, stands there twice or is not of its form, an item of the text is none of the
            index, or a user has no items; names the file and the line.
    """
    train_path, *_ = paths = [needed_match(folder, name, "raw") for name in PARTS]
    index, titles = needed_match(folder, "*.json", "raw"), only_match(folder, "items.tsv", "raw")
    words = read_items_tsv(titles) if titles is not None else {}
    catalog = read_index(index, {item_id: word.title for item_id, word in words.items()})
    ids = _ids_by_number(index, catalog)
    train, valid, test = (_read_part(path, ids, index) for path in paths)
    if not any(train.values()):
        raise EarnError(f"{train_path}: no user has an item, so there is nothing to train on. Add the training items.")
    parts = {user: (train.get(user, []), valid.get(user, []), test.get(user, [])) for user in train | valid | test}
    histories = {user: [*chain.from_iterable(items)] for user, items in parts.items()}
    empty = next((user for user, items in histories.items() if not items), None)
    if empty is not None:
        raise EarnError(f"{folder}: user {empty!r} has no item in {', '.join(PARTS)}. Remove the user.")
    held_out = tuple((len(valid_items), len(test_items)) for _, valid_items, test_items in parts.values())
    return from_histories(folder.resolve().name, catalog.item_ids, histories, words, catalog, held_out)


def _ids_by_number(index: Path, catalog: Catalog) -> dict[str, str]:
    """From an item's number in the text to its id."""
    ids = tuple(map(str, range(len(catalog))))
    found = catalog.index.find(ids)
    if (found < 0).any():
        raise EarnError(
            f"{index}: holds {len(catalog)} items, but no item '{found.argmin()}'. Number them from 0, without a gap; "
            "the text numbers the same items from 1."
        )
    return {str(number): item for number, item in enumerate(ids, start=1)}


def _read_part(path: Path, ids: Mapping[str, str], index: Path) -> dict[str, list[str]]:
    """Each user's item ids, by user; users in the file's order."""
    users: dict[str, list[str]] = {}
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        user, *items = text.split()
        if user in users:
            raise EarnError(f"{path}, line {line}: user {user!r} stands twice. Put all items of the user on one line.")
        unknown = next((item for item in items if item not in ids), None)
        if unknown is not None:
            raise EarnError(
                f"{path}, line {line}: user {user!r} holds item {unknown!r}, but items are numbered from 1 to "
                f"{len(ids)} here: {index.name} has {len(ids)}, numbered from 0. Mend the line, or add the "
                "item there."
            )
        users[user] = [ids[item] for item in items]
    return users
