"""From the engine's calls of requests to the figures of a case: parts of a request, percentiles, limits.

A request's parts are

    early prefill                   the calls before the late stage's first: one for each piece of the prompt
    late prefill                    that first one
    decode step 1, 2, ...           each further call of the early stage with the late one behind it
    search                          the rest: beam search and all Python around the calls
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from earn.manifest import Manifest, stage_precision
from earn.profiling.roofline import MatmulBench, Work, least_ms, stage_work
from earn.profiling.rows import PREFILLS, SEARCH, STEP, TOTAL, Case, Limit, Percentiles, RequestPart
from earn.runtime.cache import cache_bytes
from earn.specs import STAGES

LEAST_VALUES = 6  # fewer have no 95 % interval: all lie on one side of the median with a probability of 2 / 2 ** n


@dataclass(frozen=True)
class Call:
    """One call of a stage."""

    stage: str
    rows: int  # m, new tokens
    cached: int  # s
    kept: int  # r
    milliseconds: float


@dataclass(frozen=True)
class Request:
    """One request and the engine's calls for it."""

    milliseconds: float
    calls: tuple[Call, ...]

    @property
    def tokens(self) -> int:
        """The length of the whole prompt."""
        last_piece = self.by_stage()[PREFILLS["early"]][-1]
        return last_piece.cached + last_piece.rows

    def by_stage(self) -> dict[str, list[Call]]:
        """The calls of each part, in the order of the request."""
        parts: dict[str, list[Call]] = {}
        step, is_decoding = 0, False
        for call in self.calls:
            step += is_decoding and call.stage == "early"
            parts.setdefault(f"{STEP}{step}" if is_decoding else PREFILLS[call.stage], []).append(call)
            is_decoding = is_decoding or call.stage == "late"
        return parts

    def parts(self) -> dict[str, float]:
        """The milliseconds of each part, and of all of them together."""
        parts = {name: sum(call.milliseconds for call in calls) for name, calls in self.by_stage().items()}
        return {**parts, SEARCH: self.milliseconds - sum(parts.values()), TOTAL: self.milliseconds}


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the median, from order statistics; None for fewer than six values."""
    from scipy.stats import quantile_test

    if len(values) < LEAST_VALUES:
        return None
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def is_tight(values: Sequence[float], tolerance: float) -> bool:
    """Whether the median's interval ends within this share of the median on either side."""
    interval, middle = median_interval(values), statistics.median(values) if values else 0.0
    return interval is not None and max(middle - interval[0], interval[1] - middle) <= tolerance * middle


def case_of(
    requests: Sequence[Request],
    manifest: Manifest,
    items: int,
    beams: int,
    tolerance: float,
    meter: LimitMeter | None = None,
) -> Case:
    """The figures of one case; without a meter it has no limits."""
    totals = [request.milliseconds for request in requests]
    tokens = round(statistics.median(request.tokens for request in requests))
    stages = stages_of(requests, meter)
    least = sum(stage.taken * stage.limit.least_ms for stage in stages.values() if stage.limit)
    return Case(
        items=items,
        tokens=tokens,
        beams=beams,
        requests=len(requests),
        interval_ms=median_interval(totals),
        noisy=not is_tight(totals, tolerance),
        cache_bytes=cache_bytes(manifest.sizes, manifest.limits, tokens, beams),
        stages=stages,
        least_ms=None if meter is None else least,  # a step counts as often as it is taken
    )


def stages_of(requests: Sequence[Request], meter: LimitMeter | None = None) -> dict[str, RequestPart]:
    """Each part of the requests, in the order of a request, then the search and the total."""
    parts, calls = [request.parts() for request in requests], [request.by_stage() for request in requests]
    low, high = np.percentile([part[TOTAL] for part in parts], (40, 60))
    middle = [part for part in parts if low <= part[TOTAL] <= high]
    stages = {}
    for name in max(parts, key=len):  # the longest search has every step
        times = Percentiles.of([part[name] for part in parts if name in part])
        taken = sum(name in part for part in parts) / len(parts)
        typical = statistics.fmean(part.get(name, 0.0) for part in middle)
        stage_calls = [stage[name] for stage in calls if name in stage]
        limit = meter.limit(stage_calls, times.p50) if meter and stage_calls else None
        stages[name] = RequestPart(times, typical, taken, limit)
    return stages


class LimitMeter:
    """Measures what the machine allows a bundle's stages."""

    def __init__(self, manifest: Manifest, threads: int | None, bandwidth: float) -> None:
        self._manifest, self._bandwidth = manifest, bandwidth
        precisions = dict.fromkeys(stage_precision(manifest.precision, stage) for stage in STAGES)
        self._benches = [MatmulBench(manifest, precision, threads) for precision in precisions]
        self.rates: dict[int, float] = {}  # by rows

    def limit(self, parts: Sequence[Sequence[Call]], p50: float) -> Limit:
        """The limit of one part, whose calls of each request are given, and whose median is known."""
        works = [reduce(add, map(self._work, calls)) for calls in parts]
        operations = round(statistics.median(work.operations for work in works))
        read = round(statistics.median(work.bytes for work in works))
        rows = round(statistics.median(calls[0].rows for calls in parts))
        if rows not in self.rates:
            self.rates[rows] = max(bench.rate(rows) for bench in self._benches)
        least = least_ms(Work(operations, read), self.rates[rows], self._bandwidth)
        return Limit(rows, operations, read, self.rates[rows], least, least / p50)

    def _work(self, call: Call) -> Work:
        return stage_work(self._manifest, call.stage, call.rows, call.cached, call.kept)
