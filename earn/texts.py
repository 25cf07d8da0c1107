"""Many strings as one array, and the place of each string: what a catalog of millions of items is read into.

    Texts       UTF-8 text with a line per string, uint8; where each line starts is found in one pass
    TextIndex   int32 [slots], a hash table with open addressing: a string's number stands in the first slot from
                its hash on, modulo the slots, that was free when it was entered; -1 in a free slot

The hash of a string goes over its UTF-8 bytes in words of 8, little-endian, the last one filled up with zeros:
h = length * MULTIPLIER, then h = (h ^ word) * MULTIPLIER and h ^= h >> 32 for each word, modulo 2^64.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast, overload

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Ints = NDArray[np.int64]

LINE_END = 10
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio, odd
HALF = np.uint64(32)
WORD = 8  # bytes
LEADING = np.array([(1 << 8 * count) - 1 for count in range(WORD + 1)], np.uint64)  # masks of a word's first bytes
PIECE = 1 << 16  # strings, and 64 times as many bytes, that are looked at together: temporaries stay small
FREE = -1
SMALL = 1 << 15  # strings that a dictionary may hold as well: it finds a few of them sooner


class Texts(Sequence[str]):
    """Strings without line breaks, one a line of UTF-8 text."""

    def __init__(self, data: Bytes) -> None:
        """Takes the text as it is; `check` looks at it."""
        self.data = data
        step = 64 * PIECE
        ends = [np.flatnonzero(data[at : at + step] == LINE_END) + at for at in range(0, len(data), step)]
        self.starts: Ints = np.concatenate(([0], *(end + 1 for end in ends), [len(data) + 1]))  # [n+1]

    @classmethod
    def of(cls, strings: Sequence[str], errors: str = "strict") -> Texts:
        """The strings, which are one at the least.

        Args:
            errors: as of `str.encode`.

        Raises:
            ValueError: a string holds a line break, or half a character.
        """
        if isinstance(strings, Texts):
            return strings
        texts = cls(np.frombuffer("\n".join(strings).encode("utf-8", errors), np.uint8))
        if len(texts) != len(strings):
            raise ValueError("one of the strings holds a line break")
        return texts

    def check(self) -> Texts:
        """Itself, if the text is UTF-8.

        Raises:
            ValueError: it is not.
        """
        for first in range(0, len(self), PIECE):
            start, stop = self.starts[first], self.starts[min(first + PIECE, len(self))] - 1
            self.data[start:stop].tobytes().decode("utf-8")  # lines end between characters
        return self

    def lengths(self, texts: Ints) -> Ints:
        """The bytes of the strings with these numbers."""
        return self.starts[texts + 1] - self.starts[texts] - 1

    @cached_property
    def shortest_and_longest(self) -> tuple[int, int]:
        """Bytes of the shortest string and of the longest."""
        steps = np.diff(self.starts)
        return int(steps.min()) - 1, int(steps.max()) - 1

    def hashes(self, texts: Ints) -> Words:
        """The hashes (module docstring) of the strings with these numbers."""
        start, left = self.starts[texts], self.lengths(texts)
        hashes = left.astype(np.uint64) * MULTIPLIER
        longer = np.flatnonzero(left > 0)
        while len(longer):
            mixed = (hashes[longer] ^ self.words(start[longer], left[longer])) * MULTIPLIER
            hashes[longer] = mixed ^ (mixed >> HALF)
            start, left = start + WORD, left - WORD
            longer = longer[left[longer] > 0]
        return hashes

    def words(self, start: Ints, left: Ints) -> Words:
        """The 8 bytes from each of these on as one number; those beyond the `left` ones, of which 1 is there, as 0."""
        word = self._windows[np.minimum(start, len(self._windows) - 1)].astype(np.uint64)
        beyond = np.maximum(start - (len(self._windows) - 1), 0)  # a window that would leave the text starts before
        words: Words = (word >> (8 * beyond).astype(np.uint64)) & LEADING[np.minimum(left, WORD)]
        return words

    @cached_property
    def _windows(self) -> Words:
        """All 8 bytes that stand side by side, each as one number: [bytes-7], a view that is not aligned."""
        data = self.data if len(self.data) >= WORD else np.concatenate((self.data, np.zeros(WORD, np.uint8)))
        return np.ndarray((len(data) - WORD + 1,), "<u8", data, strides=(1,))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return tuple(self[number] for number in chosen)
        return self.data[self.starts[chosen] : self.starts[chosen + 1] - 1].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return iter(self.data.tobytes().decode("utf-8").split("\n"))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return np.array_equal(self.data, other.data)
        return isinstance(other, tuple) and tuple(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} strings)"


@dataclass(frozen=True, eq=False)
class TextIndex(Mapping[str, int]):
    """From each of some distinct strings, none of them empty, to its number, for many at once."""

    texts: Texts
    slots: NDArray[np.int32]  # a power of two, twice as many as strings at the least

    @classmethod
    def build(cls, texts: Texts) -> TextIndex:
        """The index of these strings; `repeated` tells of one that stands twice."""
        slots = np.full(1 << (2 * len(texts) - 1).bit_length(), FREE, np.int32)
        mask = len(slots) - 1
        left = np.arange(len(texts))
        slot = _slots(_all_hashes(texts), mask)
        while len(left):
            is_free = slots[slot] == FREE
            slots[slot[is_free][::-1]] = left[is_free][::-1]  # of several the first
            stays = slots[slot] != left
            left, slot = left[stays], (slot[stays] + 1) & mask
        return cls(texts, slots)

    def check(self) -> TextIndex:
        """Itself, if every string is found under its own number.

        Raises:
            ValueError: the table is another one's.
        """
        size, count = len(self.slots), len(self.texts)
        filled = int(np.count_nonzero(self.slots != FREE))
        if size & (size - 1) or filled != count or filled >= size:
            raise ValueError(f"the index has {size} slots and {filled} of them filled, for {count} strings")
        if self.slots.min() < FREE or self.slots.max() >= count or self.repeated() is not None:
            raise ValueError("the index is not that of the strings")
        return self

    def repeated(self) -> int | None:
        """The number of a string that is not found under this number, as the second of two equal ones is not."""
        hashes, mask = _all_hashes(self.texts), len(self.slots) - 1
        for left in _pieces(len(self.texts)):
            slot = _slots(hashes[left], mask)
            while len(left):
                number = self.slots[slot]
                is_alike = (number != left) & (hashes[number] == hashes[left])
                is_alike[is_alike] = _are_equal(
                    self.texts, left[is_alike], self.texts, number[is_alike].astype(np.int64)
                )
                wrong = is_alike | (number == FREE)
                if wrong.any():
                    return int(left[wrong.argmax()])
                goes_on = number != left
                left, slot = left[goes_on], (slot[goes_on] + 1) & mask
        return None

    def find(self, strings: Collection[object]) -> Ints:
        """The numbers of all of these, as text; -1 for those that are none of the strings."""
        if len(self.texts) <= SMALL:
            known = self._numbers_of_few
            return np.array([known.get(str(string), FREE) for string in strings], np.int64)
        if len(strings) == 0:
            return np.zeros(0, np.int64)
        try:
            wanted = Texts.of(cast(Sequence[str], strings), "surrogatepass")  # most often they are text already
        except (TypeError, ValueError):  # numbers, or a line break, which none of the strings has
            texts = map(str, strings)
            wanted = Texts.of(tuple("" if "\n" in text else text for text in texts), "surrogatepass")
        return self._numbers(wanted, np.arange(len(wanted)))

    @cached_property
    def _numbers_of_few(self) -> Mapping[str, int]:
        return {text: number for number, text in enumerate(self.texts)}

    def _numbers(self, wanted: Texts, chosen: Ints) -> Ints:
        """The numbers of the chosen ones of other texts."""
        found = np.full(len(chosen), FREE, np.int64)
        left = np.flatnonzero(wanted.lengths(chosen) <= self.texts.shortest_and_longest[1])
        mask = len(self.slots) - 1
        slot = _slots(wanted.hashes(chosen[left]), mask)
        while len(left):
            number = self.slots[slot].astype(np.int64)
            is_same = number != FREE
            is_same[is_same] = _are_equal(wanted, chosen[left[is_same]], self.texts, number[is_same])
            found[left[is_same]] = number[is_same]
            goes_on = (number != FREE) & ~is_same
            left, slot = left[goes_on], (slot[goes_on] + 1) & mask
        return found

    def __getitem__(self, string: str) -> int:
        number = int(self.find([string])[0]) if isinstance(string, str) else FREE
        if number == FREE:
            raise KeyError(string)
        return number

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


def _pieces(count: int) -> Iterator[Ints]:
    """The numbers below `count`, some at a time."""
    return (np.arange(first, min(first + PIECE, count)) for first in range(0, count, PIECE))


def _all_hashes(texts: Texts) -> Words:
    return np.concatenate([texts.hashes(piece) for piece in _pieces(len(texts))])


def _slots(hashes: Words, mask: int) -> Ints:
    """Where the search for strings with these hashes begins."""
    slots: Ints = (hashes & np.uint64(mask)).astype(np.int64)
    return slots


def _are_equal(one: Texts, these: Ints, other: Texts, those: Ints) -> NDArray[np.bool_]:
    """Which strings of one text, by number, are the same as those of the other."""
    left = one.lengths(these)
    is_equal: NDArray[np.bool_] = left == other.lengths(those)
    start, beside = one.starts[these], other.starts[those]
    open_ = np.flatnonzero(is_equal & (left > 0))
    while len(open_):
        rest = left[open_]
        same = one.words(start[open_], rest) == other.words(beside[open_], rest)
        is_equal[open_[~same]] = False
        start, beside, left = start + WORD, beside + WORD, left - WORD
        open_ = open_[same & (rest > WORD)]
    return is_equal
