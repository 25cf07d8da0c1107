from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earn.config import EarnConfig, Prompt
from earn.manifest import limits_of
from earn.shape_ranges import OptimizationProfile, Range, profile_for, profile_hash, profiles, whole_profile
from earn.specs import PAST, STAGES, Axis, Limits, stage_specs
from tests.earn.test_specs import LIMITS, SIZES
from tests.support import FAMILIES, RULES, random_catalog, small_model, toy_catalog, watched_recommender

Shapes = Mapping[str, tuple[int, ...]]


def test_the_early_stages_ranges_by_hand() -> None:
    decode, prefill = profiles("early", SIZES, LIMITS)
    assert (decode.name, prefill.name) == ("decode", "prefill")
    assert decode.ranges == {
        # two steps of 5 beams in one pass; behind a prompt of 30 rows two steps at the most, of three that are made
        "input_ids": Range((1, 1), (1, 5), (8, 2 * 5)),
        "position_ids": Range((1, 1), (1, 5), (8, 2 * 5)),
        "attention_bias": Range((1, 1, 1, 1 + 1), (1, 1, 5, 30 + 5), (8, 1, 2 * 5, 30 + 2 * 5 + 2 * 5)),
        PAST: Range((1, 1, 2, 2, 16), (30, 1, 2, 2, 16), (30 + 2 * 5, 8, 2, 2, 16)),
        "keep": Range((1,), (5,), (2 * 5,)),
    }
    assert prefill.ranges == {
        # behind a head of 4 rows a prompt, which is no longer than a piece; 2 rows go on of the head, 1 of a prompt
        "input_ids": Range((1, 1), (1, 30), (8, 30)),
        "position_ids": Range((1, 1), (1, 30), (8, 30)),
        "attention_bias": Range((1, 1, 1, 0 + 1), (1, 1, 30, 4 + 30), (8, 1, 30, 29 + 30)),
        PAST: Range((0, 1, 2, 2, 16), (4, 1, 2, 2, 16), (29, 8, 2, 2, 16)),
        "keep": Range((1,), (1,), (2,)),
    }


def test_the_late_stages_ranges_by_hand() -> None:
    decode, prefill = profiles("late", SIZES, LIMITS)
    assert decode.ranges == {
        # a prompt is two prefix registers and one suffix register; two layers have four keys and values
        "hidden": Range((1, 1, 32), (1, 5, 32), (8, 2 * 5, 32)),
        "position_ids": Range((1, 1), (1, 5), (8, 2 * 5)),
        "attention_bias": Range((1, 1, 1, 1 + 1), (1, 1, 5, 3 + 5), (8, 1, 2 * 5, 3 + 2 * 5 + 2 * 5)),
        PAST: Range((1, 1, 4, 2, 16), (3, 1, 4, 2, 16), (3 + 2 * 5, 8, 4, 2, 16)),
        "keep": Range((1,), (5,), (2 * 5,)),
    }
    assert prefill.ranges == {
        # the two prefix registers at first, the suffix register behind them later; one row gives logits
        "hidden": Range((1, 1, 32), (1, 2, 32), (8, 2, 32)),
        "position_ids": Range((1, 1), (1, 2), (8, 2)),
        "attention_bias": Range((1, 1, 1, 0 + 1), (1, 1, 2, 2 + 2), (8, 1, 2, 2 + 2)),
        PAST: Range((0, 1, 4, 2, 16), (2, 1, 4, 2, 16), (2, 8, 4, 2, 16)),
        "keep": Range((1,), (1,), (1,)),
    }


def test_a_dense_models_late_stage_has_hidden_states_and_kept_rows_alone() -> None:
    sizes, limits = replace(SIZES, early_layers=3), replace(LIMITS, prefix=0)
    decode, prefill = profiles("late", sizes, limits)
    assert decode.ranges == {"hidden": Range((1, 1, 32), (1, 5, 32), (8, 10, 32)), "keep": Range((1,), (5,), (10,))}
    assert prefill.ranges == {"hidden": Range((1, 1, 32), (1, 1, 32), (8, 1, 32)), "keep": Range((1,), (1,), (1,))}


def test_long_prompts_are_read_in_pieces_and_wide_searches_are_rare() -> None:
    decode, prefill = profiles("early", SIZES, replace(LIMITS, prompt=3000, beams=64))
    assert prefill.ranges["input_ids"] == Range((1, 1), (1, 256), (8, 256))
    assert prefill.ranges[PAST].most[0] == 2999
    assert decode.ranges["input_ids"] == Range((1, 1), (1, 20), (8, 128))


def call(users: int, rows: int, cached: int, kept: int) -> Shapes:
    """The shapes of one call of the early stage."""
    return {
        "input_ids": (users, rows),
        "position_ids": (users, rows),
        "attention_bias": (users, 1, rows, cached + rows),
        PAST: (cached, users, 2 * SIZES.early_layers, SIZES.key_value_heads, SIZES.head_size),
        "keep": (kept,),
    }


LONG = replace(LIMITS, prompt=80, beams=64)  # usual are 20 rows and 80; 40 is twice the one and half the other


@pytest.mark.parametrize(
    ("limits", "shapes", "name"),
    [
        (LIMITS, call(8, 10, 40, 10), "decode"),
        (LIMITS, call(1, 5, 30, 5), "decode"),
        (LIMITS, call(1, 4, 20, 1), "decode"),  # a session's new item
        (LIMITS, call(1, 4, 0, 2), "prefill"),  # the constant head: nothing is cached
        (LIMITS, call(8, 26, 4, 1), "prefill"),
        (LIMITS, call(1, 11, 29, 1), "prefill"),
        (LONG, call(1, 40, 20, 1), "decode"),  # both hold it: the nearer row count decides
        (LONG, call(1, 41, 20, 1), "prefill"),
    ],
    ids=str,
)
def test_a_profile_that_holds_a_call_is_taken(limits: Limits, shapes: Shapes, name: str) -> None:
    found = profiles("early", SIZES, limits)
    assert found[profile_for(found, shapes)].name == name


@pytest.mark.parametrize(
    "shapes",
    [
        call(9, 5, 30, 5),  # users
        call(1, 11, 30, 5),  # rows of a pass, and cached rows of a prompt
        call(1, 31, 0, 1),  # rows of a prompt
        call(1, 5, 30, 0),  # none are kept
        {**call(1, 5, 30, 5), PAST: (30, 1, 4, 2, 16)},  # another model's cache
        {**call(1, 5, 30, 5), "keep": (5, 1)},  # an axis too many
    ],
    ids=str,
)
def test_a_call_outside_is_refused(shapes: Shapes) -> None:
    with pytest.raises(ValueError, match=r"No profile holds .*input_ids"):
        profile_for(profiles("early", SIZES, LIMITS), shapes)


@st.composite
def all_limits(draw: st.DrawFn) -> Limits:
    """Those of any bundle: long and short prompts, few and many registers, beams, users."""
    head, separator, tail, prefix, suffix = ((0,) * draw(st.integers(0, most)) for most in (300, 3, 20, 128, 128))
    model = EarnConfig(1, prefix, suffix, Prompt(head, separator, tail), (0,), max_history=draw(st.integers(1, 50)))
    return limits_of(model, draw(st.integers(1, 8)), draw(st.integers(1, 64)), draw(st.integers(1, 100)))


def by_axis(stage: str, profile: OptimizationProfile, limits: Limits) -> dict[str, Axis]:
    """Least, usual and most of every axis of a profile: one size, in whichever input it stands."""
    found: dict[str, Axis] = {}
    for spec in stage_specs(stage, SIZES, limits).inputs:
        own = profile.ranges[spec.name]
        for axis, *sizes in zip(spec.axes, own.least, own.usual, own.most, strict=True):
            assert found.setdefault(axis.name, Axis(axis.name, *sizes)) == Axis(axis.name, *sizes)
            assert not axis.is_fixed or sizes == [axis.most] * 3
    return found


@given(all_limits(), st.sampled_from(STAGES))
@settings(deadline=None)
def test_ranges_are_ordered_their_sums_fit_and_together_they_are_the_tensor_tables(limits: Limits, stage: str) -> None:
    """An engine's builder tries the most of all axes together, and the least and the usual."""
    whole = whole_profile(stage, SIZES, limits)
    found = [by_axis(stage, profile, limits) for profile in (*profiles(stage, SIZES, limits), whole)]
    for axes in found:
        assert all(axis.least <= axis.usual <= axis.most for axis in axes.values())
        for which in ("least", "usual", "most"):
            size = {name: getattr(axis, which) for name, axis in axes.items()}
            assert size["s+m"] == size["s"] + size["m"]
            assert 1 <= size["r"] <= size["m"]  # rows that are kept are rows
    for axis in (axis for spec in stage_specs(stage, SIZES, limits).inputs for axis in spec.axes):
        decode, prefill, both = (axes[axis.name] for axes in found)
        assert both.least == min(decode.least, prefill.least) == axis.least, axis
        assert axis.name == "s+m" or both.most == max(decode.most, prefill.most)
        if axis.name == "s+m":  # the sum of two that are not at their most in one call
            assert both.most >= max(decode.most, prefill.most) >= axis.most
        elif stage == "late" and axis.name in "mr":  # registers of both ends never come in one call
            assert both.most <= axis.most
        else:
            assert both.most == axis.most, axis


@pytest.mark.parametrize("name", ["batch", "beams", "prompt", "head", "prefix", "readout", "depth", "head_size"])
def test_other_limits_or_sizes_have_another_hash(name: str) -> None:
    def hash_of(sizes: Any, limits: Any) -> str:
        return profile_hash({stage: profiles(stage, sizes, limits) for stage in STAGES})

    sizes, limits = (
        replace(one, **{name: getattr(one, name) + 1}) if hasattr(one, name) else one for one in (SIZES, LIMITS)
    )
    assert hash_of(SIZES, LIMITS) == hash_of(replace(SIZES), replace(LIMITS)) != hash_of(sizes, limits)


# Identifiers of one length where many beams go to the end, of many lengths, of one token, and very long ones.
CATALOGS = {
    "full": toy_catalog([f"a{a} b c{c}" for a in range(8) for c in range(4)]),
    "mixed": random_catalog(60, codes=3),
    "one token": toy_catalog([f"a{a}" for a in range(12)]),
    "long": toy_catalog([f"a{a} b c{c} d e{e} f g{e} h{c}" for a in range(3) for c in range(3) for e in range(3)]),
}


@given(st.data())
@settings(deadline=None, max_examples=8)
def test_all_that_the_runtime_asks_for_lies_within_a_profile(data: st.DataObject) -> None:
    def number(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    catalog = CATALOGS[data.draw(st.sampled_from(sorted(CATALOGS)))]
    prefix, suffix, history, batch, beams = number(0, 3), number(0, 3), number(1, 6), number(1, 4), number(1, 9)
    tail = number(0 if suffix else 1, 2)  # something must stand behind the last item
    layers = (1, 3, 4) if prefix + suffix else (4,)
    with (
        patch("earn.specs.PIECE", piece := data.draw(st.sampled_from((6, 9, 256)))),  # each holds all registers
        patch("earn.shape_ranges.PIECE", piece),
        patch("earn.runtime.decoder.PIECE", piece),
    ):
        model = small_model(
            data.draw(st.sampled_from(FAMILIES)),
            catalog,
            prompt=Prompt((0,) * number(0, 20), (0,) * number(0, 2), (0,) * tail),
            prefix_registers=prefix,
            suffix_registers=suffix,
            early_layers=data.draw(st.sampled_from(layers)),
            max_history=history,
        )
        rule = data.draw(st.sampled_from(RULES))
        recommender, engine = watched_recommender(model, rule, max_batch=batch, max_beams=beams)
        recommender.lookahead = data.draw(st.sampled_from((None, 0, 1, 3)))
        items = st.lists(st.integers(0, len(catalog) - 1), min_size=1, max_size=history + 2)
        histories = data.draw(st.lists(items, min_size=1, max_size=batch + 1))
        recommender.recommend_batch(histories, number(1, beams), number(1, beams), exclude_history=number(0, 1) == 1)
        session = recommender.session()
        for item in [*data.draw(items), *histories[0]]:  # it grows and slides
            session.append(item)
            session.recommend(number(1, beams), number(1, beams), histories[0])
        restored = recommender.restore_session(session.to_bytes())
        restored.append(0)
        restored.recommend(1, 1, exclude_history=True)
        manifest = recommender.manifest
        tables = {stage: profiles(stage, manifest.sizes, manifest.limits) for stage in STAGES}
        for stage, shapes in engine.shapes:
            profile_for(tables[stage], shapes)  # an error where none holds them
    assert {stage for stage, _ in engine.shapes} == set(STAGES)
