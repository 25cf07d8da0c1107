from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.model.reference import reference_search
from earn.runtime.recommender import Recommender
from tests.support import Agreement, histories_of, pairs, random_catalog, small_model, watched_recommender

ITEMS = 60


@pytest.fixture(scope="module")
def model() -> EarnModel:
    """60 items on about 40 identifiers of 2 to 4 tokens; histories of at most 5 items."""
    return small_model("tiny-qwen2", random_catalog(ITEMS, codes=3), early_layers=2, max_history=5)


@pytest.fixture(scope="module")
def recommender(model: EarnModel) -> Recommender:
    return watched_recommender(model)[0]


def scores(recommender: Recommender, history: list[int], k: int = ITEMS, **settings: Any) -> dict[int, float]:
    """Items and scores of a search with beams for all, in order."""
    return dict(pairs(recommender.recommend(history, k, 60, **settings)))


def test_a_bundle_answers_with_ids_scores_and_titles(toy_bundle: Path, toy_model: EarnModel) -> None:
    found = Recommender.load(toy_bundle).recommend(["1", "2"], 8)
    want, agreement = reference_search(toy_model, [1, 2], 8), Agreement()
    agreement.add("toy", want, pairs(found))
    agreement.check()
    assert all(item.title == f"t{item.item_id}" for item in found)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_an_unknown_item_is_refused_by_name_or_skipped(recommender: Recommender) -> None:
    with pytest.raises(EarnError, match=r"no item 'Zorro'.*unknown=\"skip\""):
        recommender.recommend(["1", "Zorro"])
    with pytest.raises(EarnError, match="no item '999'"):
        recommender.recommend(["1"], exclude=[999])
    want = recommender.recommend(["1", "2"], exclude=["3"])
    assert recommender.recommend(["x", "1", "y", "2"], exclude=["z", "3"], unknown="skip") == want


def test_batches_that_cannot_be_answered_are_refused(recommender: Recommender) -> None:
    for history in ([], ["x", "y"]):
        with pytest.raises(EarnError, match="History 1 has no known item"):
            recommender.recommend_batch([["1"], history], unknown="skip")
    with pytest.raises(EarnError, match="2 histories but 1 entries of exclude"):
        recommender.recommend_batch([["1"], ["2"]], exclude=[["3"]])
    assert recommender.recommend_batch([]) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 65}, r"k is 65.*1 to 64 items.*--max-beams"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 65}, r"beams is 65.*1 to 64.*--max-beams"),
        ({"unknown": "ignore"}, "unknown is 'ignore'"),
        ({"history": "12"}, r"the text '12'.*Write \['12'\]"),
        ({"exclude": "12"}, "the text '12'"),
    ],
)
def test_arguments_out_of_range_are_refused(recommender: Recommender, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(EarnError, match=says):
        recommender.recommend(**{"history": ["1"], **settings})


def test_beyond_the_limit_the_newest_items_are_read(recommender: Recommender) -> None:
    newest = ["5", "4", "3", "2", "1"]
    want = recommender.recommend(newest)
    assert recommender.recommend(list(map(int, newest))) == want  # numbers are ids too
    assert recommender.recommend(["9", "8", *newest]) == want
    assert recommender.recommend(newest[1:]) != want


def test_with_all_but_three_excluded_these_three_come_back(recommender: Recommender) -> None:
    left = {7, 23, 42}
    everything = scores(recommender, [1, 2])
    found = scores(recommender, [1, 2], 10, exclude=set(range(ITEMS)) - left)
    assert found == pytest.approx({item: everything[item] for item in left})
    assert recommender.recommend([1], exclude=range(ITEMS)) == []
    best = {item.item_id for item in recommender.recommend(["1", "2"], 20, 1)}  # beams are widened to k
    others = {item.item_id for item in recommender.recommend(["1", "2"], 20, 20, exclude=best)}
    assert len(best) == len(others) == 20
    assert not best & others


def test_the_history_can_be_excluded(recommender: Recommender) -> None:
    history = [9, 8, 1, 2, 3, 4, 5]  # more than the model reads
    found = scores(recommender, history, exclude=[10], exclude_history=True)
    assert found.keys() == set(range(ITEMS)) - {*history, 10}


def test_items_that_share_an_identifier_come_back_together_and_apart(toy_bundle: Path) -> None:
    recommender = Recommender.load(toy_bundle)
    found = dict(pairs(recommender.recommend([1, 2], 8)))
    assert {0, 4} <= found.keys()
    assert found[0] == found[4]
    order = list(found)
    assert abs(order.index(0) - order.index(4)) == 1
    left = dict(pairs(recommender.recommend([1, 2], 8, exclude=[0])))
    assert left.keys() == found.keys() - {0}
    assert left[4] == pytest.approx(found[4])
    assert dict(pairs(recommender.recommend([1, 2], 8, exclude=[0, 4]))).keys() == found.keys() - {0, 4}


@pytest.mark.parametrize("exclude_history", [False, True])
def test_a_batch_answers_as_single_requests_do(model: EarnModel, exclude_history: bool) -> None:
    recommender = watched_recommender(model, max_batch=4)[0]
    histories = histories_of(model.catalog, 11, 9)  # two full batches and one of three
    together, agreement = recommender.recommend_batch(histories, exclude_history=exclude_history), Agreement()
    for history, items in zip(histories, together, strict=True):
        alone = recommender.recommend(history, exclude_history=exclude_history)
        agreement.add(str(history), pairs(alone), pairs(items))
    agreement.check()


def test_many_threads_share_one_recommender(toy_bundle: Path, toy_model: EarnModel) -> None:
    recommender = Recommender.load(toy_bundle, threads=1)
    histories = histories_of(toy_model.catalog, 40, 6)
    want = [recommender.recommend(history) for history in histories]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(recommender.recommend, histories)) == want


def test_a_catalog_of_one_item_recommends_it() -> None:
    recommender = watched_recommender(small_model(catalog=random_catalog(1)))[0]
    assert pairs(recommender.recommend(["0"])) == [(0, 0.0)]
    assert recommender.recommend(["0"], exclude_history=True) == []
