"""Blends of a bundle with item-kNN: by hand, and from end to end on a bundle of a few items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from earn.metrics import Example
from experiments import blend
from experiments.blend import added, blended, chosen_weight, mixture
from experiments.rivals import Scores
from tests.experiments.toy_data import write_toy_data

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


def test_it_says_what_the_bundle_the_neighbours_and_the_blends_give(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy_data(tmp_path, toy_bundle, users=8, items=5)
    blend.main([str(toy_bundle), str(tmp_path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["users"] == 8
    for name in ("bundle", "item-knn", "mixture", "sum"):
        assert 0 <= found[name]["ndcg@10"] <= found[name]["recall@10"] <= 1
    assert found["mixture"]["weight"] in blend.WEIGHTS
