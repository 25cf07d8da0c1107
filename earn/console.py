"""What commands print: notes, numbered steps and progress to stderr, tables and JSON to stdout.

Under torchrun several processes run the same command. Only the first one prints, except errors: those come from each
process, because one may fail alone.
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
from importlib.util import find_spec
from typing import Any

_NUMBER = re.compile(r"[-+]?[\d.,]*( ?(%|ms|[KMG]iB|bytes))?|-")
CLEAR_LINE = "\r\x1b[K"
LOG_SHARE, LOG_SECONDS = 0.1, 30.0  # a redirected log gets a line of progress after so much of the work, or so long


def note(text: str) -> None:
    """Prints a line that is no result to stderr."""
    if _is_first_process():
        print(text, file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """Prints a line of a step, in place of the progress that a terminal shows."""
    note(f"{CLEAR_LINE if sys.stderr.isatty() else ''}      {text}")


def complain(text: str) -> None:
    """Prints an error to stderr, from every process."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Prints a result for people to stdout."""
    if _is_first_process():
        print(text, flush=True)


def show_json(value: Any) -> None:
    """Prints a result for programs to stdout: one line of JSON."""
    show(json.dumps(value))


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun numbers its processes


class Steps:
    """Numbered headings with the time since the start, so that one sees where a long command is."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._step = 0
        self._started = time.monotonic()

    def __call__(self, title: str) -> None:
        """Begins the next step."""
        self._step += 1
        minutes, seconds = divmod(round(self.seconds), 60)
        note(f"[{self._step}/{self._total}] {minutes}:{seconds:02d}  {title}")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started


def progress(label: str, is_passing: bool = False) -> Callable[[int, int], None]:
    """A callback (done, total) that shows how far a piece of work is, on stderr.

    A terminal gets one line that tqdm keeps up to date; a redirected log gets a line every LOG_SHARE or LOG_SECONDS.

    Args:
        label: what is counted.
        is_passing: a part of other work, which leaves no line in a terminal, nor one in a log before LOG_SECONDS.
    """
    bar: Any = None
    logged, logged_at = 0, time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal bar, logged, logged_at
        if not _is_first_process():
            return
        if sys.stderr.isatty() and find_spec("tqdm"):
            from tqdm import tqdm

            bar = bar or tqdm(
                total=total, desc=f"      {label}", file=sys.stderr, leave=not is_passing, dynamic_ncols=True
            )
            bar.update(done - bar.n)
            if done >= total:
                bar.close()
            return
        is_far = not is_passing and (done >= total or done - logged >= LOG_SHARE * total)
        if is_far or time.monotonic() - logged_at >= LOG_SECONDS:
            logged, logged_at = done, time.monotonic()
            note(f"      {label}: {done} of {total}")

    return update


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text with columns of numbers to the right; without tabulate, cells with tabs between them."""
    try:
        from tabulate import tabulate
    except ImportError:  # a device may have numpy and onnxruntime alone
        return "\n".join("\t".join(row) for row in (header, *rows))
    columns = zip(header, *rows, strict=True)
    sides = ["right" if all(map(_NUMBER.fullmatch, column[1:])) else "left" for column in columns]
    text = tabulate(rows, header, tablefmt="simple", colalign=sides, disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())


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
    """Keeps other libraries' warnings and progress bars from the terminal: they are about those libraries' insides."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # which transformers reads when it is first imported
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
