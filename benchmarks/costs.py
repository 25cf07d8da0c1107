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
training    Peak memory of a few training steps: every weight trained, adapters alone, adapters with bfloat16 and
            recomputation. BACKBONE is a Hugging Face folder or a GGUF file. It is written as a folder first, so that
            all ways load the same files; prompts are identifiers alone. Each way runs in a process of its own, from
            loading to the written checkpoint: two steps on made-up users with full histories. JSON has a row per way:

                {"way": str, "trained": parameters, "loaded_mib": float, "peak_mib": float, "step_s": float}

            loaded_mib is the process's peak (ru_maxrss) before the training begins, peak_mib that at the end; step_s is
            the training's seconds, evaluation and saving included, per step.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.catalog import CATALOG_FILE, Catalog, Identifiers
from earn.config import BEAMS, SET
from earn.console import note, show, show_json, table
from earn.digits import Digits
from earn.filters import Filter, Items, Tag
from earn.manifest import Manifest, stage_precision
from earn.runtime.engine import Engine, load_engine
from earn.runtime.item_filters import distinct, indices_of, items_left
from earn.runtime.recommender import Recommender
from earn.runtime.set_scores import SetScores
from earn.texts import Texts

Request = Callable[[Sequence[str | int]], object]  # takes item ids

CODES, DEPTH, WIDTH = 256, 4, 256
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
DIGITS, VALUES = 16, 256
SCORED = (12_000, 1_500_000)  # items whose scoring is timed
SPREAD = 1.0  # of the logits that are scored
TRAINED_ITEMS, TRAINED_USERS = 100, 4
WAYS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "lora": {"lora": 8},
    "lora, recomputed": {"lora": 8, "gradient_checkpointing": True},
    "lora, bfloat16, recomputed": {"lora": 8, "dtype": "bfloat16", "gradient_checkpointing": True},
}


def apart(call: Callable[..., Any], *arguments: object) -> Any:
    """What a call gives in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(call, *arguments).result()


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
    from benchmarks.sides import KEEP_MEMORY, machine

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
    scores, generator, taken = SetScores.over(random_digits(items)), np.random.default_rng(1), []
    for _ in range(SCORINGS):
        logits = (SPREAD * generator.standard_normal(DIGITS * VALUES)).astype(np.float32)
        started = time.perf_counter()
        scores.best(logits, 10)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


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


def request_figures(
    engine: Engine, manifest: Manifest, catalog: Catalog, histories: Sequence[Sequence[str]], beams: int, threads: int
) -> dict[str, Any]:
    """What an engine does for a request: medians over every call that requests make.

    operations; prefill_rate, operations per second of the early stage over the prompt, and gemm_rate, that of its bare
    matmuls; search_share of the time, outside the graphs; prompt_rows that the early stage reads of a prompt, piece by
    piece; pass_rows that each pass after it feeds, in the last request.
    """
    from earn.profiling.profiler import TimedEngine
    from earn.profiling.roofline import MatmulBench, stage_work

    timed, columns = TimedEngine(engine), []
    recommender = Recommender(timed, manifest, catalog)
    for items in histories:
        timed.calls.clear()
        started = time.perf_counter()
        recommender.recommend(items, 10, beams)
        total = 1000 * (time.perf_counter() - started)
        work = [stage_work(manifest, it.stage, it.rows, it.cached, it.kept).operations for it in timed.calls]
        ms = [call.milliseconds for call in timed.calls]
        pieces = [call.stage for call in timed.calls].index("late")  # calls in which the early stage reads the prompt
        columns.append((sum(work), 1000 * sum(work[:pieces]) / sum(ms[:pieces]), 1 - sum(ms) / total))
    medians = map(statistics.median, zip(*columns, strict=True))
    prompt_rows = [call.rows for call in timed.calls[:pieces]]
    return {
        **dict(zip(("operations", "prefill_rate", "search_share"), medians, strict=True)),
        "gemm_rate": MatmulBench(manifest, stage_precision(manifest.precision, "early"), threads).rate(prompt_rows[0]),
        "prompt_rows": prompt_rows,
        "pass_rows": [call.rows for call in timed.calls[pieces:] if call.stage == "early"],
    }


def peak_mib() -> float:
    """The most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes, or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def write_folder(backbone: str, folder: Path) -> None:
    """Writes a backbone as a Hugging Face folder, without a tokenizer: prompts are identifiers alone."""
    from earn.model.backbones import load_backbone

    load_backbone(backbone).save_pretrained(folder)


def measure_training(way: str, backbone: Path, history: int, batch: int, rank: int, out: Path) -> dict[str, Any]:
    """Trains one way; returns its row."""
    from earn.model.earn_model import EarnModel
    from earn.model.training import train
    from earn.settings import TrainSettings

    numbers = tuple(map(str, range(TRAINED_ITEMS)))
    identifiers = tuple((f"<a_{item // 10}>", f"<b_{item % 10}>") for item in range(TRAINED_ITEMS))
    model = EarnModel.from_backbone(backbone, Catalog(numbers, identifiers, numbers), max_history=history)
    options = {**WAYS[way], **({"lora": rank} if "lora" in WAYS[way] else {})}
    settings = TrainSettings(epochs=1, batch_size=batch, learning_rate=1e-4, **options)
    sequences = [np.arange(user, user + history + 1) % TRAINED_ITEMS for user in range(TRAINED_USERS)]
    loaded, trained = peak_mib(), []

    def validate(model: EarnModel) -> float:
        trained.append(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
        return 0.0

    record = train(model, sequences, out, validate, settings)
    figures = {"trained": trained[0], "loaded_mib": loaded, "peak_mib": peak_mib()}
    return {"way": way, **figures, "step_s": record["seconds"] / record["steps"]}


def training(args: argparse.Namespace) -> None:
    """Measures every way."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "folder"
        apart(write_folder, args.backbone, folder)
        sizes = (args.history, args.batch, args.rank)
        rows = [
            apart(measure_training, way, folder, *sizes, Path(temporary) / str(index)) for index, way in enumerate(WAYS)
        ]
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


PARTS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "reading": reading,
    "filters": filters,
    "scoring": scoring,
    "training": training,
}


if __name__ == "__main__":
    main()
