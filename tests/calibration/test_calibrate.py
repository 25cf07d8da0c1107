from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from earn.calibration import calibrate as module
from earn.calibration import collect as collect_module
from earn.calibration.bench import Bench, Mix
from earn.calibration.calibrate import Calibration, Settings, calibrate
from earn.calibration.collect import Observer
from earn.calibration.gate import LEAST_OVERLAP, HeldOut, Verdict, judge
from earn.calibration.precisions import PRECISIONS
from earn.calibration.refine import LEVELS
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.files import sha256
from earn.manifest import MANIFEST_FILE, Manifest
from earn.runtime.memory import Array
from earn.runtime.recommender import Recommender
from earn.specs import STAGES
from tests.calibration.conftest import Case
from tests.support import small_model

QUICK = Settings(compare=False, least_overlap=0.8)  # a model with random weights has many near ties


def run(case: Case, out: Path, precision: str = "int8", settings: Settings = QUICK) -> Calibration:
    return calibrate(case.bundle, out, case.histories, case.held_out, precision, settings)


def test_an_int8_bundle_says_how_it_was_made_and_what_it_keeps(case: Case, tmp_path: Path) -> None:
    found = run(case, tmp_path / "int8")
    manifest = Manifest.load(tmp_path / "int8")
    assert manifest == found.manifest
    assert manifest.precision == "int8"
    assert manifest.parity is None
    assert manifest.accuracy == found.chosen.verdict.as_json()
    assert manifest.accuracy["passed"]
    assert manifest.calibration == {
        "engine": "cpu",
        "method": "minmax",
        "samples": len(case.histories),
        "seed": 0,
        "fine_products": [],
        "float_layers": [],
    }
    assert found.chosen.graph_bytes < 0.6 * found.float_bytes  # weights so small that much of it is the graph itself
    base, small = Recommender.load(case.bundle), Recommender.load(tmp_path / "int8")
    history = case.held_out.histories[0]
    lists = [{item.item_id for item in side.recommend(history, 20, 20)} for side in (base, small)]
    assert len(lists[0] & lists[1]) >= 16
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_what_is_written_is_what_was_judged(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, str] = {}

    def noted(run: module._Run, name: str, folder: Path) -> Verdict:
        files.update({path.name: sha256(path) for path in folder.iterdir()})
        return judge_folder(run, name, folder)

    judge_folder = module._Run._judge
    monkeypatch.setattr(module._Run, "_judge", noted)
    found = run(case, tmp_path / "int8")
    assert files == {
        name: entry.sha256 for name, entry in Manifest.load(tmp_path / "int8").files.items() if name in files
    }
    rankings = case.held_out.rankings(Recommender.load(tmp_path / "int8"), lambda *_: None)
    before = case.held_out.rankings(Recommender.load(case.bundle), lambda *_: None)
    shares = [len(set(old) & set(new)) / 20 for old, new in zip(before, rankings, strict=True)]
    assert found.chosen.verdict.beam_set_overlap == pytest.approx(np.mean(shares))


def test_a_harmful_setting_is_caught(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples, and 4-bit weights with one scale per tensor: nothing is written, and the reason is said."""
    monkeypatch.setitem(PRECISIONS, "int8", replace(PRECISIONS["int8"], weight_bits=4, per_channel=False))
    harmed = replace(case, histories=case.histories[:2])
    found = run(harmed, tmp_path / "bad", settings=Settings(compare=False))
    verdict = found.chosen.verdict
    assert not verdict.passed
    assert verdict.beam_set_overlap < LEAST_OVERLAP
    assert "the best 20 items overlap by" in verdict.reasons[0]
    assert found.manifest is None
    assert list(tmp_path.iterdir()) == []

    forced = run(harmed, tmp_path / "bad", settings=Settings(compare=False, force=True))
    assert forced.manifest is not None
    accuracy = Manifest.load(tmp_path / "bad").accuracy
    assert accuracy is not None
    assert accuracy["passed"] is False


def test_the_most_sensitive_layers_go_back_to_float_until_it_passes(case: Case, tmp_path: Path) -> None:
    plain = run(case, tmp_path / "plain", "int4", Settings(compare=False, least_overlap=0.0)).chosen.verdict
    wanted = plain.beam_set_overlap + 0.02
    found = run(case, tmp_path / "int4", "int4", Settings(compare=False, least_overlap=wanted))
    chosen = found.chosen
    assert [len(attempt.mix.float_units) for attempt in chosen.attempts][:2] == [0, 1]
    assert not any(attempt.verdict.passed for attempt in chosen.attempts[:-1])
    assert chosen.verdict.passed
    ranked = sorted(chosen.sensitivity, key=lambda unit: -chosen.sensitivity[unit])
    assert list(chosen.mix.float_units) == ranked[: len(chosen.mix.float_units)]
    assert found.manifest is not None
    assert found.manifest.calibration is not None
    assert found.manifest.calibration["float_layers"] == list(chosen.mix.float_units)


def test_activations_are_refined_before_layers_go_back_to_float(case: Case, tmp_path: Path) -> None:
    plain = run(case, tmp_path / "plain", settings=replace(QUICK, least_overlap=0.0)).chosen.verdict
    wanted = plain.beam_set_overlap + 0.002
    found = run(case, tmp_path / "int8", settings=replace(QUICK, least_overlap=wanted))
    assert [attempt.mix for attempt in found.chosen.attempts[:2]] == [Mix(), Mix(fine_kinds=LEVELS[0])]
    assert found.chosen.verdict.passed
    assert found.chosen.mix.float_units == ()
    assert found.manifest is not None
    assert found.manifest.calibration is not None
    assert found.manifest.calibration["fine_products"] == list(found.chosen.mix.fine_kinds)


def test_it_gives_up_before_all_is_float(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "judge", lambda *arguments: replace(judge(*arguments), passed=False))
    found = run(case, tmp_path / "int8")
    units = len(found.chosen.sensitivity)
    assert len(found.chosen.mix.float_units) == units // 2


def test_the_fastest_that_passes_is_taken(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Run, "_milliseconds", lambda run, folder: 1.0 if "dynamic" in folder.name else 2.0)
    found = run(case, tmp_path / "fast", "fastest")
    assert found.chosen.precision.name == "int8-dynamic"
    assert {row.precision.name for row in found.candidates} == {"int8", "int8-dynamic"}
    assert Manifest.load(tmp_path / "fast").precision == "int8-dynamic"


def test_other_precisions_are_compared(case: Case, tmp_path: Path) -> None:
    found = run(case, tmp_path / "int8", settings=replace(QUICK, compare=True))
    assert [row.precision.name for row in found.candidates] == ["int8", "int8-dynamic", "int4"]
    assert found.chosen is found.candidates[0]
    assert all(row.milliseconds for row in found.candidates)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_range_methods_work(method: str, case: Case, tmp_path: Path) -> None:
    found = run(case, tmp_path / "int8", settings=replace(QUICK, method=method))
    assert found.chosen.verdict.beam_set_overlap > 0.8
    for stage, seen in found.after.items():
        for name, (lowest, highest) in seen.ranges.items():
            channel = seen.channels[name]
            assert channel.lowest.min() - 1e-3 <= lowest <= 0, stage
            assert 0 <= highest <= channel.highest.max() + 1e-3


def test_what_is_observed_is_what_is_served(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and decode steps, of both stages: a late stage that saw no generated row would have ranges too narrow."""
    calls: list[tuple[str, int]] = []

    class Counting(Observer):
        def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
            calls.append((stage, len(feeds["keep"])))
            super().run(stage, feeds, outputs)

    monkeypatch.setattr(collect_module, "Observer", Counting)
    bench = Bench(case.bundle, tmp_path)
    collect_module.observe(
        bench.paths("float"), bench.manifest, bench.catalog, case.histories[:2], 20, "minmax", lambda *_: None
    )
    for stage in STAGES:
        rows = [count for name, count in calls if name == stage]
        assert 1 in rows
        assert max(rows) > 1


def test_bad_input_is_refused(case: Case, tmp_path: Path) -> None:
    for inside in (case.bundle, case.bundle / "int8", case.bundle.parent):
        with pytest.raises(EarnError, match="is, holds or lies in the bundle to calibrate"):
            run(case, inside)
    with pytest.raises(EarnError, match="no range method 'max'"):
        run(case, tmp_path / "x", settings=replace(QUICK, method="max"))
    run(case, tmp_path / "int8")
    with pytest.raises(EarnError, match="is in int8 already"):
        calibrate(tmp_path / "int8", tmp_path / "x", case.histories, case.held_out, "int8", QUICK)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(EarnError, match="not a bundle"):
        run(case, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "mine"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_calibration_leaves_nothing(case: Case, tmp_path: Path) -> None:
    script = (
        "import json, sys\n"
        "from earn.calibration.calibrate import Settings, calibrate\n"
        "from earn.calibration.gate import HeldOut\n"
        "def progress(label):\n"
        "    print(label, flush=True)\n"
        "    return lambda done, total: None\n"
        "bundle, out, users = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        "held_out = HeldOut(tuple(map(tuple, users * 400)), ('1',) * 400 * len(users))\n"
        "calibrate(bundle, out, users, held_out, 'int8', Settings(compare=False), progress)\n"
    )
    argv = [sys.executable, "-c", script, str(case.bundle), str(tmp_path / "out"), json.dumps(list(case.histories[:4]))]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ask, int8"):
            break
    time.sleep(0.2)
    assert any(tmp_path.iterdir())  # the bench stands beside
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_and_a_small_catalog(tmp_path: Path) -> None:
    """Its late stage is the head alone; of eight items no more than four are compared."""
    model = small_model("tiny-llama", early_layers=4, prefix_registers=0, suffix_registers=0, max_history=6)
    users = [[str(number % 8), str((number * 3 + 1) % 8)] for number in range(40)]
    export_bundle(model, tmp_path / "dense", users[:2], max_batch=4, max_beams=8)
    held_out = HeldOut(tuple(map(tuple, users)), tuple("1" for _ in users))
    for name in ("int8", "int8-dynamic", "int4", "fp16"):
        settings = replace(QUICK, force=True, explain=False)
        found = calibrate(tmp_path / "dense", tmp_path / name, users[:4], held_out, name, settings)
        assert found.chosen.verdict.beam_set == 4
        assert Recommender.load(tmp_path / name).recommend(["1"], k=3)


def test_a_bundle_that_stands_there_is_kept_when_the_gate_stays_shut(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path / "int8")
    before = (tmp_path / "int8" / MANIFEST_FILE).read_bytes()
    found = run(case, tmp_path / "int8", "int4", Settings(compare=False, least_overlap=1.0))
    assert found.manifest is None
    assert (tmp_path / "int8" / MANIFEST_FILE).read_bytes() == before
