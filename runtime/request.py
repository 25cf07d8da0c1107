"""What a request may be given, whatever the engine, and how long it may take.

The deadline belongs to the thread that asked, so no function between the request and the model's passes need hand it
on. It is looked at before every pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from time import monotonic
from typing import Any, TypeVar

from earn.errors import DeadlineError, EarnError

DEFAULT_BEAMS = 20  # as in the paper
EXACT = "exact"  # in place of a number of beams

T = TypeVar("T")
_deadline: ContextVar[tuple[float, float]] = ContextVar("deadline", default=(math.inf, math.inf))  # when, seconds given


class Closed:
    """Stands in the place of a part that was let go: whoever asks it anything learns that its owner is closed."""

    def __init__(self, owner: str, remedy: str) -> None:
        self._message = f"The {owner} is closed. {remedy}"

    def __getattr__(self, name: str) -> Any:
        raise EarnError(self._message)


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


@contextmanager
def within(timeout_s: float | None) -> Iterator[None]:
    """Gives the passes of the block so many seconds from now on; None: as many as they take.

    Raises:
        EarnError: it is no number above 0.
    """
    if timeout_s is None:
        yield
        return
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
        raise EarnError(f"timeout_s is {timeout_s!r}. Give seconds, a number above 0, or None.")
    before = _deadline.set((monotonic() + timeout_s, timeout_s))
    try:
        yield
    finally:
        _deadline.reset(before)


def seconds_left() -> float | None:
    """What is left of the time, below 0 where it is over; None where there is no limit."""
    end, _ = _deadline.get()
    return None if end == math.inf else end - monotonic()


def too_late() -> DeadlineError:
    """The error of a request whose time is over."""
    return DeadlineError(
        f"The request was not answered within {_deadline.get()[1]:g} s. Give it more time (timeout_s), fewer beams, or "
        "a shorter history."
    )


def check_deadline() -> None:
    """Ends a request whose time is over.

    Raises:
        DeadlineError: it is.
    """
    left = seconds_left()
    if left is not None and left <= 0:
        raise too_late()
