"""Families beyond the three that most tests run over, exported and compared with torch; stages that are refused."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import cast

import pytest

from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.stages import bundle_model, torch_recommender
from earn.model.families import TINY_BACKBONES
from earn.model.family_check import check_stages
from earn.model.stage import EarlyStage, LateStage
from earn.runtime.recommender import Recommender
from tests.support import FAMILIES, RULES, small_model

OTHERS = sorted(set(TINY_BACKBONES) - set(FAMILIES))


@pytest.mark.parametrize("name", OTHERS)
def test_a_bundle_recommends_what_torch_recommends(name: str, tmp_path: Path) -> None:
    model = small_model(name, early_layers=2)
    histories = [["1", "2", "3"], ["4"], ["6", "5", "2", "1"]]
    export_bundle(model, tmp_path / "bundle", histories, max_batch=4, max_beams=24)  # raises where values differ
    want, got = torch_recommender(model), Recommender.load(tmp_path / "bundle", threads=1)
    for history in histories:
        lists = [side.recommend(history, 5) for side in (want, got)]
        assert [item.item_id for item in lists[0]] == [item.item_id for item in lists[1]]
        assert [item.score for item in lists[0]] == pytest.approx([item.score for item in lists[1]], abs=1e-4)


@pytest.mark.parametrize("early_layers", [2, 4])
def test_stages_that_compute_something_else_are_not_exported(
    early_layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs and stages would agree on the wrong lists."""
    model = small_model("tiny-qwen2", early_layers=early_layers)
    other = deepcopy(model.model.rotary_emb)
    other.inv_freq *= 0.9  # as with another theta
    monkeypatch.setattr("earn.model.earn_model.rotary_of", lambda _: other)
    with pytest.raises(EarnError, match="other logits than Hugging Face's own code"):
        export_bundle(model, tmp_path / "bundle", [["1"]], max_batch=4, max_beams=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scoring", RULES)
def test_the_check_before_an_export_leaves_a_model_as_it_was(scoring: str, tmp_path: Path) -> None:
    model = small_model("tiny-granite", early_layers=2)
    model.backbone.config._attn_implementation = "sdpa"
    bundle = bundle_model(model, scoring)
    early, late = cast(EarlyStage, bundle.stages["early"]), cast(LateStage, bundle.stages["late"])
    assert check_stages(model.backbone, early, late, bundle.embedded, bundle.predicted) < 1e-4
    assert model.backbone.config._attn_implementation == "sdpa"
    assert not any(module.training for module in model.modules())
