"""The JavaScript package and the example page against lists of the Python runtime: WebAssembly in Node and Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.search import in_chromium, run_node
from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.files import write_json
from earn.runtime.recommender import Recommender
from tests.model.test_set_model import ITEMS, set_model
from tests.portable import portable_bundle
from tests.support import histories_of, random_catalog, small_model

ROOT = Path(__file__).parents[2]
CATALOG = random_catalog(ITEMS, codes=3)
HISTORIES = [[str(item) for item in history] for history in histories_of(CATALOG, 40, 7)]
MODELS = {
    "beams": lambda: small_model("tiny-qwen2", CATALOG, max_history=5),
    "set": lambda: set_model("tiny-qwen2", "both", max_history=5),
}
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
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both methods in fp32, and beams in the portable form, each with its graph."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, model in MODELS.items():
        export_bundle(model(), folder / name, [["1", "2"]])
    portable_bundle(folder / "beams", folder / "portable", HISTORIES)
    bundles = {name: folder / name for name in (*MODELS, "portable")}
    for bundle in bundles.values():
        compose_bundle(bundle)
    return bundles


@pytest.mark.parametrize("name", ["beams", "set", "portable"])
def test_lists_are_those_of_python(name: str, package: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    recommender = Recommender.load(bundles[name])
    write_json(tmp_path / "histories.json", HISTORIES)
    answer = run_node(package, "lists.mjs", str(bundles[name]), str(tmp_path / "histories.json"))
    for got, history in zip(answer["lists"], HISTORIES, strict=True):
        want = recommender.recommend(history, exclude_history=True)
        assert [(item, title) for item, title, _ in got] == [(item.item_id, item.title) for item in want]
        assert [score for *_, score in got] == pytest.approx([item.score for item in want], abs=1e-4)
    assert answer["progress"] == 1
    assert "no such item" in answer["refused"]
    assert answer["skipped"] == [item.item_id for item in recommender.recommend(HISTORIES[0], k=3)]


def test_webgpu_is_used_where_it_gives_the_example_list(package: Path, bundles: dict[str, Path]) -> None:
    cases = run_node(package, "webgpu.mjs", str(bundles["beams"]))
    assert cases["right"] == {"provider": "webgpu", "refused": ""}
    assert {cases[name]["provider"] for name in ("wrong", "absent")} == {"cpu"}
    assert "example list" in cases["wrong"]["refused"]
    assert "no adapter" in cases["absent"]["refused"]


def test_a_changed_file_is_refused(package: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bundles["beams"], tmp_path / "bundle")
    graph = tmp_path / "bundle/recommend.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    write_json(tmp_path / "histories.json", [["1"]])
    with pytest.raises(RuntimeError, match="not the file that the manifest lists"):
        run_node(package, "lists.mjs", str(tmp_path / "bundle"), str(tmp_path / "histories.json"))


@pytest.mark.parametrize("name", ["set", "portable"])
def test_the_page_shows_the_lists_of_python(name: str, package: Path, bundles: dict[str, Path]) -> None:
    try:
        answer = in_chromium(package, bundles[name], HISTORIES)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    want = Recommender.load(bundles[name]).recommend_batch(HISTORIES, exclude_history=True)
    assert answer["lists"] == [[item.item_id for item in items] for items in want]
