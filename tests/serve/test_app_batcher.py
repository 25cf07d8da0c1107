"""How long requests wait for company, on what limits they stand, and what the command refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from earn.cli.main import main
from earn.errors import EarnError
from earn.runtime.recommender import Recommendations, Recommender
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--token-file", "short"], "16 or more"),
        (["--app", "."], "index.html"),
        (["--deadline-s", "0"], "deadline_s"),
        (["--port", "70000"], "port"),
    ],
)
def test_the_command_refuses_in_one_line(
    toy_bundle: Path,
    options: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("abc\n")
    assert main(["serve", str(toy_bundle), *options]) == 2
    assert says in capsys.readouterr().err
