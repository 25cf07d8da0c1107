"""The door of the server: every request passes it. It bounds bodies, concurrency and time, counts, and logs.

A log line is one JSON object: time, event, and what the event says of itself. Neither bodies nor ids of sessions are
logged.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from earn.serve.limits import Limits, Refusal
from earn.serve.metrics import Metrics

Log = Callable[[str, Mapping[str, object]], None]
BOUNDED = ("/recommend", "/session")  # routes that compute: they share the server's capacity and have a deadline
SLOWEST_S = 600.0  # of the other routes: a large bundle takes its time to load
LONGEST_MESSAGE = 400  # characters of an error: it may name what a client sent


def log_line(event: str, facts: Mapping[str, object]) -> None:
    """Writes an event to stderr as one line of JSON."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    print(json.dumps({"time": now, "event": event, **facts}), file=sys.stderr, flush=True)


def problem(refusal: Refusal) -> JSONResponse:
    """The answer to a request that is refused."""
    line = " ".join(refusal.message.split())
    if len(line) > LONGEST_MESSAGE:
        line = f"{line[:LONGEST_MESSAGE]} ..."
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    line = line.encode(errors="backslashreplace").decode()  # a lone surrogate is no UTF-8
    return JSONResponse({"error": line}, refusal.status, headers)


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Collection[str], metrics: Metrics, log: Log) -> None:
        """Takes bounds, the names under which clients may ask ("*": any), and who is told of each request."""
        self._app, self._limits, self._hosts, self._metrics, self._log = app, limits, hosts, metrics, log
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request pass, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id, status = secrets.token_hex(8), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._bounded(scope, receive, answer)
        except Refusal as refusal:
            if not status:
                await problem(refusal)(scope, receive, answer)
        except Exception:
            self._log("fault", {"request": request_id, "trace": traceback.format_exc()})
            if not status:
                told = Refusal(500, f"The server failed. Its log says why, under the request {request_id}.")
                await problem(told)(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status, seconds)
            facts = {"request": request_id, "method": scope["method"], "route": route, "status": status}
            self._log("request", {**facts, "ms": round(1e3 * seconds, 2)})

    def _check_host(self, headers: Headers) -> None:
        host = re.sub(r":\d*$", "", headers.get("host", ""))
        if "*" not in self._hosts and host not in self._hosts:
            raise Refusal(400, f"This server is not {host!r}. Start it with --allow-host, or ask under its own name.")

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_host(Headers(scope=scope))
        is_bounded = scope["path"].startswith(BOUNDED)
        if is_bounded and self._running >= self._limits.concurrent:
            raise Refusal(503, f"{self._running} requests are being answered, the most there may be. Try again.", 1)
        seconds = self._limits.deadline_s if is_bounded else SLOWEST_S
        self._running += is_bounded
        self._metrics.running.set(self._running)
        try:
            await asyncio.wait_for(self._passed(scope, receive, send), seconds)
        except asyncio.TimeoutError:
            raise Refusal(504, f"There was no answer within {seconds:g} s. Try again, or ask for less.", 1) from None
        finally:
            self._running -= is_bounded
            self._metrics.running.set(self._running)

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands on a request whose body was read, if it is not too long."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(499, "The client has left.")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limits.body_bytes:
                raise Refusal(413, f"The body is longer than {self._limits.body_bytes} bytes. Send less at a time.")
        is_read = False

        async def again() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)
