from __future__ import annotations

from pathlib import Path

import pytest

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
