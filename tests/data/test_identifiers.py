from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from earn.data import Interactions, identifiers
from earn.data.identifiers import build_catalog, cached_catalog, codebook_size
from earn.errors import EarnError
from tests.data.tables import toy as small

pytest.importorskip("sklearn")

GENRES = ("robots", "horses", "pirates", "spies")


def toy(titles: bool = True, items: int = 24) -> Interactions:
    """Items of four genres, each user in one of them: item i is of genre i % 4."""
    names = tuple(f"{GENRES[item % 4]} part{item}" for item in range(items)) if titles else ()
    return small((history(user, items) for user in range(40)), items, names)


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
    data = small((), 4, ("a", "b", "c", "d"))
    train = [np.array([1, 3, 1]), np.array([3, 1, 3, 0])]
    catalog = build_catalog(data, train, codebook=1, levels=3)
    assert catalog.identifiers == tuple(("<a_0>", "<b_0>", "<c_0>", f"<d_{last}>") for last in (2, 0, 3, 1))


def test_the_same_seed_gives_the_same_identifiers() -> None:
    data = toy()
    assert build_catalog(data, data.sequences, seed=3) == build_catalog(data, data.sequences, seed=3)


def test_only_the_training_part_counts() -> None:
    data = toy()
    train = [sequence[:-2] for sequence in data.sequences]
    unseen = replace(data, user_ids=("u",), sequences=(np.zeros(9, np.int64),))
    assert build_catalog(data, train) == build_catalog(unseen, train)


@pytest.mark.parametrize("items", [1, 2, 3])
def test_a_handful_of_items_is_enough(items: int) -> None:
    data = small([[0]], items, ("same",) * items)
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


# --- the cache ---------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EARN_CACHE", str(tmp_path))
    monkeypatch.setattr(identifiers, "CACHED", 1)
    return tmp_path / "identifiers"


def test_the_second_time_identifiers_come_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy()
    want = build_catalog(data, data.sequences)
    assert cached_catalog(data, data.sequences) == want
    assert [path.suffix for path in cache.iterdir()] == [".npy"]
    monkeypatch.setattr(identifiers, "_codes", lambda *_: pytest.fail("computed again"))
    assert cached_catalog(data, data.sequences) == want


OTHERS: dict[str, Callable[[Interactions], tuple[Interactions, int]]] = {
    "seed": lambda data: (data, 1),
    "titles": lambda data: (replace(data, titles=("other", *data.titles[1:])), 0),
    "metadata": lambda data: (replace(data, metadata=("other", *data.metadata[1:])), 0),
    "sequences": lambda data: (replace(data, sequences=(data.sequences[0][::-1].copy(), *data.sequences[1:])), 0),
    "users": lambda data: (replace(data, sequences=(np.concatenate(data.sequences),), user_ids=("u",)), 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_inputs_have_a_place_of_their_own(name: str, cache: Path) -> None:
    cached_catalog(toy(), toy().sequences)
    data, seed = OTHERS[name](toy())
    assert cached_catalog(data, data.sequences, seed=seed) == build_catalog(data, data.sequences, seed=seed)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_cache_is_mended(content: bytes, cache: Path) -> None:
    want = cached_catalog(toy(), toy().sequences)
    (path,) = cache.iterdir()
    path.write_bytes(content)
    assert cached_catalog(toy(), toy().sequences) == want
    assert np.load(path).shape == (24, 4)


def test_a_cache_that_cannot_be_written_changes_nothing(cache: Path) -> None:
    cache.write_text("a file in the way")
    assert cached_catalog(toy(), toy().sequences) == build_catalog(toy(), toy().sequences)


def test_many_items_are_clustered_in_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Well separated groups are found either way: items of one group share the first code."""
    monkeypatch.setattr(identifiers, "SMALL", 10)
    data = toy(items=400)
    catalog = build_catalog(data, (), codebook=4)
    firsts = [identifier[0] for identifier in catalog.identifiers]
    assert [len(set(firsts[group::4])) for group in range(4)] == [1, 1, 1, 1]
    assert len(set(catalog.identifiers)) == 400
    assert build_catalog(data, (), codebook=4) == catalog
