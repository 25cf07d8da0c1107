"""The search's forms beside each other: lists, times and memory of the one graph, passes of the stages.

    python -m benchmarks.search one-graph BUNDLE DATA --large               # writes 4 GB, needs 6 GB of memory
    python -m benchmarks.search one-graph BUNDLE DATA --large BUNDLE        # a ready bundle of the 0.5B shape
    python -m benchmarks.search one-graph BUNDLE DATA --package packages/earn-web   # with JavaScript, once it is built
    python -m benchmarks.search lists BUNDLE... --data ml-100k
    python -m benchmarks.search passes CKPT DATA --users 1000

one-graph   The one graph beside the Python runtime: lists, memory, and milliseconds of a request, sides in turn. The
            first bundle and data are real: lists are compared over their test histories. The large model has the shape
            of Qwen2.5-0.5B with random weights in int8 (see benchmarks/sides.py) and histories of 20, 50 and 240
            items. Every side computes with so many threads as `--threads` says; JavaScript with those that it takes.
            On a machine that does other work too, `--processor-time` counts the time of this process alone. Memory is
            the most that a process of its own holds, which loads the bundle and answers the same histories. JSON, in
            which `null` stands for what was not measured:

                {"lists_equal", "lists", "quickstart": {"python_ms", "one_graph_ms", "python_mib", "one_graph_mib"},
                 "qwen2.5-0.5b": {"20": {...}, "50": {...}, "240": {...}}, "node_ms", "wasm_ms", "bytes"}

lists       The one graph's lists beside those of the stages: in Python, Node's native build, WebAssembly in Node,
            Chromium, which runs `examples/web`. The best 10 items of test users. A side that is not installed is left
            out: `null` in the JSON, which has by bundle `lists`, the lists equal to the stages' and the median
            milliseconds of each side, and the bytes of the files that a browser loads, plain and as gzip would send
            them. JavaScript needs:

                (cd packages/earn-web && npm install && npm run build &&
                 npm install --no-save --ignore-scripts onnxruntime-node)

passes      Rows and passes of the search on a trained model's own beams, and the quality of the three scoring rules. A
            pass reads all weights, however few its rows, so passes count more than rows. Every rule answers the same
            test users without lookahead and with it (see earn.runtime.search), which gives the same lists. Means per
            request: rows of each pass, all rows, passes, milliseconds, Recall@10, NDCG@10.

Bundles are copied before the graph is written into them. Each prints tables, then one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any

import numpy as np

from benchmarks import sides
from benchmarks.costs import distinct_catalog
from benchmarks.engines import write_bundles
from benchmarks.sides import MOST_ITEMS, NEAR_TIE, SHAPES, History, Side, item_ids
from earn.config import SCORING_RULES
from earn.console import note, show, show_json, table
from earn.data.dataset import load_dataset
from earn.export.bundle import export_bundle
from earn.export.one_graph import DEFAULT_K, compose_bundle
from earn.manifest import ITEMS_FILE, ONE_GRAPH_FILE, Manifest
from earn.metrics import ndcg, recall, target_rank
from earn.model.earn_model import EarnModel
from earn.profiling.loading import load_fresh
from earn.profiling.profiler import TimedEngine
from earn.runtime.engine import ONE_GRAPH, load_engine
from earn.runtime.recommender import Recommender

ENGINES = {"python": "cpu", "one_graph": ONE_GRAPH}
UNITS = {"ms": "ms", "MiB": "mib"}  # as tables name them, as the JSON does
LISTS = 300
LENGTHS = (20, 50, MOST_ITEMS)
LARGE = "qwen2.5-0.5b"
JAVASCRIPT = {"node_ms": "node", "wasm_ms": "web"}
PACKAGE = Path(__file__).parents[1] / "packages/earn-web"
SECONDS = 900  # that Chromium may take
ITEMS, BEAMS = 10, 20
LOOKAHEADS: Mapping[str, int | None] = {"off": 0, "on": None}
COLUMNS = {  # of the table: the key of a figure, and how it is written
    "rows of each pass": ("pass_rows", "{}"),
    "all": ("rows", "{:.1f}"),
    "passes": ("passes", "{:.2f}"),
    "ms": ("milliseconds", "{:.2f}"),
    "R@10": ("recall", "{:.4f}"),
    "N@10": ("ndcg", "{:.4f}"),
}

Answer = dict[str, Any]  # {"lists": [[item id, ...], ...], "median": milliseconds}


def one_graph(args: argparse.Namespace) -> None:
    """The one graph beside the Python runtime."""
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
            catalog = large.recommenders["python"].catalog
            drawn = {length: sides.random_histories(catalog, args.rounds, length, seed=length) for length in LENGTHS}
            figures[LARGE] = {str(length): large.figures(histories, clock) for length, histories in drawn.items()}
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
        return sum(sides.is_same_list([item.item_id for item in want], got) and near(want, got) for want, got in pairs)

    def figures(self, histories: Sequence[History], clock: Callable[[], float]) -> dict[str, float | None]:
        """The median milliseconds of a request of each side, one history a round, and its memory in MiB."""

        def side(recommender: Recommender) -> Side:
            return Side(lambda turn: [sides.timed(lambda: recommender.recommend(histories[turn]), clock)], requests=3)

        times = sides.measure({name: side(own) for name, own in self.recommenders.items()}, len(histories), pause=0)
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
    task = sides.make_task(distinct_catalog(shape.items, shape.codebook), shape, threads=2)
    history = task.item_ids(np.random.default_rng(0).integers(0, shape.items, 50).tolist())
    write_bundles(task.model("earn"), folder, [history, history[::-1]], ["int8"])
    gc.collect()
    return folder / "int8"


def cells(figures: Mapping[str, float | None]) -> list[str]:
    """The figures, unit by unit, and what Python takes by what the one graph takes."""
    pairs = [[figures[f"{name}_{unit}"] for name in ENGINES] for unit in UNITS.values()]
    quotients = [python / graph if python and graph else None for python, graph in pairs]
    shown = [(value, 1) for pair in pairs for value in pair] + [(value, 2) for value in quotients]
    return ["" if value is None else f"{value:.{digits}f}" for value, digits in shown]


def javascript(package: Path | None, pair: Pair, histories: Sequence[History], kind: str) -> float | None:
    """The median milliseconds of a request in Node: ONNX Runtime's native build or its WebAssembly."""
    try:
        return round(float(in_node(package, pair.folder, histories, kind)["median"]), 2) if package else None
    except (OSError, RuntimeError) as error:
        note(f"{kind}: not measured: {str(error).strip().splitlines()[-1:]}")
        return None


def lists(args: argparse.Namespace) -> None:
    """The one graph's lists beside those of the stages."""
    dataset = load_dataset(args.data)
    histories = dataset.histories(dataset.examples()[: args.lists])
    figures = {}
    for bundle in args.bundles:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "bundle"
            shutil.copytree(bundle, copy)
            compose_bundle(copy)
            figures[bundle.name] = compare(args.package, copy, histories)
    sides = [(name, side, row[side]) for name, row in figures.items() for side in SIDES if row[side]]
    rows = [(name, side, f"{row['equal']} of {len(histories)}", f"{row['ms']:.1f}") for name, side, row in sides]
    show(table(("", "", "lists equal", "p50 ms"), rows))
    show_json(figures)


def compare(package: Path, bundle: Path, histories: Sequence[History]) -> dict[str, Any]:
    """The figures of one bundle, which has its one graph."""
    recommender = Recommender.load(bundle, threads=1)
    want = item_ids([recommender.recommend(asked, exclude_history=True) for asked in histories])
    figures: dict[str, Any] = {"lists": len(want)}
    for name, side in SIDES.items():
        try:
            answer = side(package, bundle, histories)
        except (OSError, RuntimeError) as error:
            note(f"{name}: not run: {str(error).strip().splitlines()[-1]}")
            figures[name] = None
            continue
        equal = sum(got == wanted for got, wanted in zip(answer["lists"], want, strict=True))
        figures[name] = {"equal": equal, "ms": round(answer["median"], 2)}
    loaded = [path.read_bytes() for path in (bundle / ONE_GRAPH_FILE, bundle / ITEMS_FILE, *bundle.glob("*.data"))]
    return figures | {"bytes": sum(map(len, loaded)), "gzip_bytes": sum(len(gzip.compress(data)) for data in loaded)}


def in_python(_: Path, bundle: Path, histories: Sequence[History]) -> Answer:
    """The lists of Python."""
    recommender = Recommender.load(bundle, ONE_GRAPH, threads=1)
    answers = [sides.timed(partial(recommender.recommend, asked, exclude_history=True))() for asked in histories]
    return {"lists": item_ids([items for _, items in answers]), "median": median(ms for ms, _ in answers)}


def in_node(package: Path, bundle: Path, histories: Sequence[History], runtime: str) -> Answer:
    """The lists of Node, by ONNX Runtime's native build ("node") or its WebAssembly ("web").

    Raises:
        RuntimeError: Node says why.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(histories, file)
        file.flush()
        answer = run_node(package, "lists.mjs", str(bundle.resolve()), file.name, runtime)
    return answer | {"lists": [[item for item, *_ in items] for items in answer["lists"]]}


def run_node(package: Path, script: str, *arguments: str) -> Answer:
    """What a script of the package's tests prints."""
    done = subprocess.run(["node", f"test/{script}", *arguments], cwd=package, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    answer: Answer = json.loads(done.stdout)
    return answer


class Site(SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what the page sends back."""

    def __init__(self, answers: SimpleQueue[Answer], *args: Any, directory: str) -> None:
        """Answers one request for a file of the folder, or takes what the page found."""
        self.answers = answers
        super().__init__(*args, directory=directory)

    def do_POST(self) -> None:  # the name that the base class wants
        """Takes the lists."""
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


def in_chromium(package: Path, bundle: Path, histories: Sequence[History]) -> Answer:
    """The lists that the example page computes in Chromium.

    Raises:
        FileNotFoundError: Chromium is not installed.
        RuntimeError: the page does not answer.
    """
    if shutil.which("chromium") is None:
        raise FileNotFoundError("Chromium is not installed here")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        site = Path(folder) / "site"
        build = package.parents[1] / "examples/web/build.mjs"
        subprocess.run(["node", str(build), str(bundle), str(site)], check=True)
        (site / "lists.json").write_text(json.dumps(histories))
        answers: SimpleQueue[Answer] = SimpleQueue()
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, answers, directory=str(site)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={Path(folder) / 'profile'}"]
        address = f"http://127.0.0.1:{server.server_port}/?check=lists.json"
        command = ["chromium", *options, "--remote-debugging-port=0", address]
        browser = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            return answers.get(timeout=SECONDS)
        except Empty as error:
            raise RuntimeError("Chromium gives no lists") from error
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()


SIDES: dict[str, Callable[[Path, Path, Sequence[History]], Answer]] = {
    "python": in_python,
    "node": partial(in_node, runtime="node"),
    "node_wasm": partial(in_node, runtime="web"),
    "chromium": in_chromium,
}


def passes(args: argparse.Namespace) -> None:
    """Counts a checkpoint's rows and passes."""
    model = EarnModel.from_pretrained(args.checkpoint).eval()
    dataset = load_dataset(args.data)
    dataset.check_items(model.catalog, args.checkpoint)
    examples = dataset.examples("test", args.users)
    histories = dataset.histories(examples)
    targets = [dataset.interactions.item_ids[example.target] for example in examples]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for rule in SCORING_RULES:
            bundle = Path(folder) / rule
            manifest = export_bundle(model, bundle, histories[:8], rule)
            gc.collect()
            for label, lookahead in LOOKAHEADS.items():
                figures = passes_of(bundle, manifest, lookahead, histories, targets)
                runs.append({"rule": rule, "lookahead": label, **figures})
                note(f"{rule}, lookahead {label}: {figures['passes']:.2f} passes")
    cells = [[it["rule"], it["lookahead"], *(form.format(it[key]) for key, form in COLUMNS.values())] for it in runs]
    show(f"{len(examples)} users, {BEAMS} beams, k = {ITEMS}\n{table(('rule', 'lookahead', *COLUMNS), cells)}")
    show_json({"users": len(examples), "beams": BEAMS, "runs": runs})


def passes_of(
    bundle: Path, manifest: Manifest, lookahead: int | None, histories: Sequence[Sequence[str]], targets: Sequence[str]
) -> dict[str, Any]:
    """The figures of one row of the table."""
    engine = TimedEngine(load_engine("cpu", bundle, manifest))
    recommender = Recommender.with_engine(engine, bundle, manifest, lookahead)
    rows = np.zeros((len(histories), recommender.catalog.depth))
    ranks = []
    started = time.perf_counter()
    for user, (history, target) in enumerate(zip(histories, targets, strict=True)):
        engine.calls.clear()
        items = recommender.recommend(history, ITEMS, BEAMS)
        passes = [call.rows for call in engine.calls if call.stage == "late"][1:]  # behind the prefill
        rows[user, : len(passes)] = passes
        ranks.append(target_rank([item.item_id for item in items], target))
    return {
        "pass_rows": rows.mean(axis=0)[:-1].round(1).tolist(),
        "rows": rows.sum(axis=1).mean(),
        "passes": (rows > 0).sum(axis=1).mean(),
        "milliseconds": 1000 * (time.perf_counter() - started) / len(histories),
        "recall": recall(np.array(ranks), ITEMS).mean(),
        "ndcg": ndcg(np.array(ranks), ITEMS).mean(),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    forms = parser.add_subparsers(dest="form", required=True)
    graph = forms.add_parser("one-graph")
    graph.set_defaults(run=one_graph)
    graph.add_argument("bundle", type=Path)
    graph.add_argument("data")
    graph.add_argument(
        "--large", metavar="BUNDLE", type=Path, nargs="?", const=Path(), help="the 0.5B shape too; written if not given"
    )
    graph.add_argument("--package", metavar="FOLDER", type=Path, help="packages/earn-web, built, for JavaScript")
    graph.add_argument("--threads", type=int, default=1, metavar="N", help="of every Python side (default: 1)")
    graph.add_argument("--rounds", type=int, default=5, metavar="N", help="histories that are timed (default: 5)")
    graph.add_argument("--processor-time", action="store_true", help="of this process, instead of the wall clock's")
    same = forms.add_parser("lists")
    same.set_defaults(run=lists)
    same.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+")
    same.add_argument("--data", required=True)
    same.add_argument("--package", metavar="FOLDER", type=Path, default=PACKAGE, help="earn-web, built")
    same.add_argument("--lists", type=int, default=300, metavar="N", help="test users (default: 300)")
    counted = forms.add_parser("passes")
    counted.set_defaults(run=passes)
    counted.add_argument("checkpoint", type=Path)
    counted.add_argument("data")
    counted.add_argument("--users", type=int, help="a sample of the test users (default: all)")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
