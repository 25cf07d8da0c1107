"""The one graph beside the Python runtime: lists, and milliseconds of a request, in one run with the sides in turn.

    python benchmarks/one_graph.py quickstart/int8-bundle ml-100k
    python benchmarks/one_graph.py quickstart/int8-bundle ml-100k --large BUNDLE    # a ready bundle of the 0.5B shape
    python benchmarks/one_graph.py quickstart/int8-bundle ml-100k --no-large
    python benchmarks/one_graph.py BUNDLE DATA --package packages/earn-web          # with JavaScript, once it is built

The first bundle and data are real: lists are compared over their test histories. The large model has the shape of
Qwen2.5-0.5B with random weights in int8 (see benchmarks/sides.py) and histories of 20, 50 and 240 items. Every side
computes with so many threads as `--threads` says; JavaScript with those that it takes. Bundles are copied before the
graph is written into them.

Prints a table, then one line of JSON; `null` stands for what was not measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import NEAR_TIE, Side, Timings, is_same_list, measure, timed
from benchmarks.sides import MOST_ITEMS, SHAPES, make_catalog, make_task
from benchmarks.written import write_bundles
from earn.console import note, show, show_json, table
from earn.data.dataset import load_dataset
from earn.export.one_graph import compose_bundle
from earn.manifest import ITEMS_FILE, ONE_GRAPH_FILE
from earn.model.earn_model import EarnModel
from earn.runtime.engine import ONE_GRAPH
from earn.runtime.recommender import Recommender

ENGINES = {"python_ms": "cpu", "one_graph_ms": ONE_GRAPH}
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
    parser.add_argument("--large", metavar="BUNDLE", type=Path, help="a bundle of the 0.5B shape; written if left out")
    parser.add_argument("--no-large", action="store_true", help="leave the large model out")
    parser.add_argument("--package", metavar="FOLDER", type=Path, help="packages/earn-web, built, for JavaScript")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every Python side (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="histories that are timed (default: 5)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        small = Pair.of(args.bundle, Path(folder) / "small", args.threads)
        dataset = load_dataset(args.data)
        histories = dataset.histories(dataset.examples()[:LISTS])
        figures: dict[str, Any] = {"lists_equal": small.same_lists(histories), "lists": len(histories)}
        timings = {("quickstart", ""): small.times(histories[: 8 * args.rounds])}
        figures["quickstart"] = medians(timings["quickstart", ""])
        figures[LARGE] = None
        if not args.no_large:
            large = Pair.of(args.large or write_large(Path(folder) / "written"), Path(folder) / "large", args.threads)
            figures[LARGE] = {}
            for length in LENGTHS:
                timings[LARGE, f"{length} items"] = times = large.times(random_histories(large, length, args.rounds))
                figures[LARGE][str(length)] = medians(times)
        figures |= {name: javascript(args.package, small, histories[:50], kind) for name, kind in JAVASCRIPT.items()}
        figures["bytes"] = sum((small.folder / name).stat().st_size for name in (ONE_GRAPH_FILE, ITEMS_FILE))
    rows = [
        (*of, *(f"{side.median:.1f}" for side in sides.values()), f"{quotient(sides):.2f}")
        for of, sides in timings.items()
    ]
    show(table(("", "history", "Python ms", "one graph ms", "Python / one graph"), rows))
    show_json(figures)


@dataclass(frozen=True)
class Pair:
    """A bundle with its one graph, in both engines."""

    folder: Path
    recommenders: Mapping[str, Recommender]  # by the names of ENGINES

    @classmethod
    def of(cls, bundle: Path, folder: Path, threads: int) -> Pair:
        """A copy of a bundle in `folder`, with its graph."""
        shutil.copytree(bundle, folder)
        compose_bundle(folder)
        engines = {name: Recommender.load(folder, engine, threads, verify=False) for name, engine in ENGINES.items()}
        return cls(folder, engines)

    def same_lists(self, histories: Sequence[History]) -> int:
        """How many lists are the same, but for the order of near ties."""
        python, graph = ([side.recommend(history) for history in histories] for side in self.recommenders.values())
        pairs = zip(python, graph, strict=True)
        return sum(is_same_list([item.item_id for item in want], got) and near(want, got) for want, got in pairs)

    def times(self, histories: Sequence[History]) -> dict[str, Timings]:
        """Milliseconds of a request, one history a round."""

        def side(recommender: Recommender) -> Side:
            return Side(lambda turn: [timed(lambda: recommender.recommend(histories[turn]))], requests=3)

        sides = {name: side(recommender) for name, recommender in self.recommenders.items()}
        return measure(sides, len(histories), pause=0)


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


def medians(timings: Mapping[str, Timings]) -> dict[str, float]:
    """Each side's milliseconds."""
    return {name: side.median for name, side in timings.items()}


def quotient(timings: Mapping[str, Timings]) -> float:
    """How many times as long Python takes."""
    python, graph = (timings[name].median for name in ENGINES)
    return python / graph


if __name__ == "__main__":
    main()
