"""The one graph's lists beside those of the stages: in Python, Node's native build, WebAssembly in Node, Chromium.

    (cd packages/earn-web && npm install && npm run build && npm install --no-save --ignore-scripts onnxruntime-node)
    python benchmarks/same_lists.py quickstart/earn-bundle runs/movies-portable --data ml-100k

Every bundle is copied, and its graph written, before it is asked for the best 10 items of test users. Chromium runs
`examples/web`. A side that is not installed is left out: `null` in the JSON.

Prints a table, then one line of JSON: by bundle `lists`, the lists equal to the stages' and the median milliseconds of
each side, and the bytes of the files that a browser loads, plain and as gzip would send them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from time import perf_counter
from typing import Any

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from earn.console import note, show, show_json, table
from earn.data.dataset import load_dataset
from earn.export.one_graph import compose_bundle
from earn.manifest import ITEMS_FILE, ONE_GRAPH_FILE
from earn.runtime.engine import ONE_GRAPH
from earn.runtime.recommender import Recommender

PACKAGE = Path(__file__).parents[1] / "packages/earn-web"
SECONDS = 900  # that Chromium may take

Histories = Sequence[Sequence[str]]
Answer = dict[str, Any]  # {"lists": [[item id, ...], ...], "median": milliseconds}


def main(argv: Sequence[str] | None = None) -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--package", metavar="FOLDER", type=Path, default=PACKAGE, help="earn-web, built")
    parser.add_argument("--lists", type=int, default=300, metavar="N", help="test users (default: 300)")
    args = parser.parse_args(argv)
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


def compare(package: Path, bundle: Path, histories: Histories) -> dict[str, Any]:
    """The figures of one bundle, which has its one graph."""
    recommender = Recommender.load(bundle, threads=1)
    want = [[item.item_id for item in recommender.recommend(asked, exclude_history=True)] for asked in histories]
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


def in_python(_: Path, bundle: Path, histories: Histories) -> Answer:
    """The lists of Python."""
    recommender = Recommender.load(bundle, ONE_GRAPH, threads=1)
    lists, milliseconds = [], []
    for asked in histories:
        start = perf_counter()
        lists.append([item.item_id for item in recommender.recommend(asked, exclude_history=True)])
        milliseconds.append(1e3 * (perf_counter() - start))
    return {"lists": lists, "median": median(milliseconds)}


def in_node(package: Path, bundle: Path, histories: Histories, runtime: str) -> Answer:
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


def in_chromium(package: Path, bundle: Path, histories: Histories) -> Answer:
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


SIDES: dict[str, Callable[[Path, Path, Histories], Answer]] = {
    "python": in_python,
    "node": partial(in_node, runtime="node"),
    "node_wasm": partial(in_node, runtime="web"),
    "chromium": in_chromium,
}


if __name__ == "__main__":
    main()
