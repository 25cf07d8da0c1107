"""Answers concurrent requests together: what arrives while one batch is computed forms the next.

When a batch had company, the next waits until as many requests have arrived again, at the most `wait_s` after its first
one. So a lone client never waits, and the latency budget of batching is `wait_s` on top of the running batch.
Requests share a batch where they ask the same recommender with the same k and beams.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field

from earn.errors import EarnError
from earn.filters import EVERYTHING, NOTHING, Filter
from earn.runtime.lists import Recommendations
from earn.runtime.recommender import Recommender
from earn.serve.limits import Refusal


@dataclass(frozen=True)
class Query:
    """One request that was checked: nothing in it can fail for the client's fault any more."""

    history: tuple[str, ...]  # known item ids, oldest first, at least one
    exclude: tuple[str, ...]  # known item ids
    k: int
    beams: int | str | None
    allow: Filter = EVERYTHING
    block: Filter = NOTHING
    unknown: str = "error"  # of the ids in both
    skipped: tuple[str, ...] = ()  # ids of the request that the catalog lacks


@dataclass(frozen=True)
class Answer:
    """The list for one request, and where its time went."""

    items: Recommendations
    batch: int  # requests that were answered in the same pass
    wait_ms: float  # until its batch began
    compute_ms: float  # of its batch


@dataclass
class _Job:
    recommender: Recommender
    query: Query
    future: asyncio.Future[Answer]
    arrived_s: float = field(default_factory=time.perf_counter)

    @property
    def group(self) -> tuple[int, int, int | str | None, str]:
        """Jobs of the same group may share a batch."""
        return id(self.recommender), self.query.k, self.query.beams, self.query.unknown


class Batcher:
    """One queue in front of one thread that computes; `run` has to be a task of the event loop."""

    def __init__(self, executor: Executor, most: int, wait_s: float, observe: Callable[[int], None]) -> None:
        """Takes the most requests of a batch, how long its first waits, and who is told each batch's size."""
        self._executor = executor
        self._most, self._wait_s, self._observe = most, wait_s, observe
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._expected = 1  # requests in the last batch

    async def recommend(self, recommender: Recommender, query: Query) -> Answer:
        """Queues a query and waits for its answer; where the caller is cancelled, so is the query.

        Raises:
            Refusal: 500, the bundle gave no answer.
        """
        job = _Job(recommender, query, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._arrived.set()
        return await job.future

    async def run(self) -> None:
        """Answers batch after batch until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._company()
            batch = self._take()
            if not batch:
                continue
            started = time.perf_counter()
            lists = await loop.run_in_executor(self._executor, _answers, batch)
            compute_ms = 1e3 * (time.perf_counter() - started)
            self._expected = len(batch)
            self._observe(len(batch))
            for job, items in zip(batch, lists, strict=True):
                if job.future.done():  # its client has left
                    continue
                if isinstance(items, Exception):
                    job.future.set_exception(items)
                else:
                    wait_ms = 1e3 * (started - job.arrived_s)
                    job.future.set_result(Answer(items, len(batch), wait_ms, compute_ms))

    async def _company(self) -> None:
        """Waits for a first request, and for as many as the last batch had, at the most `wait_s` after the first."""
        while not self._jobs:
            self._arrived.clear()
            await self._arrived.wait()
        until = self._jobs[0].arrived_s + self._wait_s
        while len(self._jobs) < min(self._expected, self._most):
            left = until - time.perf_counter()
            if left <= 0:
                return
            self._arrived.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _take(self) -> list[_Job]:
        """The oldest request and those of its group, in order of arrival; requests that nobody awaits are dropped."""
        jobs = [job for job in self._jobs if not job.future.done()]
        batch = [job for job in jobs if job.group == jobs[0].group][: self._most]
        taken = set(map(id, batch))
        self._jobs = deque(job for job in jobs if id(job) not in taken)
        return batch


def _answers(batch: Sequence[_Job]) -> list[Recommendations | Exception]:
    """Lists of a batch of one group. Where it fails each is tried alone, so that none fails for another's sake."""
    first = batch[0]
    queries = [job.query for job in batch]
    try:
        return list(
            first.recommender.recommend_batch(
                [query.history for query in queries],
                first.query.k,
                first.query.beams,
                [query.exclude for query in queries],
                unknown=first.query.unknown,
                allow=[query.allow for query in queries],
                block=[query.block for query in queries],
            )
        )
    except Exception as error:
        if len(batch) == 1:
            return [Refusal(500, str(error)) if isinstance(error, EarnError) else error]
    return [_answers([job])[0] for job in batch]
