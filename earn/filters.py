"""Which items a list may hold, as an expression over tags and item ids.

    Tag("genre:Comedy") & ~Tag("adult") | Items(["50", "172"])

The same as JSON, for the command line and for other languages:

    {"or": [{"and": [{"tag": "genre:Comedy"}, {"not": {"tag": "adult"}}]}, {"items": ["50", "172"]}]}

`AllOf([])` holds every item, `AnyOf([])` none. Expressions are values: equal ones have equal hashes. `&` and `|` add to
an expression of their kind rather than nest in it, so a block list may grow item by item: `block |= Items(["7"])`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.errors import EarnError

Mask = NDArray[np.bool_]
MOST_PARTS = 1000  # of an expression from JSON
MOST_NESTED = 50


class Filter:
    """An expression; joined by `&`, `|` and `~`."""

    def __and__(self, other: Filter) -> Filter:
        parts = *_parts(self, AllOf), *_parts(other, AllOf)
        return _one_or(AllOf(dict.fromkeys(parts)))

    def __or__(self, other: Filter) -> Filter:
        parts = *_parts(self, AnyOf), *_parts(other, AnyOf)
        listed = [part.item_ids for part in parts if isinstance(part, Items)]
        if len(listed) > 1:  # a list that grows item by item stays one list
            parts = *(part for part in parts if not isinstance(part, Items)), Items(frozenset().union(*listed))
        return _one_or(AnyOf(dict.fromkeys(parts)))

    def __invert__(self) -> Filter:
        return Not(self)


@dataclass(frozen=True)
class Tag(Filter):
    """The items with a tag."""

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise EarnError(f"Got {self.name!r} where a tag's name belongs. Give a text.")


@dataclass(frozen=True, init=False)
class Items(Filter):
    """These items."""

    item_ids: frozenset[str]

    def __init__(self, item_ids: Collection[str | int]) -> None:
        if isinstance(item_ids, (str, bytes)) or not isinstance(item_ids, Collection):
            raise EarnError(f"Got {item_ids!r} where a list of item ids belongs. Write [{item_ids!r}].")
        object.__setattr__(self, "item_ids", frozenset(map(str, item_ids)))


@dataclass(frozen=True, init=False)
class Joined(Filter):
    """What several expressions say together."""

    parts: tuple[Filter, ...]

    def __init__(self, parts: Iterable[Filter]) -> None:
        parts = tuple(parts)
        for part in parts:
            if not isinstance(part, Filter):
                raise EarnError(f'Got {part!r} where a filter belongs. Write Tag("...") or Items([...]).')
        object.__setattr__(self, "parts", parts)


class AllOf(Joined):
    """The items that every part holds."""


class AnyOf(Joined):
    """The items that some part holds."""


@dataclass(frozen=True)
class Not(Filter):
    """The items that another expression does not hold."""

    part: Filter

    def __post_init__(self) -> None:
        Joined((self.part,))  # refuses what is no filter


def _parts(expression: Filter, joined: type[Joined]) -> tuple[Filter, ...]:
    """What an expression brings to an expression of this kind: its own parts where it is one."""
    return expression.parts if isinstance(expression, joined) else (expression,)


def _one_or(joined: Joined) -> Filter:
    """The only part, or the expression where it has none or several."""
    return joined.parts[0] if len(joined.parts) == 1 else joined


EVERYTHING: Filter = AllOf(())
NOTHING: Filter = AnyOf(())


def mask(expression: Filter, items: int, tag: Callable[[str], Mask], listed: Callable[[frozenset[str]], Any]) -> Mask:
    """Which of a catalog's items an expression holds: [items].

    Args:
        expression: the expression.
        items: of the catalog.
        tag: gives the items [items] with a tag.
        listed: gives the indices of item ids.

    Raises:
        EarnError: an expression that is none, or what `tag` and `listed` raise.
    """
    match expression:
        case Tag(name):
            return tag(name)
        case Items(item_ids):
            held = np.zeros(items, bool)
            held[listed(item_ids)] = True
            return held
        case Not(part):
            return ~mask(part, items, tag, listed)
        case Joined(parts):
            is_all = isinstance(expression, AllOf)
            held = np.full(items, is_all)
            for part in parts:
                (np.logical_and if is_all else np.logical_or)(held, mask(part, items, tag, listed), out=held)
            return held
    raise EarnError(f'Got {expression!r} where a filter belongs. Write Tag("...") or Items([...]).')


def to_json(expression: Filter) -> dict[str, Any]:
    """The expression as JSON; see the head of this file."""
    match expression:
        case Tag(name):
            return {"tag": name}
        case Items(item_ids):
            return {"items": sorted(item_ids)}
        case Not(part):
            return {"not": to_json(part)}
        case Joined(parts):
            return {"and" if isinstance(expression, AllOf) else "or": [to_json(part) for part in parts]}
    raise EarnError(f'Got {expression!r} where a filter belongs. Write Tag("...") or Items([...]).')


def from_json(value: Any) -> Filter:
    """The expression that JSON says.

    Raises:
        EarnError: not of the form that the head of this file shows, or larger than any filter may be.
    """
    return _read(value, [MOST_PARTS], MOST_NESTED)


def from_text(text: str) -> Filter:
    """The expression of a command line: JSON where it begins with a brace, else a tag's name.

    Raises:
        EarnError: see `from_json`.
    """
    if not text.lstrip().startswith("{"):
        return Tag(text)
    try:
        return from_json(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise EarnError(f'{text[:60]!r} is no filter in JSON ({error}). Write: {{"tag": "NAME"}}') from error


def _read(value: Any, left: list[int], nested: int) -> Filter:
    """`from_json`, with how many parts are left to be read and how deep they may be nested."""
    left[0] -= 1
    if left[0] < 0 or nested < 0:
        raise EarnError(f"A filter has more than {MOST_PARTS} parts or {MOST_NESTED} levels. List items, or add a tag.")
    if not isinstance(value, Mapping) or len(value) != 1:
        raise _odd(value)
    ((form, content),) = value.items()
    if form == "not":
        return Not(_read(content, left, nested - 1))
    if form == "tag" and isinstance(content, str):
        return Tag(content)
    if not isinstance(content, list):
        raise _odd(value)
    if form == "items" and all(type(item) in (str, int) for item in content):
        return Items(content)
    if form in ("and", "or"):
        parts = [_read(part, left, nested - 1) for part in content]
        return AllOf(parts) if form == "and" else AnyOf(parts)
    raise _odd(value)


def _odd(value: Any) -> EarnError:
    forms = '{"tag": "NAME"}, {"items": ["ID", ...]}, {"and": [...]}, {"or": [...]} or {"not": {...}}'
    return EarnError(f"{str(value)[:100]} is no filter. Write one of {forms}.")
