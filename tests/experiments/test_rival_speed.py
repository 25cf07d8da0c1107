"""SASRec as a graph beside a bundle: the same lists as torch's, and a figure for each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from earn.metrics import Example
from experiments import rival_speed
from experiments.rival_speed import SASREC, SETTINGS, OnnxSasrec, export
from experiments.rivals import Sasrec
from tests.experiments.toy_data import write_toy_data


def test_the_graph_gives_the_lists_of_torch(tmp_path: Path) -> None:
    model, ids = Sasrec(60, SETTINGS), [f"i{item}" for item in range(60)]
    export(model, tmp_path / "sasrec.onnx")
    graph = OnnxSasrec(tmp_path / "sasrec.onnx", ids)
    for history in (np.array([7]), np.arange(12), np.arange(55)):
        (scores,) = model.scores([Example("", history, 0)])
        names = [ids[item] for item in history]
        assert graph.recommend(names, 5, 20, False) == [ids[item] for item in np.argsort(-scores)[:5]]
        scores[history] = -np.inf
        assert graph.recommend(names, 5, 20, True) == [ids[item] for item in np.argsort(-scores)[:5]]


def test_every_side_has_its_time_and_size(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rival_speed, "ITEMS", 3)
    monkeypatch.setattr(rival_speed, "BEAMS", 4)
    write_toy_data(tmp_path, toy_bundle, users=3, items=4)
    rival_speed.main([str(tmp_path), str(toy_bundle)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() == {SASREC, str(toy_bundle)}
    assert found[str(toy_bundle)]["mb"] == pytest.approx(
        sum(path.stat().st_size for path in toy_bundle.rglob("*") if path.is_file()) / 1e6
    )
    assert all(row["ms"] > 0 for row in found.values())
