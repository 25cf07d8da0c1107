from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from earn.data import Interactions
from earn.data.identifiers import build_catalog, codebook_size
from earn.errors import EarnError

pytest.importorskip("sklearn")

GENRES = ("robots", "horses", "pirates", "spies")


def toy(titles: bool = True, items: int = 24) -> Interactions:
    """Items of four genres, each user in one of them: item i is of genre i % 4."""
    return Interactions(
        name="toy",
        item_ids=tuple(f"i{item}" for item in range(items)),
        titles=tuple(f"{GENRES[item % 4]} part{item}" if titles else "" for item in range(items)),
        metadata=("",) * items,
        user_ids=tuple(f"u{user}" for user in range(40)),
        sequences=tuple(history(user, items) for user in range(40)),
        catalog=None,
    )


def history(user: int, items: int) -> NDArray[np.int64]:
    own = np.arange(user % 4, items, 4)
    return np.random.default_rng(user).permutation(own)[:4]


def test_identifiers_are_unique_and_have_one_letter_per_level() -> None:
    data = toy()
    catalog = build_catalog(data, data.sequences, codebook=3, levels=2)
    assert len(set(catalog.identifiers)) == len(data.item_ids)
    assert {tuple(token[:3] for token in identifier) for identifier in catalog.identifiers} == {("<a_", "<b_", "<c_")}
    assert (catalog.item_ids, catalog.titles) == (data.item_ids, data.titles)


@pytest.mark.parametrize("part", ["users", "words", "both"])
def test_what_belongs_together_shares_the_first_code(part: str) -> None:
    data = toy(titles=part != "users")
    train = data.sequences if part != "words" else ()

    def is_apart(seed: int) -> bool:
        firsts = [identifier[0] for identifier in build_catalog(data, train, codebook=4, seed=seed).identifiers]
        return [len(set(firsts[genre::4])) for genre in range(4)] == [1, 1, 1, 1] and len(set(firsts)) == 4

    # One start of k-means may end in a local optimum; which seed's does depends on how the processor rounds.
    assert sum(map(is_apart, range(5))) >= 4


def test_the_last_code_numbers_items_of_equal_codes_by_training_count() -> None:
    # one cluster per level: all items share every code but the last; counts 1, 3, 0, 3
    data = Interactions("toy", ("p", "q", "r", "s"), ("a", "b", "c", "d"), ("",) * 4, (), (), None)
    train = [np.array([1, 3, 1]), np.array([3, 1, 3, 0])]
    catalog = build_catalog(data, train, codebook=1, levels=3)
    assert catalog.identifiers == tuple(("<a_0>", "<b_0>", "<c_0>", f"<d_{last}>") for last in (2, 0, 3, 1))


def test_the_same_seed_gives_the_same_identifiers() -> None:
    data = toy()
    assert build_catalog(data, data.sequences, seed=3) == build_catalog(data, data.sequences, seed=3)


def test_only_the_training_part_counts() -> None:
    data = toy()
    train = [sequence[:-2] for sequence in data.sequences]
    unseen = Interactions(data.name, data.item_ids, data.titles, data.metadata, ("u",), (np.zeros(9, np.int64),), None)
    assert build_catalog(data, train) == build_catalog(unseen, train)


@pytest.mark.parametrize("items", [1, 2, 3])
def test_a_handful_of_items_is_enough(items: int) -> None:
    ids = tuple(map(str, range(items)))
    data = Interactions("toy", ids, ("same",) * items, ("",) * items, ("u",), (np.zeros(1, np.int64),), None)
    assert len(set(build_catalog(data, data.sequences).identifiers)) == items


@pytest.mark.parametrize(
    ("items", "codes"),
    [
        (1, 2),
        (16, 8),  # 2 * sqrt(16) = 8
        (1_682, 64),  # 82
        (12_101, 256),  # 220
        (1_000_000, 256),  # 2000, more than the largest
    ],
)
def test_the_codebook_grows_with_the_catalog(items: int, codes: int) -> None:
    assert codebook_size(items) == codes


def test_every_first_code_of_a_larger_catalog_names_few_items() -> None:
    data = toy(items=400)
    firsts = Counter(identifier[0] for identifier in build_catalog(data, data.sequences).identifiers)
    assert len(firsts) == codebook_size(400) == 32  # 40 rounds down


@pytest.mark.parametrize(
    ("codebook", "levels", "message"),
    [
        (None, 0, "levels is 0"),
        (None, 26, "levels is 26"),
        (0, 3, "codebook is 0"),
        (-1, 3, "codebook is -1"),
    ],
)
def test_sizes_out_of_range_are_refused(codebook: int | None, levels: int, message: str) -> None:
    with pytest.raises(EarnError, match=message):
        build_catalog(toy(), toy().sequences, codebook=codebook, levels=levels)


def test_items_of_which_nothing_is_known_are_refused() -> None:
    with pytest.raises(EarnError, match="toy: no training interaction, title or metadata"):
        build_catalog(toy(titles=False), ())
