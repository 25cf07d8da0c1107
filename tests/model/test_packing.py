from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from earn.config import EarnConfig, Prompt
from earn.errors import EarnError
from earn.model.earn_model import IGNORED, EarnModel
from earn.model.packing import pack, share_rows
from earn.prompts import history_tokens, prompt_end
from tests.support import (
    FAMILIES,
    assert_close,
    naive_logits,
    prompt_of,
    random_catalog,
    small_model,
    token_identifiers,
)

# Ragged: of 2 to 6 items, whose identifiers have 2 to 4 tokens.
WINDOWS = ((3, 1, 4, 1, 5, 9), (2, 6), (5, 3, 5, 8), (9, 7, 9))
TEXT = Prompt(head=(1, 2), separator=(3,), tail=(4, 5))
DENSE = {"prefix_registers": 0, "suffix_registers": 0}

SHAPES: dict[str, dict[str, Any]] = {
    "one register per side": {},
    "two registers per side": {"prefix_registers": 2, "suffix_registers": 2},
    "prefix register alone": {"suffix_registers": 0, "prompt": Prompt(tail=(4,)), "early_layers": 2},
    "suffix register alone": {"prefix_registers": 0},
    "one register per side, text": {"prompt": TEXT},
    "two registers per side, text": {"prefix_registers": 2, "suffix_registers": 2, "prompt": TEXT},
    "two suffix registers, separators": {"suffix_registers": 2, "prompt": Prompt(separator=(3, 6))},
    "one early layer of four": {"early_layers": 1},
    "three early layers of four": {"early_layers": 3, "prompt": TEXT},
    "registers, but no late layer": {"early_layers": 4},
    "prefix register alone, nothing after the history": {"suffix_registers": 0, "early_layers": 2},
    "no registers, separators": {**DENSE, "early_layers": 2, "prompt": Prompt((1,), (3, 6))},
    "dense, separators": {**DENSE, "prompt": Prompt((1,), (3, 6))},
    "dense, plain": DENSE,
    "dense, text": {**DENSE, "prompt": TEXT},
    "dense, prefix registers, plain": {"prefix_registers": 2, "suffix_registers": 0, "early_layers": 4},
}


def build(shape: str, name: str = "tiny-llama") -> EarnModel:
    model = small_model(name, random_catalog(10), **SHAPES[shape]).double()
    assert len({len(identifier) for identifier in token_identifiers(model)}) == 3
    return model


def windows_of(model: EarnModel, windows: Sequence[Sequence[int]]) -> list[list[tuple[int, ...]]]:
    identifiers = token_identifiers(model)
    return [[identifiers[item] for item in window] for window in windows]


def one_by_one(model: EarnModel, windows: Sequence[Sequence[int]]) -> Tensor:
    """The mean loss over all target tokens, each prefix of each window as an example of its own."""
    identifiers = token_identifiers(model)
    losses = []
    for window in windows:
        for end in range(1, len(window)):
            target = identifiers[window[end]]
            logits = naive_logits(model, prompt_of(model, window[:end]), target[:-1])
            losses.append(functional.cross_entropy(logits, torch.tensor(target), reduction="none"))
    return torch.cat(losses).mean()


def gradients(model: EarnModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("shape", "name"),
    [*((shape, "tiny-llama") for shape in SHAPES), *(("two registers per side, text", name) for name in FAMILIES[1:])],
)
def test_packed_loss_and_gradients_equal_one_example_at_a_time(shape: str, name: str) -> None:
    model = build(shape, name)
    want = one_by_one(model, WINDOWS)
    batch = pack(windows_of(model, WINDOWS), model.earn, model.is_dense)
    got = model(**batch)["loss"]
    assert want > 1
    assert_close(want, got, 1e-5, "loss")
    wanted, found = gradients(model, want), gradients(model, got)
    assert wanted.keys() == found.keys() == dict(model.named_parameters()).keys()
    for parameter, gradient in wanted.items():
        assert_close(gradient, found[parameter], 1e-5, f"gradient of {parameter}")


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_shared_by_what_fits(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = [(int(tokens), int(targets)) for tokens, targets in generator.integers(1, 20, (40, 2))]
    rows = share_rows(sizes)
    assert sorted(number for row in rows for number in row) == list(range(40))
    most = np.max(sizes, axis=0)
    for row in rows:
        assert (np.sum([sizes[number] for number in row], axis=0) <= most).all()
    assert len(rows) < len(sizes)
    assert share_rows([(3, 1), (8, 4), (5, 3)]) == [[1], [2, 0]]
    assert share_rows([(8, 4), (3, 1), (5, 4)]) == [[0], [2], [1]]  # tokens would fit, targets do not


CONFIG = EarnConfig(
    early_layers=1,
    prefix_ids=(90,),
    suffix_ids=(91, 92),
    prompt=Prompt(head=(80,), separator=(81,), tail=(82,)),
    token_ids=(1, 2, 3, 4, 5),
    max_history=5,
)


def test_a_batch_is_laid_out_as_documented() -> None:
    batch = pack([[(1, 2), (3,), (4, 5)]], CONFIG)
    assert batch["input_ids"].tolist() == [[90, 80, 1, 2, 81, 3, 82, 91, 92, 0, 82, 91, 92, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 6, 0, 6, 7, 8, 9]]
    assert batch["keep"].tolist() == [0, 7, 8, 9, 11, 12, 13]  # prefix, then both groups without the tail
    assert batch["predict"].tolist() == [2, 3, 5, 6]  # the last suffix register and the codes but the last
    assert batch["labels"].tolist() == [[3, IGNORED, 4, 5]]
    rows = {
        0: [0],
        5: [0, 1, 2, 3, 4, 5],
        6: [0, 1, 2, 3, 6],  # the first group sees the first item alone
        8: [0, 1, 2, 3, 6, 7, 8],
        9: [],  # padding
        13: [0, 1, 2, 3, 4, 5, 10, 11, 12, 13],
    }
    assert {row: batch["visible"][0, row].nonzero().flatten().tolist() for row in rows} == rows


def test_short_windows_share_a_row_as_documented() -> None:
    batch = pack([[(3,), (4, 5)], [(1, 2), (3,), (4, 5)], [(4,), (1,)]], CONFIG)
    head, first, second = [90, 80], [1, 2, 81, 3], [82, 91, 92]
    assert batch["input_ids"].tolist() == [
        [*head, *first, *second, 0, *second, 4],
        [*head, 3, 4, 0, 0, *second, 4, *second, 0],  # two windows of one item each, then their groups
    ]
    assert batch["position_ids"][1].tolist() == [0, 1, 2, 2, 0, 0, 3, 4, 5, 6, 3, 4, 5, 0]
    assert batch["labels"].tolist() == [[3, IGNORED, 4, 5], [4, 5, 1, IGNORED]]
    rows = {2: [0, 1, 2], 3: [0, 1, 3], 4: [], 7: [0, 1, 2, 6, 7], 10: [0, 1, 3, 10], 12: [0, 1, 3, 10, 11, 12]}
    assert {row: batch["visible"][1, row].nonzero().flatten().tolist() for row in rows} == rows


def test_the_plain_form_predicts_every_token_after_the_first_item() -> None:
    plain = EarnConfig(4, (), (), Prompt(head=(80,)), (1, 2, 3, 4, 5))
    batch = pack([[(1, 2), (3,), (4, 5)], [(3,), (1, 2)]], plain, dense=True)
    assert batch["input_ids"].tolist() == [[80, 1, 2, 3, 4, 5], [80, 3, 1, 2, 0, 0]]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, 3, 4, 5, IGNORED],
        [IGNORED, 1, 2, IGNORED, IGNORED, IGNORED],
    ]
    assert batch["visible"][0].equal(torch.ones(6, 6, dtype=torch.bool).tril())


def test_no_row_sees_the_future_padding_or_another_group() -> None:
    model = build("two registers per side, text")
    batch = pack(windows_of(model, WINDOWS), model.earn)
    visible, positions = batch["visible"], batch["position_ids"]
    assert len(visible) < len(WINDOWS)  # some share a row
    # Among the rows that one row sees, every position stands exactly once, up to its own: a prompt's prefix.
    for user in range(len(visible)):
        for row in range(visible.shape[1]):
            seen = visible[user, row].nonzero().flatten()
            if len(seen):
                assert sorted(positions[user, seen].tolist()) == list(range(int(positions[user, row]) + 1))
                assert int(seen[-1]) == row


def test_a_window_of_one_item_is_refused() -> None:
    with pytest.raises(EarnError, match="fewer than two items"):
        pack([[(1, 2), (3,)], [(1, 2)]], CONFIG)


def test_a_prompt_keeps_the_newest_items_with_separators_between_them() -> None:
    assert history_tokens([(1,), (2,), (3, 4)], CONFIG) == [1, 81, 2, 81, 3, 4]
    assert history_tokens([(9,), (1,), (2,), (3,), (4,), (5,)], CONFIG) == [1, 81, 2, 81, 3, 81, 4, 81, 5]
    assert prompt_end(CONFIG) == [82, 91, 92]
