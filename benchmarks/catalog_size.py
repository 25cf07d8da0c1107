"""What a catalog's size costs: reading it, and excluding 100,000 of its items.

    python benchmarks/catalog_size.py                       # 12,000 and 1.5 million items
    python benchmarks/catalog_size.py --items 10000000

Random identifiers of 4 codes of 256. Each catalog is written and then read in a process of its own. Times are those of
the processor, so that other work on the machine counts less. Memory is what the process's peak grows by while the
catalog is read (Linux), mapped pages included, and what it holds afterwards without them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from earn.catalog import CATALOG_FILE, Catalog, Identifiers
from earn.runtime.trie import Exclusions, distinct
from earn.texts import Texts

CODES, DEPTH = 256, 4
EXCLUDED = 100_000
ROUNDS = 9
COLUMNS = ("items", "file MiB", "load s", "peak MiB", "kept MiB", "look ids up ms", "exclude ms")


def write(items: int, path: Path) -> None:
    """Writes a random catalog."""
    drawn = np.random.default_rng(0).integers(0, CODES, (items, DEPTH))
    codes = (drawn + CODES * np.arange(DEPTH)).astype(np.int32)
    tokens = tuple(f"<{level}_{code}>" for level in "abcd" for code in range(CODES))
    ids = Texts.of([str(item) for item in range(items)])
    titles = Texts.of([f"The title of item {item}, as a shop has it" for item in range(items)])
    Catalog(ids, Identifiers(codes, tokens), titles).save(path)


def measure(items: int, path: Path) -> list[float]:
    """The row of a catalog that was written there."""
    before, start = _memory(), time.process_time()
    catalog = Catalog.load(path)
    seconds, after = time.process_time() - start, _memory()
    chosen = np.random.default_rng(1).choice(items, min(items, EXCLUDED), replace=False)
    ids = [str(item) for item in chosen]
    found = distinct(catalog.index.find(ids))
    times = [_milliseconds(lambda: catalog.index.find(ids))]
    times.append(_milliseconds(lambda: Exclusions.of(catalog.trie, [found])))
    memory = [after["VmHWM"] - before["VmHWM"], after["RssAnon"] - before["RssAnon"]]
    return [items, path.stat().st_size / 2**20, seconds, *memory, *times]


def _milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        call()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def _memory() -> dict[str, float]:
    """MiB of the process: at its peak, and of its own pages now."""
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[0] in ("VmHWM:", "RssAnon:")}


def main() -> None:
    """Measures, and prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default="12000,1500000", help="sizes, with commas (default: %(default)s)")
    rows = []
    for items in map(int, parser.parse_args().items.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CATALOG_FILE
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                process.submit(write, items, path).result()
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                rows.append(process.submit(measure, items, path).result())
    for line in (COLUMNS, *([f"{value:,.1f}" for value in row] for row in rows)):
        print("".join(text.rjust(18) for text in line))
    print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))


if __name__ == "__main__":
    main()
