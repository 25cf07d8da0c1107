from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from earn.calibration import calibrate
from earn.calibration.precisions import PRECISIONS, QUANTIZED
from earn.manifest import Manifest
from tests.cli.conftest import USERS, Earn

KEYS = {
    *("precision", "passed", "beam_set_overlap", "top10_overlap"),
    *("recall@10", "ndcg@10", "size_ratio", "float_layers"),
}


def test_an_int8_bundle_and_its_report(exported: Path, data: Path, earn: Earn, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    outcome = earn("calibrate", exported, data, "--out", out, "--precision", "int8", "--samples", 32, "--json")
    assert outcome.status == 0
    assert outcome.out.count("\n") == 1
    assert outcome.json.keys() == KEYS
    assert outcome.json["passed"]
    assert outcome.json["ndcg@10"].keys() == {"before", "after", "interval"}
    assert outcome.json["recall@10"].keys() == {"before", "after"}
    manifest = Manifest.load(out)
    assert manifest.accuracy is not None
    assert manifest.accuracy["beam_set_overlap"] == outcome.json["beam_set_overlap"]
    page = (tmp_path / "int8-report.html").read_text(encoding="utf-8")
    assert "The gate passes" in page
    figures = json.loads((tmp_path / "int8-report.json").read_text(encoding="utf-8"))
    assert figures["users"] == USERS - 32
    assert sum(row["users"] for row in figures["overlap_by_length"]) == USERS - 32
    assert {row["name"] for row in figures["precisions"]} == {"fp32", *QUANTIZED} - {"fp16", "int8-int4"}
    assert [row["name"] for row in figures["precisions"] if row["chosen"]] == ["int8"]
    assert {row["kind"] for row in figures["ranges"]} >= {
        "qkv_proj",
        "o_proj",
        "gate_proj+up_proj",
        "down_proj",
        "head",
    }
    assert str(tmp_path) not in page + json.dumps(figures)
    assert {path.name for path in tmp_path.iterdir()} == {"int8", "int8-report.html", "int8-report.json"}

    shown = earn("inspect", out).out
    assert "int8 for cpu" in shown
    assert "of the best 20 items stay" in shown
    assert earn("recommend", out, "--history", "i1,i2").status == 0


def test_a_bundle_that_fails_is_not_written_unless_forced(
    exported: Path, data: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRECISIONS, "int8", replace(PRECISIONS["int8"], weight_bits=4, per_channel=False))
    monkeypatch.setattr(calibrate, "LEVELS", ())
    monkeypatch.setattr(calibrate, "MOST_FLOAT", 0.0)  # one attempt
    argv = ("calibrate", exported, data, "--out", tmp_path / "bad", "--precision", "int8", "--samples", 32)
    options = ("--min-overlap", "0.9999", "--no-compare")
    outcome = earn(*argv, *options)
    assert outcome.status == 1
    assert "fails by overlap" in outcome.out
    assert "The gate fails: the best 20 items overlap by" in outcome.err
    assert not (tmp_path / "bad").exists()
    assert (tmp_path / "bad-report-failed.html").is_file()
    forced = earn(*argv, *options, "--force")
    assert forced.status == 1
    assert "GATE FAILED" in earn("inspect", tmp_path / "bad").out
