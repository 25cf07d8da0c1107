"""`earn serve --workers 2` under load: a worker that is killed takes nothing with it but what it was answering."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import pytest

from earn.cli.serve import WORKER_S
from earn.runtime.recommender import Recommender
from tests.serve.conftest import free_port

pytestmark = pytest.mark.slow

CLIENTS, WORKERS, K = 6, 2, 3
Answer = tuple[int, dict[str, list[dict[str, object]]]]


@pytest.fixture
def server(toy_bundle: Path) -> Iterator[tuple[psutil.Process, int]]:
    """A supervisor's process, and its port."""
    port = free_port()
    command = [sys.executable, "-m", "earn.cli.main", "serve", str(toy_bundle), "--port", str(port)]
    process = psutil.Popen([*command, "--workers", str(WORKERS)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: len(workers(process)) == WORKERS and answers(port))
        yield process, port
    finally:
        for each in (process, *process.children()) if process.is_running() else ():
            each.kill()
        process.wait(10)


def until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    """Waits until something is so."""
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < seconds
        time.sleep(0.05)


def workers(supervisor: psutil.Process) -> list[psutil.Process]:
    """The workers; Python's resource tracker is a child too."""
    found = []
    for child in supervisor.children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def serves(worker: psutil.Process) -> bool:
    """Whether a worker has a client, which it accepts when its bundle is loaded."""
    return any(each.status == psutil.CONN_ESTABLISHED for each in worker.net_connections("tcp"))


def ask(connection: HTTPConnection, path: str, body: object) -> Answer:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def answers(port: int) -> bool:
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            return ask(connection, "/recommend", {"history": ["1"], "k": K})[0] == 200
    except (OSError, HTTPException):
        return False


class Client:
    """Asks without pause, with a new connection every few requests; counts what it gets."""

    def __init__(self, port: int, wanted: dict[tuple[str, ...], list[str]], seed: int, ended: threading.Event) -> None:
        self.right, self.wrong, self.lost = 0, 0, list[float]()
        self._port, self._wanted, self._draw, self._ended = port, wanted, random.Random(seed), ended

    def run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._ended.is_set():
            history = self._draw.choice(list(self._wanted))
            try:
                status, found = ask(connection, "/recommend", {"history": history, "k": K})
            except (OSError, HTTPException):
                self.lost.append(time.monotonic())
                connection.close()  # the next request opens it again
                continue
            is_right = status == 200 and [item["item_id"] for item in found["items"]] == self._wanted[history]
            self.right, self.wrong = self.right + is_right, self.wrong + (not is_right)
            if self.right % 5 == 0:  # it may come to another worker now
                connection.close()
        connection.close()


def test_a_killed_worker_takes_nothing_with_it_but_what_it_was_answering(
    server: tuple[psutil.Process, int], toy_bundle: Path
) -> None:
    supervisor, port = server
    recommender, draw = Recommender.load(toy_bundle, threads=1), random.Random(0)
    histories = [tuple(str(draw.randrange(8)) for _ in range(draw.randint(1, 6))) for _ in range(30)]
    wanted = {history: [item.item_id for item in recommender.recommend(history, K)] for history in histories}
    ended = threading.Event()
    clients = [Client(port, wanted, seed, ended) for seed in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(client.right > 5 for client in clients))
        killed = workers(supervisor)[0]
        killed.suspend()  # until the supervisor waits for its sign of life, and then sees its end
        time.sleep(1)
        at = time.monotonic()
        killed.kill()
        until(
            lambda: killed not in (now := workers(supervisor)) and len(now) == WORKERS and all(map(serves, now)),
            WORKER_S - 5,
        )
        before = [client.right for client in clients]
        until(lambda: all(client.right > right + 5 for client, right in zip(clients, before, strict=True)))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert sum(client.wrong for client in clients) == 0
    lost = [moment for client in clients for moment in client.lost]
    assert len(lost) <= CLIENTS  # at the most one each
    assert all(abs(moment - at) < 2 for moment in lost)
    left = workers(supervisor)
    supervisor.kill()
    assert not psutil.wait_procs(left, timeout=30)[1]  # none goes on alone and holds the port
