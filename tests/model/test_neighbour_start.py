"""A start as neighbours, and the sampled loss of the method "set"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from earn.errors import EarnError
from earn.export.stages import torch_recommender
from earn.model.methods import SET_SIZES, build_model
from earn.model.packing import pack
from tests.model.test_set_model import ITEMS, digit_catalog, set_model
from tests.support import pairs

WIDTH = SET_SIZES["hidden_size"]


def vectors() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Items 0-9, 10-19, ... are alike."""
    generator = np.random.default_rng(0)
    kinds = np.repeat(generator.standard_normal((ITEMS // 10, WIDTH)), 10, axis=0)
    rows = kinds + 0.5 * generator.standard_normal((ITEMS, WIDTH))
    unit: np.ndarray[Any, np.dtype[np.float64]] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("backbone", ["tiny-qwen2", "tiny-llama"])
def test_an_untrained_model_recommends_what_is_nearest_to_the_history(backbone: str) -> None:
    model = build_model("set", backbone, digit_catalog(0, True), vectors=vectors()).eval()
    recommender = torch_recommender(model)
    for history in ([3], [12, 17], [31, 38, 35]):
        best = [item for item, _ in pairs(recommender.recommend(list(map(str, history)), 10))]
        assert {item // 10 for item in best} == {history[0] // 10}


def test_the_newest_item_counts_most() -> None:
    model = build_model("set", "tiny-qwen2", digit_catalog(0, True), vectors=vectors()).eval()
    history = [*range(0, 5), *range(20, 24)]  # the older kind is longer
    best = pairs(torch_recommender(model).recommend(list(map(str, history)), 5))
    assert {item // 10 for item, _ in best} == {2}


def test_vectors_of_another_shape_are_refused() -> None:
    with pytest.raises(EarnError, match="of width 256"):
        build_model("set", "tiny-qwen2", digit_catalog(0, True), vectors=vectors()[:, :8])


def test_a_start_needs_values_as_wide_as_the_model_and_else_sets_the_rows_alone() -> None:
    sizes = {"num_key_value_heads": 2}
    model = build_model("set", "tiny-qwen2", digit_catalog(0, True), sizes=sizes, vectors=vectors())
    rows = model.model.embed_tokens.weight[list(model.earn.token_ids)].detach().double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert (rows * vectors()).sum(1).min() > 0.9
    assert float(model.model.layers[0].mlp.down_proj.weight.detach().abs().max()) > 0


def test_the_sampled_loss_is_that_of_all_values_among_fewer() -> None:
    model = set_model(form="items")
    generator = np.random.default_rng(0)
    items = generator.integers(0, ITEMS, (20, 12, 2))  # batches of pairs, of items that all are chosen alike
    batches = [pack([[model.identifiers[item] for item in pair] for pair in pairs], model.earn) for pairs in items]

    @torch.no_grad()
    def losses() -> list[float]:
        return [model(**batch)["loss"].item() for batch in batches]

    want = losses()
    model.sample_negatives(12, [np.arange(ITEMS)])
    assert losses() == want  # evaluation is of all values
    model.train()
    torch.manual_seed(0)
    got = losses()
    assert got != want
    share_there = 1 - (1 - 1 / ITEMS) ** 24  # of the values, after 12 targets and 12 draws
    assert np.mean(got) - np.log(share_there) == pytest.approx(np.mean(want), rel=0.02)
    model.sample_negatives(ITEMS // 2, [np.arange(ITEMS)])
    assert losses() == pytest.approx(want)  # few values are never sampled
