"""The JavaScript package and the example page against lists of the Python runtime: WebAssembly in Node and Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.runtime.recommender import Recommender
from tests.support import histories_of, random_catalog, small_model

ROOT = Path(__file__).parents[2]
CATALOG = random_catalog(60, codes=3)
HISTORIES = [[str(item) for item in history] for history in histories_of(CATALOG, 40, 7)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built, in a folder of its own."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed here")
    root = tmp_path_factory.mktemp("web")
    for name in ("packages/earn-web", "examples/web"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("node_modules", "dist"))
    folder = root / "packages/earn-web"
    installed = subprocess.run([npm, "install", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm's registry cannot be reached: {installed.stderr[-200:]}")
    subprocess.run([npm, "run", "build"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(small_model("tiny-qwen2", CATALOG, max_history=5), folder, [["1", "2"]])
    compose_bundle(folder)
    return folder


def lists(package: Path, bundle: Path, histories: list[list[str]]) -> dict[str, Any]:
    (package / "histories.json").write_text(json.dumps(histories))
    return node(package, "lists.mjs", str(bundle), "histories.json")


def node(package: Path, script: str, *arguments: str) -> dict[str, Any]:
    """What a script of the package's tests prints."""
    done = subprocess.run(["node", f"test/{script}", *arguments], cwd=package, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_lists_are_those_of_python(package: Path, bundle: Path) -> None:
    recommender, histories = Recommender.load(bundle), HISTORIES
    answer = lists(package, bundle, histories)
    for got, history in zip(answer["lists"], histories, strict=True):
        want = recommender.recommend(history, exclude_history=True)
        assert [(item, title) for item, title, _ in got] == [(item.item_id, item.title) for item in want]
        assert [score for *_, score in got] == pytest.approx([item.score for item in want], abs=1e-4)
    assert answer["progress"] == 1
    assert "no such item" in answer["refused"]
    assert answer["skipped"] == [item.item_id for item in recommender.recommend(histories[0], k=3)]


def test_webgpu_is_used_where_it_gives_the_example_list(package: Path, bundle: Path) -> None:
    cases = node(package, "webgpu.mjs", str(bundle))
    assert cases["right"] == {"provider": "webgpu", "refused": ""}
    assert {cases[name]["provider"] for name in ("wrong", "absent")} == {"cpu"}
    assert "example list" in cases["wrong"]["refused"]
    assert "no adapter" in cases["absent"]["refused"]


def test_a_changed_file_is_refused(package: Path, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    graph = tmp_path / "bundle/recommend.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(AssertionError, match="not the file that the manifest lists"):
        lists(package, tmp_path / "bundle", [["1"]])


class Site(SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what the page sends back."""

    answers: list[dict[str, Any]]
    answered: threading.Event

    def do_POST(self) -> None:
        self.answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.answered.set()

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


def test_the_page_shows_the_lists_of_python(package: Path, bundle: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed here")
    site = tmp_path / "site"
    subprocess.run(["node", str(package.parents[1] / "examples/web/build.mjs"), str(bundle), str(site)], check=True)
    (site / "lists.json").write_text(json.dumps(HISTORIES))
    Site.answers, Site.answered = [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = f"http://127.0.0.1:{server.server_port}/?check=lists.json"
    browser = subprocess.Popen([chromium, *options, "--remote-debugging-port=0", address], stderr=subprocess.DEVNULL)
    try:
        assert Site.answered.wait(240)
    finally:
        browser.terminate()
        browser.wait(30)
        server.shutdown()
    want = Recommender.load(bundle).recommend_batch(HISTORIES, exclude_history=True)
    assert Site.answers[0]["lists"] == [[item.item_id for item in items] for items in want]
