from __future__ import annotations

import sys
from pathlib import Path

import pytest

from earn.runtime.engine_files import load_record
from earn.runtime.tensorrt_api import tensorrt
from tests.cli.conftest import Earn, backbone, checkpoint, data, earn  # noqa: F401  (fixtures)
from tests.tensorrt.simulated_tensorrt import SimulatedTensorRT


def test_export_builds_engines_too(checkpoint: Path, tmp_path: Path, earn: Earn, trt: SimulatedTensorRT) -> None:  # noqa: F811
    outcome = earn("export", checkpoint, "--out", tmp_path / "bundle", "--engine", "tensorrt", "--workspace", "64")
    assert outcome.status == 0
    assert "[4/4]" in outcome.err
    assert "late stage: inner: 3" in outcome.err
    assert "NVIDIA Simulated 1, architecture 8.9, CUDA 13.2" in outcome.out
    assert (trt.real.MemoryPoolType.WORKSPACE, 64 << 20) in trt.workspaces
    assert load_record(tmp_path / "bundle").precision == "fp32"


def test_a_machine_without_tensorrt_or_gpu_says_so_before_any_work(
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
    earn: Earn,  # noqa: F811
    trt: SimulatedTensorRT,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("export", checkpoint, "--out", tmp_path / "bundle", "--engine", "tensorrt")
    trt.cuda.devices = 0
    assert "cudaErrorNoDevice" in earn(*command).error
    tensorrt.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert earn(*command).error == 'This needs tensorrt. Install it: pip install "tensorrt>=10.3,<12" cuda-bindings'
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--engine", "cuda"), "There is nothing to build for the engine 'cuda'"),
        (("--hardware", "same"), "--hardware is for engines. Give --engine tensorrt too"),
    ],
)
def test_options_without_engines_to_build_are_refused(
    option: tuple[str, str],
    says: str,
    tmp_path: Path,
    earn: Earn,  # noqa: F811
) -> None:
    assert earn("export", "CKPT", "--out", tmp_path / "bundle", *option).error.startswith(says)


def test_engines_are_built_shown_and_used(bundle: Path, earn: Earn, trt: SimulatedTensorRT) -> None:  # noqa: F811
    assert earn("engine", "build", bundle, "--hardware", "ampere+").status == 0
    assert "GPUs of architecture 8.0 and later" in earn("inspect", bundle).out
    assert earn("inspect", bundle, "--json").json["engines"]["gpu"] == "NVIDIA Simulated 1"
    check = earn("engine", "check", bundle)
    rows = {line.split()[0]: line.split()[1] for line in check.out.splitlines()[2:]}
    assert rows == {"cpu": "yes", "cuda": "no", "tensorrt-ep": "no", "tensorrt-rtx": "no", "tensorrt": "yes"}
    assert check.err == '"auto" takes tensorrt\n'
    want = earn("recommend", bundle, "--history", "1,2", "-k", "3")
    for engine in ("tensorrt", "auto"):
        outcome = earn("recommend", bundle, "--history", "1,2", "-k", "3", "--engine", engine)
        assert outcome.out == want.out
    assert trt.cuda.launches > 0


def test_a_checkpoint_runs_in_no_engine(checkpoint: Path, data: Path, earn: Earn) -> None:  # noqa: F811
    outcome = earn("evaluate", checkpoint, data, "--engine", "tensorrt")
    assert "a checkpoint runs in torch" in outcome.error
