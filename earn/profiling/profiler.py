"""Takes requests apart and times them: prefills, decode steps, search; several bundles in turn, in one run.

`TimedEngine` notes every call of an engine; from the calls follow a request's parts (earn.profiling.figures). A
case (histories of one length, one width of the search) goes on until the 95 % interval of the median is narrow, or
its time is up; then it is called noisy. The sides take turns, so what else the machine does falls on all of them.
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

from earn.catalog import CATALOG_FILE, Catalog
from earn.errors import EarnError
from earn.manifest import Manifest
from earn.profiling.figures import Call, Limits, Request, case_of, is_tight
from earn.profiling.loading import Order, load_fresh, summarise
from earn.profiling.machine import others_busy, this_machine, this_moment
from earn.profiling.roofline import check_onnx, memory_bandwidth, weight_bytes
from earn.profiling.rows import Callers, Loading, Profile, Settings, Side
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
    """Passes calls on to another engine and notes them."""

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
        """One request, taken apart."""
        self.engine.calls.clear()
        started = clock()
        self.recommender.recommend(history, k, beams)
        milliseconds = 1000 * (clock() - started)
        return Request(milliseconds, tuple(self.engine.calls))


def load_subjects(folders: Mapping[str, Path], settings: Settings) -> list[Subject]:
    """The bundles by name.

    Raises:
        EarnError: one cannot be loaded, or does not take the settings' histories or searches.
    """
    subjects = []
    for name, folder in folders.items():
        manifest = Manifest.load(folder)
        check(settings, manifest, folder)
        engine = TimedEngine(load_engine(settings.engine, folder, manifest, settings.threads))
        recommender = Recommender(engine, manifest, Catalog.load(folder / CATALOG_FILE))
        subjects.append(Subject(name, folder, manifest, engine, recommender))
    return subjects


def check(settings: Settings, manifest: Manifest, folder: Path) -> None:
    """Raises EarnError where a bundle takes no histories as long, or no search as wide."""
    limits = manifest.limits
    for asked, most, what in (
        (settings.lengths, limits.history, f"reads the newest {limits.history} items of a history"),
        (settings.beams, limits.beams, f"searches with {limits.beams} beams at the most"),
    ):
        if max(asked) > most:
            raise EarnError(f"{folder}: {what}, and {max(asked)} were asked for. Ask for {most} or fewer.")


def random_histories(catalogs: Sequence[Catalog], lengths: Iterable[int], seed: int) -> dict[int, list[list[str]]]:
    """Histories of each length, of items that all catalogs have.

    Raises:
        EarnError: they have none in common.
    """
    common = [item for item in catalogs[0].item_ids if all(item in catalog.index for catalog in catalogs)]
    if not common:
        raise EarnError("The bundles have no item in common. Profile bundles of the same data, or one alone.")
    generator = np.random.default_rng(seed)
    return {
        length: [[common[place] for place in row] for row in generator.integers(0, len(common), (HISTORIES, length))]
        for length in lengths
    }


def measure(
    subjects: Sequence[Subject],
    histories: Sequence[History],
    beams: int,
    settings: Settings,
    clock: Clock = time.perf_counter,
) -> list[list[Request]]:
    """The requests of one case to each subject, asked in turn with the same histories."""
    k = min(settings.k, beams)
    for subject in subjects:
        for number in range(settings.warm_up):
            subject.ask(histories[number % len(histories)], k, beams, clock)
    found: list[list[Request]] = [[] for _ in subjects]
    started = clock()
    for number in count():
        for place in range(len(subjects)):
            turn = (number + place) % len(subjects)  # nobody is always first
            found[turn].append(subjects[turn].ask(histories[number % len(histories)], k, beams, clock))
        asked, is_late = number + 1, clock() - started > settings.seconds * len(subjects)
        if is_late and asked >= LEAST_REQUESTS:
            break
        if asked >= settings.requests and asked % CHECK_EVERY == 0 and _are_tight(found, settings.tolerance):
            break
    return found


def _are_tight(found: Sequence[Sequence[Request]], tolerance: float) -> bool:
    """Whether the medians of all sides are known well."""
    return all(is_tight([request.milliseconds for request in requests], tolerance) for requests in found)


def callers_of(
    subjects: Sequence[Subject], histories: Sequence[History], settings: Settings, clock: Clock = time.perf_counter
) -> list[tuple[Callers, ...]]:
    """For each subject: the requests per second that so many callers get answered."""
    rates: dict[tuple[int, int], list[float]] = {}
    for callers in settings.callers:
        for _ in range(WINDOWS):
            for turn, subject in enumerate(subjects):
                rates.setdefault((turn, callers), []).append(_window(subject, histories, callers, settings, clock))
    return [
        tuple(
            Callers(callers, statistics.median(found), min(found), max(found))
            for (turn, callers), found in rates.items()
            if turn == place
        )
        for place in range(len(subjects))
    ]


def _window(subject: Subject, histories: Sequence[History], callers: int, settings: Settings, clock: Clock) -> float:
    """Requests per second in one window; those that are under way when it ends are waited for and counted."""
    beams = settings.beams[0]
    started = clock()

    def ask(caller: int) -> int:
        for number in count():
            if number and clock() - started > settings.window:
                break
            subject.recommender.recommend(histories[(caller + number) % len(histories)], min(settings.k, beams), beams)
        return number

    with ThreadPoolExecutor(callers) as pool:
        asked = sum(pool.map(ask, range(callers)))
    rate = asked / (clock() - started)
    subject.engine.calls.clear()
    return rate


def load_all(subjects: Sequence[Subject], histories: Sequence[History], settings: Settings) -> list[Loading]:
    """What loading takes, in processes of their own, the subjects in turn."""
    beams = max(settings.beams)
    orders = [
        Order(
            str(subject.folder),
            settings.engine,
            settings.threads,
            histories[:MEMORY_REQUESTS],
            min(settings.k, beams),
            beams,
        )
        for subject in subjects
    ]
    rounds = [[load_fresh(order) for order in orders] for _ in range(settings.loads)]
    return [summarise(loads) for loads in zip(*rounds, strict=True)]


def profile(
    subjects: Sequence[Subject],
    histories: Mapping[int, Sequence[History]],
    settings: Settings,
    say: Callable[[str], None] = lambda title: None,
) -> Profile:
    """Measures everything.

    Args:
        histories: by their length; see `random_histories`.
        say: told what comes next, `parts(settings)` times.
    """
    machine, began = this_machine(), this_moment()
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
    sides = [
        _side(subject, loadings[place], [requests[place] for requests in measured], callers[place], settings, bandwidth)
        for place, subject in enumerate(subjects)
    ]
    return Profile(settings, machine, bandwidth, note, others_busy(began, this_moment()), tuple(sides))


def cases(settings: Settings) -> list[tuple[int, int]]:
    """The cases as (items, beams)."""
    return [(items, beams) for beams in settings.beams for items in settings.lengths]


def parts(settings: Settings) -> int:
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


def _side(
    subject: Subject,
    loading: Loading,
    measured: Sequence[Sequence[Request]],
    callers: tuple[Callers, ...],
    settings: Settings,
    bandwidth: float | None,
) -> Side:
    """The figures of one bundle; `measured` has the requests of each case."""
    manifest, sizes = subject.manifest, subject.manifest.sizes
    found = [
        case_of(requests, manifest, items, beams, settings.tolerance)
        for (items, beams), requests in zip(cases(settings), measured, strict=True)
    ]
    rates: Mapping[int, float] = {}
    if bandwidth is not None:
        limits = Limits(manifest, settings.threads, bandwidth)
        found = [limits.add_to(case, requests) for case, requests in zip(found, measured, strict=True)]
        rates = limits.rates
    return Side(
        name=subject.name,
        folder=str(subject.folder),
        precision=manifest.precision,
        layers=sizes.layers,
        early_layers=sizes.early_layers,
        bundle_bytes=manifest.bundle_bytes,
        weight_bytes=weight_bytes(manifest),
        loading=loading,
        cases=tuple(found),
        callers=callers,
        product_rates=dict(sorted(rates.items())),
    )
