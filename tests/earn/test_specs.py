from __future__ import annotations

from dataclasses import replace

import pytest

from earn.catalog import Catalog
from earn.config import EarnConfig, Prompt
from earn.manifest import limits_of
from earn.specs import NEW, PAST, STAGES, Limits, Sizes, TensorSpec, all_specs, stage_specs
from tests.support import (
    RULES,
    histories_of,
    largest_sizes,
    random_catalog,
    small_model,
    toy_catalog,
    watched_recommender,
)

#             layers, early, hidden, intermediate, heads, key-value heads, head size, embedding, logits
SIZES = Sizes("qwen3", 3, 1, 32, 64, 4, 2, 16, 20, 18)
LIMITS = Limits(batch=8, beams=5, history=6, prompt=30, head=4, prefix=2, readout=1, depth=4)


def axes(spec: TensorSpec) -> list[tuple[str, int, int]]:
    return [(axis.name, axis.least, axis.most) for axis in spec.axes]


def test_the_early_stages_table_by_hand() -> None:
    specs = stage_specs("early", SIZES, LIMITS)
    row = [("b", 1, 8), ("2l", 2, 2), ("g", 2, 2), ("e", 16, 16)]  # keys and values of one layer
    assert {spec.name: axes(spec) for spec in specs.inputs} == {
        "input_ids": [("b", 1, 8), ("m", 1, 30)],
        "position_ids": [("b", 1, 8), ("m", 1, 30)],
        "attention_bias": [("b", 1, 8), ("1", 1, 1), ("m", 1, 30), ("s+m", 1, 30 + 5 * 3)],
        "past_key_values": [("s", 0, 30 + 5 * 2), *row],  # before the last of three steps
        "keep": [("r", 1, 10)],  # two steps in one pass
    }
    assert {spec.name: axes(spec) for spec in specs.outputs} == {
        "hidden": [("b", 1, 8), ("r", 1, 10), ("d", 32, 32)],
        "new_key_values": [("m", 1, 30), *row],
    }
    assert {spec.name for spec in specs.inputs if spec.dtype == "int64"} == {"input_ids", "position_ids", "keep"}
    assert specs.inputs[3].dynamic_axes == {0: "s", 1: "b"}  # axes of the model are fixed, those of a call are not


def test_the_late_stages_table_does_not_grow_with_the_prompt() -> None:
    specs = stage_specs("late", SIZES, LIMITS)
    assert specs == stage_specs("late", SIZES, replace(LIMITS, prompt=3000, history=700))
    row = [("b", 1, 8), ("2l", 4, 4), ("g", 2, 2), ("e", 16, 16)]  # keys and values of two layers
    assert axes(specs.inputs[0]) == [("b", 1, 8), ("m", 1, 10), ("d", 32, 32)]
    assert (specs.inputs[3].name, axes(specs.inputs[3])) == (PAST, [("s", 0, 2 + 1 + 5 * 2), *row])
    assert axes(specs.outputs[0]) == [("b", 1, 8), ("r", 1, 10), ("v", 18, 18)]
    assert (specs.outputs[1].name, axes(specs.outputs[1])) == (NEW, [("m", 1, 10), *row])


def test_a_dense_models_late_stage_takes_hidden_states_alone() -> None:
    specs = stage_specs("late", replace(SIZES, early_layers=3), LIMITS)
    assert [spec.name for spec in specs.inputs] == ["hidden", "keep"]
    assert [spec.name for spec in specs.outputs] == ["logits"]


def test_limits_follow_from_the_prompt() -> None:
    earn = EarnConfig(1, (7, 8), (9,), Prompt(head=(1,), separator=(2, 2), tail=(3, 4)), (5, 6), max_history=3)
    limits = limits_of(earn, depth=4, batch=2, beams=10)
    #                                         registers, head, items, separators, tail
    assert limits == Limits(2, 10, 3, prompt=3 + 1 + 3 * 4 + 2 * 2 + 2, head=3, prefix=2, readout=1, depth=4)
    assert limits.generated == 10 * 3
    assert limits.pass_rows == 10 * 2


@pytest.mark.parametrize(("depth", "rows"), [(1, 5), (2, 5), (3, 10), (4, 10), (9, 10)])
def test_a_pass_takes_no_more_steps_than_there_are(depth: int, rows: int) -> None:
    assert replace(LIMITS, depth=depth).pass_rows == rows


# One token may follow the first, so that both go in one pass where that is allowed.
FULL = toy_catalog([f"a{a} b c{c}" for a in range(8) for c in range(4)])


@pytest.mark.parametrize("catalog", [FULL, random_catalog(60, codes=6)], ids=["equal lengths", "unequal lengths"])
@pytest.mark.parametrize("registers", [(1, 1), (2, 3), (0, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_all_that_the_runtime_feeds_lies_within_the_table(
    rule: str, registers: tuple[int, int], catalog: Catalog
) -> None:
    prefix, suffix = registers
    model = small_model(catalog=catalog, prefix_registers=prefix, suffix_registers=suffix, max_history=6)
    recommender, engine = watched_recommender(model, rule, max_batch=3, max_beams=7)
    longest = max(range(len(catalog)), key=lambda item: len(catalog.identifiers[item]))
    for lookahead in (0, 64):
        recommender.lookahead = lookahead
        recommender.recommend_batch([[longest] * 6, *histories_of(catalog, 4, 6)], 7, 7)
        recommender.recommend(["0"], 1, 1)
    session = recommender.session([longest] * 6)
    session.append(longest)
    session.append(longest)
    session.recommend(7, 7)
    largest = largest_sizes(engine, all_specs(recommender.manifest.sizes, recommender.manifest.limits))
    assert {stage for stage, _ in largest} == set(STAGES)
    if catalog is FULL and rule != "trie":  # else not every beam goes on to the last step
        for (stage, axis), size in largest.items():
            is_head = axis.name == "m" and stage == "early"  # the constant head is not computed with the rest
            assert size == axis.most - (recommender.manifest.limits.head if is_head else 0), (stage, axis)
