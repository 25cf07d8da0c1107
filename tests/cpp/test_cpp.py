"""The C++ example, compiled against Debian's header and the Python package's library, gives the lists of Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.runtime.recommender import Recommender
from tests.debian import unpacked
from tests.support import histories_of, random_catalog, small_model

SOURCE = Path(__file__).parents[2] / "examples/cpp/recommend.cpp"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    libraries = [*Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")]
    if compiler is None or not libraries:
        pytest.skip("g++ or libonnxruntime.so is not here")
    header = unpacked("onnxruntime-header", ["libonnxruntime-dev:amd64"]) / "usr/include/onnxruntime"
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # what the linker looks for, and what the program does
        (folder / name).symlink_to(libraries[0])
    options = [
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-isystem",
        str(header),
        f"-L{folder}",
        f"-Wl,-rpath,{folder}",
    ]
    program = folder / "recommend"
    subprocess.run([compiler, *options, str(SOURCE), "-lonnxruntime", "-o", str(program)], check=True)
    return program


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(small_model("tiny-qwen2", random_catalog(60, codes=3), max_history=5), folder, [["1", "2"]])
    compose_bundle(folder)
    return folder


def test_lists_are_those_of_python(program: Path, bundle: Path) -> None:
    recommender = Recommender.load(bundle)
    ids = recommender.catalog.item_ids
    histories = histories_of(random_catalog(60, codes=3), 30, 5)
    lines = "\n".join(" ".join(map(str, history)) for history in histories)
    done = subprocess.run([program, bundle / "recommend.onnx"], input=lines, capture_output=True, text=True, check=True)
    got = [[ids[int(item)] for item in line.split()] for line in done.stdout.splitlines()]
    want = recommender.recommend_batch([[ids[item] for item in history] for history in histories], exclude_history=True)
    assert got == [[item.item_id for item in items] for items in want]


def test_a_graph_that_is_not_there_is_an_error(program: Path) -> None:
    done = subprocess.run([program, "nowhere.onnx"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere.onnx" in done.stderr
