"""What a server takes at the most, and how it refuses the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from earn.errors import EarnError


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. Beyond each of them a request is refused at once; none of them slows the others down.

    Raises:
        EarnError: a bound is not above 0 (batch_wait_ms may be 0).
    """

    batch: int = 16  # requests that are answered in one pass
    batch_wait_ms: float = 3.0  # that the first request of a batch waits for company; a lone client never waits
    concurrent: int = 256  # requests that are waiting or being answered; beyond: 503
    deadline_s: float = 5.0  # for one request, its body and its waiting included; beyond: 504
    body_bytes: int = 256 << 10  # of one request; beyond: 413
    sessions: int = 1000  # open at one time; beyond: 503
    session_age_s: float = 1800.0  # without use, after which a session is closed

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (0 < value < math.inf) and not (field.name == "batch_wait_ms" and value == 0):
                raise EarnError(f"{field.name} is {value}. Give a finite number above 0.")


class Refusal(Exception):  # noqa: N818  # an answer, not a fault
    """A request that is answered with an error's status and one line that says what happened and what to do."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s  # the Retry-After header, where trying again later helps
