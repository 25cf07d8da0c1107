from __future__ import annotations

import io
import json
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from earn.calibration import samples
from earn.cli import quickstart
from earn.cli.main import main
from earn.data.dataset import load_dataset
from earn.files import read_json
from tests.cli.conftest import Earn

QUALITY = {"recall@10", "ndcg@10"}
ALL = QUALITY | {"p50_ms", "cache_bytes", "bundle_bytes"}


def train_here(options: Sequence[object]) -> Any:
    """Stands for a process that trains: here, so that no libraries are imported anew."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        status = main(["train", *map(str, options)])
    printed.seek(0)
    return SimpleNamespace(stdout=printed, returncode=status, wait=lambda: status, terminate=lambda: None)


@pytest.mark.slow
def test_the_twins_train_in_processes_of_their_own(data: Path, backbone: Path, tmp_path: Path) -> None:
    quickstart._train_twins(Namespace(data=str(data), backbone=str(backbone), epochs=1, seed=0, out=tmp_path))
    dense, earn = (read_json(tmp_path / f"{name}-checkpoint" / "training.json") for name in quickstart.TWINS)
    assert dense["settings"] == earn["settings"]


def test_the_whole_path(
    data: Path, backbone: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "_start_training", train_here)
    monkeypatch.setattr(quickstart, "TIMED_REQUESTS", 5)
    monkeypatch.setattr(quickstart, "WARM_UP_REQUESTS", 1)
    monkeypatch.setattr(samples, "SAMPLES", 32)
    out = tmp_path / "quickstart"
    outcome = earn(
        *("quickstart", "--out", out, "--data", data, "--backbone", backbone, "--epochs", 1, "--users", 10),
    )
    assert outcome.status == 0, outcome.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() == {"popularity", "dense", "earn", "seconds"}
    assert summary["popularity"].keys() == QUALITY
    for name in ("dense", "earn"):
        assert summary[name].keys() == {"torch", "bundle"} | ({"int8"} if name == "earn" else set())
        assert (summary[name]["torch"].keys(), summary[name]["bundle"].keys()) == (QUALITY, ALL)
        for measure in QUALITY:
            assert summary[name]["bundle"][measure] == pytest.approx(summary[name]["torch"][measure])
        record = json.loads((out / f"{name}-checkpoint" / "training.json").read_text())
        assert (record["settings"]["epochs"], record["settings"]["exclude_history"]) == (1, True)
        assert (out / f"{name}-bundle" / "manifest.json").is_file()
        assert f"      {name}: " in outcome.err  # progress of its training
    assert summary["earn"]["bundle"]["cache_bytes"] < summary["dense"]["bundle"]["cache_bytes"]
    assert summary["earn"]["int8"].keys() == ALL | {"gate"}
    assert summary["earn"]["int8"]["gate"]["passed"]
    assert (out / "int8-report.html").is_file()
    rows = [line for line in outcome.out.splitlines() if line.startswith(("popularity", "dense", "EARN ("))]
    labels = ["popularity", "dense", "EARN (torch)", "EARN (bundle)", "EARN (int8)"]
    assert [row.split("  ")[0] for row in rows] == labels
    assert "of 10 users" in outcome.out
    assert "Item " in outcome.out
    assert f"earn inspect {out / 'earn-bundle'}" in outcome.err


def test_a_data_set_too_small_to_calibrate_with_is_no_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = quickstart._calibrate(Namespace(out=tmp_path, seed=0), load_dataset(str(data)))
    assert gate == {"passed": False}
    assert "left out: There are 90 users, too few" in " ".join(capsys.readouterr().err.split())


def test_a_second_run_replaces_the_results_of_the_first_alone(earn: Earn, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.touch()
    for folder in (tmp_path, mine):
        assert "not a quickstart's" in earn("quickstart", "--out", folder).error
    assert list(tmp_path.iterdir()) == [mine]
    quickstart._empty(tmp_path)
    for name in ("dense-bundle", "earn-checkpoint", "other"):
        (tmp_path / name).mkdir()
    for name in ("summary.json", "int8-report-failed.html"):
        (tmp_path / name).touch()
    quickstart._refuse_foreign_folder(tmp_path)
    quickstart._empty(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".earn-quickstart", "other", "mine.txt"}


def test_a_twin_that_fails_ends_both_with_its_own_words(
    data: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "TWINS", {"dense": ("--bake",), "earn": ()})
    error = earn("quickstart", "--out", tmp_path / "out", "--data", data).error
    assert error.startswith("The training of dense failed with status 2. unrecognized arguments: --bake")
    assert not (tmp_path / "out" / "earn-checkpoint" / "config.json").exists()
