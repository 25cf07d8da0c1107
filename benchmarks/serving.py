"""Load on `earn serve`: latency and users per second over concurrency, and what happens beyond capacity.

    python -m benchmarks.serving BUNDLE [--seconds N] [--threads N] [--concurrency 1,2,4,...] [--batch N]

The server is a process of its own on loopback, the clients are threads of this one, each with a connection that it
keeps and a next request as soon as it has its answer. Histories are drawn from the catalog with a fixed seed. Every
answer is compared with that of a single request to the runtime: the same items in the same order, where scores are
further apart than NEAR_TIE. In the last row the server takes CAPACITY requests at a time and is asked by 64 clients.

Prints a table, and as the last line JSON: {"rows": [{concurrency, users_per_s, p50_ms, p99_ms, batch, answers, refused,
refused_p99_ms, other, wrong, memory_mib}], ...}. `memory_mib` is the server's resident memory after the row.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from earn.console import note, show, show_json, table
from earn.runtime.recommender import Recommender

USERS, K, SEED = 200, 10, 0
NEAR_TIE = 1e-3  # difference of scores below which two batch sizes may order items unlike
CAPACITY = 8
HOLD_S = 0.25  # that a refused client holds back; the server asks for 1 s
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Client:
    """One client's figures."""

    ms: list[float] = field(default_factory=list)  # of the requests that were answered
    refused_ms: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)  # what else came
    wrong: int = 0

    def ask(self, port: int, bodies: Sequence[bytes], wanted: Sequence[Any], until_s: float, seed: int) -> None:
        """Asks one request after the other until a moment of time.perf_counter."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        draw = random.Random(seed)
        while (started := time.perf_counter()) < until_s:
            user = draw.randrange(len(bodies))
            connection.request("POST", "/recommend", bodies[user], {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            ms = 1e3 * (time.perf_counter() - started)
            if response.status == 200:
                self.ms.append(ms)
                self.batches.append(answer["timing"]["batch"])
                self.wrong += not is_same([(item["item_id"], item["score"]) for item in answer["items"]], wanted[user])
            elif response.status == 503:
                self.refused_ms.append(ms)
                time.sleep(HOLD_S)
            else:
                self.other[f"{response.status}"] += 1
        connection.close()


def is_same(got: Sequence[tuple[str, float]], want: Sequence[tuple[str, float]]) -> bool:
    """Whether two lists are the same, but for items whose scores are as good as equal."""
    if len(got) != len(want) or any(abs(a[1] - b[1]) > NEAR_TIE for a, b in zip(got, want, strict=True)):
        return False
    scores, last = dict(want), want[-1][1]
    return all(abs(scores.get(item, last) - score) <= NEAR_TIE for item, score in got)


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[tuple[int, psutil.Process]]:
    """A server's port and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "earn.cli.main", "serve", str(bundle), "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"the server ended: {' '.join(command)}") from None
                time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def measured(
    port: int, process: psutil.Process, clients: int, seconds: float, bodies: Sequence[bytes], wanted: Sequence[Any]
) -> dict[str, Any]:
    """One row: so many clients for so long."""
    sides = [Client() for _ in range(clients)]
    started = time.perf_counter()
    until = started + seconds
    threads = [
        threading.Thread(target=side.ask, args=(port, bodies, wanted, until, seed)) for seed, side in enumerate(sides)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - started  # the last answers come after the time is up
    ms = np.array([value for side in sides for value in side.ms])
    refused = [value for side in sides for value in side.refused_ms]
    p50, p99 = np.percentile(ms, (50, 99)).tolist()
    return {
        "concurrency": clients,
        "users_per_s": len(ms) / took_s,
        "p50_ms": p50,
        "p99_ms": p99,
        "batch": float(np.mean([size for side in sides for size in side.batches])),
        "answers": len(ms),
        "refused": len(refused),
        "refused_p99_ms": float(np.percentile(refused, 99)) if refused else None,
        "other": dict(sum((side.other for side in sides), Counter())),
        "wrong": sum(side.wrong for side in sides),
        "memory_mib": process.memory_info().rss / 2**20,
    }


def requests(bundle: Path) -> tuple[list[bytes], list[list[tuple[str, float]]]]:
    """Bodies of requests, and the lists of single ones."""
    recommender = Recommender.load(bundle)
    draw, ids, most = random.Random(SEED), recommender.catalog.item_ids, recommender.manifest.limits.history
    histories = [draw.choices(ids, k=draw.randint(1, most)) for _ in range(USERS)]
    wanted = [[(item.item_id, item.score) for item in recommender.recommend(history, K)] for history in histories]
    return [json.dumps({"history": history, "k": K}).encode() for history in histories], wanted


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--concurrency", type=lambda text: [int(part) for part in text.split(",")], default=CONCURRENCY)
    args = parser.parse_args()
    bodies, wanted = requests(args.bundle)
    options = ("--threads", str(args.threads), "--batch", str(args.batch))
    rows = []
    with served(args.bundle, *options) as (port, process):
        measured(port, process, 1, 1.0, bodies, wanted)  # warm up
        for clients in args.concurrency:
            rows.append(measured(port, process, clients, args.seconds, bodies, wanted))
            note(f"{clients} clients: {rows[-1]['users_per_s']:.0f} users/s")
    with served(args.bundle, *options, "--concurrent", str(CAPACITY)) as (port, process):
        beyond = measured(port, process, 64, args.seconds, bodies, wanted)
    header = (
        "clients",
        "users/s",
        "p50 ms",
        "p99 ms",
        "mean batch",
        "answers",
        "503",
        "503 p99 ms",
        "other",
        "wrong",
        "MiB",
    )
    cells = [
        (
            f"{row['concurrency']}",
            f"{row['users_per_s']:.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['batch']:.1f}",
            f"{row['answers']}",
            f"{row['refused']}",
            "-" if row["refused_p99_ms"] is None else f"{row['refused_p99_ms']:.1f}",
            f"{sum(row['other'].values())}",
            f"{row['wrong']}",
            f"{row['memory_mib']:.0f}",
        )
        for row in (*rows, beyond)
    ]
    show(table(header, cells))
    load = os.getloadavg()[0]
    show_json({**asdict(Facts(str(args.bundle), args.threads, args.batch, load)), "rows": rows, "beyond": beyond})


@dataclass(frozen=True)
class Facts:
    """What the figures were measured with."""

    bundle: str
    threads: int
    batch: int
    load_average: float  # of the machine, at the end


if __name__ == "__main__":
    main()
