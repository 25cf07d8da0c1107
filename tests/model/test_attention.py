from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from earn.config import Prompt
from earn.errors import EarnError
from earn.model import attention
from earn.model.attention import LayerSums, Watch, analyze, kept_rows, place_weights
from earn.model.attention_figures import ABOVE, BINS, HEAD, TAIL, k_by_cut
from earn.model.earn_model import EarnModel
from tests.support import (
    FAMILIES,
    assert_close,
    histories_of,
    naive_logits,
    prompt_of,
    random_catalog,
    small_model,
    token_identifiers,
)

END = HEAD + BINS + TAIL
USERS = 12
Questions = list[tuple[list[int], int]]
DENSE: dict[str, Any] = {"prefix_registers": 0, "suffix_registers": 0}


def model_of(name: str = "tiny-llama", **settings: Any) -> EarnModel:
    """A small model whose identifiers have 2 to 4 codes."""
    return small_model(name, random_catalog(30), max_history=8, **settings)


def questions(model: EarnModel) -> Questions:
    histories = histories_of(model.catalog, USERS, 8)
    return [(history, 7 * number % len(model.catalog)) for number, history in enumerate(histories)]


@torch.no_grad()
def naive_loss(model: EarnModel, asked: Questions) -> float:
    """The mean cross-entropy of all codes, one user at a time, by Hugging Face's own layers."""
    identifiers, losses = token_identifiers(model), []
    for history, target in asked:
        codes = identifiers[target]
        logits = naive_logits(model, prompt_of(model, history), codes[:-1])
        losses.append(functional.cross_entropy(logits, torch.tensor(codes), reduction="none"))
    return float(torch.cat(losses).mean())


def test_figures_of_a_layer_computed_by_hand() -> None:
    spread = 1 / 8
    shares = torch.tensor(
        [
            [
                [[1.0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0, 0, 0, 0, 0.5]],  # rows 8 and 9 in the first head
                [[spread] * 8 + [0], [0.04, 0, 0, 0, 0.96, 0, 0, 0, 0]],  # and in the second
            ]
        ]
    )
    sums = LayerSums(END + 1)
    sums.add(shares, place_weights(8, 1, 1))
    found = sums.figures(1, False)
    assert found.columns == (8 + 9) / 2
    assert found.sparsity == pytest.approx((1 / 8 + 2 / 9 + 8 / 8 + 1 / 9) / 4)
    assert found.head == pytest.approx((1 + 0 + 3 / 8 + 0.04) / 4)
    assert found.middle == pytest.approx((0 + 0.5 + 1 / 8 + 0) / 4)
    assert found.tail == pytest.approx((0 + 0 + 4 / 8 + 0.96) / 4)
    assert found.generated == pytest.approx((0 + 0.5 + 0 + 0) / 4)
    assert found.received[HEAD : HEAD + BINS] == pytest.approx([found.middle / BINS] * BINS)  # of one token in all bins
    assert found.received[0] == pytest.approx((1 + spread + 0.04) / 4)
    assert found.received[HEAD + BINS] == pytest.approx((spread + 0.96) / 4)


@pytest.mark.parametrize("prompt", [1, 2, 3, 6, 7, 8, 22, 23, 24, 90])
def test_every_token_has_its_places(prompt: int) -> None:
    weights = place_weights(prompt, 2, 3)
    assert_close(torch.ones(prompt + 2), weights.sum(1), 1e-12)
    head, tail = min(HEAD, prompt - 1), min(TAIL, prompt - min(HEAD, prompt - 1))
    assert weights[prompt - 1, END - 1] == 1
    assert weights[range(head), range(head)].tolist() == [1] * head
    assert weights[[prompt, prompt + 1], [END, END + 1]].tolist() == [1, 1]
    middle = weights[head : prompt - tail, HEAD : HEAD + BINS]
    assert_close(torch.full((BINS,), len(middle) / BINS), middle.sum(0), 1e-12, "tokens of a bin")
    assert (middle.argmax(1).diff() >= 0).all()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_attention_is_that_of_hugging_face(name: str) -> None:
    model = model_of(name, **DENSE)
    asked = questions(model)
    found = analyze(model, asked)
    identifiers, layers = token_identifiers(model), len(found.layers)
    received = torch.zeros(layers, END + 3, dtype=torch.float64)
    sparsity = torch.zeros(layers, dtype=torch.float64)
    rows = 0
    model.model.config._attn_implementation = "eager"
    for history, target in asked:
        prompt, codes = prompt_of(model, history), identifiers[target]
        tokens = torch.tensor([[*prompt, *codes[:-1]]])
        places = place_weights(len(prompt), len(codes) - 1, 3)
        shares = model.model(tokens, output_attentions=True).attentions
        for row in range(len(prompt) - 1, tokens.shape[1]):
            rows += 1
            for layer in range(layers):
                heads = shares[layer][0, :, row, : row + 1]
                received[layer] += heads.double().mean(0) @ places[: row + 1]
                sparsity[layer] += (heads > ABOVE).double().mean()
    assert found.rows == rows
    assert_close(received / rows, [row.received for row in found.layers], 1e-5, "received")
    assert_close(sparsity / rows, [row.sparsity for row in found.layers], 1e-5, "sparsity")


@pytest.mark.parametrize("name", [*FAMILIES, "tiny-phi3"])  # whose heads are turned in part
def test_late_layers_see_registers_and_generated_tokens_alone(name: str) -> None:
    model = model_of(name, early_layers=2)
    found = analyze(model, questions(model))
    assert [row.is_late for row in found.layers] == [False, False, True, True]
    kept = [0, END - 1, END, END + 1, END + 2]
    for row in found.layers:
        assert sum(row.received) == pytest.approx(1)
        assert row.head + row.middle + row.tail + row.generated == pytest.approx(1)
        assert all(share == 0 for share, seen in zip(row.received, row.seen, strict=True) if not seen)
        if row.is_late:
            assert [place for place, seen in enumerate(row.seen) if seen] == kept
            assert row.middle == 0
            assert row.columns < 5
        else:
            assert all(row.seen)
            assert row.middle > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"early_layers": 1},
        {"early_layers": 3, "prefix_registers": 2, "suffix_registers": 2},
        {"early_layers": 3, "prefix_registers": 0},
        {"early_layers": 2, "suffix_registers": 0},
        {"early_layers": 4},
        DENSE,
        {**DENSE, "early_layers": 2, "prompt": Prompt(head=(0,), separator=(1,), tail=(2, 3))},
    ],
)
def test_the_uncut_loss_is_the_models_own(settings: dict[str, Any]) -> None:
    model = model_of("tiny-qwen2", **settings)
    asked = questions(model)
    found = analyze(model, asked)
    assert len(found.cut) == model.earn.early_layers
    assert found.cut[-1] == pytest.approx(naive_loss(model, asked), rel=1e-5)


def test_a_cut_is_the_model_with_a_smaller_k() -> None:
    model = model_of(early_layers=3)
    asked = questions(model)
    for k, loss in enumerate(analyze(model, asked).cut, 1):
        smaller = EarnModel(model.backbone, replace(model.earn, early_layers=k), model.catalog)
        assert loss == pytest.approx(naive_loss(smaller, asked), rel=1e-5)


def test_the_error_of_a_rise_computed_by_hand() -> None:
    watch = Watch(model_of(early_layers=2))
    watch.losses = [torch.tensor([[5.0, 9.0], [4.0, 6.0]]), torch.tensor([[3.0], [4.0]])]  # users rise by 1, 3 and -1
    watch.codes = [torch.tensor([2.0, 2.0]), torch.tensor([4.0])]
    losses, errors = watch.cut()
    rise = (1 + 3 - 1) / 8
    assert losses.tolist() == [17 / 8, 14 / 8]
    assert errors[0] == pytest.approx(((1 - 2 * rise) ** 2 + (3 - 2 * rise) ** 2 + (-1 - 4 * rise) ** 2) ** 0.5 / 8)
    assert errors[1] == 0


def test_a_dense_model_keeps_its_head_sink_where_it_is_cut() -> None:
    dense = model_of(**DENSE)
    assert kept_rows(dense, 20, 23) == [0, 1, 2, 19, 20, 21, 22]
    assert kept_rows(dense, 2, 3) == [0, 1, 2]
    assert kept_rows(model_of(early_layers=4, suffix_registers=2), 20, 22) == [0, 18, 19, 20, 21]
    found = analyze(dense, questions(dense))
    assert (found.prefix, found.suffix, found.is_dense) == (HEAD, 1, True)
    assert len(set(found.cut)) == len(found.layers)  # each cut changes what is computed


def test_users_may_be_watched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(early_layers=2)
    with pytest.raises(EarnError, match="two users at least, here are 1"):
        analyze(model, questions(model)[:1])
    whole, done = analyze(model, questions(model)), []
    monkeypatch.setattr(attention, "BATCH_TOKENS", 1)
    single = analyze(model, questions(model), lambda *counts: done.append(counts))
    assert done == [(number, USERS) for number in range(1, USERS + 1)]
    for want, got in zip(whole.layers, single.layers, strict=True):
        assert_close(want.received, got.received, 1e-5)
    assert_close(whole.cut, single.cut, 1e-4)


@pytest.mark.parametrize(
    ("losses", "k"),
    [
        ([3.0, 2.6, 2.4, 2.0], 3),
        ([3.0, 2.5, 2.7, 2.0], 2),  # the limit itself is allowed
        ([3.0, 2.6, 2.7, 2.0], None),
        ([2.0, 2.0, 2.0], None),
        ([1.9, 2.5, 2.0], None),  # the cut does good
        ([2.0], None),
        ([2.19, 2.0, 2.0], None),  # two standard errors may be chance
        ([2.21, 2.0, 2.0], 2),
    ],
)
def test_k_by_cut(losses: list[float], k: int | None) -> None:
    assert k_by_cut(losses, [0.1] * len(losses)) == k


def test_figures_as_json() -> None:
    model = model_of(early_layers=1)
    found = analyze(model, questions(model))
    value = json.loads(json.dumps(found.as_json()))
    assert value["suggestions"] == {"cut": None}  # nothing lies below k = 1
    names: Sequence[str] = value["places"]
    assert (names[0], names[HEAD], names[END - 1], names[END:]) == ("1", "m1", "-1", ["g1", "g2", "g3"])
    assert (value["users"], value["early_layers"], len(value["cut"]), len(value["layers"])) == (USERS, 1, 1, 4)
