"""Titles and metadata from a second table: one row per item.

Every other column that holds words (text, or a list of texts) is metadata, which helps to build identifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from earn.catalog import one_line
from earn.data.import_options import ImportOptions
from earn.data.interactions import Words
from earn.data.tables.columns import HEADLESS_ITEMS, ITEM_TABLE_TITLES, USUAL_NAMES, choose, given_columns
from earn.data.tables.sources import open_source
from earn.data.tables.values import MISSING, id_text, texts
from earn.errors import EarnError

USUAL_ITEM_NAMES = {"item": (*USUAL_NAMES["item"], "id"), "title": ITEM_TABLE_TITLES}


@dataclass(frozen=True)
class Items:
    """Words about items, by item id, in the table's order."""

    source: str
    by_id: Mapping[str, Words]

    @property
    def index(self) -> dict[str, int]:
        """Each item's place in the table."""
        return {item_id: place for place, item_id in enumerate(self.by_id)}

    def words(
        self, item_ids: Sequence[str], titles: Sequence[str], say: Callable[[str], None]
    ) -> tuple[list[str], list[str]]:
        """Titles and metadata of these items; where the table lacks one, the title that is given here."""
        known = [self.by_id.get(item_id) for item_id in item_ids]
        if lacking := known.count(None):
            first = item_ids[known.index(None)]
            say(f"{self.source}: {lacking:,} of {len(known):,} items are not in it, such as {first!r}: no titles")
        if unseen := len(self.by_id) - (len(known) - lacking):
            say(f"{self.source}: {unseen:,} items without an interaction are left out")
        if untitled := sum(word is not None and not word.title for word in known):
            say(f"{self.source}: {untitled:,} items have no title")
        if lacking == len(known):
            raise EarnError(
                f"{self.source}: none of the items is in it: its ids are like {next(iter(self.by_id))!r}, those of the "
                f"interactions like {item_ids[0]!r}. Give the table of these items, or name its column: --item COLUMN."
            )
        own = zip(known, titles, strict=True)
        return [(word.title if word else "") or title for word, title in own], [w.metadata if w else "" for w in known]


def read_items(path: Path, options: ImportOptions, say: Callable[[str], None]) -> Items:
    """Reads a table of items.

    Raises:
        EarnError: no table, no column of ids, or an id is missing; names the file and the line.
    """
    source = open_source(path, {}, options.encoding, HEADLESS_ITEMS)
    # a name that is not here is of a column of the interactions
    given = {role: name for role, name in given_columns(options.columns).items() if name in source.names}
    roles = choose(source, given, ["item"], ["title"], USUAL_ITEM_NAMES)
    others = [name for name in source.names if name not in roles.values() and name != "asin"]
    words: dict[str, Words] = {}
    repeats = 0
    for batch in source.batches([*roles.values(), *others]):
        columns = {name: column.to_pylist() for name, column in batch.columns.items()}
        for row, item_id in enumerate(_ids(columns[roles["item"]], batch.where)):
            if item_id in words:
                repeats += 1
                continue
            title = _words(columns[roles["title"]][row]) if "title" in roles else ""
            metadata = " ".join(filter(None, (_words(columns[name][row]) for name in others)))
            words[item_id] = Words(one_line(title), one_line(metadata))
    if not words:
        raise EarnError(f"{source.name}: only a header, no rows. Add at least one.")
    named = f"titles from {roles['title']!r}" if "title" in roles else "no titles"
    say(f"{source.name}: {source.says}; {len(words):,} items; ids from {roles['item']!r}, {named}")
    if repeats:
        say(f"{source.name}: {repeats:,} rows repeat an item; the first of each is taken")
    return Items(source.name, words)


def _words(cell: object) -> str:
    return " ".join(text for text in texts(cell) if text.strip() not in MISSING)


def _ids(values: Sequence[object], where: Callable[[int], str]) -> Iterator[str]:
    for row, value in enumerate(values):
        try:
            item_id = id_text(value)
        except ValueError:
            item_id = None
        if item_id is None:
            raise EarnError(f"{where(row)}: {str(value)[:60]!r} is no item id. Fill it in or remove the row.")
        yield item_id
