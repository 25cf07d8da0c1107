"""The catalog: items, the token sequences that name them (identifiers), and titles.

One identifier may name several items; identifiers may differ in length, but none may be the beginning of another, for
then a finished item could not be told from an unfinished one.

`catalog.npz` (in checkpoints and bundles alike, no pickle) holds
    tokens       the distinct identifier tokens, as UTF-8 text joined by newlines (uint8)
    item_ids     the items' ids, likewise
    titles       the items' titles, likewise ("" where unknown)
    identifiers  int32 [items, depth], indices into tokens, -1 after an identifier's end
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.arrays import ArrayForm, read_arrays
from earn.errors import EarnError
from earn.files import read_json, written_whole
from earn.identifier_tokens import unwrapped
from earn.quantizer import QUANTIZER_FILE, Quantizer

CATALOG_FILE = "catalog.npz"
_TEXT = ArrayForm("|u1", 1)
_FORMS = {"tokens": _TEXT, "item_ids": _TEXT, "titles": _TEXT, "identifiers": ArrayForm("<i4", 2)}
MOST_DEPTH = 64  # tokens of an identifier
# A catalog's file may unpack to so many bytes, and so many times its own size besides: titles compress 3 to 10 times.
MOST_UNPACKED, MOST_COMPRESSION = 64 << 20, 64


@dataclass(frozen=True)
class Catalog:
    """Items in a fixed order; an item's index is its place in `item_ids`.

    Raises:
        EarnError: no items, an id or identifier is empty or stands twice where it must not, or one identifier is the
            beginning of another.
    """

    item_ids: tuple[str, ...]
    identifiers: tuple[tuple[str, ...], ...]  # one per item, tokens as text
    titles: tuple[str, ...]  # one per item, "" where unknown
    quantizer: Quantizer | None = field(default=None, compare=False)  # makes digits of new items, where items have any

    def __post_init__(self) -> None:
        if not self.item_ids:
            raise EarnError("The catalog has no items. Give at least one item with an identifier.")
        if not len(self.item_ids) == len(self.identifiers) == len(self.titles):
            raise EarnError(
                f"The catalog has {len(self.item_ids)} ids, {len(self.identifiers)} identifiers and "
                f"{len(self.titles)} titles. Give one of each per item."
            )
        _refuse_duplicates(self.item_ids)
        for item_id, identifier in zip(self.item_ids, self.identifiers, strict=True):
            if not identifier or not all(identifier) or any("\n" in token for token in identifier):
                raise EarnError(
                    f"Item {item_id!r} has the identifier {identifier!r}. Give it at least one token, "
                    "and no token that is empty or holds a line break."
                )
        self._refuse_prefixes()

    def _refuse_prefixes(self) -> None:
        owner = dict(zip(self.identifiers, self.item_ids, strict=True))
        for identifier, item_id in owner.items():
            for end in range(1, len(identifier)):
                if identifier[:end] in owner:
                    raise EarnError(
                        f"The identifier of item {owner[identifier[:end]]!r}, {''.join(identifier[:end])}, is the "
                        f"beginning of that of item {item_id!r}, {''.join(identifier)}. "
                        "Append a last token to the shorter one that tells it apart."
                    )

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The distinct identifier tokens: by the depth of their first appearance, then in natural order."""
        depth: dict[str, int] = {}
        for identifier in self.identifiers:
            for position, token in enumerate(identifier):
                depth[token] = min(position, depth.get(token, position))
        return tuple(sorted(depth, key=lambda token: (depth[token], _natural(token))))

    @cached_property
    def codes(self) -> NDArray[np.int32]:
        """The identifiers as indices into `tokens`: [items, depth], -1 after an identifier's end."""
        index_of = {token: index for index, token in enumerate(self.tokens)}
        codes = np.full((len(self.item_ids), self.depth), -1, np.int32)
        for row, identifier in enumerate(self.identifiers):
            codes[row, : len(identifier)] = [index_of[token] for token in identifier]
        return codes

    @cached_property
    def depth(self) -> int:
        """The length of the longest identifier."""
        return max(map(len, self.identifiers))

    @cached_property
    def index(self) -> Mapping[str, int]:
        """From an item's id to its index."""
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def __len__(self) -> int:
        return len(self.item_ids)

    def save(self, path: Path) -> None:
        """Writes `catalog.npz` (format above), whole or not at all, and the quantizer beside it."""
        if self.quantizer is not None:
            self.quantizer.save(path.with_name(QUANTIZER_FILE))
        with written_whole(path) as beside, beside.open("wb") as file:
            np.savez_compressed(
                file,
                tokens=_to_bytes(self.tokens),
                item_ids=_to_bytes(self.item_ids),
                titles=_to_bytes([one_line(title) for title in self.titles]),
                identifiers=self.codes,
            )

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Reads `catalog.npz`, and the quantizer if there is one beside it.

        Raises:
            EarnError: not such a file.
        """
        try:
            with path.open("rb") as file:
                arrays = read_arrays(file, _FORMS, MOST_UNPACKED + MOST_COMPRESSION * path.stat().st_size)
            tokens = _to_strings(arrays["tokens"])
            item_ids, titles = _to_strings(arrays["item_ids"]), _to_strings(arrays["titles"])
            codes = _checked(arrays["identifiers"], len(tokens))
            identifiers = tuple(tuple(tokens[code] for code in row if code >= 0) for row in codes.tolist())
        except (OSError, KeyError, ValueError) as error:
            raise EarnError(
                f"{path}: not a readable catalog ({error}). Write the checkpoint or bundle again."
            ) from error
        beside = path.with_name(QUANTIZER_FILE)
        return cls(item_ids, identifiers, titles, Quantizer.load(beside) if beside.is_file() else None)


def read_index(path: Path, titles: Mapping[str, str] | None = None) -> Catalog:
    """Reads `*.index.json` of LC-Rec and LETTER: `{"item": ["<a_1>", "<b_2>", ...], ...}`.

    Wrappers around identifiers (see earn.identifier_tokens) are left out: they tell no item from another.
    Codes may be whole numbers, one per level: [1, 2] is ["<a_1>", "<b_2>"].

    Raises:
        EarnError: the file is not of that form; names the file and the item.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise EarnError(f'{path}: holds a {type(value).__name__}, not an object {{"item": ["<a_1>", ...]}}.')
    for item_id, identifier in value.items():
        kinds = {type(token) for token in identifier} if isinstance(identifier, list) else set()
        if kinds == {int}:
            value[item_id] = [f"<{chr(ord('a') + level)}_{code}>" for level, code in enumerate(identifier)]
        elif not isinstance(identifier, list) or not kinds <= {str}:
            raise EarnError(
                f'{path}: the identifier of item {item_id!r} is {identifier!r}. Give a list like ["<a_1>", "<b_2>"].'
            )
    titles = titles or {}
    try:
        return Catalog(
            tuple(value),
            tuple(map(unwrapped, value.values())),
            tuple(titles.get(item_id, "") for item_id in value),
        )
    except EarnError as error:
        raise EarnError(f"{path}: {error}") from error


def one_line(text: str) -> str:
    """The text with every run of white space as one space: titles are stored one per line."""
    return " ".join(text.split())


def _refuse_duplicates(item_ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for item_id in item_ids:
        if not item_id or "\n" in item_id:
            raise EarnError(
                f"The item id {item_id!r} is empty or holds a line break. Give each item an id of one line."
            )
        if item_id in seen:
            raise EarnError(f"The item id {item_id!r} stands twice in the catalog. Keep one of them.")
        seen.add(item_id)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key under which <a_2> comes before <a_10>."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _checked(codes: NDArray[np.int32], tokens: int) -> NDArray[np.int32]:
    """Identifiers [items,depth] as codes, if each is a code's index followed by nothing but -1."""
    if codes.shape[1] > MOST_DEPTH:
        raise ValueError(f"identifiers of {codes.shape[1]} tokens, where {MOST_DEPTH} may be")
    wrong = (codes < -1) | (codes >= tokens)
    wrong[:, 1:] |= (codes[:, :-1] < 0) & (codes[:, 1:] >= 0)
    if wrong.any():
        row = int(wrong.any(1).argmax())
        raise ValueError(f"item {row} has the codes {codes[row].tolist()} of {tokens} tokens")
    return codes


def _to_bytes(strings: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(strings).encode("utf-8"), np.uint8)


def _to_strings(data: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(data.tobytes().decode("utf-8").split("\n"))
