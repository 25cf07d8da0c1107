"""Times requests and their parts (prefills, decode steps, search) for several bundles in one run.

`TimedEngine` records every call of an engine; earn.profiling.figures splits a request into its parts by them. A case
is histories of one length and one width of the search. It goes on until the 95 % interval of the median is narrow; if
its time is up before, it is marked as noisy. The bundles take turns, so that other load on the machine affects all of
them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from earn.catalog import Catalog
from earn.errors import EarnError
from earn.manifest import Manifest
from earn.profiling.figures import Call, LimitMeter, Request, case_of, is_tight
from earn.profiling.loading import load_fresh, summarise
from earn.profiling.machine import others_busy, this_machine
from earn.profiling.roofline import check_onnx, memory_bandwidth, weight_bytes
from earn.profiling.rows import BundleProfile, Callers, Loading, ProfileResult, ProfileSettings
from earn.runtime.engine import Engine, load_engine
from earn.runtime.memory import Array
from earn.runtime.recommender import Recommender
from earn.specs import PAST

Clock = Callable[[], float]
History = Sequence[str]

HISTORIES = 64  # random ones of each length
LEAST_REQUESTS = 8  # of a case, however long they take: fewer have no interval
CHECK_EVERY = 10  # requests
WINDOWS = 3  # in which callers are counted
MEMORY_REQUESTS = 20  # after which a process's memory is read


class TimedEngine:
    """Passes calls on to another engine and records them."""

    def __init__(self, engine: Engine, clock: Clock = time.perf_counter) -> None:
        self._engine = engine
        self.device = engine.device
        self._clock = clock
        self.calls: list[Call] = []  # in the order of their ends

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage."""
        started = self._clock()
        self._engine.run(stage, feeds, outputs)
        milliseconds = 1000 * (self._clock() - started)
        rows = feeds["input_ids" if stage == "early" else "hidden"].shape[1]
        cached = len(feeds[PAST]) if PAST in feeds else 0  # a dense model's late stage has none
        self.calls.append(Call(stage, rows, cached, len(feeds["keep"]), milliseconds))


@dataclass(frozen=True)
class Subject:
    """A bundle that is measured."""

    name: str
    folder: Path
    manifest: Manifest
    engine: TimedEngine
    recommender: Recommender

    def ask(self, history: History, k: int, beams: int, clock: Clock) -> Request:
        """One request with its engine calls."""
        self.engine.calls.clear()
        started = clock()
        self.recommender.recommend(history, k, beams)
        milliseconds = 1000 * (clock() - started)
        return Request(milliseconds, tuple(self.engine.calls))


def load_subjects(folders: Mapping[str, Path], settings: ProfileSettings) -> list[Subject]:
    """The bundles by name.

    Raises:
        EarnError: one cannot be loaded, or does not take the settings' histories or searches.
    """
    subjects = []
    for name, folder in folders.items():
        manifest = Manifest.load(folder)
        check(settings, manifest, folder)
        engine = TimedEngine(load_engine(settings.engine, folder, manifest, settings.threads))
        recommender = Recommender.with_engine(engine, folder, manifest)
        subjects.append(Subject(name, folder, manifest, engine, recommender))
    return subjects


def check(settings: ProfileSettings, manifest: Manifest, folder: Path) -> None:
    """Raises EarnError where a bundle takes no histories as long, or no search as wide."""
    history, beams = manifest.limits.history, manifest.limits.beams
    for asked, most, what in (
        (max(settings.lengths), history, f"reads the newest {history} items of a history"),
        (max(settings.beams), beams, f"searches with {beams} beams at the most"),
    ):
        if asked > most:
            raise EarnError(f"{folder}: {what}, and {asked} were asked for. Ask for {most} or fewer.")


def random_histories(catalogs: Sequence[Catalog], lengths: Iterable[int], seed: int) -> dict[int, list[list[str]]]:
    """Histories of each length, of items that all catalogs have.

    Raises:
        EarnError: they have none in common.
    """
    items = tuple(catalogs[0].item_ids)
    known = np.all([catalog.index.find(items) >= 0 for catalog in catalogs], axis=0)
    common = [item for item, is_known in zip(items, known.tolist(), strict=True) if is_known]
    if not common:
        raise EarnError("The bundles have no item in common. Profile bundles of the same data, or one alone.")
    generator = np.random.default_rng(seed)
    return {
        length: [[common[item] for item in row] for row in generator.integers(0, len(common), (HISTORIES, length))]
        for length in lengths
    }


def measure(
    subjects: Sequence[Subject],
    histories: Sequence[History],
    beams: int,
    settings: ProfileSettings,
    clock: Clock = time.perf_counter,
) -> list[list[Request]]:
    """The requests of one case to each subject, asked in turn with the same histories."""
    k = min(settings.k, beams)
    for subject in subjects:
        for index in range(settings.warm_up):
            subject.ask(histories[index % len(histories)], k, beams, clock)
    measured: list[list[Request]] = [[] for _ in subjects]
    started = clock()
    for asked in count(1):
        history = histories[(asked - 1) % len(histories)]
        for turn in range(len(subjects)):
            index = (asked - 1 + turn) % len(subjects)  # nobody is always first
            measured[index].append(subjects[index].ask(history, k, beams, clock))
        is_late = clock() - started > settings.seconds * len(subjects)
        if is_late and asked >= LEAST_REQUESTS:
            break
        if asked >= settings.requests and asked % CHECK_EVERY == 0:
            totals = [[request.milliseconds for request in requests] for requests in measured]
            if all(is_tight(values, settings.tolerance) for values in totals):
                break
    return measured


def callers_of(
    subjects: Sequence[Subject],
    histories: Sequence[History],
    settings: ProfileSettings,
    clock: Clock = time.perf_counter,
) -> list[tuple[Callers, ...]]:
    """For each subject: the requests per second that so many callers get answered."""
    measured: list[list[Callers]] = [[] for _ in subjects]
    for callers in settings.callers:
        windows = [
            [_window(subject, histories, callers, settings, clock) for subject in subjects] for _ in range(WINDOWS)
        ]
        for rows, rates in zip(measured, zip(*windows, strict=True), strict=True):
            rows.append(Callers(callers, statistics.median(rates), min(rates), max(rates)))
    return [tuple(rows) for rows in measured]


def _window(
    subject: Subject, histories: Sequence[History], callers: int, settings: ProfileSettings, clock: Clock
) -> float:
    """Requests per second in one window; those that are under way when it ends are waited for and counted."""
    beams = settings.beams[0]
    started = clock()

    def ask(caller: int) -> int:
        for asked in count():
            if asked and clock() - started > settings.window:
                break
            subject.recommender.recommend(histories[(caller + asked) % len(histories)], min(settings.k, beams), beams)
        return asked

    with ThreadPoolExecutor(callers) as pool:
        total = sum(pool.map(ask, range(callers)))
    rate = total / (clock() - started)
    subject.engine.calls.clear()
    return rate


def load_all(subjects: Sequence[Subject], histories: Sequence[History], settings: ProfileSettings) -> list[Loading]:
    """What loading takes, in processes of their own, the subjects in turn."""
    beams, asked = max(settings.beams), histories[:MEMORY_REQUESTS]
    options = (settings.engine, settings.threads, asked, min(settings.k, beams), beams)
    rounds = [[load_fresh(str(each.folder), *options) for each in subjects] for _ in range(settings.loads)]
    return [summarise(loads) for loads in zip(*rounds, strict=True)]


def profile(
    subjects: Sequence[Subject],
    histories: Mapping[int, Sequence[History]],
    settings: ProfileSettings,
    say: Callable[[str], None] = lambda title: None,
) -> ProfileResult:
    """Measures everything.

    Args:
        histories: by their length; see `random_histories`.
        say: told what comes next, `parts(settings)` times.
    """
    machine, busy = this_machine(), others_busy()
    longest = histories[max(histories)]
    say(f"Load each bundle {settings.loads} times, in processes of their own")
    loadings = load_all(subjects, longest, settings)
    measured = []
    for items, beams in cases(settings):
        say(f"Ask with histories of {items} items, {beams} beams")
        measured.append(measure(subjects, histories[items], beams, settings))
    say(f"Ask with {', '.join(map(str, settings.callers))} callers at once")
    callers = callers_of(subjects, longest, settings)
    say("Measure what the machine allows")
    note = missing_limits(settings.engine)
    bandwidth = None if note else memory_bandwidth(settings.threads)
    by_bundle = zip(subjects, loadings, zip(*measured, strict=True), callers, strict=True)
    bundles = [_bundle(*figures, settings, bandwidth) for figures in by_bundle]
    return ProfileResult(settings, machine, bandwidth, note, busy(), tuple(bundles))


def cases(settings: ProfileSettings) -> list[tuple[int, int]]:
    """The cases as (items, beams)."""
    return [(items, beams) for beams in settings.beams for items in settings.lengths]


def parts(settings: ProfileSettings) -> int:
    """How often `profile` says what comes next."""
    return len(cases(settings)) + 3


def missing_limits(engine: str) -> str:
    """Why the machine's limits cannot be measured here; "" where they can."""
    if engine != "cpu":
        return f"Limits were left out: they are measured for the engine cpu alone, not for {engine}."
    try:
        check_onnx()
    except EarnError as error:
        return f"Limits were left out. {error}"
    return ""


def _bundle(
    subject: Subject,
    loading: Loading,
    measured: Sequence[Sequence[Request]],
    callers: tuple[Callers, ...],
    settings: ProfileSettings,
    bandwidth: float | None,
) -> BundleProfile:
    """The figures of one bundle; `measured` has the requests of each case."""
    manifest = subject.manifest
    meter = None if bandwidth is None else LimitMeter(manifest, settings.threads, bandwidth)
    figures = [
        case_of(requests, manifest, items, beams, settings.tolerance, meter)
        for (items, beams), requests in zip(cases(settings), measured, strict=True)
    ]
    return BundleProfile(
        name=subject.name,
        folder=str(subject.folder),
        precision=manifest.precision,
        layers=manifest.sizes.layers,
        early_layers=manifest.sizes.early_layers,
        bundle_bytes=manifest.bundle_bytes,
        weight_bytes=weight_bytes(manifest),
        loading=loading,
        cases=tuple(figures),
        callers=callers,
        matmul_rates=dict(sorted(meter.rates.items())) if meter else {},
    )
