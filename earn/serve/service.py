"""What a server does, without HTTP: lists in batches, sessions, swaps of bundles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from earn.errors import EarnError
from earn.filters import EVERYTHING, NOTHING, Filter
from earn.runtime.lists import Recommendations
from earn.runtime.recommender import Recommender
from earn.serve.batcher import Answer, Batcher, Query
from earn.serve.bundles import ServedBundle, Version
from earn.serve.limits import Limits, Refusal
from earn.serve.metrics import Metrics
from earn.serve.sessions import OpenSession, SessionStore

DEFAULT_K = 10
SWEEP_S = 30.0

Ids = Sequence[str | int]
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What a request asks of a list; see `Recommender.recommend`."""

    k: int | None = None  # DEFAULT_K, or the bundle's most, if None
    beams: int | str | None = None
    exclude: Ids = ()
    exclude_history: bool = False
    allow: Filter = EVERYTHING
    block: Filter = NOTHING
    unknown: str = "error"


class Service:
    """Served bundles and open sessions. Its coroutines belong to one event loop, inside `running`."""

    def __init__(self, bundles: Sequence[ServedBundle], limits: Limits) -> None:
        """Takes bundles, the default one first.

        Raises:
            EarnError: there is none, or two have the same name.
        """
        self.bundles = {bundle.name: bundle for bundle in bundles}
        if len(self.bundles) != len(bundles) or not bundles:
            raise EarnError(
                f"The bundles are {[bundle.name for bundle in bundles]}. Give one or more, of unlike names."
            )
        self.limits = limits
        self.sessions = SessionStore(limits.sessions, limits.session_age_s)
        self.metrics = Metrics(lambda: len(self.sessions), lambda: self.sessions.memory_bytes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers while the context is open; what was begun is finished before it closes."""
        # One thread each: a list takes all cores that a request may use, and swaps must not wait behind lists.
        pools = [ThreadPoolExecutor(1, name) for name in ("earn-lists", "earn-sessions", "earn-swaps")]
        lists, self._of_sessions, self._of_swaps = pools
        self._batcher = Batcher(lists, self.limits.batch, 1e-3 * self.limits.batch_wait_ms, self.metrics.batch)
        tasks = [asyncio.create_task(self._batcher.run()), asyncio.create_task(self._sweep())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            for pool in pools:
                pool.shutdown()

    def bundle(self, name: str | None) -> ServedBundle:
        """The bundle of this name, or the first.

        Raises:
            Refusal: 404, there is none.
        """
        found = self.bundles.get(name) if name is not None else next(iter(self.bundles.values()))
        if found is None:
            raise Refusal(404, f"There is no bundle {name!r}. Take one of {sorted(self.bundles)}.")
        return found

    async def recommend(self, version: Version, history: Ids, wanted: Wanted) -> tuple[Query, Answer]:
        """A list for one history, computed together with others.

        Raises:
            EarnError: an unknown item, an empty history, or a k or beam width out of range.
            Refusal: 500, the bundle gave no answer.
        """
        query = checked(version.recommender, history, wanted)
        return query, await self._batcher.recommend(version.recommender, query)

    async def open_session(
        self, bundle: ServedBundle, history: Ids, allow: Filter, block: Filter, unknown: str
    ) -> tuple[str, OpenSession]:
        """Reads a history and keeps it, with filters for all its lists; returns the session's id too.

        Raises:
            EarnError: an unknown item or tag, or an engine without sessions.
            Refusal: 503, as many as there may be are open.
        """
        self.sessions.check_room()
        version = bundle.current
        version.recommender.filters.check(allow, block, unknown)
        session = await self._in(self._of_sessions, lambda: version.recommender.session(history, unknown))
        session.keep_filters(allow, block)
        opened = OpenSession(bundle, version, session)
        return self.sessions.add(opened), opened

    async def append(self, key: str, item_id: str | int) -> OpenSession:
        """Adds the newest item of a session.

        Raises:
            EarnError: an unknown item.
            Refusal: 404, no such session.
        """
        opened = self.sessions.get(key)

        def work() -> None:
            with opened.lock:
                opened.follow()
                opened.version.recommender.indices([item_id])
                faults_of_ours(lambda: opened.session.append(item_id))

        await self._in(self._of_sessions, work)
        return opened

    async def session_list(self, key: str, wanted: Wanted) -> tuple[OpenSession, Answer]:
        """A session's list.

        Raises:
            EarnError: an unknown item, no item yet, or a k or beam width out of range.
            Refusal: 404, no such session.
        """
        opened = self.sessions.get(key)
        arrived = time.perf_counter()

        def work() -> Answer:
            with opened.lock:
                started = time.perf_counter()
                opened.follow()
                recommender, session = opened.version.recommender, opened.session
                query = checked(recommender, session.history, wanted)
                recommender.filters.check(session.allow, session.block, "skip")  # its tags may be gone
                assert not isinstance(query.beams, str)
                beams = query.beams
                found = faults_of_ours(
                    lambda: session.recommend(query.k, beams, query.exclude, allow=query.allow, block=query.block)
                )
                ended = time.perf_counter()
            items = found if isinstance(found, Recommendations) else Recommendations(found, False)
            return Answer(items, 1, 1e3 * (started - arrived), 1e3 * (ended - started))

        return opened, await self._in(self._of_sessions, work)

    async def reload(self, bundle: ServedBundle) -> bool:
        """`ServedBundle.reload`, beside the requests that go on."""
        is_other = await self._in(self._of_swaps, bundle.reload)
        if is_other:
            self.metrics.swaps.labels(bundle.name, "reload").inc()
        return is_other

    def roll_back(self, bundle: ServedBundle) -> None:
        """`ServedBundle.roll_back`, counted."""
        bundle.roll_back()
        self.metrics.swaps.labels(bundle.name, "rollback").inc()

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sessions.sweep()


def checked(recommender: Recommender, history: Ids, wanted: Wanted) -> Query:
    """A request in which nothing can fail any more for the client's fault.

    Raises:
        EarnError: an unknown item or tag, an empty history, or a k or beam width out of range.
    """
    k = min(DEFAULT_K, recommender.manifest.limits.beams) if wanted.k is None else wanted.k
    recommender.search_width(k, None if wanted.beams == "exact" else wanted.beams)
    ids = recommender.catalog.item_ids
    known = tuple(ids[item] for item in recommender.history(history, wanted.unknown))
    if not known:
        raise EarnError("The history has no known item. Give at least one item of the catalog.")
    excluded = tuple(ids[item] for item in recommender.indices(wanted.exclude, wanted.unknown))
    skipped = tuple(str(item) for item in (*history, *wanted.exclude) if str(item) not in recommender.catalog.index)
    recommender.filters.check(wanted.allow, wanted.block, wanted.unknown)
    return Query(
        known,
        excluded + (known if wanted.exclude_history else ()),
        k,
        wanted.beams,
        wanted.allow,
        wanted.block,
        wanted.unknown,
        skipped,
    )


def faults_of_ours(work: Callable[[], T]) -> T:
    """Does work whose request was checked: what it refuses now is no fault of the client.

    Raises:
        Refusal: 500, it was refused.
    """
    try:
        return work()
    except EarnError as error:
        raise Refusal(500, str(error)) from error
