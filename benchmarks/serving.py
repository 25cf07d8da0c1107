"""Load on `earn serve`: latency and users per second over concurrency, and what happens beyond capacity.

    python -m benchmarks.serving BUNDLE [--seconds N] [--threads N] [--concurrency 1,2,4,...] [--batch N]
    python -m benchmarks.serving BUNDLE --soak MINUTES [--clients N] [--threads N] [--batch N] [--picture FILE]

The server is a process of its own on loopback, the clients are threads of this one, each with a connection that it
keeps and a next request as soon as it has its answer. Histories are drawn from the catalog with a fixed seed. Every
answer is compared with that of a single request to the runtime: the same items in the same order, where scores are
further apart than NEAR_TIE. In the last row the server takes CAPACITY requests at a time and is asked by 64 clients.

Prints a table, and as the last line JSON: {"rows": [{concurrency, users_per_s, p50_ms, p99_ms, batch, answers, refused,
refused_p99_ms, other, wrong, farthest, memory_mib}], ...}. `memory_mib` is the server's resident memory after the row.

With --soak, so many clients ask for so long, a third of the histories with a filter, and JSON holds one "row". The
server's resident memory is read every second; growth_mib_per_hour is the slope of the straight line through all values
after the first minute (after half the time, if that is less). Writes the curve as a picture. The exit status is 1 if an
answer was wrong or lost.
"""

from __future__ import annotations

import argparse
import http.client
import io
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from earn.console import note, show, show_json, table
from earn.report.plots import COLOURS
from earn.runtime.recommender import Recommender

USERS, K, SEED = 200, 10, 0
# Difference of scores below which two batch sizes may order items unlike. A sum whose last bit differs may be rounded
# to the next step of int8: that moved scores by as much as 1e-3. Lists of two users are far beyond it.
NEAR_TIE = 5e-3
CAPACITY = 8
HOLD_S = 0.25  # that a refused client holds back; the server asks for 1 s
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
SETTLED_S = 60.0  # after which memory should grow no more
MOST_ALLOWED = 500  # items of a filter
COLUMNS = {  # of the table: a figure's title, and how it is written
    "concurrency": ("clients", "{}"),
    "users_per_s": ("users/s", "{:.0f}"),
    "p50_ms": ("p50 ms", "{:.1f}"),
    "p99_ms": ("p99 ms", "{:.1f}"),
    "batch": ("mean batch", "{:.1f}"),
    "answers": ("answers", "{}"),
    "refused": ("503", "{}"),
    "refused_p99_ms": ("503 p99 ms", "{:.1f}"),
    "other": ("other", "{}"),
    "wrong": ("wrong", "{}"),
    "memory_mib": ("MiB", "{:.0f}"),
}
PICTURE = Path(__file__).parent.parent / "docs/pictures/serve-memory.svg"


@dataclass
class Client:
    """One client's figures."""

    ms: list[float] = field(default_factory=list)  # of the requests that were answered
    refused_ms: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)  # what else came: a status, or the error of a lost connection
    wrong: int = 0
    farthest: float = 0.0  # score from that of a single request, among the right answers

    def ask(self, port: int, bodies: Sequence[bytes], wanted: Sequence[Any], until_s: float, seed: int) -> None:
        """Asks one request after the other until a moment of time.perf_counter."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        draw = random.Random(seed)
        while (started := time.perf_counter()) < until_s:
            user = draw.randrange(len(bodies))
            try:
                connection.request("POST", "/recommend", bodies[user], {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                self.other[type(error).__name__] += 1
                connection.close()  # the next request opens it again
                time.sleep(HOLD_S)
                continue
            ms = 1e3 * (time.perf_counter() - started)
            if response.status == 200:
                self.ms.append(ms)
                self.batches.append(answer["timing"]["batch"])
                got = [(item["item_id"], item["score"]) for item in answer["items"]]
                if is_same(got, wanted[user]):
                    self.farthest = max(
                        self.farthest, *(abs(a[1] - b[1]) for a, b in zip(got, wanted[user], strict=True))
                    )
                else:
                    self.wrong += 1
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
    ms = [value for side in sides for value in side.ms]
    refused = [value for side in sides for value in side.refused_ms]
    other = dict(sum((side.other for side in sides), Counter[str]()))
    if not ms:
        raise SystemExit(f"no request was answered; {len(refused)} were refused, others came to {other}")
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
        "other": other,
        "wrong": sum(side.wrong for side in sides),
        "farthest": max(side.farthest for side in sides),
        "memory_mib": process.memory_info().rss / 2**20,
    }


def growth(curve: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The straight line (MiB per second, MiB at second 0) through a curve from when it should have settled."""
    settled = min(SETTLED_S, curve[-1][0] / 2)
    seconds, mib = np.array([point for point in curve if point[0] >= settled]).T
    slope, start = np.polyfit(seconds, mib, 1).tolist()
    return slope, start


def soaked(
    port: int, process: psutil.Process, clients: int, minutes: float, bodies: Sequence[bytes], wanted: Sequence[Any]
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """The row of many minutes, with `growth_mib_per_hour`, and the curve of memory."""
    ended, curve, started = threading.Event(), list[tuple[float, float]](), time.perf_counter()

    def sample() -> None:
        while not ended.wait(1.0):
            curve.append((time.perf_counter() - started, process.memory_info().rss / 2**20))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        row = measured(port, process, clients, 60 * minutes, bodies, wanted)
    finally:
        ended.set()
        sampler.join()
    return {**row, "growth_mib_per_hour": 3600 * growth(curve)[0]}, curve


def picture(curve: Sequence[tuple[float, float]]) -> bytes:
    """The curve of memory and its straight line, as an SVG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    slope, start = growth(curve)
    line = [(at, start + slope * at) for at, _ in curve if at >= min(SETTLED_S, curve[-1][0] / 2)]
    with mpl.rc_context({"svg.hashsalt": "earn", "svg.fonttype": "none", "font.size": 9}):
        figure, file = Figure(figsize=(7.5, 2.6), layout="constrained", facecolor=COLOURS["paper"]), io.BytesIO()
        axes = figure.subplots()
        for points, colour, style, label in (
            (curve, "main", "-", "server"),
            (line, "mark", "--", f"{3600 * slope:+.1f} MiB per hour"),
        ):
            minutes, mib = zip(*((at / 60, size) for at, size in points), strict=True)
            axes.plot(minutes, mib, style, color=COLOURS[colour], label=label)
        axes.set_xlabel("minutes at capacity")
        axes.set_ylabel("resident memory, MiB")
        axes.set_ylim(bottom=0)
        axes.grid(color=COLOURS["rule"], linewidth=0.6)
        axes.legend(loc="lower right", frameon=False)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def requests(bundle: Path, is_filtered: bool = False) -> tuple[list[bytes], list[list[tuple[str, float]]]]:
    """Bodies of requests, and the lists of single ones; a third of them with a filter, if asked for."""
    recommender = Recommender.load(bundle)
    draw, ids, most = random.Random(SEED), recommender.catalog.item_ids, recommender.manifest.limits.history
    histories = [draw.choices(ids, k=draw.randint(1, most)) for _ in range(USERS)]
    wanted, bodies = [], []
    for user, history in enumerate(histories):
        body: dict[str, Any] = {"history": history, "k": K}
        if is_filtered and user % 3 == 0:
            body["allow"] = draw.sample(ids, min(MOST_ALLOWED, len(ids) // 2))
        wanted.append([(item.item_id, item.score) for item in recommender.recommend(**body)])
        bodies.append(json.dumps(body).encode())
    return bodies, wanted


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--concurrency", type=lambda text: [int(part) for part in text.split(",")], default=CONCURRENCY)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="hold one load for so long instead")
    parser.add_argument("--clients", type=int, default=8, help="of --soak (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="that --soak writes (default: %(default)s)")
    args = parser.parse_args()
    return load(args) if args.soak is None else soak(args)


def load(args: argparse.Namespace) -> int:
    """A row for each number of clients, and one beyond capacity."""
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
    show_rows([*rows, beyond])
    show_json({**facts(args), "rows": rows, "beyond": beyond})
    return 0


def soak(args: argparse.Namespace) -> int:
    """One row of many minutes, and the picture of memory."""
    bodies, wanted = requests(args.bundle, is_filtered=True)
    with served(args.bundle, "--threads", str(args.threads), "--batch", str(args.batch)) as (port, process):
        row, curve = soaked(port, process, args.clients, args.soak, bodies, wanted)
    args.picture.write_bytes(picture(curve))
    show_rows([row])
    show(f"resident memory grows by {row['growth_mib_per_hour']:+.2f} MiB per hour; {args.picture}")
    show_json({**facts(args), "minutes": args.soak, "row": row})
    return 1 if row["wrong"] or row["other"] else 0


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a table."""

    def cell(name: str, value: Any) -> str:
        return "-" if value is None else COLUMNS[name][1].format(sum(value.values()) if name == "other" else value)

    show(table([title for title, _ in COLUMNS.values()], [[cell(name, row[name]) for name in COLUMNS] for row in rows]))


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured with, and the load of the machine, at the end."""
    about = {"bundle": str(args.bundle), "threads": args.threads, "batch": args.batch}
    return {**about, "load_average": os.getloadavg()[0]}


if __name__ == "__main__":
    sys.exit(main())
