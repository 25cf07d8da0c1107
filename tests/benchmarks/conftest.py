from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from benchmarks import peers, sides
from benchmarks.sides import Answer, OwnProcess, measure, timed


class Here(OwnProcess):
    """Stands for a process of its own: the object is in this one, so that no libraries are imported anew."""

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        self._object = make(*arguments)

    def __exit__(self, *error: object) -> None:
        del self._object

    def ask(self, method: str, *arguments: object) -> Answer:
        return timed(partial(getattr(self._object, method), *arguments))()


@pytest.fixture
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides take turns in this process and without pauses: what they say is looked at, not how fast they are."""
    monkeypatch.setattr(peers, "OwnProcess", Here)
    monkeypatch.setattr(sides, "KEEP_MEMORY", {})
    monkeypatch.setattr(sides, "measure", partial(measure, pause=0))
