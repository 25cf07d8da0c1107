from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from earn.model.earn_model import EarnModel
from earn.model.training import train
from earn.settings import TrainSettings
from tests.support import small_backbone, toy_catalog


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.99])
@pytest.mark.parametrize("users", [1, 2])
def test_the_shortest_training_trains(users: int, warmup: float, tmp_path: Path) -> None:
    model = EarnModel.from_backbone(small_backbone("tiny-llama"), toy_catalog(), early_layers=2, max_history=4)
    before = model.lm_head.weight.detach().clone()
    settings = replace(TrainSettings(), epochs=1, batch_size=1, learning_rate=1e-2, warmup=warmup, weight_decay=0.0)
    record = train(model, [np.arange(4)] * users, tmp_path, lambda _: 0.1, settings)
    assert record["steps"] == users
    assert not torch.equal(model.lm_head.weight, before)
