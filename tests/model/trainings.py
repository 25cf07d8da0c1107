"""What the tests of trainings share: twelve items, users who walk through them, and validations with given scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from earn.catalog import Catalog
from earn.model.earn_model import EarnModel
from earn.model.packing import pack
from earn.model.training import train
from earn.settings import TrainSettings
from tests.support import assert_close, scramble, small_backbone, token_identifiers, toy_catalog

CATALOG = toy_catalog([f"a{item % 4} b{item // 4}" for item in range(12)])


def sequences(each: int = 3) -> list[NDArray[np.int64]]:
    """Users who walk through nine items of the catalog step by step, so many of them from each item.

    Each has two windows of five, so that every process's loss is the mean over equally many items.
    """
    return [np.arange(start, start + 9) % 12 for start in range(12) for _ in range(each)]


def untrained(early_layers: int = 2, max_history: int = 4, catalog: Catalog = CATALOG) -> EarnModel:
    """An EARN model as it is before any training."""
    return EarnModel.from_backbone(small_backbone("tiny-llama"), catalog, early_layers, max_history=max_history)


def pretrained(name: str = "tiny-llama", **sizes: Any) -> EarnModel:
    """An EARN model over a backbone with 20 words of its own, whose weights are far from zero."""
    backbone = small_backbone(name, vocab_size=20, **sizes)
    scramble(backbone)
    return EarnModel.from_backbone(backbone, CATALOG, early_layers=2, max_history=4)


def batch(model: EarnModel) -> dict[str, Tensor]:
    """A window of five items from each item on."""
    identifiers = token_identifiers(model)
    return pack([[identifiers[item] for item in sequence[:5]] for sequence in sequences(1)], model.earn)


@torch.no_grad()
def loss_of(model: EarnModel) -> float:
    return float(model.eval()(**batch(model))["loss"])


class Validation:
    """Scores one epoch after the other; None stops the run there, as a kill would."""

    def __init__(self, *scores: float | None) -> None:
        self._scores = iter(scores)
        self.losses: list[float] = []

    def __call__(self, model: EarnModel) -> float:
        assert not model.training
        score = next(self._scores)
        if score is None:
            raise KeyboardInterrupt
        self.losses.append(loss_of(model))
        return score


def interrupted(model: EarnModel, out: Path, settings: TrainSettings, *scores: float) -> Validation:
    """Trains until the validation after these scores, where the run is stopped."""
    validate = Validation(*scores, None)
    with pytest.raises(KeyboardInterrupt):
        train(model, sequences(), out, validate, settings)
    return validate


def assert_same_weights(want: EarnModel, got: EarnModel, tolerance: float, name: str = "") -> None:
    weights = dict(got.named_parameters())
    for parameter, value in want.named_parameters():
        assert_close(value, weights[parameter], tolerance, f"{name} {parameter}")
