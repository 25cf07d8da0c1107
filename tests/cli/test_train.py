from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from earn import console
from earn.files import read_json
from tests.cli.conftest import Earn


def test_a_sample_of_users_is_recorded_and_resumed_with_itself_alone(
    data: Path, backbone: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    argv = ["train", data, "--backbone", backbone, "--max-history", 6, "--epochs", 1, "--out"]
    ok = earn(*argv, out, "--users", 20)
    assert ok.status == 0, ok.err
    record = read_json(out / "training.json")
    assert record["settings"]["users"] == 20
    assert 0 < record["steps"] <= 5  # of 20 users with up to two windows, 16 at a time

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("earn.export.validation.target_ranks", stop)
    assert earn(*argv, tmp_path / "cut", "--users", 20).status == 130
    assert "another users" in earn(*argv, tmp_path / "cut", "--users", 30, "--resume").error
    assert "another users" in earn(*argv, tmp_path / "cut", "--resume").error


def test_validation_leaves_no_line_in_a_log_unless_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    update = console.progress("users", is_passing=True)
    for done in range(1, 11):
        update(done, 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "LOG_SECONDS", 0.0)
    update(3, 10)
    assert "users: 3 of 10" in capsys.readouterr().err


def test_what_is_serious_is_said_before_a_training(backbone: Path, earn: Earn, tmp_path: Path) -> None:
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    rows += [f"u{user}\ti{(user + step // 2) % 5}\t{step}" for user in range(8) for step in range(6)]
    (tmp_path / "twice.inter").write_text("\n".join(rows) + "\n")
    outcome = earn("train", tmp_path / "twice.inter", "--backbone", backbone, "--epochs", 1, "--out", tmp_path / "out")
    assert "Serious: 100% of the test answers stand in their own history" in outcome.err


def test_low_rank_adapters_are_merged_when_the_command_saves_and_exported(
    data: Path, backbone: Path, earn: Earn, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "lora"
    options = ("--lora", 4, "--gradient-checkpointing", "--learning-rate", 1e-2, "--users", 30)
    ok = earn("train", data, "--backbone", backbone, "--epochs", 1, "--max-history", 6, "--out", out, *options)
    assert ok.status == 0, ok.err
    assert read_json(out / "training.json")["settings"]["lora"] == 4
    before, after = (load_file(folder / "model.safetensors") for folder in (backbone, out))
    assert {name for name in before if "layers" in name} == {name for name in after if "layers" in name}
    merged = after["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
    sizes = np.linalg.svd(merged, compute_uv=False)
    assert sizes[0] > 1e-3
    assert sizes[4] < 1e-5 < 1e-2 * sizes[0]  # of rank 4: what the adapters have learned, and nothing else
    assert np.array_equal(after["model.norm.weight"], before["model.norm.weight"])
    exported = earn("export", out, "--out", tmp_path / "bundle")
    assert exported.status == 0, exported.err
    ok = earn("recommend", tmp_path / "bundle", "--history", "i1,i2,i3", "-k", 3, "--json")
    assert len(ok.json) == 3


def test_earn_starts_from_a_dense_checkpoint(data: Path, backbone: Path, earn: Earn, tmp_path: Path) -> None:
    argv = ("train", data, "--epochs", 1, "--max-history", 6, "--users", 20)
    assert earn(*argv, "--backbone", backbone, "--dense", "--out", tmp_path / "dense").status == 0
    rest = ("--early-layers", 1, "--learning-rate", 1e-9, "--epochs", 0.1, "--out", tmp_path / "earn")
    ok = earn("train", data, "--from-dense", tmp_path / "dense", *rest)
    assert ok.status == 0, ok.err
    dense, after = (load_file(tmp_path / name / "model.safetensors") for name in ("dense", "earn"))
    for name, weight in dense.items():  # tables have rows of registers behind those of the dense model
        np.testing.assert_allclose(after[name][: len(weight)], weight, atol=1e-6, err_msg=name)
    assert read_json(tmp_path / "earn/config.json")["earn"]["early_layers"] == 1
    assert read_json(tmp_path / "earn/config.json")["earn"]["max_history"] == 6
    again = ("train", data, "--from-dense", tmp_path / "earn", "--out", tmp_path / "none")
    assert "earn train --dense" in earn(*again).error
    assert "--max-history was decided by" in earn(*again, "--max-history", 6).error
    assert "Give the data" in earn("train", "ml-100k", "--from-dense", tmp_path / "dense", *again[4:]).error
