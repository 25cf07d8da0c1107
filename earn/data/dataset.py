"""Data as commands need it: read, split, with the catalog of its items, matched with a model's catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from earn.catalog import Catalog
from earn.data.formats import Interactions
from earn.data.identifiers import cached_catalog, disambiguated
from earn.data.sources import NAMED, find_source, load_interactions
from earn.data.splits import Split, split_of
from earn.errors import EarnError
from earn.metrics import Example

T = TypeVar("T")

ANALYSIS_USERS = 2000  # validation users whose attention is analyzed


@dataclass(frozen=True)
class Dataset:
    """Interactions and their split."""

    source: str  # a known name or an absolute path: it can be read again from any working folder
    interactions: Interactions
    split: Split

    def catalog(self, seed: int = 0, build: bool = False, disambiguate: bool = False, digits: str = "") -> Catalog:
        """The identifiers that the data brings; new ones if it brings none, or if they are to be built.

        Args:
            seed: of new ones.
            build: new ones even where the data brings some.
            disambiguate: items that share an identifier get one code more, which tells them apart.
            digits: a form of digits (see earn.data.digits), which are built in any case; "": identifiers.

        Raises:
            EarnError: new ones are wanted, and without titles nothing would tell later that the items are the same.
        """
        own = self.interactions.catalog
        if own is not None and not (build or digits):
            return disambiguated(own, self.split.train) if disambiguate else own
        if own is not None and not any(self.interactions.titles):
            raise EarnError(
                f"{self.source}: its items have identifiers but no titles, so a model with other identifiers could "
                "not be told from one of other items. Add titles (items.tsv), or leave away "
                f"{'--method set' if digits else '--build-identifiers'}."
            )
        if digits:
            from earn.data.digits import build_digits

            return build_digits(self.interactions, self.split.train, digits, seed=seed)
        return cached_catalog(self.interactions, self.split.train, seed=seed)

    def of_users(self, most: int, seed: int = 0) -> Dataset:
        """The same items with a sample of at most so many users; the same ones for the same seed."""
        whole = self.interactions
        users = sample(range(len(whole.user_ids)), most, seed)
        chosen = replace(
            whole,
            user_ids=tuple(whole.user_ids[user] for user in users),
            sequences=tuple(whole.sequences[user] for user in users),
            held_out=None if whole.held_out is None else tuple(whole.held_out[user] for user in users),
        )
        return Dataset(self.source, chosen, split_of(chosen))

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

    def questions(self, catalog: Catalog, users: int = ANALYSIS_USERS) -> list[tuple[list[int], int]]:
        """History and next item of a sample of validation users, as indices of the catalog; test users choose no k."""
        index = catalog.index.find(self.interactions.item_ids).tolist()
        return [
            ([index[item] for item in example.history], index[example.target])
            for example in self.examples("valid", users)
        ]

    def check_items(self, catalog: Catalog, model: str | Path) -> None:
        """Refuses a model that lacks some of the items, or to which their ids mean other items.

        Raises:
            EarnError: names one of them.
        """
        is_missing = catalog.index.find(self.interactions.item_ids) < 0
        if is_missing.any():
            first = self.interactions.item_ids[int(is_missing.argmax())]
            raise EarnError(
                f"{self.source}: {is_missing.sum()} of its {len(is_missing)} items, such as {first!r}, are not in the "
                f"catalog of {model}. Give the data that the model was trained on."
            )
        for item_id, names in zip(self.interactions.item_ids, self._names(catalog), strict=True):
            if names and all(here != there for here, there in names):
                here, there = names[0]
                raise EarnError(
                    f"{self.source}: item {item_id!r} is {here!r}, but {there!r} in the catalog of {model}: these are "
                    "other items under the same ids. Give the data that the model was trained on."
                )

    def _names(self, catalog: Catalog) -> Iterator[list[tuple[str, str]]]:
        """What may show that each item is the same here and in a catalog: one of the pairs is enough.

        The identifier, where the data brings them, without a code that tells clones apart, and the title. Either may
        differ: identifiers may have been built for a model, and titles be spelled anew. An item that lacks a title,
        though others have one, shows nothing.
        """
        own, titles = self.interactions.catalog, self.interactions.titles
        titled = any(titles) and any(catalog.titles)
        for item, index in enumerate(catalog.index.find(self.interactions.item_ids).tolist()):
            here = () if own is None else own.identifiers[item]
            names = [("".join(here), "".join(catalog.identifiers[index][: len(here)]))] if here else []
            if titled:
                names.append((titles[item], catalog.titles[index]))
            yield names if all(map(all, names)) else []


def load_dataset(source: str) -> Dataset:
    """Reads and splits a source (see earn.data)."""
    path = find_source(source)
    interactions = load_interactions(path)
    return Dataset(source if source in NAMED else str(path.resolve()), interactions, split_of(interactions))


def sample(values: Sequence[T], most: int, seed: int = 0) -> Sequence[T]:
    """At most so many of the values, in their order; the same ones for the same seed."""
    if len(values) <= most:
        return values
    chosen = np.random.default_rng(seed).choice(len(values), most, replace=False)
    return [values[index] for index in np.sort(chosen)]
