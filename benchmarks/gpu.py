"""Latency of whole request batches on a CUDA GPU: EARN, its dense twin and Hugging Face's generate in one run.

    python benchmarks/gpu.py                              # all shapes, every engine that is installed
    python benchmarks/gpu.py --shapes 0.5b --engines cuda
    python benchmarks/gpu.py --engines cpu --shapes tiny  # a check on any machine that everything but CUDA runs
    python benchmarks/gpu.py --prepare prepared           # the graphs alone: minutes, 8 GB of memory, onnx, no GPU
    python benchmarks/gpu.py --prepared prepared          # that folder (7 MB), carried to where onnx is not

    earn            the EARN split of the weights in this runtime, on an engine of this runtime
    dense           the dense model (k = N, no registers) in the same runtime on the same engine: what EARN saves
    hf_generate     the dense model under Hugging Face's generate in torch, with beams and `prefix_allowed_tokens_fn`
    hf_unconstrained    the same without looking at the catalog: generate, if constraining it were free

Shapes are those of Qwen2.5-0.5B (6 of 24 layers early; fp32 and fp16), Llama-7B (8 of 32) and Qwen2.5-7B (7 of 28; both
in fp16). A request is a batch of 1, 8 or 24 prompts of 170 tokens, 20 beams, identifiers of 4 codes, 10 items each. All
sides share prompts, catalog and weights (random, drawn as fp16, see `benchmarks/gpu_bundles.py`), and the rule "vocab":
every beam goes on in every step.

What is not fair to whom:
    generate       reads each prompt once per beam, and asks for the allowed tokens beam by beam on the host, as whoever
                   calls it has it: `hf_unconstrained` bounds what a faster constraint could save. It runs eagerly
    this runtime   searches on the host, in Python; its fp16 bundles keep norms, softmax and caches in fp32
    all            the vocabulary holds the identifier tokens alone, not a tokenizer's 150,000 rows

Sides take turns after a warm-up; medians of the wall clock are compared. Checked in the same run: dense against
generate, and EARN on the GPU against EARN on the CPU in fp32 (for 7B shapes in fp16 with two histories, two minutes at
the most). `--bundle` (and `--bundle-fp16`) compares the lists of a trained model's bundles on the histories of
`--data`, whose items are the catalog of all shapes then; give it to --prepare too.

Prints a table, then one line of JSON: "runs" with a row per shape, engine, precision and batch, null where nothing was
measured. What `--minutes` has no room for is left out by name. Bundles are written to TMPDIR (/dev/shm spares a slow
disk where memory is enough): 26 GB for a 7B shape, 13 GB more while TensorRT builds. Without a GPU it exits with 2.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path

import torch

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu_bundles, sides
from benchmarks.costs import lists_apart
from benchmarks.engines import Generate, unload
from benchmarks.sides import ITEMS, History, Lists, Side, item_ids, measure, overlap, same_order, timed, versions
from earn.catalog import CATALOG_FILE, Catalog
from earn.console import complain, note, show, show_json, table
from earn.data.dataset import Dataset, load_dataset
from earn.errors import EarnError
from earn.manifest import ENGINES_FOLDER, Manifest
from earn.runtime.engine import ENGINES
from earn.runtime.engine_files import TENSORRT
from earn.runtime.lists import Recommendation
from earn.runtime.recommender import Recommender

SHAPES: Mapping[str, tuple[str, ...]] = {  # the precisions of each; fp32 first, which others are compared with
    "tiny": ("fp32", "fp16"),
    "0.5b": ("fp32", "fp16"),
    "llama-7b": ("fp16",),
    "qwen2.5-7b": ("fp16",),
}
SPLITS = ("earn", "dense")
BEAMS = 20
PER_REPEAT = 4  # requests of this runtime beside each of generate
CHECKED, CHECKED_SLOW = 24, 2  # histories whose lists are compared; of shapes that are not measured in fp32
PACKAGES = ("torch", "transformers", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx", "tensorrt")
# How long a step takes at the most: seconds whatever the size, bytes per second. None is begun where less time is left.
WRITING, LOADING, BUILDING = (10.0, 0.4e9), (10.0, 1e9), (60.0, 0.3e9)
CELL = 10.0  # seconds of a row
CHECKING, CHECKING_SLOW = 60.0, 120.0  # seconds that the CPU has at the most for a check between measurements
Loaded = dict[str, Recommender]  # by split


def seconds_of(size: int, *paces: tuple[float, float]) -> float:
    """What steps take for so many bytes."""
    return sum(seconds + size / rate for seconds, rate in paces)


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


class Clock:
    """How much time is left, and progress with the time that has passed."""

    def __init__(self, minutes: float) -> None:
        self._started, self._seconds = time.perf_counter(), 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - (time.perf_counter() - self._started)

    def note(self, text: str) -> None:
        """Progress, beside the results."""
        note(f"[{time.perf_counter() - self._started:6.1f} s] {text}")

    def failed(self, name: str, error: Exception) -> None:
        """Says what is left out. Libraries raise errors of many classes; what else can be measured is."""
        self.note(f"without {name}: {one_line(error)}")


def one_line(error: Exception) -> str:
    """An error for a line of progress."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def main() -> None:
    """Measures and prints."""
    arguments = parse()
    device = "cpu" if set(arguments.engines) == {"cpu"} else "cuda"
    try:
        if arguments.prepare:
            prepare(arguments.shapes, arguments.prepare, arguments.data)
            return
        if device == "cuda" and not torch.cuda.is_available():
            complain(f"torch {torch.__version__} sees no CUDA device here. Check it with nvidia-smi.")
            sys.exit(2)
        with tempfile.TemporaryDirectory(prefix="earn-gpu.") as name:
            report(*run(arguments, device, Path(name)), device)
    except EarnError as error:
        sys.exit(str(error))


def parse() -> argparse.Namespace:
    """The command line."""
    words = partial(str.split, sep=",")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=words, default=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--batches", type=lambda text: list(map(int, text.split(","))), default=[1, 8, 24])
    parser.add_argument("--engines", type=words, default=[name for name in ENGINES if name != "cpu"])
    parser.add_argument("--repeats", type=int, default=3, help="measured requests of generate (default: %(default)s)")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="only write what --prepared reads")
    parser.add_argument("--prepared", type=Path, metavar="FOLDER", help="what --prepare wrote (default: done here)")
    parser.add_argument("--data", help="a data set: its items are the catalog, its histories are compared")
    parser.add_argument("--bundle", type=Path, help="a trained bundle in fp32, whose lists are compared; needs --data")
    parser.add_argument("--bundle-fp16", type=Path, metavar="BUNDLE", help="the same in fp16")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing begins (default: %(default)s)")
    arguments = parser.parse_args()
    for option, known in {"shapes": SHAPES, "engines": ENGINES}.items():
        if unknown := sorted(set(getattr(arguments, option)) - set(known)):
            parser.error(f"argument --{option}: there is no {unknown[0]!r}; take of {', '.join(known)}")
    if (arguments.bundle or arguments.bundle_fp16) and not (arguments.bundle and arguments.data):
        parser.error("lists of a trained bundle are compared with those of --bundle on the histories of --data")
    return arguments


def prepare(shapes: Sequence[str], folder: Path, data: str | None) -> None:
    """Writes folder/<shape> for every shape."""
    catalog = load_dataset(data).catalog() if data else None
    for shape in shapes:
        shutil.rmtree(folder / shape, ignore_errors=True)
        gpu_bundles.prepare(sides.SHAPES[shape], folder / shape, SHAPES[shape], catalog)
        size = sum(path.stat().st_size for path in (folder / shape).rglob("*") if path.is_file())
        note(f"{folder / shape}: {size / 1e6:.1f} MB")


def run(arguments: argparse.Namespace, device: str, work: Path) -> tuple[list[Row], list[Row]]:
    """All rows: those of the shapes, and those of trained bundles."""
    engines: list[str] = []
    for engine in arguments.engines:
        try:
            ENGINES[engine].check_machine()
            engines.append(engine)
        except (EarnError, ImportError) as error:
            note(f"without {engine}: {one_line(error)}")
    if not engines:
        raise EarnError(f"None of these engines can run here: {', '.join(arguments.engines)}. The reasons stand above.")
    prepared = arguments.prepared or work / "prepared"
    if not arguments.prepared:
        prepare(arguments.shapes, prepared, arguments.data)
    if missing := [shape for shape in arguments.shapes if not (prepared / shape).is_dir()]:
        raise EarnError(f"{prepared}: holds no {missing[0]}. Prepare it: python benchmarks/gpu.py --prepare FOLDER")
    data = load_dataset(arguments.data) if arguments.data else None
    own = Run(prepared, work, engines, arguments.batches, arguments.repeats, device, data, Clock(arguments.minutes))
    given = {name: bundle for name, bundle in (("fp32", arguments.bundle), ("fp16", arguments.bundle_fp16)) if bundle}
    trained = own.compare_trained(given, data) if data else []
    return [row for shape in arguments.shapes for row in own.measure_shape(shape)], trained


@dataclass(frozen=True)
class Run:
    """What the command line asks for, and what this machine has for it."""

    prepared: Path
    work: Path  # where bundles are written
    engines: Sequence[str]
    batches: Sequence[int]
    repeats: int  # measured requests of generate
    device: str  # of Hugging Face's side
    data: Dataset | None
    clock: Clock

    def measure_shape(self, shape: str) -> list[Row]:
        """The rows of a shape; lists of all precisions are compared with those of the first one on the CPU."""
        rows: list[Row] = []
        on_cpu = None
        for precision in SHAPES[shape]:
            own = [Row(shape, engine, precision, batch) for engine, batch in product(self.engines, self.batches)]
            rows += own
            try:
                on_cpu = self.measure_precision(own, on_cpu)
            except Exception as error:  # of whatever class: what was measured before it must not be lost
                self.clock.note(f"{shape} {precision} broke off: {one_line(error)}")
            shutil.rmtree(self.work / shape / precision, ignore_errors=True)
        return rows

    def write(self, shape: str, precision: str) -> tuple[dict[str, Path], int]:
        """The bundles of a shape in a precision, by split, and their bytes; none where time or room is short."""
        places = {split: self.prepared / shape / split / precision for split in SPLITS}
        folders = {split: self.work / shape / precision / split for split in SPLITS}
        size = sum(weight.bytes for place in places.values() for weight in gpu_bundles.load_weights(place))
        if self.clock.left < seconds_of(size, WRITING, LOADING):
            self.clock.note(f"no time for {shape} {precision}")
            return {}, size
        self.work.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(self.work).free) < 1.05 * size:
            room = f"{free / 1e9:.1f} GB of {size / 1e9:.1f} GB are free (see TMPDIR)"
            self.clock.note(f"no room for {shape} {precision}: {room}")
            return {}, size
        self.clock.note(f"{shape} {precision}: writing {size / 1e9:.1f} GB")
        write = partial(gpu_bundles.write_bundle, sums=TENSORRT in self.engines)
        with ThreadPoolExecutor(len(SPLITS)) as pool:
            list(pool.map(write, places.values(), folders.values()))
        return folders, size

    def measure_precision(self, rows: Sequence[Row], on_cpu: list[list[str]] | None) -> list[list[str]] | None:
        """Fills the rows of a shape in a precision; bundles and Hugging Face's model are made once for all engines.

        Returns:
            The lists of the CPU: those that are given, or else of the bundle that is measured here.
        """
        clock, shape, precision = self.clock, rows[0].shape, rows[0].precision
        folders, size = self.write(shape, precision)
        if not folders:
            return on_cpu
        dense, catalog = Manifest.load(folders["dense"], verify=False), Catalog.load(folders["earn"] / CATALOG_FILE)
        drawn = sides.random_histories(catalog, max(CHECKED, *self.batches), dense.limits.history)
        histories: Sequence[History] = drawn[:CHECKED]
        if self.data:
            self.data.check_items(catalog, f"what was prepared of {shape}")
            histories = self.data.histories(self.data.examples(users=CHECKED))
        generate = None
        try:
            generate = Generate(gpu_bundles.random_model(dense.sizes, precision, self.device), dense.model, catalog)
        except Exception as error:
            clock.failed("hf_generate", error)
        compared: list[tuple[Row, Lists]] = []
        for engine in self.engines:
            ours = self.load(engine, folders, size)
            for row in [row for row in rows if row.engine == engine and ours]:
                if clock.left < CELL:
                    clock.note(f"no time for {shape} {engine} {precision}, batch {row.batch}")
                    continue
                self.measure_row(row, ours, generate, drawn[: row.batch])
                if row.earn_ms is not None:
                    compared.append((row, in_batches(ours["earn"], histories, row.batch)))
            unload(ours)
        del generate
        unload({})
        if on_cpu is None and compared:
            count, seconds = (CHECKED, CHECKING) if precision == "fp32" else (CHECKED_SLOW, CHECKING_SLOW)
            on_cpu = cpu_lists(folders["earn"], histories[:count], seconds, clock)
        for row, lists in compared:
            compare(row, lists, on_cpu)
        return on_cpu

    def load(self, engine: str, folders: Mapping[str, Path], size: int) -> Loaded:
        """Bundles of so many bytes on an engine, or nothing."""
        is_built = engine not in ("cpu", "cuda")
        if self.clock.left < seconds_of(size, LOADING, *[BUILDING] * is_built):
            self.clock.note(f"no time for {engine} to {'build and ' if is_built else ''}load {size / 1e9:.1f} GB")
            return {}
        ours: Loaded = {}
        try:
            for split, folder in folders.items():
                self.clock.note(f"loading {split} on {engine}")
                if engine == TENSORRT:
                    from earn.export.engines import build_engines  # a machine without it has the other engines

                    build_engines(folder)
                ours[split] = Recommender.load(folder, engine, verify=False)
                shutil.rmtree(folder / ENGINES_FOLDER, ignore_errors=True)  # what was built in the bundle is loaded
        except Exception as error:
            self.clock.failed(engine, error)
            unload(ours)
        return ours

    def measure_row(self, row: Row, ours: Loaded, generate: Generate | None, histories: Sequence[History]) -> None:
        """Times one batch on all sides, and compares dense with generate."""

        def side(call: Callable[..., object], requests: int = 1, **options: object) -> Side:
            return Side(lambda turn: [timed(partial(call, histories, **options))], requests, warm_up=0)

        asked = {split: side(own.recommend_batch, PER_REPEAT, k=ITEMS, beams=BEAMS) for split, own in ours.items()}
        if generate is not None:
            asked["hf_generate"] = side(generate.search, beams=BEAMS)
            asked["hf_unconstrained"] = side(generate.search, beams=BEAMS, constrained=False)
        if self.device == "cuda":
            torch.cuda.empty_cache()  # what torch keeps of the last batch, the engine may need for this one
        warm = measure(asked, 1, self.clock.failed, pause=0)
        asked = {name: asked[name] for name in warm}
        found = measure(asked, self.repeats, self.clock.failed, lambda: self.clock.left < 0, pause=0)
        for name, timings in found.items():
            setattr(row, f"{name}_ms", timings.median)
        if {"dense", "hf_generate"} <= found.keys():
            want, got = found["hf_generate"].answers[-1], found["dense"].answers[-1]
            row.dense_overlap_with_hf = overlap(want, item_ids(got))
            if row.precision == "fp32" and (same := same_order(want, got)) < 1:
                self.clock.note(f"WARNING: dense and generate give other items for {1 - same:.0%} of the histories")
        figures = ", ".join(f"{name} {own.median:.2f} ms" for name, own in found.items())
        self.clock.note(f"{row.shape} {row.engine} {row.precision}, batch {row.batch}: {figures}")

    def compare_trained(self, bundles: Mapping[str, Path], data: Dataset) -> list[Row]:
        """The lists of a trained model's bundles, fp32 first, on every engine beside the first bundle's on the CPU."""
        rows: list[Row] = []
        on_cpu = None
        for precision, bundle in bundles.items():
            folder = self.work / "trained" / precision
            shutil.copytree(bundle, folder)
            data.check_items(Catalog.load(folder / CATALOG_FILE), bundle)
            histories = data.histories(data.examples(users=CHECKED))
            if precision == "fp32":
                on_cpu = cpu_lists(folder, histories, CHECKING, self.clock)
            for engine in self.engines:
                ours = self.load(engine, {"earn": folder}, Manifest.load(folder).bundle_bytes)
                for batch in self.batches if ours else ():
                    rows.append(Row("trained", engine, precision, batch))
                    compare(rows[-1], in_batches(ours["earn"], histories, batch), on_cpu)
                unload(ours)
        return rows


def in_batches(recommender: Recommender, histories: Sequence[History], batch: int) -> list[list[Recommendation]]:
    """The lists of many histories, so many at a time."""
    pieces = [histories[start : start + batch] for start in range(0, len(histories), batch)]
    return [items for piece in pieces for items in recommender.recommend_batch(piece, ITEMS, BEAMS)]


def cpu_lists(folder: Path, histories: Sequence[History], seconds: float, clock: Clock) -> list[list[str]] | None:
    """The lists of a bundle on the CPU, from a process that has so much time; None, and a note, where it gives none."""
    clock.note(f"asking the CPU for {len(histories)} lists")
    try:
        return lists_apart(folder, histories, ITEMS, BEAMS, max(0.0, min(seconds, clock.left)))
    except EarnError as error:
        clock.note(f"no lists of the CPU, {error}")
        return None


def compare(row: Row, lists: Lists, on_cpu: Sequence[Sequence[str]] | None) -> None:
    """Fills in how EARN's lists agree with those that the CPU gave for the first histories, if it gave any."""
    if on_cpu:
        row.top10_overlap_with_cpu = overlap(on_cpu, item_ids(lists[: len(on_cpu)]))
        row.same_order_as_cpu = same_order(on_cpu, lists[: len(on_cpu)])


def report(rows: Sequence[Row], trained: Sequence[Row], device: str) -> None:
    """The table and the line of JSON."""
    columns = [field.name for field in fields(Row)][:9]  # the others are for the JSON alone
    values = [[getattr(row, name) for name in columns] for row in (*rows, *trained)]
    show(table(columns, [["-" if value is None else str(value) for value in row] for row in values]))
    result = {
        "gpu": torch.cuda.get_device_name(0) if device == "cuda" else None,
        "engines": sorted({row.engine for row in rows if row.earn_ms is not None}),
        "runs": [asdict(row) for row in rows],
        "trained": [asdict(row) for row in trained],
        "beams": BEAMS,
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
    }
    show_json(result)


if __name__ == "__main__":
    main()
