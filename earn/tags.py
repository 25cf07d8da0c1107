"""Tags of a catalog's items, such as a category, a price band, a language: `tags.npz` of a bundle.

    names  uint8           the tags' names, UTF-8, one a line
    bits   uint8 [t,bytes] of each tag one bit per item, in the catalog's order, the first item's the highest
    items  int32 [1]       items of the catalog

earn.tag_table makes them of a table of items.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.arrays import ArrayForm, read_arrays
from earn.errors import EarnError
from earn.files import written_whole

TAGS_FILE = "tags.npz"
MOST_TAGS = 10_000
MOST_UNPACKED = 64 << 20  # bytes of bits that a small file may claim
MOST_COMPRESSION = 64  # times a file's size that it may unpack to
_FORMS = {"names": ArrayForm("|u1", 1), "bits": ArrayForm("|u1", 2), "items": ArrayForm("<i4", 1)}


@dataclass(frozen=True)
class Tags:
    """Which of a catalog's items have which tag.

    Raises:
        EarnError: a name is empty or stands twice, there are too many, or the bits are not those of as many items.
    """

    names: tuple[str, ...]
    bits: NDArray[np.uint8]  # [t,bytes]
    items: int

    def __post_init__(self) -> None:
        odd = [name for name in self.names if not name or "\n" in name]
        if odd or len(set(self.names)) != len(self.names) or len(self.names) > MOST_TAGS:
            raise EarnError(
                f"There are {len(self.names)} tags, {len(set(self.names))} of them different, {len(odd)} empty or of "
                f"several lines. Give at most {MOST_TAGS} different names of one line."
            )
        if self.bits.shape != (len(self.names), -(-self.items // 8)):
            raise EarnError(
                f"The tags' bits have the shape {list(self.bits.shape)}; {len(self.names)} tags of {self.items} items "
                "take one row of bits each. Write the tags again: earn tags."
            )

    @classmethod
    def of(cls, having: Mapping[str, Sequence[int] | NDArray[np.int64]], items: int) -> Tags:
        """Tags of a catalog with so many items; `having` gives the item indices of each tag."""
        bits = np.zeros((len(having), -(-items // 8)), np.uint8)
        for row, indices in enumerate(having.values()):
            held = np.zeros(items, bool)
            held[np.asarray(indices, np.int64)] = True
            bits[row] = np.packbits(held)
        return cls(tuple(having), bits, items)

    def resized(self, items: int) -> Tags:
        """Tags of a catalog that has so many items now: those added last have no tags, those cut off had theirs."""
        width, kept = -(-items // 8), min(items, self.items)
        bits = np.zeros((len(self.names), width), np.uint8)
        bits[:, : self.bits.shape[1]] = self.bits[:, :width]
        if kept % 8:
            bits[:, kept // 8] &= 0xFF << (8 - kept % 8) & 0xFF
        return Tags(self.names, bits, items)

    @cached_property
    def _row(self) -> Mapping[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def having(self, name: str) -> NDArray[np.bool_]:
        """The items [items] with a tag.

        Raises:
            EarnError: no item ever has it; names the nearest tags.
        """
        row = self._row.get(name) if isinstance(name, str) else None
        if row is None:
            near = difflib.get_close_matches(str(name), self.names, 3, 0.5) or list(self.names[:3])
            known = f"Its tags are such as {', '.join(map(repr, near))}." if near else "It has none: see earn tags."
            raise EarnError(f"The catalog has no tag {name!r}. {known}")
        return np.unpackbits(self.bits[row], count=self.items).astype(bool)

    def save(self, path: Path) -> None:
        """Writes `tags.npz` (format above), whole or not at all."""
        names = np.frombuffer("\n".join(self.names).encode(), np.uint8)
        with written_whole(path) as beside, beside.open("wb") as file:
            np.savez_compressed(file, names=names, bits=self.bits, items=np.array([self.items], "<i4"))

    @classmethod
    def load(cls, path: Path, items: int) -> Tags:
        """Reads `tags.npz` of a catalog with so many items.

        Raises:
            EarnError: not such a file, or another catalog's.
        """
        remedy = "Write the tags again: earn tags."
        try:
            with path.open("rb") as file:
                arrays = read_arrays(file, _FORMS, MOST_UNPACKED + MOST_COMPRESSION * path.stat().st_size)
            text, tagged = arrays["names"].tobytes().decode(), arrays["items"].tolist()
            tags = cls(tuple(text.split("\n")) if text else (), arrays["bits"], items)
        except (OSError, KeyError, ValueError) as error:
            raise EarnError(f"{path}: these are no tags of this catalog ({error}). {remedy}") from error
        if tagged != [items]:
            raise EarnError(f"{path}: these are tags of {tagged} items, and the catalog has {items}. {remedy}")
        return tags


def no_tags(items: int) -> Tags:
    """Those of a catalog without any."""
    return Tags.of({}, items)
