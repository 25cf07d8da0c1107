"""Data as commands need it: read, split, with the catalog of its items, matched with a model's catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from earn.catalog import Catalog
from earn.data import NAMED, Example, Interactions, Split, find_source, load_interactions, split_of
from earn.errors import EarnError

T = TypeVar("T")


@dataclass(frozen=True)
class Dataset:
    """Interactions and their split."""

    source: str  # a known name or an absolute path: it can be read again from any working folder
    interactions: Interactions
    split: Split

    def catalog(self, seed: int = 0) -> Catalog:
        """The identifiers that the data brings, or else new ones."""
        if self.interactions.catalog is not None:
            return self.interactions.catalog
        from earn.identifiers import build_catalog

        return build_catalog(self.interactions, self.split.train, seed=seed)

    def histories(self, examples: Sequence[Example]) -> list[list[str]]:
        """The examples' histories as item ids."""
        ids = self.interactions.item_ids
        return [[ids[item] for item in example.history] for example in examples]

    def examples(self, part: str = "test", users: int | None = None) -> Sequence[Example]:
        """The split's examples of "valid" or "test", or a sample of that many users.

        Raises:
            EarnError: there are none.
        """
        chosen = self.split.valid if part == "valid" else self.split.test
        if not chosen:
            reason, remedy = (
                ("no user has three items or more", "Give longer histories")
                if self.interactions.held_out is None
                else (f"its split gives no user a {part} item that comes after others", "Hold out such items")
            )
            raise EarnError(f"{self.source}: {reason}, so nobody can be evaluated. {remedy}.")
        return chosen if users is None else sample(chosen, users)

    def check_items(self, catalog: Catalog, model: str | Path) -> None:
        """Refuses a model that lacks some of the items, or to which their ids mean other items.

        Raises:
            EarnError: names one of them.
        """
        missing = [item_id for item_id in self.interactions.item_ids if item_id not in catalog.index]
        if missing:
            items = len(self.interactions.item_ids)
            raise EarnError(
                f"{self.source}: {len(missing)} of its {items} items, such as {missing[0]!r}, are not in the "
                f"catalog of {model}. Give the data that the model was trained on."
            )
        for item_id, here, there in self._names(catalog):
            if here != there:
                raise EarnError(
                    f"{self.source}: item {item_id!r} is {here!r}, but {there!r} in the catalog of {model}: these are "
                    "other items under the same ids. Give the data that the model was trained on."
                )

    def _names(self, catalog: Catalog) -> Iterator[tuple[str, str, str]]:
        """Each item's id, and what tells the item apart, here and in a catalog.

        That is its identifier where the data brings them. Those that are built depend on a seed, so for other data it
        is the title, where both have one.
        """
        own = self.interactions.catalog
        for item, item_id in enumerate(self.interactions.item_ids):
            place = catalog.index[item_id]
            if own is not None:
                yield item_id, "".join(own.identifiers[item]), "".join(catalog.identifiers[place])
            elif self.interactions.titles[item] and catalog.titles[place]:
                yield item_id, self.interactions.titles[item], catalog.titles[place]


def load_dataset(source: str) -> Dataset:
    """Reads and splits a source (see earn.data)."""
    path = find_source(source)
    interactions = load_interactions(path)
    return Dataset(source if source in NAMED else str(path.resolve()), interactions, split_of(interactions))


def sample(values: Sequence[T], most: int, seed: int = 0) -> Sequence[T]:
    """At most so many of the values, in their order; the same ones for the same seed."""
    if len(values) <= most:
        return values
    places = np.random.default_rng(seed).choice(len(values), most, replace=False)
    return [values[place] for place in np.sort(places)]
