"""All codes at once beside beams: the same shape, histories and prompt texts in one run, int8, random weights.

    python benchmarks/set_codes.py                # Qwen2.5-0.5B shape, 37 items: 200 tokens with beams
    python benchmarks/set_codes.py --shape tiny   # a minute's check that everything runs
    python benchmarks/set_codes.py --scoring      # the scoring of catalogs alone

    beams              a fresh request: 20 beams over four codes per item, rule "trie"
    set                a fresh request: one row per item, sixteen digits at once, the whole catalog scored
    set_int4           the same, its late stage in int4 (the precision int8-int4)
    *_session          an open session: the user chose one more item, show the new list
    ctranslate2_int8   the dense model of the beams in CTranslate2, if it is installed (see benchmarks/peers.py)
    scoring_ms         milliseconds from the digits' logits to the best ten of so many items, on one core

Sides take turns; each has a process of its own, as in benchmarks/peers.py. Weights are random, so nothing here is about
accuracy. The set's score spread is that of random weights, which is when bounds help least.

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import sides
from benchmarks.engines import CTranslate2, Runtime
from benchmarks.measure import OwnProcess, Side, Step, measure, timed, versions
from benchmarks.peers import HEADLINE, KEEP_MEMORY, PACKAGES, SHAPES
from benchmarks.sides import ITEMS, Contender, RandomTask, Shape
from benchmarks.written import convert, write_bundles
from earn.catalog import Catalog
from earn.config import SET
from earn.console import note, progress, show, show_json, table
from earn.digits import Digits
from earn.model.earn_model import EarnModel
from earn.model.set_model import SetModel
from earn.profiling.machine import this_machine
from earn.runtime.set_scores import SetScores

HISTORY = 37  # items: with beams a prompt of 200 tokens
DIGITS, VALUES = 16, 256
CATALOGS = (12_000, 1_500_000)  # items whose scoring is timed
SPREAD = 1.0  # of the logits that are scored
ROUNDS, REQUESTS = 3, 5
SCORINGS = 15
CONTENDERS = {
    "beams": Contender("ours", "earn", "int8", "trie"),
    "set": Contender("ours", "set", "int8", "level"),
    "set_int4": Contender("ours", "set", "int8-int4", "level"),
    "beams_session": Contender("session", "earn", "int8", "trie"),
    "set_session": Contender("session", "set", "int8", "level"),
    "set_int4_session": Contender("session", "set", "int8-int4", "level"),
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of all sides")
    parser.add_argument("--scoring", action="store_true", help="the scoring of catalogs alone")
    arguments = parser.parse_args()
    os.environ.update(KEEP_MEMORY)
    scoring = {"scoring_ms": {str(items): scoring_ms(items) for items in CATALOGS}}
    asked = {} if arguments.scoring else requests_ms(SHAPES[arguments.shape], arguments.threads)
    about = {"shape": arguments.shape, "history": HISTORY, "beams": HEADLINE.beams, "digits": DIGITS}
    machine = {"threads": arguments.threads, "machine": this_machine().cpu, "versions": versions(*PACKAGES)}
    show_json({**asked, **scoring, **about, **machine})


def scoring_ms(items: int) -> float:
    """The median time from logits to a list."""
    note(f"scoring {items:,} items")
    with OwnProcess(Scoring, items) as scoring:
        return round(cast(float, scoring.ask("median_ms")[1]), 2)


class Scoring:
    """A catalog of random items, in a process that keeps its memory as the others do."""

    def __init__(self, items: int) -> None:
        self._scores = SetScores.over(random_digits(items))

    def median_ms(self) -> float:
        """Of lists for logits that differ each time."""
        generator, taken = np.random.default_rng(1), []
        for _ in range(SCORINGS):
            logits = (SPREAD * generator.standard_normal(DIGITS * VALUES)).astype(np.float32)
            milliseconds, _ = timed(partial(self._scores.best, logits, ITEMS))()
            taken.append(milliseconds)
        return statistics.median(taken)


def requests_ms(shape: Shape, threads: int) -> dict[str, float | None]:
    """The medians of all sides' requests."""
    task = sides.make_task(sides.make_catalog(shape), shape, threads)
    histories = np.random.default_rng(0).integers(0, shape.items, (ROUNDS, HISTORY)).tolist()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write(task, folder)
        ours = stack.enter_context(OwnProcess(Runtime, folder / "bundles", threads))
        asked = {side: Side(partial(steps, ours, row, histories), REQUESTS) for side, row in CONTENDERS.items()}
        if (folder / "ctranslate2").is_dir():
            peer = stack.enter_context(OwnProcess(CTranslate2, folder / "ctranslate2", threads, "int8"))
            asked["ctranslate2_int8"] = Side(
                lambda turn: [partial(peer.ask, "search", task.prompt(histories[turn]), HEADLINE.beams, task.head)],
                REQUESTS,
            )
        timings = measure(asked, ROUNDS, finished=progress("rounds"))
    base = timings["set"].median
    rows = [
        (side, f"{own.median:.2f}", f"{min(own.totals):.2f}", f"{max(own.totals):.2f}", f"{own.median / base:.2f}")
        for side, own in timings.items()
    ]
    show(table(("", "median ms", "least", "most", "times set"), rows))
    return {"ctranslate2_int8_ms": None} | {f"{side}_ms": own.median for side, own in timings.items()}


def steps(ours: OwnProcess, row: Contender, histories: Sequence[Sequence[int]], turn: int) -> list[Step]:
    """A request's timed steps; a session has read all but the newest item before."""
    items = list(map(str, histories[turn]))
    if row.kind != "session":
        return [partial(ours.ask, "recommend", row, items, HEADLINE.beams)]
    ours.ask("open", row, items[:-1])
    return [partial(ours.ask, "append", items[-1]), partial(ours.ask, "show", HEADLINE.beams)]


def write(task: RandomTask, folder: Path) -> None:
    """Writes both models' bundles, and the dense one for CTranslate2 where that is installed."""
    backbone = task.backbone()
    if find_spec("ctranslate2") is not None:
        note("converting for ctranslate2")
        convert(backbone, folder / "ctranslate2")
    history = list(map(str, range(HISTORY)))
    calibrated_on = [history, history[::-1]]
    model = EarnModel(backbone, task.splits["earn"], task.catalog).eval()
    write_bundles(model, folder / "bundles" / "earn", calibrated_on, ["int8"])
    del backbone, model
    gc.collect()
    write_bundles(set_model(task).eval(), folder / "bundles" / "set", calibrated_on, ["int8", "int8-int4"], "level")


def set_model(task: RandomTask) -> SetModel:
    """The shape with digits: a prompt of as many other tokens."""
    catalog = digit_catalog(len(task.catalog))
    own = sides.make_task(catalog, task.shape, task.threads, depth=DIGITS)
    return SetModel(own.backbone(), replace(own.splits["earn"], method=SET), catalog)


def random_digits(items: int) -> Digits:
    """Digits of random items; every value occurs."""
    codes = np.random.default_rng(0).integers(0, VALUES, (items, DIGITS))
    codes[:VALUES] = np.arange(VALUES)[:, None]
    starts = VALUES * np.arange(DIGITS)
    return Digits(codes + starts, starts, np.full(DIGITS, VALUES), np.ones(DIGITS))


def digit_catalog(items: int) -> Catalog:
    """The same as a catalog; of few items there are as many values as these."""
    digits = random_digits(max(items, VALUES))
    codes = (digits.codes - digits.starts)[:items].tolist()
    rows = (tuple(f"<d{digit}_{code}>" for digit, code in enumerate(row)) for row in codes)
    return Catalog(tuple(map(str, range(items))), tuple(rows), ("",) * items)


if __name__ == "__main__":
    main()
