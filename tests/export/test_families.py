"""Families beyond the three that most tests run over: trained for a step, exported, and compared with torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from earn.export.bundle import export_bundle
from earn.export.stages import torch_recommender
from earn.model.families import TINY_BACKBONES
from earn.model.family_check import check_family
from earn.runtime.recommender import Recommender
from tests.support import FAMILIES, small_backbone, small_model

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


@pytest.mark.parametrize("name", TINY_BACKBONES)
def test_stages_compute_what_the_familys_own_code_computes(name: str) -> None:
    backbone = small_backbone(name, vocab_size=40)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert check_family(backbone) < 1e-4
