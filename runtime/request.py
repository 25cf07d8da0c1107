"""What a request may be given: checks that are the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from numbers import Integral
from typing import TypeVar

from earn.errors import EarnError

DEFAULT_BEAMS = 20  # as in the paper
EXACT = "exact"  # in place of a number of beams

T = TypeVar("T")


def one_each(values: Sequence[T] | None, default: T, users: int, name: str) -> Sequence[T]:
    """The values, if there is one for each user; the default for all of them where none are given.

    Raises:
        EarnError: there are more or fewer.
    """
    if values is None:
        return [default] * users
    if len(values) != users:
        raise EarnError(f"There are {users} histories but {len(values)} entries of {name}. Give one for each.")
    return values


def in_order(values: T, what: str) -> T:
    """The values, if they have an order.

    Raises:
        EarnError: they are a set or a mapping.
    """
    if isinstance(values, (Set, Mapping)):
        raise EarnError(f"Got a {type(values).__name__} as {what}, where the order counts. Give a list, oldest first.")
    return values


def width_of(k: int, beams: int | str | None, most: int) -> int:
    """The beams of a search for k items in a bundle that takes so many at the most.

    Raises:
        EarnError: more or fewer than the bundle allows.
    """
    if not isinstance(k, int | Integral) or not isinstance(beams, int | Integral | None):
        raise EarnError(f'k is {k!r} and beams {beams!r}. Give whole numbers; beams may be "{EXACT}" for a history.')
    if beams is None:
        beams = min(DEFAULT_BEAMS, most)
    for name, value, allows in (("k", k, f"returns 1 to {most} items"), ("beams", beams, f"takes 1 to {most}")):
        if not 1 <= value <= most:
            raise EarnError(f"{name} is {value}. This bundle {allows}; export with a larger --max-beams for more.")
    return max(int(k), int(beams))  # numpy's small integers would overflow in sums
