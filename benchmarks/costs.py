"""What single parts cost: catalogs by their size, filters, the scoring of digits, a few steps of training.

    python -m benchmarks.costs reading                    # 12,000 and 1.5 million items
    python -m benchmarks.costs reading --items 12000,10000000
    python -m benchmarks.costs filters                    # 12,000 items
    python -m benchmarks.costs filters --items 1500000
    python -m benchmarks.costs scoring                    # 12,000 and 1.5 million items
    python -m benchmarks.costs training BACKBONE [--history N] [--batch N] [--rank N]

Each prints a table, then one line of JSON. In catalogs identifiers are random, 4 codes of 256. Times of reading and
filters are those of the processor, so that other work on the machine counts less.

reading     Each catalog is written, and then read and asked in a process of its own, once for beams and once for the
            method set. Loading takes what the method asks of a catalog: the trie, or the digits in tables. Memory is
            what the process has more than before (Linux), mapped pages included: at its peak while it loads, and then.
            A request of beams is a whole one over a small model with random weights, on one thread. One of the method
            set is all but the model's pass, which the catalog does not change: history, scores, list. The last column
            is what excluding 100,000 ids takes before the search begins.
filters     A small model with random weights answers on one thread; in every round each filter answers one request, in
            turn. Tags hold random items. `first` is the request that evaluates the expression; the others find it kept.
scoring     Of the method set: milliseconds from the logits of sixteen digits of 256 values to the best ten of so many
            items, on one core.
training    Peak memory of two training steps on made-up users with full histories: every weight trained, adapters
            alone, adapters with bfloat16 and recomputation. BACKBONE is a Hugging Face folder or a GGUF file, written
            as a folder first, so that all ways load the same files; prompts are identifiers alone. Each way runs in a
            process of its own, from loading to the written checkpoint. JSON has a row per way:

                {"way": str, "trained": parameters, "loaded_mib": float, "peak_mib": float, "step_s": float}

            loaded_mib is the process's peak before the training begins, peak_mib that at the end; step_s is the
            training's seconds, evaluation and saving included, per step.

Other files take from here: random catalogs, what runs in a process of its own, what an engine does for a request.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.catalog import CATALOG_FILE, Catalog, Identifiers
from earn.config import BEAMS, SET
from earn.console import note, show, show_json, table
from earn.digits import Digits
from earn.errors import EarnError
from earn.filters import Filter, Items, Tag
from earn.manifest import Manifest, stage_precision
from earn.profiling.machine import peak_bytes
from earn.runtime.engine import Engine, load_engine
from earn.runtime.item_filters import distinct, indices_of, items_left
from earn.runtime.recommender import Recommender
from earn.runtime.set_scores import SetScores
from earn.texts import Texts

Request = Callable[[Sequence[str | int]], object]  # takes item ids

VALUES, DEPTH = 256, 4  # that a code has, codes of an item
WIDTH = 256  # of the small model
EXCLUDED = 100_000
READINGS, REQUESTS, SCORINGS = 9, 40, 15
METHODS = (BEAMS, SET)
READING_COLUMNS = (
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
DIGITS = 16
SCORED = (12_000, 1_500_000)  # items whose scoring is timed
TRAINED_ITEMS, TRAINED_USERS = 100, 4
WAYS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "lora": {"lora": 8},
    "lora, recomputed": {"lora": 8, "gradient_checkpointing": True},
    "lora, bfloat16, recomputed": {"lora": 8, "dtype": "bfloat16", "gradient_checkpointing": True},
}


# Reads what is asked as JSON and prints lists of item ids; runs in the root folder.
ASK = """
import json, sys
from earn.runtime.recommender import Recommender
folder, histories, k, beams = json.load(sys.stdin)
recommender = Recommender.load(folder, verify=False)
print(json.dumps([[item.item_id for item in recommender.recommend(history, k, beams)] for history in histories]))
"""


def apart(call: Callable[..., Any], *arguments: object) -> Any:
    """What a call gives in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(call, *arguments).result()


def lists_apart(folder: Path, histories: Sequence[Sequence[str]], k: int, beams: int, limit: float) -> list[list[str]]:
    """A bundle's lists on the CPU, from a process of its own that has `limit` seconds.

    Raises:
        EarnError: it gives none, "which was not done after 60.0 s" or the like.
    """
    asked = json.dumps((str(folder.resolve()), histories, k, beams))
    command, root = [sys.executable, "-c", ASK], Path(__file__).parents[1]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=limit, cwd=root)
    except subprocess.TimeoutExpired as error:
        raise EarnError(f"which was not done after {limit:.1f} s") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["perhaps memory was short"]
        raise EarnError(f"whose process ended with {done.returncode}: {last[0]}")
    lists: list[list[str]] = json.loads(done.stdout)
    return lists


def random_codes(items: int, depth: int) -> NDArray[np.int64]:
    """Codes of random items [items, depth]; every value occurs."""
    codes = np.random.default_rng(0).integers(0, VALUES, (items, depth))
    codes[:VALUES] = np.arange(VALUES)[:, None]
    return codes


def catalog_of(codes: NDArray[np.int64], values: int = VALUES) -> Catalog:
    """A catalog with these codes [items, depth], whose every level has so many values."""
    items, depth = codes.shape
    tokens = tuple(f"<{level}_{code}>" for level in ascii_lowercase[:depth] for code in range(values))
    ids = Texts.of([str(item) for item in range(items)])
    titles = Texts.of([f"The title of item {item}, as a shop has it" for item in range(items)])
    return Catalog(ids, Identifiers((codes + values * np.arange(depth)).astype(np.int32), tokens), titles)


def distinct_catalog(items: int, values: int) -> Catalog:
    """Random identifiers of DEPTH codes, of which no two are the same."""
    generator = np.random.default_rng(0)
    codes = np.unique(generator.integers(0, values, (2 * items, DEPTH)), axis=0)
    return catalog_of(generator.permutation(codes)[:items], values)


def measure_reading(method: str, folder: Path, path: Path) -> list[float]:
    """The row of a catalog, over a bundle's graphs."""
    from psutil import Process  # a machine that asks other files alone may lack it

    manifest, memory = Manifest.load(folder, verify=False), Process().memory_info
    engine = load_engine("cpu", folder, manifest, threads=1)
    before, start, wall = memory().rss, time.process_time(), time.perf_counter()
    catalog = Catalog.load(path)
    request, exclude = _of_beams(engine, manifest, catalog) if method == BEAMS else _of_set(catalog)
    seconds = [time.process_time() - start, time.perf_counter() - wall]
    held = [(size - before) / 2**20 for size in (peak_bytes() or 0, memory().rss)]  # MiB
    items = len(catalog)
    generator = np.random.default_rng(1)
    times = [_milliseconds(request, generator.integers(0, items, 20).tolist()) for _ in range(REQUESTS + 1)]
    ids = [str(item) for item in generator.choice(items, min(items, EXCLUDED), replace=False)]
    excluding = statistics.median(_milliseconds(exclude, ids) for _ in range(READINGS))
    return [items, path.stat().st_size / 2**20, *seconds, *held, times[0], statistics.median(times[1:]), excluding]


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


def _milliseconds(call: Callable[[Any], Any], asked: Any, clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    call(asked)
    return 1000 * (clock() - start)


def reading(args: argparse.Namespace) -> None:
    """Writes and reads a catalog of each size."""
    rows: list[list[str | float]] = []
    smallest: dict[str, float] = {}
    for items in map(int, args.items.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "bundle"
            apart(write_bundle, items, folder)
            for method in METHODS:
                path = Path(temporary) / f"{method}.npz"
                Catalog.load(folder / CATALOG_FILE).save(path, method != SET, with_quantizer=False)
                *row, later, exclude = apart(measure_reading, method, folder, path)
                share = later / smallest.setdefault(method, later)
                rows.append([method, *row, later, share, exclude])
    cells = [[f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    show(table(READING_COLUMNS, cells))
    show_json([dict(zip(READING_COLUMNS, row, strict=True)) for row in rows])


def write_bundle(items: int, folder: Path) -> None:
    """Writes a bundle with tags."""
    from transformers import AutoModelForCausalLM

    from benchmarks.sides import Shape, backbone_config
    from earn.bundle_edit import set_tags
    from earn.export.bundle import export_bundle
    from earn.model.earn_model import EarnModel
    from earn.tags import Tags

    shape = Shape("qwen3", WIDTH, 4 * WIDTH, 8, 4, 2, early_layers=2)
    backbone = AutoModelForCausalLM.from_config(backbone_config(shape.sizes(VALUES), head_dim=WIDTH // shape.heads))
    catalog = catalog_of(random_codes(items, DEPTH))
    model = EarnModel.from_backbone(backbone, catalog, shape.early_layers)
    export_bundle(model.eval(), folder, [[str(item) for item in range(9)]])
    generator = np.random.default_rng(1)
    having = {name: np.flatnonzero(generator.random(items) < share) for name, share in SHARES.items()}
    set_tags(folder, Tags.of(having, items))


def filters(args: argparse.Namespace) -> None:
    """Times requests with each filter."""
    from benchmarks.sides import Side, measure, timed

    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_bundle(args.items, bundle)
        recommender = Recommender.load(bundle, threads=1)
    histories = np.random.default_rng(1).integers(0, len(recommender.catalog), (REQUESTS + 1, 20)).tolist()
    recommender.recommend(histories[0])

    def side(allow: Filter | None) -> Side:
        ask = partial(recommender.recommend, k=10, allow=allow)
        return Side(lambda turn: [timed(partial(ask, histories[turn]), time.process_time)], requests=1, warm_up=0)

    times = measure({name: side(allow) for name, allow in FILTERS.items()}, len(histories), pause=0)
    rows = {name: {"first": own.totals[0], "median": statistics.median(own.totals[1:])} for name, own in times.items()}
    base = rows["no filter"]["median"]
    cells = [
        [name, f"{row['first']:.1f}", f"{row['median']:.1f}", f"{row['median'] / base - 1:.1%}"]
        for name, row in rows.items()
    ]
    show(table(("filter", "first ms", "then ms", "adds"), cells))
    show_json({"items": args.items, **rows})


def scoring(_: argparse.Namespace) -> None:
    """Times the scoring of each catalog."""
    from benchmarks.peers import machine
    from benchmarks.sides import KEEP_MEMORY

    os.environ.update(KEEP_MEMORY)
    times = {str(items): scoring_ms(items) for items in SCORED}
    show(table(("items", "ms"), [(f"{int(items):,}", f"{ms:.2f}") for items, ms in times.items()]))
    show_json({"scoring_ms": times, "digits": DIGITS, **machine(1)})


def scoring_ms(items: int) -> float:
    """The median time from logits to a list of a catalog of random items, in a process of its own."""
    note(f"scoring {items:,} items")
    return round(float(apart(measure_scoring, items)), 2)


def measure_scoring(items: int) -> float:
    """The same here, for logits that differ each time."""
    scores = SetScores.over(random_digits(items))
    logits = np.random.default_rng(1).standard_normal((SCORINGS, DIGITS * VALUES)).astype(np.float32)
    best = partial(scores.best, k=10)
    return statistics.median(_milliseconds(best, row, time.perf_counter) for row in logits)


def random_digits(items: int) -> Digits:
    """Digits of random items; every value occurs."""
    starts = VALUES * np.arange(DIGITS)
    return Digits(random_codes(items, DIGITS) + starts, starts, np.full(DIGITS, VALUES), np.ones(DIGITS))


def digit_catalog(items: int) -> Catalog:
    """The same as a catalog, which has VALUES items at the least."""
    return catalog_of(random_codes(max(items, VALUES), DIGITS))


def request_figures(
    engine: Engine, manifest: Manifest, folder: Path, histories: Sequence[Sequence[str]], beams: int, threads: int
) -> dict[str, Any]:
    """What an engine does for a request: medians over every call that requests make.

    operations; prefill_rate, operations per second of the early stage over the prompt, and gemm_rate, that of its bare
    matmuls; search_share of the time, outside the graphs; prompt_rows that the early stage reads of a prompt, piece by
    piece; pass_rows that each pass after it feeds, in the last request.
    """
    from earn.profiling.figures import Call
    from earn.profiling.profiler import Subject, TimedEngine
    from earn.profiling.roofline import MatmulBench, stage_work
    from earn.profiling.rows import PREFILLS, SEARCH

    def operations(calls: Sequence[Call]) -> int:
        return sum(stage_work(manifest, it.stage, it.rows, it.cached, it.kept).operations for it in calls)

    timed, prefill, columns = TimedEngine(engine), PREFILLS["early"], []
    subject = Subject("", folder, manifest, timed, Recommender.with_engine(timed, folder, manifest))
    for items in histories:
        request = subject.ask(items, 10, beams, time.perf_counter)
        pieces, ms = request.by_stage()[prefill], request.parts()
        rates = (1000 * operations(pieces) / ms[prefill], ms[SEARCH] / request.milliseconds)
        columns.append((operations(request.calls), *rates))
    medians = map(statistics.median, zip(*columns, strict=True))
    return {
        **dict(zip(("operations", "prefill_rate", "search_share"), medians, strict=True)),
        "gemm_rate": MatmulBench(manifest, stage_precision(manifest.precision, "early"), threads).rate(pieces[0].rows),
        "prompt_rows": [call.rows for call in pieces],
        "pass_rows": [call.rows for call in request.calls[len(pieces) :] if call.stage == "early"],
    }


def write_folder(backbone: str, folder: Path) -> None:
    """Writes a backbone as a Hugging Face folder, without a tokenizer: prompts are identifiers alone."""
    from earn.model.backbones import load_backbone

    load_backbone(backbone).save_pretrained(folder)


def measure_training(way: str, backbone: Path, history: int, batch: int, rank: int, out: Path) -> dict[str, Any]:
    """Trains one way; returns its row."""
    from earn.model.earn_model import EarnModel
    from earn.model.training import train
    from earn.settings import TrainSettings

    catalog = catalog_of(np.stack(divmod(np.arange(TRAINED_ITEMS), 10), axis=1), 10)
    model = EarnModel.from_backbone(backbone, catalog, max_history=history)
    options = {**WAYS[way], **({"lora": rank} if "lora" in WAYS[way] else {})}
    settings = TrainSettings(epochs=1, batch_size=batch, learning_rate=1e-4, **options)
    sequences = [np.arange(user, user + history + 1) % TRAINED_ITEMS for user in range(TRAINED_USERS)]
    loaded, trained = peak_bytes() or 0, []

    def validate(model: EarnModel) -> float:
        trained.append(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
        return 0.0

    record = train(model, sequences, out, validate, settings)
    figures = {"trained": trained[0], "loaded_mib": loaded / 2**20, "peak_mib": (peak_bytes() or 0) / 2**20}
    return {"way": way, **figures, "step_s": record["seconds"] / record["steps"]}


def training(args: argparse.Namespace) -> None:
    """Measures every way."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "folder"
        apart(write_folder, args.backbone, folder)
        sizes = (args.history, args.batch, args.rank)
        rows = [apart(measure_training, way, folder, *sizes, Path(temporary) / way) for way in WAYS]
    names = list(rows[0])
    show(table(names, [[row[name] if name == "way" else f"{row[name]:,.0f}" for name in names] for row in rows]))
    show_json(rows)


def main() -> None:
    """Measures, and prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    reading_parser, filters_parser, _, training_parser = map(parts.add_parser, PARTS)
    reading_parser.add_argument("--items", default="12000,1500000", help="of the catalogs, with commas")
    filters_parser.add_argument("--items", type=int, default=12_000, help="of the catalog")
    training_parser.add_argument("backbone")
    for name, default, what in (("history", 20, "items of a window"), ("batch", 2, "windows"), ("rank", 8, "adapters")):
        training_parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: %(default)s)")
    args = parser.parse_args()
    PARTS[args.part](args)


PARTS = {part.__name__: part for part in (reading, filters, scoring, training)}


if __name__ == "__main__":
    main()
