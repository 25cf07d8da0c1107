"""Loads a bundle in a process of its own: what that takes, and how much memory.

    python -m earn.profiling.loading      reads the arguments of `load_here` as JSON from stdin, prints a `Load` as JSON

Memory is that of a process which does nothing else. The files lie in the system's cache from the second load on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from earn.errors import EarnError
from earn.profiling.machine import peak_bytes
from earn.profiling.rows import Loading, Percentiles


@dataclass(frozen=True)
class Load:
    """One load. Memory is the most that the process has held so far; None where the system does not tell."""

    import_ms: float
    load_ms: float
    first_ms: float  # the first request
    imported_bytes: int | None
    loaded_bytes: int | None
    peak_bytes: int | None  # after all requests


def load_fresh(
    folder: str, engine: str, threads: int | None, histories: Sequence[Sequence[str]], k: int, beams: int | None
) -> Load:
    """`load_here` in a new process.

    Raises:
        EarnError: the process failed; gives its last words.
    """
    paths = [path or os.getcwd() for path in sys.path]  # what can be imported here can be imported there
    done = subprocess.run(
        [sys.executable, "-m", "earn.profiling.loading"],
        input=json.dumps((folder, engine, threads, histories, k, beams)),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"},
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise EarnError(f"{folder}: cannot be loaded in a process of its own ({words[-1]}).")
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def summarise(loads: Sequence[Load]) -> Loading:
    """All loads of a bundle."""
    held = [[load.imported_bytes, load.loaded_bytes, load.peak_bytes] for load in loads]
    return Loading(
        len(loads),
        median(load.import_ms for load in loads),
        Percentiles.of([load.load_ms for load in loads]),
        median(load.first_ms for load in loads),
        *(max((count for count in counts if count is not None), default=None) for counts in zip(*held, strict=True)),
    )


def load_here(
    folder: str, engine: str, threads: int | None, histories: Sequence[Sequence[str]], k: int, beams: int | None
) -> Load:
    """Loads the bundle in this process, which should have done nothing before, and asks it for recommendations."""
    started = time.perf_counter()
    import onnxruntime  # noqa: F401  the engines import it when they are made

    from earn.runtime.recommender import Recommender

    imported, imported_bytes = time.perf_counter(), peak_bytes()
    recommender = Recommender.load(Path(folder), engine, threads)
    loaded, loaded_bytes = time.perf_counter(), peak_bytes()
    recommender.recommend(histories[0], k, beams)
    first = time.perf_counter()
    for history in histories[1:]:
        recommender.recommend(history, k, beams)
    return Load(
        import_ms=1000 * (imported - started),
        load_ms=1000 * (loaded - imported),
        first_ms=1000 * (first - loaded),
        imported_bytes=imported_bytes,
        loaded_bytes=loaded_bytes,
        peak_bytes=peak_bytes(),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(load_here(*json.load(sys.stdin)))))
