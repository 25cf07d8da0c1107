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
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np

from earn.manifest import Manifest
from earn.profiling.roofline import MatmulBench, Work, least_ms, stage_work
from earn.profiling.rows import PREFILLS, SEARCH, STEP, TOTAL, Case, Limit, Percentiles, RequestPart
from earn.runtime.cache import cache_bytes

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
        """The milliseconds of each part; they add up to the request's."""
        parts = {name: sum(call.milliseconds for call in calls) for name, calls in self.by_stage().items()}
        return {**parts, SEARCH: self.milliseconds - sum(parts.values())}


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


def case_of(requests: Sequence[Request], manifest: Manifest, items: int, beams: int, tolerance: float) -> Case:
    """The figures of one case, without limits."""
    totals = [request.milliseconds for request in requests]
    tokens = round(statistics.median(request.tokens for request in requests))
    return Case(
        items=items,
        tokens=tokens,
        beams=beams,
        requests=len(requests),
        interval_ms=median_interval(totals),
        noisy=not is_tight(totals, tolerance),
        cache_bytes=cache_bytes(manifest.sizes, manifest.limits, tokens, beams),
        stages=stages_of(requests),
    )


def stages_of(requests: Sequence[Request]) -> dict[str, RequestPart]:
    """Each part of the requests, in the order of a request, then the search and the total."""
    parts = [{**request.parts(), TOTAL: request.milliseconds} for request in requests]
    names = dict.fromkeys(name for part in sorted(parts, key=len, reverse=True) for name in part)
    low, high = np.percentile([part[TOTAL] for part in parts], (40, 60))
    middle = [part for part in parts if low <= part[TOTAL] <= high]
    stages = {}
    for name in names:
        times = [part[name] for part in parts if name in part]
        typical = statistics.fmean(part.get(name, 0.0) for part in middle)
        stages[name] = RequestPart(Percentiles.of(times), typical, len(times) / len(parts))
    return stages


class LimitMeter:
    """Measures what the machine allows a bundle's stages."""

    def __init__(self, manifest: Manifest, threads: int | None, bandwidth: float) -> None:
        self._manifest, self._bandwidth = manifest, bandwidth
        self._bench = MatmulBench(manifest, threads)
        self.rates: dict[int, float] = {}  # by rows

    def add_to(self, case: Case, requests: Sequence[Request]) -> Case:
        """The case with the limits of its stages and of the whole request: a step counts as often as it is taken."""
        calls: dict[str, list[list[Call]]] = {}
        for request in requests:
            for name, part in request.by_stage().items():
                calls.setdefault(name, []).append(part)
        stages = {
            name: replace(stage, limit=self._limit(calls[name], stage.ms.p50) if name in calls else None)
            for name, stage in case.stages.items()
        }
        least = sum(stage.taken * stage.limit.least_ms for stage in stages.values() if stage.limit)
        return replace(case, stages=stages, least_ms=least)

    def _limit(self, parts: Sequence[Sequence[Call]], p50: float) -> Limit:
        works = [reduce(add, (self._work(call) for call in calls)) for calls in parts]
        work = Work(
            round(statistics.median(each.operations for each in works)),
            round(statistics.median(each.bytes for each in works)),
        )
        rows = round(statistics.median(calls[0].rows for calls in parts))
        if rows not in self.rates:
            self.rates[rows] = self._bench.rate(rows)
        least = least_ms(work, self.rates[rows], self._bandwidth)
        return Limit(rows, work.operations, work.bytes, self.rates[rows], least, least / p50)

    def _work(self, call: Call) -> Work:
        return stage_work(self._manifest, call.stage, call.rows, call.cached, call.kept)
