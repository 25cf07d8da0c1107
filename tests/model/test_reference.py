from __future__ import annotations

import math

import pytest
import torch

from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.model.reference import build_trie, descend, last_logits, reference_search, tokens_at_depth
from tests.support import (
    FAMILIES,
    RULES,
    Agreement,
    assert_close,
    brute_force,
    histories_of,
    naive_logits,
    prompt_of,
    random_catalog,
    small_model,
)

REGISTERS = [(1, 1), (2, 2), (0, 1), (0, 0)]


def model_with(name: str, registers: tuple[int, int]) -> EarnModel:
    return small_model(
        name, random_catalog(24), prefix_registers=registers[0], suffix_registers=registers[1], max_history=6
    )


@pytest.mark.parametrize("registers", REGISTERS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_its_logits_equal_hugging_faces_layers(name: str, registers: tuple[int, int]) -> None:
    model = model_with(name, registers)
    prompt = prompt_of(model, [3, 1, 4])
    beams = [(5, 6), (7, 5)]
    got = last_logits(model, prompt, beams)
    for beam, logits in zip(beams, got, strict=True):
        assert_close(naive_logits(model, prompt, beam)[-1], logits, 1e-4, str(beam))


@pytest.mark.parametrize("registers", REGISTERS, ids=str)
@pytest.mark.parametrize("scoring", RULES)
def test_with_beams_for_all_it_equals_brute_force(registers: tuple[int, int], scoring: str) -> None:
    model, agreement = model_with("tiny-llama", registers), Agreement()
    for history in histories_of(model.catalog, 3, 6):
        want = sorted(enumerate(brute_force(model, history, scoring)), key=lambda pair: -pair[1])
        agreement.add(str(history), want, reference_search(model, history, 24, 24, scoring))
    agreement.check()


def test_under_trie_the_probabilities_of_all_identifiers_sum_to_one() -> None:
    model = model_with("tiny-qwen2", (1, 1))
    probability = dict(zip(model.catalog.identifiers, map(math.exp, brute_force(model, [1, 2], "trie")), strict=True))
    assert sum(probability.values()) == pytest.approx(1)
    for scoring in ("level", "vocab"):
        scores = brute_force(model, [1, 2], scoring)
        assert all(score <= best + 1e-9 for score, best in zip(scores, brute_force(model, [1, 2], "trie"), strict=True))


@pytest.mark.parametrize("scoring", RULES)
def test_excluding_items_changes_no_other_score(scoring: str) -> None:
    model = model_with("tiny-llama", (1, 1))
    everything = dict(reference_search(model, [1, 2, 3], 24, 24, scoring))
    excluded = {*list(everything)[:5], 7}
    left = dict(reference_search(model, [1, 2, 3], 24, 24, scoring, excluded))
    assert left.keys() == everything.keys() - excluded
    assert left == pytest.approx({item: everything[item] for item in left})
    assert reference_search(model, [1, 2, 3], exclude=range(24)) == []


def test_it_returns_k_items_of_as_many_beams_as_it_was_given() -> None:
    model = model_with("tiny-llama", (1, 1))
    assert len(reference_search(model, [1], 3, 24)) == 3
    greedy = reference_search(model, [1], 24, 1)
    assert len({model.catalog.identifiers[item] for item, _ in greedy}) == 1


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(EarnError, match=f"no scoring rule 'beam'.*{', '.join(RULES)}"):
        reference_search(small_model(), [1], scoring="beam")


def test_its_trie_is_nested_dictionaries() -> None:
    trie = build_trie([(1, 2), (1, 3, 4), (5, 2)])
    assert trie == {1: {2: {}, 3: {4: {}}}, 5: {2: {}}}
    assert descend(trie, (1, 3)) == {4: {}}
    assert [tokens_at_depth(trie, depth) for depth in range(4)] == [{1, 5}, {2, 3}, {4}, set()]
