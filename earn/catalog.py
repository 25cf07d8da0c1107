"""The catalog: items, the token sequences that name them (identifiers), and titles.

One identifier may name several items; identifiers may differ in length, but none may be the beginning of another, for
then a finished item could not be told from an unfinished one.

`catalog.npz` (in checkpoints and bundles alike, no pickle) holds
    tokens       the distinct identifier tokens, as UTF-8 text joined by newlines (uint8)
    item_ids     the items' ids, likewise
    titles       the items' titles, likewise ("" where unknown)
    identifiers  int32 [items, depth], indices into tokens, -1 after an identifier's end
and beside these, not to be computed at every loading,
    slots        int32, the hash table of the ids (see earn.texts)
    trie.*       int32, the arrays of the identifiers' trie (see earn.trie); not for the method set, which has no search
and, once it was changed without a new training (see earn.live_catalog),
    status       uint8 [items]: 0 offered, 1 blocked, 2 removed; all are offered where it is missing
    read_as      int32 [added]: of each item that was added last, the trained item whose row a history reads for it;
                 only of models with a row per item
They are checked where they are there. Where they are missing, as in older files, `slots` is built at loading, and the
trie when it is first asked for, or at loading if identifiers differ in length. Nothing is
packed: the arrays are mapped into memory, and items become Python objects one by one as they are asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from earn.arrays import ArrayForm, forget_pages, map_arrays, row_blocks, write_arrays
from earn.errors import EarnError
from earn.files import read_json, written_whole
from earn.identifier_tokens import unwrapped
from earn.quantizer import QUANTIZER_FILE, Quantizer
from earn.texts import TextIndex, Texts
from earn.trie import Codes, Ints, ItemTrie

CATALOG_FILE = "catalog.npz"
_TEXT, _NUMBERS = ArrayForm("|u1", 1), ArrayForm("<i4", 1)
_TRIE = {f"trie.{part.name}": part.name for part in fields(ItemTrie)}
_FORMS = {
    **{"tokens": _TEXT, "item_ids": _TEXT, "titles": _TEXT, "identifiers": ArrayForm("<i4", 2), "slots": _NUMBERS},
    **dict.fromkeys(_TRIE, _NUMBERS),
    **{"status": ArrayForm("|u1", 1), "read_as": _NUMBERS},
}
OFFERED, BLOCKED, REMOVED = 0, 1, 2  # an item's status
Status = NDArray[np.uint8]
MOST_DEPTH = 64  # tokens of an identifier
# A catalog's file may unpack to so many bytes, and so many times its own size besides: titles compress 3 to 10 times.
MOST_UNPACKED, MOST_COMPRESSION = 64 << 20, 64


@dataclass(frozen=True, eq=False)
class Identifiers(Sequence[tuple[str, ...]]):
    """Token sequences as indices into their distinct tokens."""

    codes: Codes  # [items, depth], -1 after an identifier's end
    tokens: tuple[str, ...]  # by the depth of their first appearance

    @classmethod
    def of(cls, identifiers: Sequence[tuple[str, ...]]) -> Identifiers:
        """The identifiers, which are one at the least; tokens that first appear at one depth are in natural order."""
        if isinstance(identifiers, Identifiers):
            return identifiers
        depth: dict[str, int] = {}
        for identifier in identifiers:
            for position, token in enumerate(identifier):
                depth[token] = min(position, depth.get(token, position))
        tokens = tuple(sorted(depth, key=lambda token: (depth[token], _natural(token))))
        index_of = {token: index for index, token in enumerate(tokens)}
        codes = np.full((len(identifiers), max(map(len, identifiers))), -1, np.int32)
        for row, identifier in enumerate(identifiers):
            codes[row, : len(identifier)] = [index_of[token] for token in identifier]
        return cls(codes, tokens)

    def check(self) -> Identifiers:
        """Itself, if each row has codes of tokens and then nothing but -1, and the tokens are those of the rows.

        Raises:
            ValueError: something else.
        """
        if not 1 <= self.codes.shape[1] <= MOST_DEPTH:
            raise ValueError(f"identifiers of {self.codes.shape[1]} tokens, where 1 to {MOST_DEPTH} may be")
        depths = np.full(len(self.tokens), MOST_DEPTH)  # of each token's first appearance
        is_whole = False  # whether some identifier is as long as they claim
        for codes in row_blocks(self.codes):
            goes_on = np.ones(len(codes), bool)
            for depth, column in enumerate(codes.T):
                is_there = column >= 0
                wrong = (column < -1) | (column >= len(self.tokens)) | (is_there & ~goes_on)
                if wrong.any():
                    odd = codes[wrong.argmax()]
                    item = int((self.codes == odd).all(axis=1).argmax())
                    raise ValueError(f"item {item} has the codes {odd.tolist()} of {len(self.tokens)} tokens")
                goes_on, used = is_there, column[is_there]
                depths[used] = np.minimum(depths[used], depth)
            is_whole |= bool(goes_on.any())
            if not (codes[:, 0] >= 0).all():
                raise ValueError("an item has no identifier")
        if not is_whole:
            raise ValueError("no identifier has the length that they claim")
        is_in_order = (np.diff(depths) >= 0).all() and depths[-1] < MOST_DEPTH
        if not is_in_order or len(set(self.tokens)) != len(self.tokens) or not all(self.tokens):
            raise ValueError("its tokens are not those of the identifiers, by the depth of their first appearance")
        return self

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, ...], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
        if isinstance(index, slice):
            return tuple(map(self._tokens, self.codes[index].tolist()))
        return self._tokens(self.codes[index].tolist())

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return map(self._tokens, self.codes.tolist())

    def _tokens(self, row: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.tokens[code] for code in row if code >= 0)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Identifiers):
            return self.tokens == other.tokens and np.array_equal(self.codes, other.codes)
        return isinstance(other, tuple) and tuple(self) == other

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Catalog:
    """Items in a fixed order; an item's index is its place in `item_ids`.

    What is given as sequences is kept as arrays; sequences over these stand in their place.

    Raises:
        EarnError: no items, an id or identifier is empty or stands twice where it must not, or one identifier is the
            beginning of another.
    """

    item_ids: Sequence[str]
    identifiers: Sequence[tuple[str, ...]]  # one per item, tokens as text
    titles: Sequence[str]  # one per item, on one line each, "" where unknown
    quantizer: Quantizer | None = field(default=None, compare=False)  # makes digits of new items, where items have any
    status: Status = field(default_factory=lambda: np.zeros(0, np.uint8), compare=False, repr=False)  # [items]
    read_as: Codes = field(default_factory=lambda: np.zeros(0, np.int32), compare=False, repr=False)  # [added]
    stored: InitVar[Mapping[str, NDArray[Any]] | None] = None  # a file's arrays, with the index and the trie if it can
    index: TextIndex = field(init=False, compare=False, repr=False)  # from an item's id to its index
    codes: Codes = field(init=False, compare=False, repr=False)  # [items, depth] indices into tokens, then -1
    tokens: tuple[str, ...] = field(init=False, compare=False, repr=False)  # the distinct tokens, by depth

    def __post_init__(self, stored: Mapping[str, NDArray[Any]] | None) -> None:
        if not self.item_ids:
            raise EarnError("The catalog has no items. Give at least one item with an identifier.")
        if not len(self.item_ids) == len(self.identifiers) == len(self.titles):
            raise EarnError(
                f"The catalog has {len(self.item_ids)} ids, {len(self.identifiers)} identifiers and "
                f"{len(self.titles)} titles. Give one of each per item."
            )
        item_ids, identifiers = _texts(self.item_ids), _identifiers(self.item_ids, self.identifiers)
        titles = _texts(self.titles if isinstance(self.titles, Texts) else tuple(map(one_line, self.titles)))
        index = _index(item_ids, stored or {})
        parts: dict[str, Any] = {}
        if stored and stored.keys() >= _TRIE.keys():
            kept = {part: stored[name] for name, part in _TRIE.items()}
            parts["trie"] = ItemTrie(**kept).check(identifiers.codes)
            forget_pages(stored)
        status = self.status if len(self.status) else np.zeros(len(item_ids), np.uint8)
        if len(status) != len(item_ids) or status.max() > REMOVED:
            raise EarnError(f"The catalog has {len(item_ids)} items and {len(status)} statuses of 0 to {REMOVED}.")
        if len(self.read_as) and not 0 <= self.read_as.min() <= self.read_as.max() < self.trained:
            raise EarnError(f"The catalog's added items are read as others than its {self.trained} trained ones.")
        parts |= {"item_ids": item_ids, "identifiers": identifiers, "titles": titles, "status": status}
        parts |= {"index": index, "codes": identifiers.codes, "tokens": identifiers.tokens}
        for name, value in parts.items():
            object.__setattr__(self, name, value)
        if any((codes[:, -1] < 0).any() for codes in row_blocks(self.codes)):  # else all are of one length
            _refuse_prefixes(item_ids, identifiers, self.trie)

    @cached_property
    def trie(self) -> ItemTrie:
        """The trie of the identifiers: the file's, or built when it is first asked for."""
        return ItemTrie.build(self.codes)

    @property
    def depth(self) -> int:
        """The length of the longest identifier."""
        return int(self.codes.shape[1])

    @property
    def trained(self) -> int:
        """How many items, the first ones, the model has a row of, where it has a row per item."""
        return len(self.item_ids) - len(self.read_as)

    @property
    def is_changed(self) -> bool:
        """Whether it says more than identifiers can: items that are withdrawn, or read as others."""
        return bool(self.status.any()) or len(self.read_as) > 0

    def is_same(self, other: Catalog) -> bool:
        """Whether both say the same of the same items, their statuses among it."""
        arrays = ((self.status, other.status), (self.read_as, other.read_as))
        return self == other and all(np.array_equal(one, another) for one, another in arrays)

    def __len__(self) -> int:
        return len(self.item_ids)

    def find(self, item_ids: Collection[str | int], unknown: str = "error") -> Ints:
        """The indices of these ids, in their order; removed and blocked items have theirs still.

        Args:
            item_ids: the ids.
            unknown: "error" refuses ids that the catalog lacks, "skip" leaves them out.

        Raises:
            EarnError: an unknown item, or no collection of ids.
        """
        if unknown not in ("error", "skip"):
            raise EarnError(f'unknown is {unknown!r}. Take "error" or "skip".')
        if isinstance(item_ids, str):
            raise EarnError(f"Got the text {item_ids!r} where a list of item ids belongs. Write [{item_ids!r}].")
        if not isinstance(item_ids, Collection) or isinstance(item_ids, (bytes, bytearray, memoryview)):
            raise EarnError(f"Got {item_ids!r} where a list of item ids belongs.")
        indices = self.index.find(item_ids)
        is_known = indices >= 0
        if is_known.all():
            return indices
        if unknown == "error":
            missing = list(item_ids)[int(is_known.argmin())]
            raise EarnError(
                f'The catalog has no item {str(missing)!r}. Check the id, or skip it: unknown="skip" (--unknown skip).'
            )
        return indices[is_known]

    def sum_of_items(self) -> str:
        """A SHA-256 of the ids, and of all that a history reads of an item."""
        arrays = (Texts.of(self.item_ids).data, self.codes, self.read_as)
        return hashlib.sha256(b"".join(hashlib.sha256(array.tobytes()).digest() for array in arrays)).hexdigest()

    def save(self, path: Path, with_trie: bool = True, with_quantizer: bool = True) -> None:
        """Writes `catalog.npz` (format above), whole or not at all, and the quantizer beside it.

        Args:
            path: of the file.
            with_trie: whether the trie is written, which searches want; the method set has no use for it.
            with_quantizer: whether the quantizer is written too, where there is one.
        """
        if self.quantizer is not None and with_quantizer:
            self.quantizer.save(path.with_name(QUANTIZER_FILE))
        arrays = {
            "tokens": Texts.of(self.tokens).data,
            "item_ids": Texts.of(self.item_ids).data,
            "titles": Texts.of(self.titles).data,
            "identifiers": self.codes,
            "slots": self.index.slots,
            **({name: getattr(self.trie, part) for name, part in _TRIE.items()} if with_trie else {}),
            **({"status": self.status} if self.status.any() else {}),
            **({"read_as": self.read_as} if len(self.read_as) else {}),
        }
        with written_whole(path) as beside, beside.open("wb") as file:
            write_arrays(file, arrays)

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Reads `catalog.npz`, and the quantizer if there is one beside it.

        Raises:
            EarnError: not such a file.
        """
        try:
            arrays = map_arrays(path, _FORMS, MOST_UNPACKED + MOST_COMPRESSION * path.stat().st_size)
            item_ids, titles = Texts(arrays["item_ids"]).check(), Texts(arrays["titles"]).check()
            identifiers = Identifiers(arrays["identifiers"], tuple(Texts(arrays["tokens"]).check())).check()
            forget_pages(arrays)
            beside = path.with_name(QUANTIZER_FILE)
            quantizer = Quantizer.load(beside) if beside.is_file() else None
            changed = {name: arrays[name] for name in ("status", "read_as") if name in arrays}
            return cls(item_ids, identifiers, titles, quantizer, **changed, stored=arrays)
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise EarnError(
                f"{path}: not a readable catalog ({error}). Write the checkpoint or bundle again."
            ) from error


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


def _texts(strings: Sequence[str]) -> Texts:
    try:
        return Texts.of(strings)
    except UnicodeEncodeError as error:
        raise EarnError(f"Half a character stands in {error.object[:80]!r}. Mend the text.") from error
    except ValueError as error:
        item_id = next(string for string in strings if "\n" in string)
        raise EarnError(f"The item id {item_id!r} holds a line break. Give each item an id of one line.") from error


def _index(item_ids: Texts, stored: Mapping[str, NDArray[Any]]) -> TextIndex:
    """The index of the ids, which are distinct and not empty; the stored one where there is one."""
    if item_ids.shortest_and_longest[0] == 0:
        raise EarnError("The item id '' is empty. Give each item an id of one line.")
    if "slots" in stored:
        kept = TextIndex(item_ids, stored["slots"]).check()
        forget_pages(stored)
        return kept
    index = TextIndex.build(item_ids)
    if (repeated := index.repeated()) is not None:
        raise EarnError(f"The item id {item_ids[repeated]!r} stands twice in the catalog. Keep one of them.")
    return index


def _identifiers(item_ids: Sequence[str], identifiers: Sequence[tuple[str, ...]]) -> Identifiers:
    """The identifiers as arrays, if none is empty nor has a token that cannot be written."""
    if not isinstance(identifiers, Identifiers):
        for item_id, identifier in zip(item_ids, identifiers, strict=True):
            if not identifier or not all(identifier) or any("\n" in token for token in identifier):
                raise EarnError(
                    f"Item {item_id!r} has the identifier {identifier!r}. Give it at least one token, "
                    "and no token that is empty or holds a line break."
                )
    return Identifiers.of(identifiers)


def _refuse_prefixes(item_ids: Texts, identifiers: Identifiers, trie: ItemTrie) -> None:
    if trie.below[np.diff(trie.child_start) == 0].sum() < len(item_ids):
        shorter = int(trie.is_leaf(trie.leaf).argmin())
        longer = int(trie.items(int(trie.child_start[trie.leaf[shorter]]))[0])
        raise EarnError(
            f"The identifier of item {item_ids[shorter]!r}, {''.join(identifiers[shorter])}, is the "
            f"beginning of that of item {item_ids[longer]!r}, {''.join(identifiers[longer])}. "
            "Append a last token to the shorter one that tells it apart."
        )


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key under which <a_2> comes before <a_10>."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
