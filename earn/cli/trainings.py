"""Trainings by `earn train` in processes of their own, two at a time, each with one thread.

torch's threads gain little on a small model, and on a busy machine they wait for each other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Event, Lock

from earn.console import detail
from earn.errors import EarnError

AT_ONCE = 2
_DETAIL = "      "  # how lines start that tell a training's progress


@contextmanager
def trainings(options: Mapping[str, Sequence[object]]) -> Iterator[Callable[[str], None]]:
    """Trains in the given order, and shows the progress of each under its name.

    What the context gives waits for the training of a name. It raises an EarnError if that one has failed, or another
    one meanwhile. Those that still run when the context is left are ended.

    Args:
        options: of `earn train`, by a training's name.
    """
    processes: list[subprocess.Popen[str]] = []
    starting, is_over = Lock(), Event()
    pool = ThreadPoolExecutor(AT_ONCE)

    def train(name: str) -> None:
        with starting:
            if is_over.is_set():
                return
            process = _start(options[name])
            processes.append(process)
        try:
            _follow(name, process)
        except EarnError:
            pool.shutdown(wait=False, cancel_futures=True)  # those that wait are not started
            raise

    ends = {name: pool.submit(train, name) for name in options}

    def wait(name: str) -> None:
        for end in as_completed(ends.values()):
            end.result()
            if end is ends[name]:
                return

    try:
        yield wait
    finally:  # after a failure or Ctrl-C too
        pool.shutdown(wait=False, cancel_futures=True)
        with starting:
            is_over.set()
            for process in processes:
                process.terminate()


def _start(options: Sequence[object]) -> subprocess.Popen[str]:
    """`earn train` in a process with one thread, what it prints in one pipe."""
    paths = [path or os.getcwd() for path in sys.path]  # what can be imported here can be imported there
    environment = {
        **os.environ,
        **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        **{"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8", "TQDM_DISABLE": "1"},
    }
    return subprocess.Popen(
        [sys.executable, "-m", "earn.cli.main", "train", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )


def _follow(name: str, process: subprocess.Popen[str]) -> None:
    """Shows the indented lines that a training prints, which tell its progress, until it ends.

    Raises:
        EarnError: it failed; gives its last line.
    """
    assert process.stdout is not None
    last = "It printed nothing."
    with process.stdout as output:
        for line in output:
            last = line.strip() or last
            if line.startswith(_DETAIL):
                detail(f"{name}: {line.strip()}")
    if process.wait():
        reason = last.removeprefix("earn: error: ")
        raise EarnError(f"The training of {name} failed with status {process.returncode}. {reason}")
