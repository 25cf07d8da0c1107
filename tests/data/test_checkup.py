from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from earn.catalog import Catalog
from earn.data import Interactions, split_of
from earn.data.checkup import advice, figures
from earn.data.dataset import Dataset

ROWS = [("u", "a", 1), ("u", "b", 1), ("u", "a", 2), ("u", "a", 3), ("v", "b", 1), ("v", "b", 1), ("w", "c", 1)]


def dataset(interactions: Interactions) -> Dataset:
    return Dataset("toy", interactions, split_of(interactions))


def toy() -> Interactions:
    """u: a b a a; v: b b; w: c; nobody: d."""
    read = Interactions.from_rows(ROWS, say=lambda _: None)
    words = (*read.titles, "D"), (*read.metadata, "")
    return replace(read, item_ids=(*read.item_ids, "d"), titles=words[0], metadata=words[1])


def test_figures_of_a_small_set() -> None:
    facts = figures(dataset(toy()))
    assert (facts["users"], facts["items"], facts["interactions"]) == (3, 4, 7)
    assert facts["density"] == pytest.approx(7 / 12)
    lengths = {(row["from"], row["to"]): row["users"] for row in facts["history"]["lengths"]}
    assert lengths == {(1, 1): 1, (2, 2): 1, (3, 4): 1}
    assert facts["order"] == {"ties": 4, "exact_repeats": 1, "repeats": 3, "repeats_in_a_row": 2}
    assert facts["short_users"] == 2  # v and w
    assert (facts["unseen_items"], facts["untitled_items"]) == (1, 3)
    assert (facts["targets_untrained"], facts["targets_repeated"]) == (0.0, 1.0)  # u's last a, after a b a
    assert facts["identifiers"]["depth"] is None
    json.dumps(facts)


def test_clones_bound_what_a_model_can_reach() -> None:
    identifiers = (("x", "0"), ("x", "0"), ("y", "1"), ("x", "1"))
    interactions = replace(toy(), catalog=Catalog(("a", "b", "c", "d"), identifiers, toy().titles))
    facts = figures(dataset(interactions))["identifiers"]
    assert (facts["from"], facts["depth"], facts["distinct"], facts["shared"]) == ("data", 2, 3, 1)
    assert (facts["items_sharing"], facts["largest"], facts["targets_sharing"]) == (2, 2, 1.0)
    assert facts["ceiling"]["ndcg@10"] == 1.0  # the answer a comes before its clone b
    first = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4)) / math.log(2)
    assert [level["codes"] for level in facts["levels"]] == [2, 2]
    assert [level["evenness"] for level in facts["levels"]] == pytest.approx([first, 1.0])
    sequences = (np.array([0, 0, 1]), *interactions.sequences[1:])
    ceiling = figures(dataset(replace(interactions, sequences=sequences)))["identifiers"]["ceiling"]
    assert ceiling["ndcg@10"] == pytest.approx(1 / math.log2(3))  # b stands second at best


def test_without_a_question_nothing_is_measured() -> None:
    lines = advice(figures(dataset(Interactions.from_rows([("u", "a", 1), ("v", "a", 2)], say=lambda _: None))))
    assert [line.is_serious for line in lines if "no model can be measured" in line.text] == [True]


def test_what_is_serious_is_said_first() -> None:
    lines = advice(figures(dataset(toy())))
    assert [line.is_serious for line in lines] == sorted((line.is_serious for line in lines), reverse=True)
    serious = " ".join(line.text for line in lines if line.is_serious)
    for what in ("2 of 3 users", "100% of the test answers", "1 of 4 items have no interaction"):
        assert what in serious


def test_where_nothing_is_odd_nothing_is_said() -> None:
    rows = [(f"u{user}", f"i{(user + step) % 9}", step) for user in range(400) for step in range(6)]
    read = Interactions.from_rows(rows, say=lambda _: None)
    titled = replace(read, titles=tuple(f"Item {item}" for item in read.item_ids))
    catalog = Catalog(titled.item_ids, tuple((f"a{item % 3}", f"b{item // 3}") for item in range(9)), titled.titles)
    assert advice(figures(dataset(titled), catalog)) == []
    uneven = replace(catalog, identifiers=tuple((f"a{item // 8}", f"b{item}") for item in range(9)))
    assert advice(figures(dataset(titled), uneven)) == []  # built anew already
    (line,) = advice(figures(dataset(replace(titled, catalog=uneven))))
    assert line.is_serious
    assert "Level 1" in line.text
