"""The deadline of a request, which is looked at before every pass of the model.

It belongs to the thread that asked, so no function between the request and the passes need hand it on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from earn.errors import DeadlineError, EarnError

_deadline: ContextVar[tuple[float, float] | None] = ContextVar(
    "deadline", default=None
)  # when; seconds that were given


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
    deadline = _deadline.get()
    return None if deadline is None else deadline[0] - monotonic()


def too_late() -> DeadlineError:
    """The error of a request whose time is over."""
    _, given = _deadline.get() or (0.0, 0.0)
    return DeadlineError(
        f"The request was not answered within {given:g} s. Give it more time (timeout_s), fewer beams, or a "
        "shorter history."
    )


def check_deadline() -> None:
    """Ends a request whose time is over.

    Raises:
        DeadlineError: it is.
    """
    left = seconds_left()
    if left is not None and left <= 0:
        raise too_late()
