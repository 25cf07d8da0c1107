from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

USERS = 23  # of the histories


class Client:
    """Asks an application inside this process, in an event loop of its own."""

    def __init__(self, app: FastAPI) -> None:
        self._loop = asyncio.new_event_loop()
        self._lifespan = app.router.lifespan_context(app)
        self._loop.run_until_complete(self._lifespan.__aenter__())
        transport = httpx.ASGITransport(app)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")

    def __call__(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        return self.together([(method, path, body)], headers)[0]

    def raw(
        self,
        method: str,
        path: str,
        content: bytes = b"",
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Sends a body that need not be JSON."""
        given = {"Content-Type": kind, **(headers or {})}
        return self._loop.run_until_complete(self._http.request(method, path, content=content, headers=given))

    def together(
        self, requests: Sequence[tuple[str, str, object]], headers: Mapping[str, str] | None = None
    ) -> list[httpx.Response]:
        async def ask() -> list[httpx.Response]:
            waiting = [self._http.request(method, path, json=body, headers=headers) for method, path, body in requests]
            return await asyncio.gather(*waiting)

        return self._loop.run_until_complete(ask())

    def close(self) -> None:
        self._loop.run_until_complete(self._http.aclose())
        self._loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self._loop.close()


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    """Good rows in row groups of 9, with exclusions here and there."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    draw = np.random.default_rng(0)
    rows = [[str(item) for item in draw.integers(0, 8, draw.integers(1, 7))] for _ in range(USERS)]
    exclude = [[str(draw.integers(0, 8))] if user % 3 == 0 else None for user in range(USERS)]
    path = tmp_path / "histories.parquet"
    pq.write_table(pa.table({"user": range(USERS), "items": rows, "exclude": exclude}), path, row_group_size=9)
    return path


def read(out: Path, kind: str = "recommendations") -> list[dict[str, Any]]:
    """What a batch run has written."""
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(out / kind).to_pylist() if list((out / kind).iterdir()) else []
    return rows


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
