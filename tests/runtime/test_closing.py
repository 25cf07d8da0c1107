"""Recommenders and sessions that are closed, and requests whose time is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from earn.errors import DeadlineError, EarnError
from earn.export.one_graph import compose_bundle
from earn.runtime import request
from earn.runtime.recommender import Recommender
from tests.support import histories_of, random_catalog, small_model, watched_recommender

MODEL = small_model(catalog=random_catalog(60, codes=3), max_history=5)
HISTORY = histories_of(MODEL.catalog, 1, 5)[0]


class Clock:
    """A clock that goes one second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_a_request_ends_between_any_two_passes_and_the_next_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender, engine = watched_recommender(MODEL)
    session = recommender.session(HISTORY)
    want = recommender.recommend(HISTORY, 5)
    saved, passes = session.to_bytes(), len(engine.shapes)
    recommender.recommend(HISTORY, 5, timeout_s=60)
    passes = len(engine.shapes) - passes
    for asked in (recommender, session):
        ends = 0
        for seconds in range(1, passes + 2):
            monkeypatch.setattr(request, "monotonic", Clock())
            settings: dict[str, Any] = {"timeout_s": seconds}
            try:
                got = (
                    asked.recommend(HISTORY, 5, **settings)
                    if asked is recommender
                    else session.recommend(5, **settings)
                )
            except DeadlineError:
                ends += 1
            else:
                assert [item.item_id for item in got] == [item.item_id for item in want]
        assert ends >= 3  # after reading, after the first codes, after a step
    assert [item.item_id for item in session.recommend(5)] == [item.item_id for item in want]
    assert session.to_bytes() == saved


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "1"])
def test_a_time_that_is_none_is_refused(timeout_s: Any) -> None:
    with pytest.raises(EarnError, match="timeout_s is"):
        watched_recommender(MODEL)[0].recommend(HISTORY, timeout_s=timeout_s)


def test_a_closed_recommender_says_so_and_so_do_its_sessions() -> None:
    with watched_recommender(MODEL)[0] as recommender:
        session = recommender.session(HISTORY)
        assert session.recommend(3)
    for ask in (lambda: recommender.recommend(HISTORY), lambda: recommender.session(), lambda: session.recommend(3)):
        with pytest.raises(EarnError, match="recommender is closed"):
            ask()
    recommender.close()  # twice does no harm


def test_a_closed_session_says_so_and_its_recommender_stays_open() -> None:
    recommender = watched_recommender(MODEL)[0]
    with recommender.session(HISTORY) as session:
        saved = session.to_bytes()
    asks = (session.recommend, session.to_bytes, lambda: session.append("1"), lambda: session.memory_bytes)
    for ask in (*asks, lambda: session.history):
        with pytest.raises(EarnError, match="session is closed"):
            ask()
    assert recommender.restore_session(saved).history == list(map(str, HISTORY))


@pytest.mark.slow
def test_the_one_graph_is_closed_and_refused_too_late(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compose_bundle(bundle, beams=20)
    with Recommender.load(bundle, engine="one-graph") as recommender:
        assert recommender.recommend(["1"], 3, timeout_s=60)
        monkeypatch.setattr(request, "monotonic", Clock())
        with pytest.raises(DeadlineError):
            recommender.recommend(["1"], 3, timeout_s=1)
    with pytest.raises(EarnError, match="recommender is closed"):
        recommender.recommend(["1"], 3)
