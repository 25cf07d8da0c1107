from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from earn.errors import EarnError
from earn.export.stages import bundle_model
from earn.manifest import Manifest
from earn.model.earn_model import EarnModel
from earn.profiling import figures, profiler
from earn.profiling.figures import Call, LimitMeter, Request, case_of, is_tight, median_interval, stages_of
from earn.profiling.loading import Load, load_fresh, load_here, summarise
from earn.profiling.profiler import (
    HISTORIES,
    Subject,
    TimedEngine,
    callers_of,
    check,
    load_all,
    load_subjects,
    measure,
    random_histories,
)
from earn.profiling.roofline import stage_work
from earn.profiling.rows import Loading, Percentiles, ProfileSettings
from earn.runtime.engine import Engine
from earn.runtime.memory import HOST, Array
from earn.runtime.recommender import Recommender
from earn.specs import NEW, PAST
from tests.support import toy_catalog

SETTINGS = ProfileSettings(
    lengths=(2,), beams=(4,), k=2, seconds=1.0, requests=10, warm_up=1, callers=(1, 2), window=0.01
)
HISTORY = [["1", "2"]]


class Clock:
    """Time that passes when it is told to, and a millisecond with every reading: what Python takes, as it were."""

    def __init__(self) -> None:
        self.milliseconds = 0.0

    def __call__(self) -> float:
        self.milliseconds += 1
        return self.milliseconds / 1000


class ScriptedEngine:
    """Gives zeros, and takes as long as its script says."""

    device = HOST

    def __init__(self, clock: Clock, early: list[float], late: float = 2.0) -> None:
        self._clock, self._early, self._late = clock, early, late
        self.stages: list[str] = []

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        for array in outputs.values():
            array[...] = 0
        early = self._early[self.stages.count("early") % len(self._early)]
        self._clock.milliseconds += early if stage == "early" else self._late
        self.stages.append(stage)


@pytest.fixture
def manifest(toy_model: EarnModel) -> Manifest:
    return bundle_model(toy_model, "vocab", max_beams=8).manifest


def subject(manifest: Manifest, clock: Clock, early: list[float], name: str = "a") -> tuple[Subject, ScriptedEngine]:
    engine = ScriptedEngine(clock, early)
    timed = TimedEngine(cast(Engine, engine), clock)
    recommender = Recommender(timed, manifest, toy_catalog())
    engine.stages.clear()  # the constant head
    return Subject(name, Path(name), manifest, timed, recommender), engine


def request(*calls: tuple[str, float], total: float) -> Request:
    return Request(total, tuple(Call(stage, 3, 5, 1, milliseconds) for stage, milliseconds in calls))


@pytest.mark.parametrize(
    ("calls", "parts"),
    [
        (
            [("early", 10), ("late", 2), ("early", 4), ("late", 1), ("early", 3), ("late", 0.5)],
            {"early_prefill": 10, "late_prefill": 2, "step_1": 5, "step_2": 3.5, "search": 4.5, "total": 25},
        ),
        (  # a prompt that is read in pieces is one prefill
            [("early", 4), ("early", 6), ("late", 3), ("early", 4), ("late", 5)],
            {"early_prefill": 10, "late_prefill": 3, "step_1": 9, "search": 3, "total": 25},
        ),
    ],
)
def test_a_request_is_taken_apart(calls: list[tuple[str, float]], parts: dict[str, float]) -> None:
    assert request(*calls, total=25).parts() == parts
    pieces = Call("early", 200, 5, 1, 1.0), Call("early", 200, 205, 1, 1.0), Call("late", 1, 1, 1, 1.0)
    assert Request(9.0, (*pieces, Call("early", 8, 405, 8, 1.0))).tokens == 405


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (50, 18), (100, 40)])
def test_the_medians_interval_is_that_of_the_tables(count: int, rank: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, count + 1)).tolist()
    assert median_interval(values) == (rank, count + 1 - rank)
    assert median_interval([]) is median_interval([1.0] * 5) is None


def test_a_median_is_tight_when_its_interval_ends_near() -> None:
    assert is_tight([100.0] * 6, 0.0)
    assert is_tight([95.0, *[100.0] * 4, 105.0], 0.05)
    for values in ([94.0, *[100.0] * 5], [*[100.0] * 5, 106.0], [100.0] * 5, []):
        assert not is_tight(values, 0.05)


def test_calls_are_noted_with_their_shapes() -> None:
    clock = Clock()
    engine = TimedEngine(cast(Engine, ScriptedEngine(clock, [7.0])), clock)
    past, new = np.zeros((5, 1, 2, 1, 3)), np.ones((4, 1, 2, 1, 3))
    engine.run("early", {"input_ids": np.zeros((1, 4)), PAST: past, "keep": np.zeros(2)}, {NEW: new})
    engine.run("late", {"hidden": np.zeros((1, 2, 6)), "keep": np.zeros(1)}, {})  # a dense model's
    rounded = [replace(call, milliseconds=round(call.milliseconds)) for call in engine.calls]
    assert rounded == [Call("early", 4, 5, 2, 8), Call("late", 2, 0, 1, 3)]
    assert not new.any()  # the engine behind it ran


def test_parts_add_up_and_count_the_requests_that_have_them() -> None:
    short = [request(("early", 10.0), ("late", 2.0), total=13.0) for _ in range(3)]
    long = [request(("early", 10.0), ("late", 2.0), ("early", 5.0), ("late", 1.0), total=20.0)]
    stages = stages_of([*short, *long])
    assert list(stages) == ["early_prefill", "late_prefill", "step_1", "search", "total"]
    assert (stages["step_1"].taken, stages["step_1"].ms.p50, stages["step_1"].typical_ms) == (0.25, 6, 0)
    assert stages["total"].ms == Percentiles.of([13, 13, 13, 20])
    for requests in (short + long, long + short + long + long):
        parts = {name: stage.typical_ms for name, stage in stages_of(requests).items()}
        assert parts.pop("total") == pytest.approx(sum(parts.values()))


def test_a_search_is_timed_with_its_calls(manifest: Manifest) -> None:
    clock = Clock()
    asked, engine = subject(manifest, clock, [30.0, 10.0])
    found = asked.ask(HISTORY[0], 2, 4, clock)
    calls = len(engine.stages)
    assert engine.stages == ["early", "late"] * (calls // 2)
    assert calls >= 4  # at least one step
    assert found.calls[0].cached + found.calls[0].rows == found.tokens
    parts = found.parts()
    assert parts["early_prefill"] == pytest.approx(31)  # each call ends one reading of the clock later
    assert parts["late_prefill"] == pytest.approx(3)
    assert parts["step_1"] == pytest.approx(11 + 3)
    assert parts["search"] == pytest.approx(calls + 1)  # one reading before each call, and the last
    assert parts.pop("total") == found.milliseconds == pytest.approx(sum(parts.values()))
    assert asked.ask(HISTORY[0], 2, 4, clock).calls is not found.calls
    assert len(asked.engine.calls) == calls  # of one request


def test_the_sides_take_turns_until_all_are_tight(manifest: Manifest) -> None:
    clock = Clock()
    sides = [subject(manifest, clock, [early], f"{early}") for early in (5.0, 50.0)]
    found = measure([each for each, _ in sides], HISTORY, 4, SETTINGS, clock)
    assert [len(requests) for requests in found] == [10, 10]
    assert [len({round(request.milliseconds) for request in requests}) for requests in found] == [1, 1]
    assert found[0][0].milliseconds < found[1][0].milliseconds
    cases = [case_of(requests, manifest, 2, 4, 0.05) for requests in found]
    assert [(case.noisy, case.requests, case.items, case.beams) for case in cases] == [(False, 10, 2, 4)] * 2
    low, high = cast(tuple[float, float], cases[0].interval_ms)
    assert low == pytest.approx(high) == pytest.approx(cases[0].total.ms.p50)


def test_who_begins_changes(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(self: Subject, *_: object) -> Request:
        asked.append(self.name)
        return request(("early", 1), ("late", 1), total=3)

    monkeypatch.setattr(Subject, "ask", ask)
    sides = [subject(manifest, Clock(), [1.0], name)[0] for name in ("a", "b", "c")]
    measure(sides, HISTORY, 4, replace(SETTINGS, warm_up=0))
    assert "".join(asked[:9]) == "abcbcacab"
    assert len(asked) == 3 * SETTINGS.requests


def test_what_does_not_settle_ends_in_time_and_is_noisy(manifest: Manifest) -> None:
    clock = Clock()
    swinging, _ = subject(manifest, clock, np.random.default_rng(0).integers(1, 200, 997).tolist())
    found = measure([swinging], HISTORY, 4, SETTINGS, clock)[0]
    assert 8 <= len(found) < 100
    assert 1000 <= sum(request.milliseconds for request in found) < 3000
    assert case_of(found, manifest, 2, 4, 0.05).noisy
    slow, _ = subject(manifest, clock, [5000.0])  # asked often enough for an interval
    assert len(measure([slow], HISTORY, 4, SETTINGS, clock)[0]) == profiler.LEAST_REQUESTS


class Bench:
    """Products at a rate that depends on the rows alone."""

    def __init__(self, manifest: Manifest, precision: str, threads: int | None) -> None:
        self.asked: list[int] = []

    def rate(self, rows: int) -> float:
        self.asked.append(rows)
        return 1e6 * rows


def test_limits_are_those_of_the_median_request(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MatmulBench", Bench)

    def asked(rows: int) -> Request:
        prefill = (Call("early", 9, 3, 1, 40.0), Call("late", 1, 1, 1, 5.0))
        return Request(60.0, (*prefill, Call("early", rows, 12, rows, 6.0), Call("late", rows, 2, rows, 4.0)))

    requests = [asked(2), asked(4), asked(3), Request(60.0, asked(2).calls[:2])]
    limits = LimitMeter(manifest, None, bandwidth=1e12)
    case = case_of(requests, manifest, 2, 4, 0.05, limits)
    early, late, step = (case.stages[name].limit for name in ("early_prefill", "late_prefill", "step_1"))
    assert early is not None
    assert late is not None
    assert step is not None
    work = stage_work(manifest, "early", 9, 3, 1)
    assert (early.rows, early.operations, early.bytes) == (9, work.operations, work.bytes)
    assert early.matmul_rate == 9e6
    assert early.least_ms == pytest.approx(1000 * work.operations / 9e6)  # this memory is never the limit
    assert early.share == pytest.approx(early.least_ms / 40)
    both = stage_work(manifest, "early", 3, 12, 3) + stage_work(manifest, "late", 3, 2, 3)
    assert (step.rows, step.operations, step.bytes) == (3, both.operations, both.bytes)
    assert case.least_ms == pytest.approx(early.least_ms + late.least_ms + 0.75 * step.least_ms)
    assert case.share == pytest.approx(cast(float, case.least_ms) / 60)
    assert case.stages["search"].limit is case.stages["total"].limit is None
    assert limits.rates == {9: 9e6, 1: 1e6, 3: 3e6}  # each measured once


def test_callers_share_a_recommender(manifest: Manifest) -> None:
    sides = [subject(manifest, Clock(), [1.0], name)[0] for name in ("a", "b")]
    found = callers_of(sides, HISTORY, SETTINGS)
    assert [[row.callers for row in rows] for rows in found] == [[1, 2], [1, 2]]
    assert all(0 < row.least <= row.per_second <= row.most for rows in found for row in rows)
    assert not sides[0].engine.calls


def test_random_histories_are_of_items_that_all_have() -> None:
    catalogs = [toy_catalog(), toy_catalog(["a0 b0", "a1 b0", "a2 b0"])]
    found = random_histories(catalogs, (1, 5), seed=3)
    assert [{len(history) for history in found[length]} for length in (1, 5)] == [{1}, {5}]
    assert len(found[5]) == HISTORIES
    assert {item for history in found[5] for item in history} == {"0", "1", "2"}
    assert found == random_histories(catalogs, (1, 5), seed=3) != random_histories(catalogs, (1, 5), seed=4)
    other = replace(toy_catalog(), item_ids=tuple("abcdefgh"))
    with pytest.raises(EarnError, match="no item in common"):
        random_histories([catalogs[0], other], (1,), 0)


def test_what_a_bundle_does_not_take_is_refused(manifest: Manifest) -> None:
    check(replace(SETTINGS, lengths=(1, 6), beams=(8,)), manifest, Path("bundle"))
    for changed, says in (
        (replace(SETTINGS, lengths=(1, 7)), "bundle: reads the newest 6 items of a history, and 7 were asked for"),
        (replace(SETTINGS, beams=(9,)), "bundle: searches with 8 beams at the most"),
    ):
        with pytest.raises(EarnError, match=says):
            check(changed, manifest, Path("bundle"))


def test_loads_are_measured_in_processes_of_their_own(toy_bundle: Path) -> None:
    settings = replace(SETTINGS, loads=2, threads=1)
    subjects = load_subjects({"toy": toy_bundle}, settings)
    loading = load_all(subjects, HISTORY * 3, settings)[0]
    assert loading.loads == 2
    assert 0 < loading.ms.p50 <= loading.ms.p99
    assert loading.import_ms > 0
    assert loading.first_request_ms > 0
    if loading.peak_bytes is not None:
        assert 0 < cast(int, loading.imported_bytes) <= cast(int, loading.loaded_bytes) <= loading.peak_bytes < 1 << 30


def test_a_load_that_fails_says_why(toy_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EarnError, match=r"gone: cannot be loaded in a process of its own .*there is no bundle"):
        load_fresh(str(tmp_path / "gone"), "cpu", 1, HISTORY, 2, 4)
    assert load_here(str(toy_bundle), "cpu", 1, HISTORY, 2, 4).load_ms > 0


def test_loads_are_summarised() -> None:
    loads = [Load(1.0, 10.0, 3.0, 5, 6, None), Load(3.0, 30.0, 5.0, 4, 8, None), Load(2.0, 20.0, 4.0, 4, 7, None)]
    assert summarise(loads) == Loading(3, 2.0, Percentiles.of([10.0, 20.0, 30.0]), 4.0, 5, 8, None)
