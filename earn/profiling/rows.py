"""What a profile holds: plain figures, written as JSON as they are. Times are milliseconds, rates are per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from earn.profiling.machine import Machine

# The parts of a request.
PREFILLS = {"early": "early_prefill", "late": "late_prefill"}  # by stage
STEP = "step_"  # and its number, from 1
SEARCH = "search"
TOTAL = "total"

DISTURBANCE = 0.05  # of the processors, taken by others


@dataclass(frozen=True)
class ProfileSettings:
    """How a profile is made."""

    lengths: tuple[int, ...]  # of histories, items
    beams: tuple[int, ...]  # widths of the search
    k: int = 10  # items of an answer, fewer where the search is narrower
    callers: tuple[int, ...] = (1, 2, 4)  # threads that ask at once
    engine: str = "cpu"
    threads: int | None = None  # of one call; the engine's own choice if None
    seconds: float = 10.0  # for each bundle and case, at the most
    requests: int = 100  # for each bundle and case, at the least, where there is time
    warm_up: int = 3  # requests of each case that are not counted
    tolerance: float = 0.05  # half of the interval of the median, of the median: beyond it a case is noisy
    loads: int = 5
    window: float = 1.0  # seconds that callers are counted for, three times
    histories: str = "random items"  # where they come from
    seed: int = 0


@dataclass(frozen=True)
class Percentiles:
    """A distribution."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Interpolated linearly between the two nearest values."""
        return cls(*(float(value) for value in np.percentile(values, (50, 90, 99))))


@dataclass(frozen=True)
class Limit:
    """What the machine allows a stage, for the median request."""

    rows: int  # of a call
    operations: int
    bytes: int
    matmul_rate: float  # operations per second, of matmuls of so many rows alone
    least_ms: float
    share: float  # of the limit that is reached: least_ms / p50


@dataclass(frozen=True)
class RequestPart:
    """One part of a request."""

    ms: Percentiles  # over the requests that have it
    typical_ms: float  # mean over the requests around the median one: these parts add up to a request
    taken: float  # share of the requests that have it: a search may end early
    limit: Limit | None = None


@dataclass(frozen=True)
class Case:
    """Requests with histories of one length, searched with one width."""

    items: int
    tokens: int  # of the prompt, registers included; median
    beams: int
    requests: int
    interval_ms: tuple[float, float] | None  # 95 % interval of the median of the total; None: too few requests
    noisy: bool  # the interval is wide
    cache_bytes: int
    stages: Mapping[str, RequestPart]  # in the order of a request, then the search and the total
    least_ms: float | None = None  # of all limits: below it the machine cannot answer; search and Python left out

    @property
    def total(self) -> RequestPart:
        """The whole request."""
        return self.stages[TOTAL]

    @property
    def share(self) -> float | None:
        """Of the machine's limit that a request reaches."""
        return None if self.least_ms is None else self.least_ms / self.total.ms.p50


@dataclass(frozen=True)
class Loading:
    """A bundle in a process of its own."""

    loads: int
    import_ms: float  # of Python's packages; median
    ms: Percentiles  # from the folder to a recommender; files were read before
    first_request_ms: float  # median
    imported_bytes: int | None  # most memory before the bundle, None where the system does not tell
    loaded_bytes: int | None  # most memory when the bundle is loaded
    peak_bytes: int | None  # most memory after requests with the longest history and the widest search


@dataclass(frozen=True)
class Callers:
    """Threads that share one recommender and ask as fast as they are answered."""

    callers: int
    per_second: float  # requests of all; median of the windows
    least: float
    most: float


@dataclass(frozen=True)
class BundleProfile:
    """One bundle."""

    name: str
    folder: str
    precision: str
    layers: int
    early_layers: int
    bundle_bytes: int
    weight_bytes: int  # that are multiplied with
    loading: Loading
    cases: tuple[Case, ...]
    callers: tuple[Callers, ...]
    matmul_rates: Mapping[int, float]  # operations per second, by rows

    @property
    def noisy(self) -> bool:
        """Whether a case is."""
        return any(case.noisy for case in self.cases)

    @property
    def longest(self) -> tuple[Case, ...]:
        """The cases with the longest histories, one for each width of the search."""
        most = max(case.items for case in self.cases)
        return tuple(case for case in self.cases if case.items == most)

    @property
    def main(self) -> Case:
        """The longest histories with the width that was asked for first."""
        return self.longest[0]


@dataclass(frozen=True)
class ProfileResult:
    """All that was measured, in one run."""

    settings: ProfileSettings
    machine: Machine
    memory_bandwidth: float | None  # bytes per second
    note: str  # why limits are left out; "" where they are not
    others_busy: float | None  # processors that other processes kept busy meanwhile; None: not known
    bundles: tuple[BundleProfile, ...]

    @property
    def disturbed(self) -> bool:
        """Whether other processes took so much that all figures are too high, however narrow their intervals."""
        return (self.others_busy or 0.0) > DISTURBANCE * self.machine.logical_cores

    @property
    def noisy(self) -> bool:
        """Whether a bundle is."""
        return any(bundle.noisy for bundle in self.bundles)

    @property
    def warnings(self) -> list[str]:
        """Why the figures cannot be relied on, in sentences; none where they can."""
        cases = [(bundle.name, case) for bundle in self.bundles for case in bundle.cases if case.noisy]
        names = [f"{name}, {case.items} items, {case.beams} beams" for name, case in cases]
        which = "; ".join(names) if len(names) <= 3 else f"{len(names)} cases"
        noisy = f"Noisy: the median is not known to {self.settings.tolerance:.0%} ({which})."
        disturbed = f"Disturbed: other processes kept {self.others_busy or 0:.1f} processors busy meanwhile."
        return [text for text, applies in ((noisy, self.noisy), (disturbed, self.disturbed)) if applies]

    def as_json(self) -> dict[str, Any]:
        """For programs, with figures of six digits."""
        value = asdict(self) | {"noisy": self.noisy, "disturbed": self.disturbed}
        for shown, bundle in zip(value["bundles"], self.bundles, strict=True):
            shown["noisy"] = bundle.noisy
        rounded: dict[str, Any] = _rounded(value)
        return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    return list(map(_rounded, value)) if isinstance(value, list | tuple) else value


def label(stage: str) -> str:
    """A stage's name for people."""
    return stage.replace(STEP, "decode step ").replace("_", " ")
