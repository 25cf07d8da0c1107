"""Programs in a copy of this process: torch and transformers, whose import takes seconds, are there already."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot copy a process")


def start(program: Callable[[], object], log: Path) -> BaseProcess:
    """Starts the program in a copy of this process; what it prints goes to `log`, both streams."""
    process: BaseProcess = get_context("fork").Process(target=_run, args=(program, log))
    process.start()
    return process


def run(program: Callable[[], object], log: Path) -> int:
    """The program's exit status."""
    process = start(program, log)
    process.join(timeout=120)
    assert process.exitcode is not None, f"it has not ended; {log.read_text()}"
    return process.exitcode


def forget(*packages: str) -> None:
    """Has the modules of these packages imported anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def _run(program: Callable[[], object], log: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # not those of whatever runs the tests
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", buffering=1) for number in (1, 2))
    program()
