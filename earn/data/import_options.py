"""What a caller may choose about a table of interactions."""

from __future__ import annotations

from dataclasses import dataclass, field

from earn.errors import EarnError

DEDUPE = ("none", "consecutive", "all")
TIES = ("keep", "shuffle")
ORDERS = ("time", "file")
UNITS = ("s", "ms", "us", "ns")


@dataclass(frozen=True)
class Columns:
    """Names of columns, or their numbers from 1 in a file without a header; None: found by their usual names."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    title: str | None = None  # of the item, in the table of interactions or in the table of items


@dataclass(frozen=True)
class ImportOptions:
    """How a table becomes histories.

    Raises:
        EarnError: a value that is none of those allowed.
    """

    columns: Columns = field(default_factory=Columns)
    min_rating: float | None = None  # keep interactions rated at least so
    since: str | None = None  # keep interactions from this time on: ISO text or a number as in the table
    until: str | None = None  # keep interactions before this time
    dedupe: str = "none"  # or drop repeats of an item right after itself (consecutive), or all later ones (all)
    k_core: int = 0  # keep users and items with at least so many interactions, until that is true of all
    ties: str = "keep"  # at equal times: the table's order, or an order drawn from ids and seed (shuffle)
    seed: int = 0
    order: str = "time"  # or "file": the table has no times, its rows are in order
    unit: str | None = None  # of times that are numbers; None: told from their size
    drop_missing: bool = False  # leave out rows without user, item, time or rating instead of refusing them
    encoding: str | None = None  # of text files; None: UTF-8, or UTF-16 where the file shows it

    def __post_init__(self) -> None:
        for name, allowed in (("dedupe", DEDUPE), ("ties", TIES), ("order", ORDERS)):
            if (value := getattr(self, name)) not in allowed:
                raise EarnError(f"{name} is {value!r}. Take one of: {', '.join(allowed)}.")
        if self.unit is not None and self.unit not in UNITS:
            raise EarnError(f"unit is {self.unit!r}. Take one of: {', '.join(UNITS)}.")
        if self.k_core < 0:
            raise EarnError(f"k_core is {self.k_core}. Take 0 (no filter) or more.")
        if self.order == "file" and (self.since is not None or self.until is not None):
            raise EarnError("since and until need times, and order is 'file'. Leave one of them away.")
