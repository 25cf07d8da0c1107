from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from earn.data import Interactions, identifiers
from earn.data.identifiers import build_catalog, cached_catalog

pytest.importorskip("sklearn")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EARN_CACHE", str(tmp_path))
    monkeypatch.setattr(identifiers, "CACHED", 1)
    return tmp_path / "identifiers"


def toy(items: int = 30) -> Interactions:
    generator = np.random.default_rng(0)
    sequences = tuple(generator.integers(0, items, 6) for _ in range(40))
    titles = tuple(f"part {item % 5}" for item in range(items))
    users = tuple(f"u{user}" for user in range(40))
    return Interactions("toy", tuple(map(str, range(items))), titles, ("",) * items, users, sequences, None)


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
    assert np.load(path).shape == (30, 4)


def test_a_cache_that_cannot_be_written_changes_nothing(cache: Path) -> None:
    cache.write_text("a file in the way")
    assert cached_catalog(toy(), toy().sequences) == build_catalog(toy(), toy().sequences)


def test_many_items_are_clustered_in_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Well separated groups are found either way: items of one group share the first code."""
    monkeypatch.setattr(identifiers, "SMALL", 10)
    names = ("robots", "horses", "pirates", "spies")
    data = replace(toy(400), titles=tuple(f"{names[item % 4]} {names[item % 4]}" for item in range(400)))
    catalog = build_catalog(data, (), codebook=4)
    firsts = [identifier[0] for identifier in catalog.identifiers]
    assert [len(set(firsts[group::4])) for group in range(4)] == [1, 1, 1, 1]
    assert len(set(catalog.identifiers)) == 400
    assert build_catalog(data, (), codebook=4) == catalog
