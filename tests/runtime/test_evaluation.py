from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from earn.data import Example
from earn.errors import EarnError
from earn.metrics import NOT_FOUND
from earn.runtime.engine import load_engine
from earn.runtime.evaluation import median_ms, target_ranks
from earn.runtime.recommender import Recommender


def test_ranks_are_places_in_the_list(toy_bundle: Path) -> None:
    recommender = Recommender.load(toy_bundle)
    ids = recommender.catalog.item_ids
    order = [item.item_id for item in recommender.recommend(["1", "2"], k=8)]
    examples = [Example("u", np.array([1, 2]), item) for item in range(len(ids))]
    assert target_ranks(recommender, examples, ids).tolist() == [order.index(item_id) for item_id in ids]
    shown = target_ranks(recommender, examples, ids, exclude_history=True)
    assert shown[1] == shown[2] == NOT_FOUND


def test_a_bundle_too_narrow_to_evaluate_says_so(toy_bundle: Path) -> None:
    wide = Recommender.load(toy_bundle)
    narrow = replace(wide.manifest, limits=replace(wide.manifest.limits, beams=8))
    recommender = Recommender(load_engine("cpu", toy_bundle, narrow), narrow, wide.catalog)
    with pytest.raises(EarnError, match="asks for 20 items, and this bundle returns 8"):
        target_ranks(recommender, [Example("u", np.array([1]), 2)], wide.catalog.item_ids)


def test_all_are_asked_in_turn_and_warm_ups_do_not_count(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {name: Recommender.load(toy_bundle) for name in ("one", "two")}
    asked: list[str] = []
    ticks = iter(range(1000))
    monkeypatch.setattr("earn.runtime.evaluation.time.perf_counter", lambda: float(next(ticks) ** 2))
    for name, side in sides.items():
        monkeypatch.setattr(side, "recommend", lambda *_, name=name, **__: asked.append(name))
    taken = median_ms(sides, [["1"]], 1, 1, False, requests=3, warm_up=1)
    assert asked == ["one", "two"] * 4
    # Request number n starts at tick 2n and ends at 2n + 1: it takes (2n + 1)^2 - (2n)^2 = 4n + 1 seconds.
    assert taken == {"one": 1000.0 * (4 * 4 + 1), "two": 1000.0 * (4 * 5 + 1)}


def test_a_session_is_timed_from_its_last_item_on(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = Recommender.load(toy_bundle)
    done: list[object] = []

    class Recorded:
        def __init__(self, history: list[str]) -> None:
            done.append(("open", *history))

        def append(self, item: str) -> None:
            done.append(("append", item))

        def recommend(self, k: int, beams: int, exclude_history: bool) -> None:
            done.append(("recommend", k, beams, exclude_history))

    def clock() -> float:
        done.append("clock")
        return float(len(done) ** 2)

    monkeypatch.setattr(side, "session", Recorded)
    monkeypatch.setattr("earn.runtime.evaluation.time.perf_counter", clock)
    most = side.manifest.limits.history
    history = [str(item % 3 + 1) for item in range(2 * most)]
    taken = median_ms({"one": side}, [history], 5, 4, True, requests=1, warm_up=0, in_session=True)
    window = history[-max(2, most // 2) :]
    asked = [("open", *window[:-1]), "clock", ("append", window[-1]), ("recommend", 5, 4, True), "clock"]
    assert done == asked
    assert taken == {"one": 1000.0 * (5**2 - 2**2)}
