"""The one graph beside the Python runtime: lists, memory, and milliseconds of a request, with the sides in turn.

    python benchmarks/one_graph.py quickstart/int8-bundle ml-100k --large            # writes 4 GB, needs 6 GB of memory
    python benchmarks/one_graph.py quickstart/int8-bundle ml-100k --large BUNDLE     # a ready bundle of the 0.5B shape
    python benchmarks/one_graph.py BUNDLE DATA --package packages/earn-web           # with JavaScript, once it is built

The first bundle and data are real: lists are compared over their test histories. The large model has the shape of
Qwen2.5-0.5B with random weights in int8 (see benchmarks/sides.py) and histories of 20, 50 and 240 items. Every side
computes with so many threads as `--threads` says; JavaScript with those that it takes. Bundles are copied before the
graph is written into them. On a machine that does other work too, `--processor-time` counts the time of this process
alone. Memory is the most that a process of its own holds, which loads the bundle and answers the same histories.

Prints tables, then one line of JSON; `null` stands for what was not measured:

    {"lists_equal", "lists", "quickstart": {"python_ms", "one_graph_ms", "python_mib", "one_graph_mib"},
     "qwen2.5-0.5b": {"20": {...}, "50": {...}, "240": {...}}, "node_ms", "wasm_ms", "bytes"}
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import NEAR_TIE, Side, is_same_list, measure, timed
from benchmarks.sides import MOST_ITEMS, SHAPES, make_catalog, make_task
from benchmarks.written import write_bundles
from earn.console import note, show, show_json, table
from earn.data.dataset import load_dataset
from earn.export.one_graph import DEFAULT_K, compose_bundle
from earn.manifest import ITEMS_FILE, ONE_GRAPH_FILE
from earn.model.earn_model import EarnModel
from earn.profiling.loading import load_fresh
from earn.runtime.engine import ONE_GRAPH
from earn.runtime.recommender import Recommender

ENGINES = {"python": "cpu", "one_graph": ONE_GRAPH}
UNITS = {"ms": "ms", "MiB": "mib"}  # as tables name them, as the JSON does
LISTS = 300
LENGTHS = (20, 50, MOST_ITEMS)
LARGE = "qwen2.5-0.5b"
JAVASCRIPT = {"node_ms": "node", "wasm_ms": "web"}

History = Sequence[str]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument(
        "--large", metavar="BUNDLE", type=Path, nargs="?", const=Path(), help="the 0.5B shape too; written if not given"
    )
    parser.add_argument("--package", metavar="FOLDER", type=Path, help="packages/earn-web, built, for JavaScript")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every Python side (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="histories that are timed (default: 5)")
    parser.add_argument("--processor-time", action="store_true", help="of this process, instead of the wall clock's")
    args = parser.parse_args(argv)
    clock = time.process_time if args.processor_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        small = Pair.of(args.bundle, Path(folder) / "small", args.threads)
        dataset = load_dataset(args.data)
        histories = dataset.histories(dataset.examples()[:LISTS])
        figures: dict[str, Any] = {"lists_equal": small.same_lists(histories), "lists": len(histories)}
        figures["quickstart"] = small.figures(histories[: 8 * args.rounds], clock)
        figures |= {name: javascript(args.package, small, histories[:50], kind) for name, kind in JAVASCRIPT.items()}
        figures["bytes"] = sum((small.folder / name).stat().st_size for name in (ONE_GRAPH_FILE, ITEMS_FILE))
        rows = [("quickstart", "", figures["quickstart"])]
        figures[LARGE] = None
        if args.large is not None:
            bundle = args.large if args.large.name else write_large(Path(folder) / "written")
            large = Pair.of(bundle, Path(folder) / "large", args.threads)
            figures[LARGE] = {
                str(length): large.figures(random_histories(large, length, args.rounds), clock) for length in LENGTHS
            }
            rows += [(LARGE, f"{length} items", sides) for length, sides in figures[LARGE].items()]
    titles = ("", "history", *(f"{name} {unit}" for unit in UNITS for name in ENGINES), "ms by ms", "MiB by MiB")
    show(table(titles, [(model, history, *cells(sides)) for model, history, sides in rows]))
    show_json(figures)


@dataclass(frozen=True)
class Pair:
    """A bundle with its one graph, in both engines."""

    folder: Path
    threads: int  # of a request
    recommenders: Mapping[str, Recommender]  # by the names of ENGINES

    @classmethod
    def of(cls, bundle: Path, folder: Path, threads: int) -> Pair:
        """A copy of a bundle in `folder`, with its graph."""
        shutil.copytree(bundle, folder)
        compose_bundle(folder)
        engines = {name: Recommender.load(folder, engine, threads, verify=False) for name, engine in ENGINES.items()}
        return cls(folder, threads, engines)

    def same_lists(self, histories: Sequence[History]) -> int:
        """How many lists are the same, but for the order of near ties."""
        python, graph = ([side.recommend(history) for history in histories] for side in self.recommenders.values())
        pairs = zip(python, graph, strict=True)
        return sum(is_same_list([item.item_id for item in want], got) and near(want, got) for want, got in pairs)

    def figures(self, histories: Sequence[History], clock: Callable[[], float]) -> dict[str, float | None]:
        """The median milliseconds of a request of each side, one history a round, and its memory in MiB."""

        def side(recommender: Recommender) -> Side:
            return Side(lambda turn: [timed(lambda: recommender.recommend(histories[turn]), clock)], requests=3)

        times = measure({name: side(own) for name, own in self.recommenders.items()}, len(histories), pause=0)
        figures: dict[str, float | None] = {f"{name}_ms": own.median for name, own in times.items()}
        return figures | {f"{name}_mib": self.memory(engine, histories) for name, engine in ENGINES.items()}

    def memory(self, engine: str, histories: Sequence[History]) -> float | None:
        """The most MiB that a process holds which loads the bundle and answers; None where the system does not tell."""
        peak = load_fresh(str(self.folder), engine, self.threads, histories, DEFAULT_K, None).peak_bytes
        return None if peak is None else round(peak / 2**20, 1)


def near(want: Sequence[Any], got: Sequence[Any]) -> bool:
    """Whether two lists have the same scores, place by place."""
    pairs = zip(want, got, strict=True)
    return all(abs(one.score - other.score) < NEAR_TIE * max(1, abs(one.score)) for one, other in pairs)


def write_large(folder: Path) -> Path:
    """A bundle of the large shape: random weights in int8, a random catalog."""
    shape = SHAPES["0.5b"]
    task = make_task(make_catalog(shape), shape, threads=2)
    history = task.item_ids(np.random.default_rng(0).integers(0, shape.items, 50).tolist())
    model = EarnModel(task.backbone(), task.splits["earn"], task.catalog).eval()
    write_bundles(model, folder, [history, history[::-1]], ["int8"])
    del model
    gc.collect()
    return folder / "int8"


def random_histories(pair: Pair, length: int, count: int) -> list[History]:
    """Histories of so many items of the catalog."""
    ids = next(iter(pair.recommenders.values())).catalog.item_ids
    drawn = np.random.default_rng(length).integers(0, len(ids), (count, length))
    return [[ids[item] for item in row] for row in drawn.tolist()]


def javascript(package: Path | None, pair: Pair, histories: Sequence[History], kind: str) -> float | None:
    """The median milliseconds of a request in Node: ONNX Runtime's native build or its WebAssembly."""
    if package is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(histories, file)
        file.flush()
        command = ["node", "test/lists.mjs", str(pair.folder.resolve()), file.name, kind]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True)
    if done.returncode:
        note(f"{kind}: not measured: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return round(float(json.loads(done.stdout)["median"]), 2)


def cells(figures: Mapping[str, float | None]) -> list[str]:
    """The figures, unit by unit, and what Python takes by what the one graph takes."""
    pairs = [[figures[f"{name}_{unit}"] for name in ENGINES] for unit in UNITS.values()]
    quotients = [python / graph if python and graph else None for python, graph in pairs]
    shown = [(value, 1) for pair in pairs for value in pair] + [(value, 2) for value in quotients]
    return ["" if value is None else f"{value:.{digits}f}" for value, digits in shown]


if __name__ == "__main__":
    main()
