"""What `benchmarks/gpu.py` finds: its rows, and whether lists of recommendations are those of the CPU."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmarks.near_ties import is_same_list

from benchmarks.gpu_sides import BEAMS, ITEMS, Clock, History
from earn.catalog import Catalog
from earn.data.dataset import Dataset
from earn.runtime.recommender import Recommendation, Recommender

CHECKED = 24  # histories whose lists are compared

Lists = list[list[Recommendation]]


@dataclass
class Row:
    """What was measured of a shape on an engine in a precision with a batch."""

    shape: str
    engine: str
    precision: str
    batch: int
    earn_ms: float | None = None
    dense_ms: float | None = None
    hf_generate_ms: float | None = None
    hf_unconstrained_ms: float | None = None
    top10_overlap_with_cpu: float | None = None  # of EARN
    same_order_as_cpu: float | None = None  # share of EARN's lists, but for near ties
    dense_overlap_with_hf: float | None = None


@dataclass
class Check:
    """Lists of EARN at one shape: those of the CPU, and those that rows are to be compared by."""

    name: str  # of the shape
    folder: Path  # of the bundle
    histories: Sequence[History]
    on_cpu: list[list[str]] | None = None
    rows: list[tuple[Row, Lists]] = field(default_factory=list)

    def ask_cpu(self, count: int, clock: Clock, seconds: float = math.inf) -> None:
        """Asks the CPU about the first histories, for so long at the most."""
        clock.note(f"{self.name}: asking the CPU for {min(count, len(self.histories))} lists")
        found = cpu_lists(self.folder, self.histories[:count], max(0.0, min(seconds, clock.left)))
        if isinstance(found, str):
            clock.note(f"{self.name}: no lists of the CPU: {found}")
        else:
            self.on_cpu = found

    def compare(self) -> None:
        """Fills the rows in."""
        if self.on_cpu is None:
            return
        for row, lists in self.rows:
            some = lists[: len(self.on_cpu)]
            row.top10_overlap_with_cpu = overlap(self.on_cpu, item_ids(some))
            row.same_order_as_cpu = same_order(self.on_cpu, some)


def real_histories(data: Dataset | None, catalog: Catalog, what: str) -> list[list[str]]:
    """Those of some users of the data set; [] without one.

    Raises:
        EarnError: `what` recommends other items.
    """
    if data is None:
        return []
    data.check_items(catalog, what)
    return data.histories(data.examples(users=CHECKED))


def random_histories(catalog: Catalog, count: int, length: int) -> list[list[str]]:
    """Histories of random items."""
    drawn = np.random.default_rng(0).integers(0, len(catalog), (count, length)).tolist()
    return [[catalog.item_ids[item] for item in history] for history in drawn]


def in_batches(recommender: Recommender, histories: Sequence[History], batch: int) -> Lists:
    """The lists of many histories, so many at a time."""
    return [
        items
        for start in range(0, len(histories), batch)
        for items in recommender.recommend_batch(histories[start : start + batch], ITEMS, BEAMS)
    ]


def overlap(want: Sequence[Sequence[str]], got: Sequence[Sequence[str]]) -> float:
    """The mean share of a list's items that the other list has too."""
    shares = [len(set(one) & set(other)) / max(1, len(one)) for one, other in zip(want, got, strict=True)]
    return round(statistics.mean(shares), 4)


def same_order(want: Sequence[Sequence[str]], got: Lists) -> float:
    """The share of lists with the same items in the same order, but for near ties."""
    return round(statistics.mean(is_same_list(*pair) for pair in zip(want, got, strict=True)), 4)


def item_ids(lists: Lists) -> list[list[str]]:
    """Lists without scores."""
    return [[item.item_id for item in items] for items in lists]


def cpu_lists(folder: Path, histories: Sequence[History], seconds: float) -> list[list[str]] | str:
    """The lists of a bundle on the CPU, from a process that has so much time; or why there are none."""
    script = Path(__file__).with_name("cpu_lists.py")
    command = [sys.executable, str(script), str(folder), str(ITEMS), str(BEAMS)]
    try:
        done = subprocess.run(command, input=json.dumps(histories), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"the CPU was not done after {seconds:.1f} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["perhaps memory was short"]
        return f"the process ended with {done.returncode}: {last[0]}"
    found: list[list[str]] = json.loads(done.stdout)
    return found
