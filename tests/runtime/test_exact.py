"""Whether a list that says it is exact is that of a search that drops nothing."""

from __future__ import annotations

import pytest

from earn.errors import EarnError
from earn.export.stages import TorchEngine, bundle_model
from earn.model.reference import reference_search
from earn.runtime.recommender import Recommender
from tests.support import RULES, Agreement, histories_of, pairs, random_catalog, small_model

CATALOG = random_catalog(60, codes=3)
HISTORIES = histories_of(CATALOG, 12, 5, seed=2)


def recommender(rule: str, beams: int) -> Recommender:
    bundle = bundle_model(small_model(catalog=CATALOG, max_history=5), rule, max_beams=beams)
    return Recommender(TorchEngine(bundle.stages), bundle.manifest, CATALOG)


@pytest.mark.parametrize("rule", RULES)
def test_exact_lists_are_those_of_the_whole_catalog(rule: str) -> None:
    model, searched, agreement, said = (
        small_model(catalog=CATALOG, max_history=5),
        recommender(rule, 60),
        Agreement(),
        0,
    )
    for history in HISTORIES:
        want = reference_search(model, history, 3, len(CATALOG), rule)
        for beams in (3, 6, 12):
            items = searched.recommend(history, 3, beams)
            said += items.exact
            if items.exact:
                agreement.add(f"{rule} {beams}", want, pairs(items))
        items = searched.recommend(history, 3, "exact", exclude=[5])
        assert items.exact
        agreement.add(f"{rule} exact", reference_search(model, history, 3, len(CATALOG), rule, [5]), pairs(items))
    agreement.check()
    assert said


def test_the_bundle_limits_how_wide_an_exact_search_becomes() -> None:
    narrow = recommender("trie", 3)
    lists = narrow.recommend_batch(HISTORIES, 3, "exact")
    assert not all(items.exact for items in lists)
    assert lists == narrow.recommend_batch(HISTORIES, 3, 3)
    with pytest.raises(EarnError, match="whole numbers"):
        narrow.recommend(HISTORIES[0], 3, "wide")


def test_a_list_of_all_items_is_exact() -> None:
    items = recommender("level", 60).recommend(HISTORIES[0], 60, 60)
    assert items.exact
    assert len(items) == 60
