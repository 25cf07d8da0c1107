from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from earn.calibration import samples
from earn.cli import quickstart
from earn.cli.main import main
from earn.data.dataset import load_dataset
from tests.cli.conftest import Earn

QUALITY = {"recall@10", "ndcg@10"}
ALL = QUALITY | {"p50_ms", "session_ms", "cache_bytes", "bundle_bytes"}


@contextmanager
def trained_here(options: Mapping[str, Sequence[object]]) -> Iterator[Callable[[str], None]]:
    """Stands for processes that train: here, so that no libraries are imported anew."""
    for own in options.values():
        assert main(["train", *map(str, own)]) == 0
    yield lambda name: None


@pytest.mark.slow
def test_a_model_trains_in_a_process_of_its_own(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = Namespace(data=str(data), backbone=str(backbone), epochs=1, seed=0, out=tmp_path)
    with quickstart.trainings({"earn": quickstart._options(args, "earn")}) as wait:
        wait("earn")
    assert "      earn: " in capsys.readouterr().err  # its progress
    assert (tmp_path / "earn-checkpoint" / "training.json").is_file()


def test_the_whole_path(
    data: Path, backbone: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "trainings", trained_here)
    for name, count in {"TIMED_REQUESTS": 5, "WARM_UP_REQUESTS": 1, "JUDGED_USERS": 32}.items():
        monkeypatch.setattr(quickstart, name, count)
    monkeypatch.setattr(samples, "SAMPLES", 32)
    out = tmp_path / "quickstart"
    outcome = earn(
        *("quickstart", "--out", out, "--data", data, "--backbone", backbone, "--epochs", 1, "--users", 10),
    )
    assert outcome.status == 0, outcome.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() == {"popularity", "dense", "earn", "set", "seconds"}
    assert summary["popularity"].keys() == QUALITY
    settings = {}
    for name in ("dense", "earn", "set"):
        assert summary[name].keys() == {"torch", "bundle"} | (set() if name == "dense" else {"int8"})
        assert (summary[name]["torch"].keys(), summary[name]["bundle"].keys()) == (QUALITY, ALL)
        for measure in QUALITY:
            assert summary[name]["bundle"][measure] == pytest.approx(summary[name]["torch"][measure])
        record = json.loads((out / f"{name}-checkpoint" / "training.json").read_text())
        settings[name] = record["settings"]
        assert (settings[name]["epochs"], settings[name]["exclude_history"]) == (1, True)
        assert (out / f"{name}-bundle" / "manifest.json").is_file()
    assert settings["dense"] == settings["earn"]
    sizes = [summary[name]["bundle"]["cache_bytes"] for name in ("set", "earn", "dense")]
    assert sizes == sorted(set(sizes))
    for name, int8 in (("earn", "int8"), ("set", "set-int8")):
        assert summary[name]["int8"].keys() == ALL | {"gate"}
        assert summary[name]["int8"]["gate"]["passed"]
        assert (out / f"{int8}-report.html").is_file()
    labels = [line.split("  ")[0] for line in outcome.out.splitlines() if line.startswith(("pop", "beams", "all at"))]
    beams, at_once = ([f"{method}, EARN", f"{method}, EARN int8"] for method in ("beams", "all at once"))
    assert labels == ["popularity", "beams, dense", *beams, *at_once]
    assert "of 10 users" in outcome.out
    assert "Item " in outcome.out
    best = max(quickstart.SIDES, key=lambda name: summary[name]["bundle"]["ndcg@10"])
    assert f"{best}-bundle" in outcome.err.partition("What to type next")[2]


def test_a_model_from_scratch_has_the_layers_and_epochs_that_suit_its_method(tmp_path: Path) -> None:
    args = Namespace(data="d", backbone="tiny-qwen3", epochs=7, seed=0, out=tmp_path)
    earn, at_once = (quickstart._options(args, name) for name in ("earn", "set"))
    assert {"tiny-qwen3", "--layers"} <= set(earn)
    assert "tiny-qwen3" not in at_once
    epochs = [own[own.index("--epochs") + 1] for own in (earn, at_once)]
    assert epochs == [7, quickstart.SET_EPOCHS]


def test_a_data_set_too_small_to_calibrate_with_is_no_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = quickstart._calibrate(Namespace(out=tmp_path, seed=0), "set", load_dataset(str(data)))
    assert gate == {"passed": False}
    assert "left out: There are 90 users, too few" in " ".join(capsys.readouterr().err.split())


def test_a_second_run_replaces_the_results_of_the_first_alone(tmp_path: Path) -> None:
    quickstart._empty(tmp_path)
    for name in ("dense-bundle", "earn-checkpoint", "set-int8-bundle", "other"):
        (tmp_path / name).mkdir()
    for name in ("summary.json", "int8-report-failed.html", "set-int8-report.json"):
        (tmp_path / name).touch()
    quickstart._refuse_foreign_folder(tmp_path)
    quickstart._empty(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".earn-quickstart", "other"}


def test_a_training_that_fails_ends_all_with_its_own_words(
    data: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = replace(quickstart.SIDES["set"], options=("--bake",))
    monkeypatch.setattr(quickstart, "SIDES", {**quickstart.SIDES, "set": failing})
    error = earn("quickstart", "--out", tmp_path / "out", "--data", data).error
    assert error.startswith("The training of set failed with status 2. unrecognized arguments: --bake")
    for name in ("earn", "dense"):
        assert not (tmp_path / "out" / f"{name}-checkpoint" / "config.json").exists()
