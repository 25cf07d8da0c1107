"""The tests of TensorRT's API again, against other versions of it than the one that is installed here.

10.3 comes with JetPack 6, 10.16 is the last of the tens. Their bindings come from PyPI into a folder of their own, as
two versions cannot stand in one environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OTHERS = {"10.3.0": "tensorrt-cu12-bindings", "10.16.1.11": "tensorrt-cu13-bindings"}
REPOSITORY = Path(__file__).parent.parent
# Together these name all that is used of TensorRT's API; the commands call the same functions, and ONNX Runtime's
# providers and CUDA know no version.
API_TESTS = [f"tests/tensorrt/test_{name}.py" for name in ("signatures", "build", "engine")]


@pytest.mark.slow
@pytest.mark.skipif("EARN_TENSORRT_VERSION" in os.environ, reason="runs within such a test already")
@pytest.mark.parametrize("version", OTHERS)
def test_another_version_of_tensorrt(version: str, tmp_path: Path) -> None:
    package = f"{OTHERS[version]}=={version}"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), package]
    subprocess.run(install, check=True, timeout=300)
    paths = [str(tmp_path), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "EARN_TENSORRT_VERSION": version}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *API_TESTS],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
