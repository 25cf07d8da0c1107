from __future__ import annotations

import sys
from pathlib import Path

import pytest

from earn.runtime.engine_files import load_record
from tests.cli.conftest import Earn, backbone, checkpoint, data, earn  # noqa: F401  (fixtures)
from tests.tensorrt.simulated_tensorrt import SimulatedTensorRT


def test_export_builds_engines_too(checkpoint: Path, tmp_path: Path, earn: Earn, trt: SimulatedTensorRT) -> None:  # noqa: F811
    outcome = earn("export", checkpoint, "--out", tmp_path / "bundle", "--engine", "tensorrt", "--workspace", "64")
    assert outcome.status == 0
    assert "[4/4]" in outcome.err
    assert "late stage: inner: 3" in outcome.err
    for words in (
        "NVIDIA Simulated 1, architecture 8.9, CUDA 13.2",
        "late.engine",
        "the GPU model that it was built on",
    ):
        assert words in outcome.out
    pool = (trt.real.MemoryPoolType.WORKSPACE, 64 << 20)
    assert pool in trt.configs
    assert load_record(tmp_path / "bundle").precision == "fp32"


def test_a_machine_without_tensorrt_says_so_before_any_work(
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
    earn: Earn,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    outcome = earn("export", checkpoint, "--out", tmp_path / "bundle", "--engine", "tensorrt")
    assert outcome.error == 'This needs tensorrt. Install it: pip install "tensorrt>=10.3,<12" cuda-bindings'
    assert not (tmp_path / "bundle").exists()


def test_a_machine_without_a_gpu_says_so_before_any_work(
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
    earn: Earn,  # noqa: F811
    trt: SimulatedTensorRT,
) -> None:
    trt.cuda.devices = 0
    outcome = earn("export", checkpoint, "--out", tmp_path / "bundle", "--engine", "tensorrt")
    assert "cudaErrorNoDevice" in outcome.error
    assert not (tmp_path / "bundle").exists()


def test_there_is_nothing_to_build_for_other_engines(tmp_path: Path, earn: Earn) -> None:  # noqa: F811
    outcome = earn("export", "CKPT", "--out", tmp_path / "bundle", "--engine", "cuda")
    assert outcome.error.startswith("There is nothing to build for the engine 'cuda'")


def test_settings_of_engines_need_engines(tmp_path: Path, earn: Earn) -> None:  # noqa: F811
    outcome = earn("export", "CKPT", "--out", tmp_path / "bundle", "--hardware", "same")
    assert outcome.error == "--hardware is for engines. Give --engine tensorrt too, or leave it out."


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


def test_auto_says_what_it_took_and_why(toy_bundle: Path, earn: Earn, trt: SimulatedTensorRT) -> None:  # noqa: F811
    outcome = earn("recommend", toy_bundle, "--history", "1,2", "--engine", "auto")
    assert outcome.status == 0
    (line,) = outcome.err.splitlines()
    assert line.startswith("engine cpu (tensorrt: ")
    assert f"Build them: earn engine build {toy_bundle}" in line
    assert "cuda: This onnxruntime has no CUDAExecutionProvider" in line


def test_a_checkpoint_runs_in_no_engine(checkpoint: Path, data: Path, earn: Earn) -> None:  # noqa: F811
    outcome = earn("evaluate", checkpoint, data, "--engine", "tensorrt")
    assert "a checkpoint runs in torch" in outcome.error
