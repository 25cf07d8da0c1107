from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earn.config import EarnConfig, Prompt
from earn.manifest import limits_of
from earn.runtime.recommender import Recommender
from earn.shape_ranges import OptimizationProfile, Range, profile_for, profile_hash, profiles
from earn.specs import PAST, STAGES, Axis, Limits, Sizes, stage_specs
from tests.earn.test_specs import LIMITS, SIZES
from tests.support import (
    FAMILIES,
    RULES,
    CountingEngine,
    random_catalog,
    small_model,
    toy_catalog,
    watched_recommender,
)

Shapes = Mapping[str, tuple[int, ...]]


# --- by hand ----------------------------------------------------------------------------------------------------------


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


def call(users: int, rows: int, cached: int, kept: int, sizes: Sizes = SIZES) -> Shapes:
    """The shapes of one call of the early stage."""
    row = (2 * sizes.early_layers, sizes.key_value_heads, sizes.head_size)
    return {
        "input_ids": (users, rows),
        "position_ids": (users, rows),
        "attention_bias": (users, 1, rows, cached + rows),
        PAST: (cached, users, *row),
        "keep": (kept,),
    }


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (call(8, 10, 40, 10), "decode"),
        (call(1, 5, 30, 5), "decode"),
        (call(1, 4, 20, 1), "decode"),  # a session's new item
        (call(1, 4, 0, 2), "prefill"),  # the constant head: nothing is cached
        (call(8, 26, 4, 1), "prefill"),
        (call(1, 11, 29, 1), "prefill"),
    ],
    ids=str,
)
def test_a_profile_that_holds_a_call_is_taken(shapes: Shapes, name: str) -> None:
    found = profiles("early", SIZES, LIMITS)
    assert found[profile_for(found, shapes)].name == name


@pytest.mark.parametrize(("rows", "name"), [(20, "decode"), (40, "decode"), (41, "prefill"), (80, "prefill")])
def test_of_two_that_hold_it_the_one_for_as_many_rows_is_taken(rows: int, name: str) -> None:
    """Usual are 20 rows and 80, and 40 is twice the one and half the other."""
    found = profiles("early", SIZES, replace(LIMITS, prompt=80, beams=64))
    assert found[profile_for(found, call(1, rows, 20, 1))].name == name


@pytest.mark.parametrize(
    "shapes",
    [
        call(9, 5, 30, 5),  # users
        call(1, 11, 30, 5),  # rows of a pass, and cached rows of a prompt
        call(1, 31, 0, 1),  # rows of a prompt
        call(1, 5, 41, 5),  # cached rows
        call(1, 4, 0, 3),  # kept rows of a prompt
        call(1, 5, 30, 0),  # none are kept
        {**call(1, 5, 30, 5), "keep": (11,)},
        {**call(1, 5, 30, 5), "attention_bias": (1, 2, 5, 35)},  # an axis that has one size
        {**call(1, 5, 30, 5), PAST: (30, 1, 4, 2, 16)},  # another model's cache
        {**call(1, 5, 30, 5), "keep": (5, 1)},  # an axis too many
    ],
    ids=str,
)
def test_a_call_outside_is_refused(shapes: Shapes) -> None:
    with pytest.raises(ValueError, match=r"No profile holds .*input_ids"):
        profile_for(profiles("early", SIZES, LIMITS), shapes)


# --- for all limits ---------------------------------------------------------------------------------------------------


@st.composite
def all_limits(draw: st.DrawFn) -> Limits:
    """Those of any bundle: long and short prompts, few and many registers, beams, users."""

    def some(most: int, least: int = 0) -> tuple[int, ...]:
        return (0,) * draw(st.integers(least, most))

    prompt = Prompt(head=some(300), separator=some(3), tail=some(20))
    model = EarnConfig(1, some(128), some(128), prompt, (0,), max_history=draw(st.integers(1, 50)))
    return limits_of(model, draw(st.integers(1, 8)), draw(st.integers(1, 64)), draw(st.integers(1, 100)))


def by_axis(stage: str, profile: OptimizationProfile, limits: Limits) -> dict[str, Axis]:
    """Least, usual and most of every axis of a profile: one size, in whichever input it stands."""
    found: dict[str, Axis] = {}
    for spec in stage_specs(stage, SIZES, limits).inputs:
        own = profile.ranges[spec.name]
        for axis, *sizes in zip(spec.axes, own.least, own.usual, own.most, strict=True):
            range_of = Axis(axis.name, *sizes)
            assert found.setdefault(axis.name, range_of) == range_of
            if axis.is_fixed:
                assert sizes == [axis.most] * 3
    return found


@given(all_limits(), st.sampled_from(STAGES))
@settings(deadline=None)
def test_ranges_are_ordered_and_their_sums_fit(limits: Limits, stage: str) -> None:
    """An engine's builder tries the most of all axes together, and the least and the usual."""
    for profile in profiles(stage, SIZES, limits):
        assert list(profile.ranges) == [spec.name for spec in stage_specs(stage, SIZES, limits).inputs]
        axes = by_axis(stage, profile, limits)
        for axis in axes.values():
            assert axis.least <= axis.usual <= axis.most
        for which in ("least", "usual", "most"):
            size = {name: getattr(axis, which) for name, axis in axes.items()}
            assert size["s+m"] == size["s"] + size["m"]
            assert 1 <= size["r"] <= size["m"]  # rows that are kept are rows


@given(all_limits(), st.sampled_from(STAGES))
@settings(deadline=None)
def test_together_they_are_the_tensor_tables_ranges(limits: Limits, stage: str) -> None:
    table = {axis.name: axis for spec in stage_specs(stage, SIZES, limits).inputs for axis in spec.axes}
    found = [by_axis(stage, profile, limits) for profile in profiles(stage, SIZES, limits)]
    most = {name: max(own[name].most for own in found) for name in table}
    for name, axis in table.items():
        assert min(own[name].least for own in found) == axis.least, name
    assert most["s+m"] >= table["s+m"].most  # here the sum of two that are not at their most in one call
    if stage == "late":  # whose registers of both ends never come in one call, and which keeps one row of a prompt
        assert most["m"] == max(limits.prefix, limits.readout, limits.pass_rows) <= table["m"].most
        assert most["r"] == limits.pass_rows <= table["r"].most
    exact = table.keys() - ({"s+m"} if stage == "early" else {"s+m", "m", "r"})
    assert {name: most[name] for name in exact} == {name: table[name].most for name in exact}


@given(all_limits(), st.data())
@settings(deadline=None)
def test_other_limits_have_another_hash(limits: Limits, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(("batch", "beams", "prompt", "prefix", "readout")))
    other = replace(limits, **{name: getattr(limits, name) + 1})
    ours, same, theirs = (
        {stage: profiles(stage, SIZES, each) for stage in STAGES} for each in (limits, replace(limits), other)
    )
    assert profile_hash(ours) == profile_hash(same)
    assert profile_hash(ours) != profile_hash(theirs)


@pytest.mark.parametrize(
    "other", [replace(LIMITS, depth=5), replace(LIMITS, depth=3), replace(LIMITS, head=5), replace(LIMITS, prompt=29)]
)
def test_the_hash_sees_depth_and_head(other: Limits) -> None:
    ours, theirs = ({stage: profiles(stage, SIZES, each) for stage in STAGES} for each in (LIMITS, other))
    assert profile_hash(ours) != profile_hash(theirs)


def test_the_hash_sees_the_models_sizes() -> None:
    other = replace(SIZES, head_size=8)
    ours, theirs = ({stage: profiles(stage, each, LIMITS) for stage in STAGES} for each in (SIZES, other))
    assert profile_hash(ours) != profile_hash(theirs)


# --- what the runtime asks for ----------------------------------------------------------------------------------------

# Identifiers of one length where many beams go to the end, of many lengths, of one token, and very long ones.
CATALOGS = {
    "full": toy_catalog([f"a{a} b c{c}" for a in range(8) for c in range(4)]),
    "mixed": random_catalog(60, codes=3),
    "wide": random_catalog(60, codes=6),
    "one token": toy_catalog([f"a{a}" for a in range(12)]),
    "two tokens": toy_catalog([f"a{a} b{b}" for a in range(6) for b in range(4)]),
    "long": toy_catalog([f"a{a} b c{c} d e{e} f g{e} h{c}" for a in range(3) for c in range(3) for e in range(3)]),
}


@dataclass(frozen=True)
class Requested:
    """A bundle, and what is asked of it."""

    family: str
    catalog: str
    shape: Mapping[str, Any]  # registers, prompt and split
    history: int  # items of the longest
    batch: int  # users of a pass
    beams: int  # at the most
    rule: str
    piece: int  # rows that are read at once
    lookahead: int | None
    requests: Sequence[
        tuple[Sequence[Sequence[int]], int, int, Sequence[Sequence[int]]]
    ]  # histories, k, beams, excluded
    session: Sequence[int]  # items of its start, then those that are appended one by one


@st.composite
def requested(draw: st.DrawFn) -> Requested:
    def text(most: int) -> tuple[int, ...]:
        return (0,) * draw(st.integers(0, most))

    catalog = draw(st.sampled_from(sorted(CATALOGS)))
    prefix, suffix = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    prompt = Prompt(text(20), text(2), text(2))
    layers = (1, 3, 4) if prefix + suffix else (4,)
    if not suffix and not prompt.tail:  # the last item alone ends the prompt of a dense model, else a tail must
        prompt = replace(prompt, tail=(0,)) if prefix else replace(prompt, separator=())
    history, batch, beams = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    item = st.integers(0, len(CATALOGS[catalog]) - 1)
    items = st.lists(item, min_size=1, max_size=history + 2)
    number = st.integers(1, beams)
    requests = []
    for users in draw(st.lists(st.integers(1, batch + 1), min_size=1, max_size=2)):
        histories = draw(st.lists(items, min_size=users, max_size=users))
        excluded = draw(st.lists(st.lists(item, max_size=12), min_size=users, max_size=users))
        requests.append((histories, draw(number), draw(number), excluded))
    return Requested(
        draw(st.sampled_from(FAMILIES)),
        catalog,
        {
            "prefix_registers": prefix,
            "suffix_registers": suffix,
            "prompt": prompt,
            "early_layers": draw(st.sampled_from(layers)),
        },
        history,
        batch,
        beams,
        draw(st.sampled_from(RULES)),
        draw(st.sampled_from((6, 9, 256))),
        draw(st.sampled_from((None, 0, 1, 3))),
        requests,
        draw(st.lists(item, min_size=1, max_size=2 * history + 2)),
    )


@contextmanager
def pieces_of(rows: int) -> Iterator[None]:
    """Prompts are read in pieces of so many rows: each holds all registers of one end."""
    with ExitStack() as stack:
        for module in ("specs", "shape_ranges", "runtime.decoder"):
            stack.enter_context(patch(f"earn.{module}.PIECE", rows))
        yield


def ask(recommender: Recommender, asked: Requested) -> None:
    """Makes the requests, then those of a session that grows, slides and is restored."""
    recommender.lookahead = asked.lookahead
    for histories, k, beams, excluded in asked.requests:
        recommender.recommend_batch(histories, k, beams, excluded, exclude_history=k % 2 == 0)
    _, k, beams, excluded = asked.requests[-1]
    session = recommender.session(asked.session[: len(asked.session) // 2])
    for item in asked.session[len(asked.session) // 2 :]:
        session.append(item)
        session.recommend(k, beams, excluded[0])
    restored = recommender.restore_session(session.to_bytes())
    restored.recommend(beams, beams)
    restored.append(asked.session[0])
    restored.recommend(1, 1, exclude_history=True)


def profiled(recommender: Recommender, engine: CountingEngine) -> list[tuple[str, str, Shapes]]:
    """Stage, profile and shapes of every call so far."""
    sizes, limits = recommender.manifest.sizes, recommender.manifest.limits
    known = {stage: profiles(stage, sizes, limits) for stage in STAGES}
    return [(stage, known[stage][profile_for(known[stage], shapes)].name, shapes) for stage, shapes in engine.shapes]


@given(requested())
@settings(deadline=None, max_examples=50)
def test_all_that_the_runtime_asks_for_lies_within_a_profile(asked: Requested) -> None:
    model = small_model(asked.family, CATALOGS[asked.catalog], max_history=asked.history, **asked.shape)
    with pieces_of(asked.piece):
        recommender, engine = watched_recommender(model, asked.rule, max_batch=asked.batch, max_beams=asked.beams)
        ask(recommender, asked)
        calls = profiled(recommender, engine)
    assert {stage for stage, _, _ in calls} == set(STAGES)


@pytest.mark.parametrize("registers", [(1, 1), (2, 3), (0, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("piece", [6, 256])
def test_passes_are_profiled_as_passes_and_reach_the_most_of_their_profile(
    piece: int, registers: tuple[int, int]
) -> None:
    """All beams go on to the last step here, and one token may follow the first."""
    catalog, (prefix, suffix) = CATALOGS["full"], registers
    prompt = Prompt(head=(1, 2), separator=(3,), tail=(4,))
    split = 2 if suffix else 4
    model = small_model(
        "tiny-llama",
        catalog,
        prompt=prompt,
        prefix_registers=prefix,
        suffix_registers=suffix,
        early_layers=split,
        max_history=6,
    )
    with pieces_of(piece):
        recommender, engine = watched_recommender(model, "level", max_batch=3, max_beams=7)
        for recommender.lookahead in (0, None):
            recommender.recommend_batch([[0] * 6, [1], [2, 3]], 7, 7)
        calls = profiled(recommender, engine)
        tables = {stage: profiles(stage, recommender.manifest.sizes, recommender.manifest.limits) for stage in STAGES}
    for stage in STAGES if suffix else ("early",):  # a dense model's late stage has no cache to tell them by
        decode, prefill = tables[stage]
        passes = [shapes for of, name, shapes in calls if of == stage and name == "decode"]
        prompts = [shapes for of, name, shapes in calls if of == stage and name == "prefill"]
        for place, name in ((0, PAST), (1, PAST), (0, "keep"), (1, "position_ids")):
            assert max(shapes[name][place] for shapes in passes) == decode.ranges[name].most[place], (stage, name)
        assert min(shapes[PAST][0] for shapes in prompts) == prefill.ranges[PAST].least[0]
        if piece == 256:  # shorter pieces of a prompt are as short as a pass
            assert max(shapes["keep"][0] for shapes in prompts) == prefill.ranges["keep"].most[0]
