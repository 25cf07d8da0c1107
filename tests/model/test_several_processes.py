from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.files import read_json
from earn.model.earn_model import EarnModel
from earn.model.sharding import WANTED, prepare
from earn.model.training import train
from tests.model.shards import LORA, PROCESSES, WHOLE, validate
from tests.model.trainings import assert_same_weights, pretrained, sequences

ROOT = Path(__file__).parents[2]
SHARDS = {
    WANTED: "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # as accelerate launch sets it
}


def launch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs tests.model.shards in two processes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}")
    argv = [*launcher, "-m", "tests.model.shards", *map(str, arguments)]
    environment = {**os.environ, **SHARDS, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_go_on_after_one_is_killed(tmp_path: Path) -> None:
    """With shards, with shards and adapters, with replicas: the weights of one process with twice the batch."""
    pytest.importorskip("peft")
    killed = launch(tmp_path, "lora", "cut")
    assert killed.returncode != 0
    assert "exitcode: -9" in killed.stderr, killed.stderr[-3000:]
    assert not (tmp_path / "cut/config.json").exists()
    resumed = launch(tmp_path, "cut", "replicas")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert resumed.stdout.count("epoch 2 of 2") == 2  # one line a training, not one a process
    for names, settings in ((("cut", "replicas"), WHOLE), (("lora",), LORA)):
        single = replace(settings, batch_size=PROCESSES * settings.batch_size)
        wanted = pretrained()
        record = train(wanted, sequences(), tmp_path / f"single-{names[0]}", validate, single)
        for name in names:
            loaded = EarnModel.from_pretrained(tmp_path / name)
            assert_same_weights(wanted, loaded, 1e-3, name)
            by_epoch = read_json(tmp_path / name / "training.json")["by_epoch"]
            assert by_epoch == pytest.approx(record["by_epoch"], abs=1e-2)
            assert files(tmp_path / name) == files(tmp_path / f"single-{names[0]}")
    export_bundle(loaded, tmp_path / "bundle", [["1", "2", "3"]])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (SimpleNamespace(), "it shards on several GPUs alone"),
        (SimpleNamespace(fsdp_plugin=object()), "first version is not supported"),
    ],
)
def test_shards_that_would_not_be_are_refused(
    state: SimpleNamespace, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, accelerator = pretrained(), cast(Any, SimpleNamespace(is_fsdp2=False, state=state))
    assert not prepare(model, accelerator)
    monkeypatch.setenv(WANTED, "true")
    with pytest.raises(EarnError, match=message):
        prepare(model, accelerator)
