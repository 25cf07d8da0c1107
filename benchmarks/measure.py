"""Times sides in turn, and compares their lists.

Every round asks each side, so that what else the machine does falls on all.

A request is a list of steps, each a call that says how many milliseconds it took and what it answered.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from typing import Any

from earn.console import note
from earn.runtime.recommender import Recommendation

NEAR_TIE = 1e-4  # difference of scores below which two searches may order items otherwise
PAUSE = 0.2  # seconds in which the threads of the side before fall asleep

Answer = tuple[float, Any]  # milliseconds, and what was answered
Step = Callable[[], Answer]
Lists = Sequence[Sequence[Recommendation]]


@dataclass(frozen=True)
class Side:
    """Whom to ask, and how often."""

    request: Callable[[int], Sequence[Step]]  # from the number of the round to the steps that are timed
    requests: int  # in every round
    rounds: int | None = None  # None: all of them
    warm_up: int = 1  # requests of every round before those that count


@dataclass
class Timings:
    """What a side took and answered."""

    steps: list[list[float]] = field(default_factory=list)  # milliseconds, request by request
    answers: list[Any] = field(default_factory=list)  # the last one of every round

    @property
    def totals(self) -> list[float]:
        """Milliseconds of every request."""
        return list(map(sum, self.steps))

    @property
    def median(self) -> float:
        """Milliseconds of a request."""
        return round(statistics.median(self.totals), 2)

    @property
    def step_medians(self) -> list[float]:
        """Milliseconds of every step of a request."""
        return [round(statistics.median(step), 2) for step in zip(*self.steps, strict=True)]


def timed(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Step:
    """A step that makes the call here, by the wall clock or another one in seconds."""

    def step() -> Answer:
        started = clock()
        answer = call()
        return 1000 * (clock() - started), answer

    return step


def measure(
    sides: Mapping[str, Side],
    rounds: int,
    failed: Callable[[str, Exception], None] | None = None,
    time_is_up: Callable[[], bool] = lambda: False,
    pause: float = PAUSE,
    finished: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Timings]:
    """Asks all sides in turn, round by round.

    Args:
        failed: is told of a side that raises an error, which is left out then; None: the error goes on.
        time_is_up: asked after every round; what has been measured by then counts.
        pause: seconds before each side's turn.
        finished: called after every round with the number of rounds done and the number of all.
    """
    timings = {name: Timings() for name in sides}
    for turn in range(rounds):
        for name, side in sides.items():
            if name not in timings or (side.rounds is not None and turn >= side.rounds):
                continue
            time.sleep(pause)
            try:
                _ask(side, turn, timings[name])
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del timings[name]
        finished(turn + 1, rounds)
        if time_is_up():
            break
    return timings


def _ask(side: Side, turn: int, timings: Timings) -> None:
    for request in range(-side.warm_up, side.requests):
        taken, answer = [], None
        for step in side.request(turn):
            milliseconds, answer = step()
            taken.append(milliseconds)
        if request >= 0:
            timings.steps.append(taken)
    timings.answers.append(answer)


class Clock:
    """How much time is left, and progress with the time that has passed."""

    def __init__(self, minutes: float) -> None:
        self._started = time.perf_counter()
        self._seconds = 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - (time.perf_counter() - self._started)

    def note(self, text: str) -> None:
        """Progress, beside the results."""
        note(f"[{time.perf_counter() - self._started:6.1f} s] {text}")


def one_line(error: Exception) -> str:
    """An error for a line of progress."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


class OwnProcess:
    """An object in a process of its own. Its methods are timed there."""

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        """Makes the object when it is first asked."""
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (make, arguments))

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def ask(self, method: str, *arguments: object) -> Answer:
        """Calls a method."""
        return self._pool.submit(_call, method, arguments).result()


_here: dict[str, object] = {}  # in a process of its own: the object


def _begin(make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    _here["object"] = make(*arguments)


def _call(method: str, arguments: tuple[object, ...]) -> Answer:
    call = getattr(_here["object"], method)
    return timed(lambda: call(*arguments))()


def is_same_list(want: Sequence[str], got: Sequence[Recommendation]) -> bool:
    """Whether `got` has the items of `want` in the same order, but for items of nearly the same score."""
    score = {item.item_id: item.score for item in got}
    return sorted(want) == sorted(score) and all(
        abs(score[item_id] - item.score) < NEAR_TIE for item_id, item in zip(want, got, strict=True)
    )


def overlap(want: Sequence[Sequence[str]], got: Sequence[Sequence[str]]) -> float:
    """The mean share of a list's items that the other list has too."""
    shares = [len(set(one) & set(other)) / max(1, len(one)) for one, other in zip(want, got, strict=True)]
    return round(statistics.mean(shares), 4)


def same_order(want: Sequence[Sequence[str]], got: Lists) -> float:
    """The share of lists with the same items in the same order, but for near ties."""
    return round(statistics.mean(is_same_list(*pair) for pair in zip(want, got, strict=True)), 4)


def item_ids(lists: Lists) -> list[list[str]]:
    """Lists without scores."""
    return [[item.item_id for item in items] for items in lists]


def versions(*packages: str) -> dict[str, str]:
    """Versions of those that are installed."""
    installed = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
