"""How long requests wait for company, their limits, and the socket that their connections come from."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from earn.cli.serve import _listening
from earn.errors import EarnError
from earn.runtime.lists import Recommendations
from earn.runtime.recommender import Recommender
from earn.serve.batcher import Answer, Batcher, Query
from earn.serve.limits import Limits

PASS_S = 0.05
QUERY = Query(("1",), (), 5, None)


class Slow:
    """A recommender whose pass takes PASS_S."""

    def recommend_batch(self, histories: Sequence[Any], *rest: Any, **options: Any) -> list[Recommendations]:
        time.sleep(PASS_S)
        return [Recommendations([], True) for _ in histories]


def batched(
    wait_s: float, ask: Callable[[Callable[[], Awaitable[Answer]]], Awaitable[None]], most: int = 4
) -> list[int]:
    """The sizes of the batches that some requests made."""
    sizes: list[int] = []

    async def run() -> None:
        with ThreadPoolExecutor(1) as pool:
            batcher, recommender = Batcher(pool, most, wait_s, sizes.append), cast(Recommender, Slow())
            task = asyncio.create_task(batcher.run())
            await ask(lambda: batcher.recommend(recommender, QUERY))
            task.cancel()

    asyncio.run(run())
    return sizes


def test_what_arrives_during_a_batch_is_the_next_one_up_to_the_most() -> None:
    async def ask(one: Callable[[], Awaitable[Answer]]) -> None:
        first = asyncio.ensure_future(one())
        await asyncio.sleep(PASS_S / 2)
        await asyncio.gather(first, *(one() for _ in range(6)))

    assert batched(0.0, ask) == [1, 4, 2]


def test_a_lone_client_does_not_wait_and_after_company_one_waits_at_most_the_budget() -> None:
    waits = []

    async def ask(one: Callable[[], Awaitable[Answer]]) -> None:
        waits.append((await one()).wait_ms)
        await asyncio.gather(one(), one())
        waits.append((await one()).wait_ms)  # in vain: the batch before had two
        waits.append((await one()).wait_ms)

    assert batched(0.2, ask) == [1, 2, 1, 1]
    assert waits[0] < 100
    assert waits[1] >= 190
    assert waits[2] < 100


def test_a_request_that_nobody_awaits_is_not_computed() -> None:
    async def ask(one: Callable[[], Awaitable[Answer]]) -> None:
        first = asyncio.ensure_future(one())
        await asyncio.sleep(PASS_S / 2)
        left = asyncio.ensure_future(one())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(first, one())

    assert batched(0.0, ask) == [1, 1]


@pytest.mark.parametrize("bounds", [{"batch": 0}, {"deadline_s": float("nan")}, {"batch_wait_ms": -1.0}])
def test_bounds_are_above_zero(bounds: dict[str, Any]) -> None:
    with pytest.raises(EarnError, match=next(iter(bounds))):
        Limits(**bounds)


def test_a_connections_parts_are_sent_at_once() -> None:
    """Else the body of an answer waits until the client has confirmed its headers."""
    with _listening("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_taken_is_refused() -> None:
    with _listening("127.0.0.1", 0) as listening, pytest.raises(EarnError, match="--port"):
        _listening("127.0.0.1", listening.getsockname()[1])
