"""The JavaScript package against lists of the Python runtime, in Node with ONNX Runtime's WebAssembly build."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.runtime.recommender import Recommender
from tests.support import histories_of, random_catalog, small_model

PACKAGE = Path(__file__).parents[2] / "packages/earn-web"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built, in a folder of its own."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed here")
    folder = tmp_path_factory.mktemp("web") / "earn-web"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    installed = subprocess.run([npm, "install", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm's registry cannot be reached: {installed.stderr[-200:]}")
    subprocess.run([npm, "run", "build"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(small_model("tiny-qwen2", random_catalog(60, codes=3), max_history=5), folder, [["1", "2"]])
    compose_bundle(folder)
    return folder


def lists(package: Path, bundle: Path, histories: list[list[str]]) -> dict[str, Any]:
    (package / "histories.json").write_text(json.dumps(histories))
    done = subprocess.run(
        ["node", "test/lists.mjs", str(bundle), "histories.json"], cwd=package, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_lists_are_those_of_python(package: Path, bundle: Path) -> None:
    histories = [[str(item) for item in history] for history in histories_of(random_catalog(60, codes=3), 40, 7)]
    recommender = Recommender.load(bundle)
    answer = lists(package, bundle, histories)
    for got, history in zip(answer["lists"], histories, strict=True):
        want = recommender.recommend(history, exclude_history=True)
        assert [(item, title) for item, title, _ in got] == [(item.item_id, item.title) for item in want]
        assert [score for *_, score in got] == pytest.approx([item.score for item in want], abs=1e-4)
    assert answer["progress"] == 1
    assert "no such item" in answer["refused"]
    assert answer["skipped"] == [item.item_id for item in recommender.recommend(histories[0], k=3)]


def test_a_changed_file_is_refused(package: Path, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    graph = tmp_path / "bundle/recommend.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(AssertionError, match="not the file that the manifest lists"):
        lists(package, tmp_path / "bundle", [["1"]])
