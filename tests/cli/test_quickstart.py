from __future__ import annotations

import json
from pathlib import Path

import pytest

from earn.calibration import samples
from earn.cli import quickstart
from tests.cli.conftest import USERS, Earn

QUALITY = {"recall@10", "ndcg@10"}


def test_the_whole_path(
    data: Path, backbone: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "TIMED_REQUESTS", 5)
    monkeypatch.setattr(quickstart, "WARM_UP_REQUESTS", 1)
    out = tmp_path / "quickstart"
    argv = ("quickstart", "--out", out, "--data", data, "--backbone", backbone, "--epochs", 1)
    outcome = earn(*argv)
    assert outcome.status == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() == {"popularity", "dense", "earn", "seconds"}
    assert summary["popularity"].keys() == QUALITY
    for name in ("dense", "earn"):
        assert summary[name].keys() == {"torch", "bundle"} | ({"int8"} if name == "earn" else set())
        assert summary[name]["torch"].keys() == QUALITY
        assert summary[name]["bundle"].keys() == QUALITY | {"p50_ms", "cache_bytes", "bundle_bytes"}
        for measure in QUALITY:
            assert summary[name]["bundle"][measure] == pytest.approx(summary[name]["torch"][measure])
        assert (out / f"{name}-checkpoint" / "training.json").is_file()
        assert (out / f"{name}-bundle" / "manifest.json").is_file()
    assert summary["earn"]["bundle"]["cache_bytes"] < summary["dense"]["bundle"]["cache_bytes"]
    rows = [line for line in outcome.out.splitlines() if line.startswith(("popularity", "dense", "EARN ("))]
    labels = ["popularity", "dense", "EARN (torch)", "EARN (bundle)", "EARN (int8)"]
    assert [row.split("  ")[0] for row in rows] == labels
    assert (
        f"There are {USERS} users, too few" in outcome.err
    )  # the way on where a data set is too small to calibrate with
    assert summary["earn"]["int8"] == {"gate": {"passed": False}}
    assert "Item " in outcome.out
    assert f"earn inspect {out / 'earn-bundle'}" in outcome.err

    (out / "earn-bundle" / "stale").touch()
    (out / "mine.txt").touch()
    monkeypatch.setattr(samples, "SAMPLES", 32)
    again = earn(*argv, "--users", 10)
    assert again.status == 0
    int8 = json.loads((out / "summary.json").read_text())["earn"]["int8"]
    assert int8.keys() == QUALITY | {"p50_ms", "cache_bytes", "bundle_bytes", "gate"}
    assert int8["gate"]["passed"]
    assert (out / "int8-report.html").is_file()
    assert "of 10 users" in again.out
    assert not (out / "earn-bundle" / "stale").exists()
    assert (out / "mine.txt").exists()


def test_a_foreign_folder_is_spared(earn: Earn, tmp_path: Path) -> None:
    (tmp_path / "earn").mkdir()
    assert "not a quickstart's" in earn("quickstart", "--out", tmp_path).error
    assert [path.name for path in tmp_path.iterdir()] == ["earn"]
    (tmp_path / "file").touch()
    assert "not a quickstart's" in earn("quickstart", "--out", tmp_path / "file").error


def test_a_twin_that_fails_ends_both_with_its_own_words(
    data: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "TWINS", {"dense": ("--bake",), "earn": ()})
    error = earn("quickstart", "--out", tmp_path / "out", "--data", data).error
    assert error.startswith("The training of dense failed with status 2. unrecognized arguments: --bake")
    assert not (tmp_path / "out" / "earn-checkpoint" / "config.json").exists()
