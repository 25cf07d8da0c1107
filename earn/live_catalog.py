"""Changes of a catalog under a finished model: items are removed, blocked and renamed. (earn.new_items adds some.)

Each change gives another catalog; the one before stays as it is. An item's index and identifier stay for ever, so a
history may hold whatever was once recommended:

    offered   may be recommended
    blocked   may not, until it is let free again; everything else stays
    removed   may not; it is read in histories all the same, and comes back when it is added again

Scores of the other items do not change: what is withdrawn counts as excluded. earn.bundle_edit changes a bundle's
catalog so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from earn.catalog import BLOCKED, OFFERED, REMOVED, Catalog, one_line
from earn.errors import EarnError
from earn.trie import Ints


def present(catalog: Catalog, item_ids: Collection[str | int]) -> Ints:
    """The indices of items that were not removed.

    Raises:
        EarnError: there is none of an id, or none any more.
    """
    indices = catalog.find(item_ids)
    gone = catalog.status[indices] == REMOVED
    if gone.any():
        item_id = list(item_ids)[int(gone.argmax())]
        raise EarnError(f"The item {str(item_id)!r} was removed from the catalog. Add it again first.")
    return indices


def removed(catalog: Catalog, item_ids: Collection[str | int]) -> Catalog:
    """The catalog without these items.

    Raises:
        EarnError: there is none of an id, or none any more.
    """
    return _marked(catalog, item_ids, REMOVED)


def blocked(catalog: Catalog, item_ids: Collection[str | int], is_blocked: bool = True) -> Catalog:
    """The catalog with these items blocked, or let free again.

    Raises:
        EarnError: there is none of an id, or none any more.
    """
    return _marked(catalog, item_ids, BLOCKED if is_blocked else OFFERED)


def renamed(catalog: Catalog, titles: Mapping[str, str]) -> Catalog:
    """The catalog with other titles, by item id.

    Raises:
        EarnError: there is none of an id, or none any more; or an item has two titles, as of 50 and "50".
    """
    changed = list(catalog.titles)
    items = present(catalog, tuple(titles)).tolist()
    if len(set(items)) < len(items):
        item_id = catalog.item_ids[Counter(items).most_common(1)[0][0]]
        raise EarnError(f"The item {item_id!r} is given two titles. Give it one.")
    for item, title in zip(items, titles.values(), strict=True):
        changed[item] = one_line(title)
    return replace(catalog, titles=changed)


def _marked(catalog: Catalog, item_ids: Collection[str | int], status: int) -> Catalog:
    marked = catalog.status.copy()
    marked[present(catalog, item_ids)] = status
    return replace(catalog, status=marked)
