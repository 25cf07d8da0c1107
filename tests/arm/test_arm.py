"""The runtime and the one graph on 64-bit ARM, under emulation: the lists of this machine.

Emulator and Python come from Debian's packages, numpy and ONNX Runtime from the Python package index, each once into a
cache. The Python there has nothing else, so this also holds the runtime to its two dependencies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from tests.debian import CACHE, unpacked
from tests.model.test_set_model import ITEMS, set_model
from tests.portable import portable_bundle
from tests.support import histories_of, random_catalog, small_model

ROOT = Path(__file__).parents[2]
CATALOG = random_catalog(ITEMS, codes=3)
HISTORIES = [[str(item) for item in history] for history in histories_of(CATALOG, 8, 5)]
PYTHON = "python3.13"
PACKAGES = (
    "base-files libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libssl3t64 libbz2-1.0 liblzma5 libzstd1 "
    f"lib{PYTHON}-minimal lib{PYTHON}-stdlib {PYTHON}-minimal"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arm() -> list[str]:
    """The command that is Python on ARM."""
    emulator = unpacked("qemu", ["qemu-user:amd64"]) / "usr/bin/qemu-aarch64"
    system = unpacked("python-arm64", [f"{package}:arm64" for package in PACKAGES.split()])
    variables = {"PYTHONPATH": f"{_wheels()}:{ROOT}", "OPENBLAS_NUM_THREADS": "1"}
    settings = [part for name, value in variables.items() for part in ("-E", f"{name}={value}")]
    return [str(emulator), "-L", str(system), *settings, str(system / "usr/bin" / PYTHON)]


def _wheels() -> Path:
    """A folder with numpy and this machine's version of ONNX Runtime, built for ARM."""
    folder = CACHE / f"onnxruntime-{onnxruntime.__version__}-arm64"
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    platforms = [f"--platform=manylinux{kind}_aarch64" for kind in ("2014", "_2_27", "_2_28")]
    wanted = ["numpy", f"onnxruntime=={onnxruntime.__version__}"]
    only = [
        "--no-deps",
        "--only-binary=:all:",
        f"--python-version={PYTHON.removeprefix('python')}",
        "--dest",
        str(part),
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *only, *platforms, *wanted]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"The Python package index cannot be reached: {run.stderr.strip()[-200:]}")
    for wheel in part.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(part)
        wheel.unlink()
    part.rename(folder)
    return folder


def lists(python: list[str], histories: list[list[str]], bundles: list[Path], folder: Path) -> dict[str, Any]:
    (folder / "histories.json").write_text(json.dumps(histories))
    command = [*python, str(Path(__file__).with_name("lists.py")), str(folder / "histories.json"), *map(str, bundles)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert not run.returncode, run.stderr[-2000:]
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def test_lists_are_those_of_this_machine(arm: list[str], tmp_path: Path) -> None:
    """Of beams in the portable precision, and of all codes at once."""
    export_bundle(small_model("tiny-qwen2", CATALOG, max_history=5), tmp_path / "fp32", [["1", "2"]])
    portable_bundle(tmp_path / "fp32", tmp_path / "portable", HISTORIES)
    export_bundle(set_model(form="both", max_history=5), tmp_path / "set", [["1", "2"]])
    bundles = [tmp_path / name for name in ("portable", "set")]
    for bundle in bundles:
        compose_bundle(bundle)
    assert lists(arm, HISTORIES, bundles, tmp_path) == lists([sys.executable], HISTORIES, bundles, tmp_path)
