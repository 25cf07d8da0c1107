"""What commands print: notes, numbered steps and progress to stderr, tables and JSON to stdout.

Under torchrun several processes run the same command. The first one speaks for all; errors come from each, for one may
fail alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_NUMBER = re.compile(r"[-+]?[\d.,]*( ?(%|ms|[KMG]iB|bytes))?|-")


def note(text: str) -> None:
    """A line that is no result."""
    _say(text, sys.stderr)


def complain(text: str) -> None:
    """An error."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A result for people."""
    _say(text, sys.stdout)


def show_json(value: Any) -> None:
    """A result for programs: one line."""
    _say(json.dumps(value), sys.stdout)


def _say(text: str, stream: TextIO, end: str = "\n") -> None:
    if os.environ.get("RANK", "0") == "0":  # torchrun's number of this process
        print(text, end=end, file=stream, flush=True)


class Steps:
    """Numbered headings with the time since the start, so that one sees where a long command is."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0
        self._started = time.monotonic()

    def __call__(self, title: str) -> None:
        """Begins the next step."""
        self._number += 1
        minutes, seconds = divmod(round(self.seconds), 60)
        note(f"[{self._number}/{self._total}] {minutes}:{seconds:02d}  {title}")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started


def progress(label: str) -> Callable[[int, int], None]:
    """A callback (done, all) that keeps one line of a terminal up to date; elsewhere it prints one at the end."""

    def update(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done >= total else ""
            _say(f"\r      {label}: {done} of {total}", sys.stderr, end)
        elif done >= total:
            note(f"      {label}: {total}")

    return update


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text; columns of numbers stand to the right."""
    columns = list(zip(header, *rows, strict=True))
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(max(map(len, column)))
            if all(map(_NUMBER.fullmatch, column[1:]))
            else cell.ljust(max(map(len, column)))
            for cell, column in zip(row, columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * max(map(len, column)) for column in columns))
    return "\n".join(lines)


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps other libraries' warnings from the terminal: they are about those libraries' own insides."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def results_kept_clean() -> Iterator[None]:
    """Sends what libraries print to stderr: stdout is for results."""
    with redirect_stdout(sys.stderr):
        yield
