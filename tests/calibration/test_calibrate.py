from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.arrays import write_arrays
from earn.bundle_edit import edit_catalog, set_neighbours
from earn.calibration import calibrate as module
from earn.calibration import fallbacks
from earn.calibration.calibrate import Calibration, CalibrationSettings, calibrate
from earn.calibration.collect import CollectingEngine, collect_ranges
from earn.calibration.gate import LEAST_OVERLAP, HeldOut
from earn.calibration.precisions import PRECISIONS, QUANTIZED
from earn.calibration.refine import LEVELS
from earn.calibration.variants import FLOAT, GraphVariants, MixedPrecision
from earn.catalog import CATALOG_FILE, Catalog
from earn.constant_head import ConstantHead
from earn.errors import EarnError
from earn.exchange import only_writer
from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.files import sha256
from earn.item_neighbours import ItemNeighbours
from earn.live_catalog import blocked
from earn.manifest import HEAD_FILE, MANIFEST_FILE, Manifest
from earn.model.families import TINY_BACKBONES
from earn.runtime.engine import load_engine
from earn.runtime.memory import Array
from earn.runtime.recommender import Recommender
from earn.specs import PAST, STAGES
from tests import forked
from tests.calibration.conftest import CALIBRATING, Case, best, make_case, needs_exact_int8_sums
from tests.support import random_catalog, small_model

# Only what the gate needs; and a model with random weights has many near ties.
QUICK = CalibrationSettings(compare=False, explain=False, requests=0, least_overlap=0.8)
ONCE = replace(QUICK, mixed=MixedPrecision())  # one attempt, where it does not matter what a failing gate leads to


@dataclass(frozen=True)
class Judged:
    """An int8 bundle, and the files that the gate was asked about."""

    folder: Path
    calibration: Calibration
    files: Mapping[str, str]  # name: SHA-256


@pytest.fixture(scope="module")
def int8(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Not to be changed."""
    folder, judged = tmp_path_factory.mktemp("int8") / "int8", {}
    load = GraphVariants.recommender

    def noted(variants: GraphVariants, folder: Path) -> Recommender:
        if folder != variants.source:
            judged.update({path.name: sha256(path) for path in folder.iterdir()})
        return load(variants, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphVariants, "recommender", noted)
        return Judged(folder, run(case, folder), judged)


def few(case: Case, calibrating: int = 8, judging: int = 8) -> Case:
    """The case with fewer users, where their number does not matter."""
    held_out = HeldOut(case.held_out.histories[:judging], case.held_out.targets[:judging])
    return replace(case, histories=case.histories[:calibrating], held_out=held_out)


def run(case: Case, out: Path, precision: str = "int8", settings: CalibrationSettings = QUICK) -> Calibration:
    return calibrate(case.bundle, out, case.histories, case.held_out, precision, settings)


def record_of(found: Calibration) -> Mapping[str, Any]:
    """What the new bundle's manifest says of its calibration."""
    assert found.manifest is not None
    assert found.manifest.calibration is not None
    return found.manifest.calibration


@needs_exact_int8_sums
def test_an_int8_bundle_says_how_it_was_made_and_what_it_keeps(case: Case, int8: Judged) -> None:
    found = int8.calibration
    manifest = Manifest.load(int8.folder)
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
    lists = [set(best(Recommender.load(path), case.held_out.histories[0])) for path in (case.bundle, int8.folder)]
    assert len(lists[0] & lists[1]) >= 16
    assert [path.name for path in int8.folder.parent.iterdir()] == ["int8"]


def test_what_is_written_is_what_was_judged(case: Case, int8: Judged) -> None:
    files = Manifest.load(int8.folder).files
    assert int8.files == {name: entry.sha256 for name, entry in files.items() if name != CATALOG_FILE}
    before, after = (case.held_out.rankings(Recommender.load(path)) for path in (case.bundle, int8.folder))
    shares = [len(set(old) & set(new)) / 20 for old, new in zip(before, after, strict=True)]
    assert int8.calibration.chosen.verdict.beam_set_overlap == pytest.approx(np.mean(shares))


def test_a_harmful_setting_is_caught(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples, and 4-bit weights with one scale per tensor: nothing is written, and the reason is said."""
    monkeypatch.setitem(PRECISIONS, "int8", replace(PRECISIONS["int8"], weight_bits=4, per_channel=False))
    harmed = replace(case, histories=case.histories[:2])
    found = run(harmed, tmp_path / "bad", settings=replace(ONCE, least_overlap=LEAST_OVERLAP))
    verdict = found.chosen.verdict
    assert not verdict.passed
    assert verdict.beam_set_overlap < LEAST_OVERLAP
    assert "the best 20 items overlap by" in verdict.reasons[0]
    assert found.manifest is None
    assert list(tmp_path.iterdir()) == []

    forced = run(harmed, tmp_path / "bad", settings=replace(ONCE, least_overlap=LEAST_OVERLAP, force=True))
    assert forced.manifest is not None
    accuracy = Manifest.load(tmp_path / "bad").accuracy
    assert accuracy is not None
    assert accuracy["passed"] is False


def test_the_most_sensitive_layers_go_back_to_float_until_it_passes(case: Case, tmp_path: Path) -> None:
    plain = run(case, tmp_path / "plain", "int4", replace(ONCE, least_overlap=0.0)).chosen.verdict
    wanted = plain.beam_set_overlap + 0.02
    found = run(case, tmp_path / "int4", "int4", replace(QUICK, least_overlap=wanted))
    chosen = found.chosen
    assert [len(attempt.mixed.float_layers) for attempt in chosen.attempts][:2] == [0, 1]
    assert not any(attempt.verdict.passed for attempt in chosen.attempts[:-1])
    assert chosen.verdict.passed
    ranked = sorted(chosen.sensitivity, key=lambda layer: -chosen.sensitivity[layer])
    assert list(chosen.mixed.float_layers) == ranked[: len(chosen.mixed.float_layers)]
    assert record_of(found)["float_layers"] == list(chosen.mixed.float_layers)


@needs_exact_int8_sums
def test_activations_are_refined_before_layers_go_back_to_float(case: Case, tmp_path: Path) -> None:
    plain = run(case, tmp_path / "plain", settings=replace(ONCE, least_overlap=0.0)).chosen.verdict
    wanted = plain.beam_set_overlap + 0.002
    found = run(case, tmp_path / "int8", settings=replace(QUICK, least_overlap=wanted))
    assert [attempt.mixed for attempt in found.chosen.attempts[:2]] == [
        MixedPrecision(),
        MixedPrecision(refined_kinds=LEVELS[0]),
    ]
    assert found.chosen.verdict.passed
    assert found.chosen.mixed.float_layers == ()
    assert record_of(found)["fine_products"] == list(found.chosen.mixed.refined_kinds)


def test_it_gives_up_before_all_is_float(case: Case, tmp_path: Path) -> None:
    found = run(few(case), tmp_path / "int8", settings=replace(QUICK, least_overlap=1.01))
    tried = [attempt.mixed for attempt in found.chosen.attempts]
    ends = ("head", "embedding")
    steps = [MixedPrecision(layers, kinds) for layers in ((), ends) for kinds in LEVELS]
    assert tried[:5] == [MixedPrecision(), *steps]  # head and embedding before layers
    assert all(mixed.float_layers[:2] == ends and mixed.refined_kinds == LEVELS[1] for mixed in tried[5:])
    assert len(found.chosen.mixed.float_layers) == len(found.chosen.sensitivity) // 2


def test_small_ends_stay_in_float_before_anything_is_refined(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallbacks, "SMALL", 1.0)
    found = run(few(case), tmp_path / "int8", settings=replace(QUICK, least_overlap=1.01))
    tried = [attempt.mixed for attempt in found.chosen.attempts]
    assert tried[:4] == [MixedPrecision(), *(MixedPrecision(fallbacks.ENDS, kinds) for kinds in ((), *LEVELS))]
    found = run(few(case), tmp_path / "int4", "int4", replace(QUICK, least_overlap=1.01))
    assert found.chosen.attempts[1].mixed == MixedPrecision(fallbacks.ENDS)  # nothing to refine
    assert not any(attempt.mixed.refined_kinds for attempt in found.chosen.attempts)


def test_the_fastest_that_passes_is_taken(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_name(variants: GraphVariants, folders: Sequence[Path], *_: object) -> list[float]:
        return [1.0 if "dynamic" in folder.name else 2.0 for folder in folders]

    monkeypatch.setattr(module, "_median_ms", by_name)
    settings = replace(ONCE, requests=1, least_overlap=0.0)
    found = run(few(case), tmp_path / "fast", "fastest", settings)
    assert found.chosen.precision.name == "int8-dynamic"
    assert {row.precision.name: row.milliseconds for row in found.candidates} == {"int8": 2.0, "int8-dynamic": 1.0}
    assert Manifest.load(tmp_path / "fast").precision == "int8-dynamic"
    int8, dynamic = found.candidates
    with_ends = replace(int8, attempts=(replace(int8.attempts[0], mixed=MixedPrecision(fallbacks.ENDS)),))
    faster = [replace(with_ends, milliseconds=0.5), dynamic]
    assert module._best(faster, ()) is dynamic  # which has no layer in float
    assert module._best(faster, fallbacks.ENDS) is faster[0]


def test_other_precisions_are_compared(case: Case, tmp_path: Path) -> None:
    settings = replace(QUICK, compare=True, explain=True, requests=2, least_overlap=0.0)
    found = run(few(case), tmp_path / "int8", settings=settings)
    assert {row.precision.name for row in found.candidates} == {*QUANTIZED} - {"fp16", "int8-int4"}
    assert found.chosen is found.candidates[0]
    assert all(row.milliseconds for row in found.candidates)
    assert found.chosen.sensitivity  # for the report, though the gate passed at once


def test_activations_are_collected_as_in_service(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and decode steps, of both stages: a late stage that saw no generated row would have ranges too narrow.

    All stand behind the constant head, whose own rows count in no range.
    """
    calls: list[tuple[str, int]] = []
    heads: set[bool] = set()
    collect = CollectingEngine.run

    def counted(self: CollectingEngine, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        calls.append((stage, len(feeds["keep"])))
        heads.add(len(feeds[PAST]) > 0)
        collect(self, stage, feeds, outputs)

    monkeypatch.setattr(CollectingEngine, "run", counted)
    collect_ranges(GraphVariants(case.bundle, tmp_path), FLOAT, case.histories[:2], 20)
    for stage in STAGES:
        rows = [count for name, count in calls if name == stage]
        assert 1 in rows
        assert max(rows) > 1
    assert heads == {True}


def test_the_constant_head_is_that_of_the_float_graphs(case: Case, int8: Judged, tmp_path: Path) -> None:
    manifest = Manifest.load(int8.folder)
    assert manifest.brings_head
    head, computed = Recommender.load(int8.folder).decoder.head, Recommender.load(case.bundle).decoder.head
    for stage in STAGES:
        assert np.array_equal(getattr(head, stage), getattr(computed, stage))
    with pytest.raises(EarnError, match="which was not loaded"):
        Recommender(load_engine("cpu", int8.folder, manifest), manifest, Catalog.load(int8.folder / CATALOG_FILE))

    copy = tmp_path / "copy"
    shutil.copytree(int8.folder, copy)
    compose_bundle(copy)
    for history in case.held_out.histories[:5]:
        assert best(Recommender.load(copy, "one-graph"), history) == best(Recommender.load(int8.folder), history)

    whole = (copy / MANIFEST_FILE).read_text()
    (copy / MANIFEST_FILE).write_text(whole.replace('"schema": 3', '"schema": 2'))
    with pytest.raises(EarnError, match="of schema 2, but the files that it lists are of schema 3"):
        Recommender.load(copy)
    (copy / MANIFEST_FILE).write_text(whole)
    (copy / HEAD_FILE).unlink()
    with pytest.raises(EarnError, match="missing"):
        Recommender.load(copy)
    for damaged, what in (
        ({"early": head.late, "late": head.early}, "has the shapes"),
        ({"early": head.early}, "late"),
    ):
        with (copy / HEAD_FILE).open("wb") as file:
            write_arrays(file, damaged)
        with pytest.raises(EarnError, match=what):
            ConstantHead.load(copy, manifest)


@pytest.mark.parametrize("registers", [1, 0])
@pytest.mark.parametrize("early_layers", [1, 4])
def test_a_prompt_with_and_without_a_head_in_each_stage(tmp_path: Path, registers: int, early_layers: int) -> None:
    catalog = random_catalog(60, codes=8)
    model = small_model(catalog=catalog, early_layers=early_layers, prefix_registers=registers, max_history=6)
    histories = [[str(user), str(user + 7)] for user in range(12)]
    export_bundle(model, tmp_path / "float", histories[:2], max_beams=8)
    held_out = HeldOut(tuple(map(tuple, histories)), tuple("1" for _ in histories))
    settings = replace(ONCE, least_overlap=0.0)
    found = calibrate(tmp_path / "float", tmp_path / "int8", histories, held_out, "int8-weights", settings)
    assert found.manifest is not None
    assert found.manifest.brings_head is (found.manifest.limits.head > 0)
    assert Recommender.load(tmp_path / "int8").recommend(histories[0], 3, 8)


def test_bad_input_is_refused(case: Case, int8: Judged, tmp_path: Path) -> None:
    with pytest.raises(EarnError, match="no histories to calibrate with"):
        run(replace(case, histories=[]), tmp_path / "none")
    for inside in (case.bundle, case.bundle / "int8", case.bundle.parent):
        with pytest.raises(EarnError, match="is, holds or lies in the bundle to calibrate"):
            run(case, inside)
    with pytest.raises(EarnError, match="is in int8 already"):
        calibrate(int8.folder, tmp_path / "x", case.histories, case.held_out, "int8", QUICK)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(EarnError, match="not a bundle"):
        run(case, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@forked.needs_fork
def test_an_interrupted_calibration_leaves_nothing(case: Case, tmp_path: Path) -> None:
    asking = get_context("fork").Event()

    def progress(label: str) -> Callable[[int, int], None]:
        if label.startswith("ask, int8"):
            asking.set()
            time.sleep(60)
        return lambda done, total: None

    def program() -> None:
        users = few(case)
        calibrate(case.bundle, tmp_path / "out" / "int8", users.histories, users.held_out, "int8", QUICK, progress)

    (tmp_path / "out").mkdir()
    process = forked.start(program, tmp_path / "log")
    assert asking.wait(60), (tmp_path / "log").read_text()
    assert any((tmp_path / "out").iterdir())  # the working folder
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_an_int8_bundle_of_each_family_recommends(family: str, tmp_path: Path) -> None:
    case = few(make_case(family, tmp_path / "fp32"), CALIBRATING)
    run(case, tmp_path / "int8", settings=replace(ONCE, force=True))
    assert Manifest.load(tmp_path / "int8").precision == "int8"
    plain, int8 = (Recommender.load(tmp_path / name, threads=1) for name in ("fp32", "int8"))
    overlaps = []
    for history in case.held_out.histories:
        want, got = (recommender.recommend(history, 20, 20) for recommender in (plain, int8))
        assert len(got) == 20
        assert np.isfinite([item.score for item in got]).all()
        overlaps.append(len({item.item_id for item in want} & {item.item_id for item in got}))
    assert np.mean(overlaps) > 10


@pytest.mark.slow
def test_a_dense_model_and_a_small_catalog(tmp_path: Path) -> None:
    """Its late stage is the head alone; of eight items no more than four are compared."""
    model = small_model("tiny-llama", early_layers=4, prefix_registers=0, suffix_registers=0, max_history=6)
    users = [[str(number % 8), str((number * 3 + 1) % 8)] for number in range(40)]
    export_bundle(model, tmp_path / "dense", users[:2], max_batch=4, max_beams=8)
    held_out = HeldOut(tuple(map(tuple, users)), tuple("1" for _ in users))
    for name in QUANTIZED:
        settings = replace(ONCE, force=True)
        found = calibrate(tmp_path / "dense", tmp_path / name, users[:4], held_out, name, settings)
        assert found.chosen.verdict.beam_set == 4
        assert Recommender.load(tmp_path / name).recommend(["1"], k=3)


def test_a_catalog_that_changes_meanwhile_is_written_as_it_was_judged(case: Case, tmp_path: Path) -> None:
    source = Path(shutil.copytree(case.bundle, tmp_path / "source"))
    before, labels = Catalog.load(source / CATALOG_FILE), []

    def progress(label: str) -> Callable[[int, int], None]:
        labels.append(label)
        edit_catalog(source, lambda catalog: blocked(catalog, [catalog.item_ids[len(labels)]]))
        return lambda done, total: None

    some = few(case)
    settings = replace(ONCE, least_overlap=0.0)
    found = calibrate(source, tmp_path / "int8", some.histories, some.held_out, "int8", settings, progress)
    assert labels
    assert Manifest.load(tmp_path / "int8") == found.manifest
    assert found.manifest is not None
    assert found.manifest.catalog is None
    assert Catalog.load(tmp_path / "int8" / CATALOG_FILE).is_same(before)
    assert not Catalog.load(source / CATALOG_FILE).is_same(before)


def test_a_blended_bundle_stays_one_and_its_model_is_judged(case: Case, tmp_path: Path) -> None:
    source = Path(shutil.copytree(case.bundle, tmp_path / "source"))
    items = len(Catalog.load(source / CATALOG_FILE))
    ring = (np.arange(items, dtype="<i4")[:, None] + 1) % items
    neighbours = ItemNeighbours(ring, np.ones((items, 1), "<f4"), 1.0, 0.9)
    some, plain = few(case), replace(ONCE, least_overlap=0.0)
    alone = calibrate(source, tmp_path / "alone", some.histories, some.held_out, "int8-weights", plain)
    set_neighbours(source, neighbours, Catalog.load(source / CATALOG_FILE))
    found = calibrate(source, tmp_path / "blended", some.histories, some.held_out, "int8-weights", plain)
    assert found.chosen.verdict.beam_set_overlap == alone.chosen.verdict.beam_set_overlap
    recommender = Recommender.load(tmp_path / "blended")
    following = recommender.catalog.item_ids[1]
    assert recommender.recommend(recommender.catalog.item_ids[:1], 1)[0].item_id == following


def test_a_bundle_that_another_process_is_changing_is_not_replaced(case: Case, int8: Judged, tmp_path: Path) -> None:
    out = Path(shutil.copytree(int8.folder, tmp_path / "int8"))
    with only_writer(out), pytest.raises(EarnError, match="another process is changing it"):
        run(few(case), out, settings=ONCE)
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_an_earlier_bundle_is_kept_when_the_gate_fails(case: Case, int8: Judged, tmp_path: Path) -> None:
    shutil.copytree(int8.folder, tmp_path / "int8")
    before = (tmp_path / "int8" / MANIFEST_FILE).read_bytes()
    found = run(few(case), tmp_path / "int8", "int4", replace(ONCE, least_overlap=1.0))
    assert found.manifest is None
    assert (tmp_path / "int8" / MANIFEST_FILE).read_bytes() == before
