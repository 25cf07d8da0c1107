"""What a catalog's size costs: reading it and excluding 100,000 of its items, and filters in a request.

    python benchmarks/catalog.py reading                    # 12,000 and 1.5 million items
    python benchmarks/catalog.py reading --items 12000,10000000
    python benchmarks/catalog.py filters                    # 12,000 items
    python benchmarks/catalog.py filters --items 1500000

Identifiers are random, 4 codes of 256. Times are those of the processor, so that other work on the machine counts less.

reading     Each catalog is written, and then read and asked in a process of its own, once for beams and once for the
            method set. Loading takes what the method asks of a catalog: the trie, or the digits in tables. Memory is
            what the process has more than before (Linux), mapped pages included: at its peak while it loads, and then.
            A request of beams is a whole one over a small model with random weights, on one thread. One of the method
            set is all but the model's pass, which the catalog does not change: history, scores, list. The last column
            is what excluding 100,000 ids takes before the search begins.
filters     A small model with random weights answers on one thread; in every round each filter answers one request, in
            turn. Tags hold random items. `first` is the request that evaluates the expression; the others find it kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.catalog import CATALOG_FILE, Catalog, Identifiers
from earn.config import BEAMS, SET
from earn.console import show, show_json, table
from earn.filters import Filter, Items, Tag
from earn.manifest import Manifest
from earn.runtime.engine import Engine, load_engine
from earn.runtime.item_filters import indices_of, items_left
from earn.runtime.recommender import Recommender
from earn.runtime.set_scores import SetScores
from earn.runtime.trie import distinct
from earn.texts import Texts

Request = Callable[[Sequence[str | int]], object]  # takes item ids

CODES, DEPTH, WIDTH = 256, 4, 256
EXCLUDED = 100_000
READINGS, REQUESTS = 9, 40
METHODS = (BEAMS, SET)
COLUMNS = (
    *("method", "items", "file MiB", "load s", "wall s", "peak MiB", "then MiB"),
    *("first ms", "later ms", "of the smallest", "exclude ms"),
)
SHARES = {"half": 0.5, "tenth": 0.1, "rare": 0.001}
FILTERS: Mapping[str, Filter | None] = {
    "no filter": None,
    'Tag("half")': Tag("half"),
    '~Tag("tenth")': ~Tag("tenth"),
    'Tag("rare")': Tag("rare"),
    'Tag("half") & ~Tag("tenth")': Tag("half") & ~Tag("tenth"),
    "100 ids": Items(list(range(100))),
}


def random_catalog(codes: NDArray[np.int64]) -> Catalog:
    """A catalog with these codes [items, DEPTH], every one below CODES."""
    items = len(codes)
    tokens = tuple(f"<{level}_{code}>" for level in "abcd" for code in range(CODES))
    ids = Texts.of([str(item) for item in range(items)])
    titles = Texts.of([f"The title of item {item}, as a shop has it" for item in range(items)])
    return Catalog(ids, Identifiers((codes + CODES * np.arange(DEPTH)).astype(np.int32), tokens), titles)


def measure_reading(method: str, folder: Path, path: Path) -> list[float]:
    """The row of a catalog, over a bundle's graphs."""
    manifest = Manifest.load(folder, verify=False)
    engine = load_engine("cpu", folder, manifest, threads=1)
    before, start, wall = _memory(), time.process_time(), time.perf_counter()
    catalog = Catalog.load(path)
    request, exclude = _of_beams(engine, manifest, catalog) if method == BEAMS else _of_set(catalog)
    seconds, after = [time.process_time() - start, time.perf_counter() - wall], _memory()
    items = len(catalog)
    generator = np.random.default_rng(1)
    times = [_milliseconds(request, generator.integers(0, items, 20).tolist()) for _ in range(REQUESTS + 1)]
    ids = [str(item) for item in generator.choice(items, min(items, EXCLUDED), replace=False)]
    excluding = statistics.median(_milliseconds(exclude, ids) for _ in range(READINGS))
    memory = [after[name] - before["VmRSS"] for name in ("VmHWM", "VmRSS")]
    mebibytes = path.stat().st_size / 2**20
    return [items, mebibytes, *seconds, *memory, times[0], statistics.median(times[1:]), excluding]


def _of_beams(engine: Engine, manifest: Manifest, catalog: Catalog) -> tuple[Request, Request]:
    """What answers a history, and what excludes ids."""
    recommender = Recommender(engine, manifest, catalog)
    return recommender.recommend, lambda ids: items_left(catalog.trie, [recommender.excluded(ids)])


def _of_set(catalog: Catalog) -> tuple[Request, Request]:
    """The same of the method set."""
    scores = SetScores.of(catalog, len(catalog.tokens))
    logits = np.random.default_rng(2).normal(size=len(catalog.tokens)).astype(np.float32)

    def request(history: Sequence[str | int]) -> list[tuple[str, str, float]]:
        best = scores.best(logits, 10, catalog.find(history))
        return [(catalog.item_ids[item], catalog.titles[item], score) for item, score in best]

    return request, lambda ids: indices_of(distinct(catalog.find(ids)))


def _milliseconds(call: Request, items: Sequence[str | int]) -> float:
    start = time.process_time()
    call(items)
    return 1000 * (time.process_time() - start)


def _memory() -> dict[str, float]:
    """MiB of the process: at its peak, and now."""
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[0] in ("VmHWM:", "VmRSS:")}


def reading(sizes: list[int]) -> None:
    """Writes and reads a catalog of each size; prints a table and one line of JSON."""
    rows: list[list[str | float]] = []
    smallest: dict[str, float] = {}
    for items in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "bundle"
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                process.submit(write_bundle, items, folder).result()
            for method in METHODS:
                path = Path(temporary) / f"{method}.npz"
                Catalog.load(folder / CATALOG_FILE).save_items(path, with_trie=method != SET)
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    *row, later, exclude = process.submit(measure_reading, method, folder, path).result()
                share = later / smallest.setdefault(method, later)
                rows.append([method, *row, later, share, exclude])
    show(
        table(COLUMNS, [[f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row] for row in rows])
    )
    show_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])


def write_bundle(items: int, folder: Path) -> None:
    """Writes a bundle with tags."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from earn.bundle_edit import set_tags
    from earn.export.bundle import export_bundle
    from earn.model.earn_model import EarnModel
    from earn.tags import Tags

    generator = np.random.default_rng(0)
    codes = generator.integers(0, CODES, (items, DEPTH))
    codes[:CODES, :] = np.arange(CODES)[:, None]  # every token stands in some identifier
    config = Qwen3Config(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=WIDTH // 4,
        vocab_size=64,
    )
    backbone = Qwen3ForCausalLM(config)
    model = EarnModel.from_backbone(backbone, random_catalog(codes), early_layers=2, max_history=20)
    export_bundle(model.eval(), folder, [[str(item) for item in range(9)]])
    having = {name: np.flatnonzero(generator.random(items) < share) for name, share in SHARES.items()}
    set_tags(folder, Tags.of(having, items))


def measure_filters(folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of each filter's first request, and the median of the others."""
    recommender = Recommender.load(folder, threads=1)
    histories = np.random.default_rng(1).integers(0, len(recommender.catalog), (REQUESTS + 1, 20)).tolist()
    recommender.recommend(histories[0])
    times: dict[str, list[float]] = {name: [] for name in FILTERS}
    for history in histories:
        for name, allow in FILTERS.items():
            start = time.process_time()
            assert len(recommender.recommend(history, 10, allow=allow)) == 10
            times[name].append(1000 * (time.process_time() - start))
    return {name: {"first": row[0], "median": statistics.median(row[1:])} for name, row in times.items()}


def filters(items: int) -> None:
    """Times requests with each filter; prints a table and one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_bundle(items, bundle)
        rows = measure_filters(bundle)
    base = rows["no filter"]["median"]
    cells = [
        [name, f"{row['first']:.1f}", f"{row['median']:.1f}", f"{row['median'] / base - 1:.1%}"]
        for name, row in rows.items()
    ]
    show(table(("filter", "first ms", "then ms", "adds"), cells))
    show_json({"items": items, **rows})


def main() -> None:
    """Measures, and prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("reading", "filters"))
    parser.add_argument("--items", help="of the catalog; with commas for several that are read")
    arguments = parser.parse_args()
    if arguments.what == "reading":
        reading([int(items) for items in (arguments.items or "12000,1500000").split(",")])
    else:
        filters(int(arguments.items or 12_000))


if __name__ == "__main__":
    main()
