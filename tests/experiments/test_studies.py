"""The studies: blends by hand, SASRec's graph against torch, and both commands on a bundle of a few items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from earn.metrics import Example
from earn.runtime.recommender import Recommender
from experiments import studies
from experiments.rivals import Sasrec, Scores
from experiments.studies import SASREC, SETTINGS, added, blended, chosen_weight, export_sasrec, mixture

MODEL = np.array([[0.6, 0.3, 0.0, 0.0]], np.float32)
ALIKE = np.array([[0.0, 1.0, 0.0, 0.0]], np.float32)
NEAR = np.array([[0.0, 1.0, 3.0, 0.0]], np.float32)


def test_the_blends_by_hand() -> None:
    np.testing.assert_allclose(mixture(MODEL, NEAR, 0.2), [[0.48, 0.24 + 0.05, 0.15, 0]], rtol=1e-6)
    np.testing.assert_allclose(mixture(MODEL, NEAR, 5.0), [[0, 0.25, 0.75, 0]], rtol=1e-6)
    np.testing.assert_allclose(mixture(MODEL, 0 * NEAR, 1.0), [[0, 0, 0, 0]])
    want = [[np.log(0.6), np.log(0.3) + 2.0, -np.inf, -np.inf]]
    np.testing.assert_allclose(added(MODEL, NEAR, 2.0), want, rtol=1e-6)


def test_neighbours_in_the_history_take_no_share() -> None:
    users = [Example("user", np.array([2]), 1)]
    scores = blended(lambda chosen: MODEL.copy(), lambda chosen: NEAR.copy(), mixture, 0.5)(users)
    np.testing.assert_allclose(scores, [[0.3, 0.15 + 0.5, 0, 0]], rtol=1e-6)


def test_the_weight_is_the_smallest_of_the_best() -> None:
    users = [Example("user", np.array([3]), 1)]

    def of_weight(weight: float) -> Scores:
        return blended(lambda chosen: MODEL.copy(), lambda chosen: ALIKE.copy(), mixture, weight)

    # 0.3 (1 - w) + w is above 0.6 (1 - w) from w = 3/13 on
    assert chosen_weight(of_weight, users) == (0.3, 1.0)


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


def test_blend_says_what_the_bundle_the_neighbours_and_the_blends_give(
    toy_bundle: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies.main(["blend", str(toy_bundle), str(toy_data)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["users"] == 8
    for name in ("bundle", "item-knn", "mixture", "sum"):
        assert 0 <= found[name]["ndcg@10"] <= found[name]["recall@10"] <= 1
    assert found["mixture"]["weight"] in studies.WEIGHTS


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
