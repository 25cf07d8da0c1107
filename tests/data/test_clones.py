from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from earn.catalog import Catalog
from earn.data import split_of
from earn.data.dataset import Dataset
from earn.data.identifiers import disambiguated
from earn.errors import EarnError
from tests.data.tables import toy

IDENTIFIERS = (("x", "0"), ("y", "0"), ("x", "0"), ("y", "1", "z"), ("x", "0"))
CATALOG = Catalog(tuple(f"i{item}" for item in range(5)), IDENTIFIERS, ("",) * 5)


def dataset(users: int = 4) -> Dataset:
    sequences = tuple(np.array([0, 2, 4, user % 5, 1]) for user in range(users))
    held_out = tuple((user % 2, 1) for user in range(users))
    interactions = toy(sequences, 5, catalog=CATALOG, held_out=held_out)
    return Dataset("toy", interactions, split_of(interactions))


def test_clones_get_a_last_code_the_most_trained_on_first() -> None:
    told_apart = disambiguated(CATALOG, [np.array([2, 4, 2, 1]), np.array([4, 2])])
    assert told_apart.identifiers == (
        ("x", "0", "<c_2>"),
        ("y", "0"),
        ("x", "0", "<c_0>"),
        ("y", "1", "z"),
        ("x", "0", "<c_1>"),
    )
    assert disambiguated(told_apart, []) == told_apart


def test_a_model_that_tells_clones_apart_is_one_of_the_same_items() -> None:
    data = dataset()
    catalog = data.catalog(disambiguate=True)
    assert len(set(catalog.identifiers)) == 5
    data.check_items(catalog, "model")
    others = replace(catalog, identifiers=(*catalog.identifiers[1:], ("w",)))
    with pytest.raises(EarnError, match="other items under the same ids"):
        data.check_items(others, "model")


def test_a_sample_of_users_keeps_items_and_split() -> None:
    whole = dataset(40)
    few = whole.of_users(7, seed=3)
    assert few.interactions.user_ids == whole.of_users(7, seed=3).interactions.user_ids
    assert few.interactions.user_ids != whole.of_users(7, seed=4).interactions.user_ids
    assert (len(few.interactions.user_ids), len(few.split.train)) == (7, 7)
    assert few.interactions.item_ids == whole.interactions.item_ids
    of_user = {example.user: example for example in whole.split.test}
    for example in few.split.test:
        assert example.history.tolist() == of_user[example.user].history.tolist()
    assert {example.user for example in few.split.valid} <= {example.user for example in whole.split.valid}
    assert whole.of_users(100).interactions.user_ids == whole.interactions.user_ids
