"""The studies: SASRec's graph against torch, and the commands on a bundle of a few items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from earn.metrics import Example
from earn.runtime.recommender import Recommender
from experiments import studies
from experiments.rivals import Sasrec
from experiments.studies import SASREC, SETTINGS, export_sasrec


def test_the_graph_gives_the_lists_of_torch(tmp_path: Path) -> None:
    model, ids = Sasrec(60, SETTINGS), [f"i{item}" for item in range(60)]
    graph = export_sasrec(model, ids, tmp_path / "sasrec.onnx")
    for history in (np.array([7]), np.arange(12), np.arange(55)):
        (scores,) = model.scores([Example("", history, 0)])
        names = [ids[item] for item in history]
        assert graph.recommend(names, 5, 20, False) == [ids[item] for item in np.argsort(-scores)[:5]]
        scores[history] = -np.inf
        assert graph.recommend(names, 5, 20, True) == [ids[item] for item in np.argsort(-scores)[:5]]


@pytest.fixture
def toy_data(toy_bundle: Path, tmp_path: Path) -> Path:
    """Data in LC-Rec's form over the items of a small bundle: eight users walk through five items each."""
    index = {str(item): list(row) for item, row in enumerate(Recommender.load(toy_bundle).catalog.identifiers)}
    (tmp_path / "T.index.json").write_text(json.dumps(index))
    bought = {f"u{user}": [str((user + step) % len(index)) for step in range(5)] for user in range(8)}
    (tmp_path / "T.inter.json").write_text(json.dumps(bought))
    return tmp_path


def test_blend_says_what_the_model_the_neighbours_and_both_give(
    toy_bundle: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies.main(["blend", str(toy_bundle), str(toy_data)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["users"] == 8
    assert (
        found["neighbours"]["ndcg@10"] > found["model"]["ndcg@10"]
    )  # whoever walks is followed; the model knows nothing
    assert found["valid"][1] >= found["valid"][0]
    assert found["blend"]["weight"] > 0
    assert found["blend"]["recall@10"] >= found["blend"]["ndcg@10"] >= 0


def test_rival_speed_has_a_time_and_a_size_of_every_side(
    toy_bundle: Path, toy_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"K": 3, "BEAMS": 4, "REQUESTS": 8}.items():
        monkeypatch.setattr(studies, name, value)
    studies.main(["rival-speed", str(toy_data), str(toy_bundle)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() == {SASREC, str(toy_bundle)}
    assert found[str(toy_bundle)]["mb"] == pytest.approx(
        sum(path.stat().st_size for path in toy_bundle.rglob("*") if path.is_file()) / 1e6
    )
    assert all(row["ms"] > 0 for row in found.values())
