"""Filtered lists: those of a search that drops nothing, with the items taken out that the filter does not hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earn.bundle_edit import set_tags
from earn.errors import EarnError
from earn.export.one_graph import compose_bundle
from earn.export.stages import TorchEngine, bundle_model
from earn.filters import EVERYTHING, NOTHING, Filter, Items, Not, Tag
from earn.model.earn_model import EarnModel
from earn.runtime import item_filters
from earn.runtime.item_filters import Excluded, ItemFilter, ItemFilters, Unwanted, indices_of, items_left, wanted_of
from earn.runtime.lists import Recommendation
from earn.runtime.recommender import Recommender
from earn.tags import Tags
from earn.trie import ItemTrie
from tests.earn.test_filters import expressions, holds
from tests.model.test_set_model import set_model
from tests.runtime.test_trie import Codes, catalogs
from tests.support import RULES, histories_of, random_catalog, small_model

ITEMS, SET_ITEMS = 60, 40
CATALOG = random_catalog(ITEMS, codes=3)
HISTORY = ["1", "2", "3"]
TAGGED = {"even": range(0, ITEMS, 2), "few": range(7), "most": range(3, ITEMS), "one": [11], "none": range(0)}
TAGS = Tags.of({name: list(items) for name, items in TAGGED.items()}, ITEMS)
EXPRESSIONS = expressions(sorted(TAGGED), SET_ITEMS, 5)


def held(expression: Filter) -> set[int]:
    """The items of an expression, one by one."""
    return {item for item in range(ITEMS) if holds(expression, item, TAGGED)}


def over(model: EarnModel, scoring: str = "trie") -> Recommender:
    bundle = bundle_model(model, scoring, max_beams=ITEMS)
    tags = Tags.of(
        {name: [i for i in items if i < len(model.catalog)] for name, items in TAGGED.items()}, len(model.catalog)
    )
    return Recommender(TorchEngine(bundle.stages), bundle.manifest, model.catalog, tags=tags)


Recommenders = dict[str, tuple[Recommender, Sequence[Recommendation]]]


@pytest.fixture(scope="module")
def recommenders() -> Recommenders:
    """Of each rule and method, with the list of all items."""
    made = {rule: over(small_model(catalog=CATALOG, max_history=5), rule) for rule in RULES}
    made["set"] = over(set_model())
    return {name: (one, one.recommend(HISTORY, len(one.catalog), len(one.catalog))) for name, one in made.items()}


def check(got: Sequence[Recommendation], ranked: Sequence[Recommendation], items: Collection[int], k: int) -> None:
    want = [item for item in ranked if int(item.item_id) in items][:k]
    assert sorted(item.score for item in got) == pytest.approx(sorted(item.score for item in want), abs=1e-4)
    assert {int(item.item_id) for item in got} <= set(items)
    assert len({item.item_id for item in got}) == len(want)


@pytest.mark.parametrize(
    "name", ["trie", "set", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("level", "vocab"))]
)
@given(data=st.data())
@settings(deadline=None, max_examples=12)
def test_a_filtered_list_is_the_list_of_all_items_without_the_others(
    recommenders: Recommenders, name: str, data: st.DataObject
) -> None:
    recommender, ranked = recommenders[name]
    items = {int(item.item_id) for item in ranked}
    known = st.sets(st.integers(0, len(items) - 1), max_size=5)
    allow, block = data.draw(st.none() | EXPRESSIONS), data.draw(st.none() | EXPRESSIONS | known)
    exclude, k = data.draw(known), data.draw(st.integers(1, 20))
    left = items if allow is None else held(allow) & items
    left = left - (set() if block is None else held(block) if isinstance(block, Filter) else block) - exclude
    got = recommender.recommend(HISTORY, k, len(items) if name in RULES else None, exclude, allow=allow, block=block)
    check(got, ranked, left, k)
    narrow = recommender.recommend(HISTORY, k, exclude=exclude, allow=allow, block=block)  # k come back all the same
    assert len(narrow) == min(k, len(left))
    assert {int(item.item_id) for item in narrow} <= left
    exact = recommender.recommend(HISTORY, k, "exact", exclude, allow=allow, block=block)
    assert exact.exact
    check(exact, ranked, left, k)


@given(catalogs(), st.data())
@settings(deadline=None, max_examples=30)
def test_counts_below_nodes_are_those_of_single_exclusions(codes: Codes, data: st.DataObject) -> None:
    trie, items = ItemTrie.build(codes), len(codes)
    users = data.draw(
        st.lists(
            st.tuples(st.none() | st.sets(st.integers(0, items - 1)), st.sets(st.integers(0, items - 1))),
            min_size=1,
            max_size=4,
        )
    )
    unwanted: list[Excluded] = []
    for allowed, single in users:
        mask = np.isin(np.arange(items), sorted(allowed or ()))
        gone_alone = indices_of(single)
        unwanted.append(gone_alone if allowed is None else Unwanted(gone_alone, ItemFilter(mask)))
    slow = [set(single) if allowed is None else set(range(items)) - (allowed - single) for allowed, single in users]
    user, node = (axis.ravel() for axis in np.mgrid[: len(users), : len(trie)])
    want = items_left(trie, [indices_of(items) for items in slow]).left(user, node).tolist()
    for few in (0, 1000):  # counted for all nodes once, or at every request
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(item_filters, "FEW", few)
            fresh: list[Excluded] = [
                Unwanted(one.single, ItemFilter(one.filter.allowed)) if isinstance(one, Unwanted) else one
                for one in unwanted
            ]
            assert items_left(trie, fresh).left(user, node).tolist() == want
    for one, gone in zip(unwanted, slow, strict=True):
        assert sorted(gone) == sorted(indices_of(one).tolist())
        assert len(one) == len(gone)
        assert wanted_of(np.arange(items), one).tolist() == [item for item in range(items) if item not in gone]


def test_users_of_a_batch_have_filters_of_their_own(recommenders: Recommenders) -> None:
    recommender = recommenders["trie"][0]
    histories = histories_of(CATALOG, 4, 4, seed=5)
    allow, block = [Tag("even"), None, Tag("few"), None], [None, Tag("most"), [1, 2], ["5"]]
    lists = recommender.recommend_batch(histories, 4, 20, allow=allow, block=block)
    for history, got, allows, blocks in zip(histories, lists, allow, block, strict=True):
        want = recommender.recommend(history, 4, 20, allow=allows, block=blocks)
        assert [item.item_id for item in got] == [item.item_id for item in want]
        assert [item.score for item in got] == pytest.approx([item.score for item in want], abs=1e-4)
    with pytest.raises(EarnError, match="4 histories but 1 entries of allow"):
        recommender.recommend_batch(histories, allow=[None])


def test_expressions_are_evaluated_once_and_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counting(Tags):
        def having(self, name: str) -> np.typing.NDArray[np.bool_]:
            asked.append(name)
            return super().having(name)

    tags = Counting(TAGS.names, TAGS.bits, ITEMS)
    filters = ItemFilters(ITEMS, tags, lambda item_ids, unknown: [int(item_id) for item_id in item_ids])
    none = np.zeros(0, np.int64)
    for _ in range(3):
        filters.unwanted(none, Tag("even") & ~Tag("few"), None, "error")
    assert asked == ["even", "few"]
    for item in range(2000):
        filters.unwanted(none, Items([item % ITEMS]) | Items([item]) if item < ITEMS else Tag("even"), None, "error")
    assert len(filters._kept) <= item_filters.MOST_EXPRESSIONS
    three = np.array([3])
    assert indices_of(filters.unwanted(three, None, [4], "error")).tolist() == [3, 4]  # which need no evaluation
    assert filters.unwanted(three, EVERYTHING, NOTHING, "error") is three


def test_a_sessions_own_filters_are_saved_with_it(recommenders: Recommenders) -> None:
    recommender = recommenders["trie"][0]
    session = recommender.session(HISTORY)
    session.block = session.block | Items(["4"]) | Tag("few")
    session.allow = Tag("even")
    want = recommender.recommend(HISTORY, 10, 30, allow=Tag("even"), block=Tag("few"))
    restored = recommender.restore_session(session.to_bytes())
    assert (restored.allow, restored.block) == (session.allow, session.block)
    for one in (session, restored):
        assert [item.item_id for item in one.recommend(10, 30)] == [item.item_id for item in want]
        further = one.recommend(30, 30, allow=Not(Tag("one")), block=[8, 10])
        assert {int(item.item_id) for item in further} == set(range(12, ITEMS, 2))
    session.block = None
    assert session.block == NOTHING
    assert len(session.recommend(20, 30, allow=Tag("few"))) == 4  # 0, 2, 4, 6


def test_unknown_tags_items_and_odd_filters_are_refused(recommenders: Recommenders) -> None:
    recommender = recommenders["trie"][0]
    for odd, message in (
        (Tag("evn"), "no tag 'evn'.*'even'"),
        (["x"], "no item 'x'.*skip\\)\\.$"),
        (["7", "even"], r"no item 'even'.*is a tag: write Tag\('even'\)"),
        ({"tag": "even"}, "from_json"),
    ):
        with pytest.raises(EarnError, match=message):
            recommender.recommend(HISTORY, block=odd)
    assert recommender.recommend(HISTORY, 3, allow=["x", 7], unknown="skip")[0].item_id == "7"
    session = recommender.session(HISTORY)
    session.block = ["4"]
    assert session.block == Items(["4"])
    with pytest.raises(EarnError, match="a list of item ids"):
        session.allow = "even"


@pytest.mark.slow
def test_a_bundle_gets_tags_without_an_export_and_the_one_graph_obeys_them(bundle: Path) -> None:
    before = Recommender.load(bundle)
    saved = before.session(["1", "2"]).to_bytes()
    set_tags(bundle, Tags.of({"odd": [1, 3, 5, 7]}, 8))
    stages = Recommender.load(bundle)
    assert stages.restore_session(saved).history == ["1", "2"]  # the model is the same
    compose_bundle(bundle, beams=20)
    graph = Recommender.load(bundle, engine="one-graph")
    for allow, block in ((Tag("odd"), None), (None, Tag("odd")), (Tag("odd"), ["3"]), (NOTHING, None)):
        want = stages.recommend(["1", "2"], 5, exclude=["5"], allow=allow, block=block)
        got = graph.recommend(["1", "2"], 5, exclude=["5"], allow=allow, block=block)
        assert [item.item_id for item in got] == [item.item_id for item in want]
        assert [item.score for item in got] == pytest.approx([item.score for item in want], abs=1e-4)
