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
Numbers = NDArray[np.int32] | Ints

LINE_END = 10
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio, odd
HALF = np.uint64(32)
WORD = 8  # bytes
LEADING = np.array([(1 << 8 * count) - 1 for count in range(WORD + 1)], np.uint64)  # masks of a word's first bytes
PIECE = 1 << 16  # strings, and 64 times as many bytes, that are looked at together: temporaries stay small
FREE = -1
MOST_SMALL = 1 << 30  # bytes of text, whose places are kept as int32: what is looked up at random is then half as much
SMALL = 1 << 15  # strings that a dictionary may hold as well: it finds a few of them sooner


class Texts(Sequence[str]):
    """Strings without line breaks, one a line of UTF-8 text."""

    def __init__(self, data: Bytes) -> None:
        """Takes the text as it is; `check` looks at it."""
        self.data = data
        step = 64 * PIECE
        ends = (np.flatnonzero(data[at : at + step] == LINE_END) + at for at in range(0, len(data), step))
        starts: Ints = np.concatenate(([0], *(end + 1 for end in ends), [len(data) + 1]))
        self.starts: Numbers = starts.astype(np.int32) if len(data) < MOST_SMALL else starts  # [n+1]

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

    def lengths(self, texts: Numbers) -> Numbers:
        """The bytes of the strings with these numbers."""
        return self.starts[texts + 1] - self.starts[texts] - 1

    @cached_property
    def small_lengths(self) -> Bytes:
        """Bytes of each string, 255 where there are more: [n], which is less to look at than `starts`."""
        lengths: Bytes = np.minimum(np.diff(self.starts) - 1, 255).astype(np.uint8)
        return lengths

    @cached_property
    def shortest_and_longest(self) -> tuple[int, int]:
        """Bytes of the shortest string and of the longest."""
        steps = np.diff(self.starts)
        return int(steps.min()) - 1, int(steps.max()) - 1

    def hashes(self, part: slice, longest: int | None = None) -> Words:
        """The hashes (module docstring) of some strings side by side, none of them empty.

        Args:
            part: which strings.
            longest: bytes; longer strings get some number or other, without being read to their end.
        """
        start = self.starts[:-1][part].astype(np.int64)
        left = self.starts[1:][part] - start - 1
        hashes = _mixed(left.astype(np.uint64) * MULTIPLIER, self.words(start, left))
        longer = np.flatnonzero(left > WORD if longest is None else (left > WORD) & (left <= longest))
        start, left = start[longer] + WORD, left[longer] - WORD
        while len(longer):
            hashes[longer] = _mixed(hashes[longer], self.words(start, left))
            goes_on = left > WORD
            longer, start, left = longer[goes_on], start[goes_on] + WORD, left[goes_on] - WORD
        return hashes

    def words(self, start: Ints, left: Ints) -> Words:
        """The 8 bytes from each of these on as one number; those beyond the `left` ones as 0."""
        last = len(self._windows) - 1
        if len(start) == 0 or start.max() <= last:
            word = self._windows[start]
        else:  # a window that would leave the text starts before
            beyond = np.clip(start - last, 0, WORD - 1).astype(np.uint64)
            word = self._windows[np.minimum(start, last)] >> (8 * beyond)
        return word & LEADING[np.minimum(left, WORD)]

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

    def take(self, numbers: Sequence[int]) -> list[str]:
        """The strings with these numbers; faster than one after the other."""
        chosen, data = np.array(numbers, np.int64), self.data
        edges = zip(self.starts[chosen].tolist(), self.starts[chosen + 1].tolist(), strict=True)
        return [data[start : stop - 1].tobytes().decode() for start, stop in edges]

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
        index = cls(texts, np.full(1 << (2 * len(texts) - 1).bit_length(), FREE, np.int32))
        slots, left, slot = index.slots, np.arange(len(texts)), index._first_slots(index._hashes)
        while len(left):
            is_free = slots[slot] == FREE
            slots[slot[is_free][::-1]] = left[is_free][::-1]  # of several the first
            stays = slots[slot] != left
            left, slot = left[stays], index._next(slot[stays])
        return index

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
        for part in _parts(len(self.texts)):
            these = np.arange(part.start, part.stop)
            wrong = self._numbers(self.texts, these, self._hashes[part]) != these
            if wrong.any():
                return int(these[wrong.argmax()])
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
        longest = self.texts.shortest_and_longest[1]
        parts = ((np.arange(part.start, part.stop), wanted.hashes(part, longest)) for part in _parts(len(wanted)))
        return np.concatenate([self._numbers(wanted, *part) for part in parts])

    @cached_property
    def _numbers_of_few(self) -> Mapping[str, int]:
        return {text: number for number, text in enumerate(self.texts)}

    @cached_property
    def _hashes(self) -> Words:
        """Of all strings: almost always they tell whether a string is the one that is looked for."""
        return np.concatenate([self.texts.hashes(part) for part in _parts(len(self.texts))])

    def _numbers(self, wanted: Texts, these: Ints, hashes: Words) -> Ints:
        """The numbers of these strings of other texts, whose hashes are given."""
        found = np.full(len(these), FREE, np.int64)
        left, slot = np.arange(len(these)), self._first_slots(hashes)
        while len(left):
            number = self.slots[slot]
            is_same = (self._hashes[number] == hashes[left]) & (number != FREE)
            alike = np.flatnonzero(is_same)
            is_same[alike] = _are_equal(wanted, these[left[alike]], self.texts, number[alike])
            found[left] = np.where(is_same, number, FREE)
            goes_on = np.flatnonzero(~is_same & (number != FREE))
            left, slot = left[goes_on], self._next(slot[goes_on])
        return found

    def _first_slots(self, hashes: Words) -> Ints:
        """Where the search for strings with these hashes begins."""
        return (hashes & np.uint64(len(self.slots) - 1)).view(np.int64)

    def _next(self, slots: Ints) -> Ints:
        return (slots + 1) & (len(self.slots) - 1)

    def __getitem__(self, string: str) -> int:
        number = int(self.find([string])[0]) if isinstance(string, str) else FREE
        if number == FREE:
            raise KeyError(string)
        return number

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


def _parts(count: int) -> Iterator[slice]:
    """Some at a time of so many strings."""
    return (slice(first, min(first + PIECE, count)) for first in range(0, count, PIECE))


def _mixed(hashes: Words, words: Words) -> Words:
    """The hashes with another word each (module docstring)."""
    mixed = (hashes ^ words) * MULTIPLIER
    return mixed ^ (mixed >> HALF)


def _are_equal(one: Texts, these: Ints, other: Texts, those: Numbers) -> NDArray[np.bool_]:
    """Which strings of one text, by number, are the same as those of the other; they have equal hashes in pairs.

    Strings of one word are equal if they are of one length: each step of the hash can be undone.
    """
    length = one.small_lengths[these]
    is_equal: NDArray[np.bool_] = length == other.small_lengths[those]
    open_ = np.flatnonzero(is_equal & (length > WORD))
    if one is other:
        open_ = open_[these[open_] != those[open_]]
    start, beside = one.starts[these[open_]].astype(np.int64), other.starts[those[open_]].astype(np.int64)
    left = one.lengths(these[open_]).astype(np.int64)
    is_equal[open_] = left == other.lengths(those[open_])
    start, beside, left, open_ = (array[is_equal[open_]] for array in (start, beside, left, open_))
    while len(open_):
        same = one.words(start, left) == other.words(beside, left)
        is_equal[open_[~same]] = False
        goes_on = same & (left > WORD)
        open_, start, beside, left = open_[goes_on], start[goes_on] + WORD, beside[goes_on] + WORD, left[goes_on] - WORD
    return is_equal
