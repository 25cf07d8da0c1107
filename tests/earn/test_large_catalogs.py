"""What a catalog's arrays say is what its strings say, whichever form of the file they come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.errors import EarnError
from earn.texts import TextIndex, Texts

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=20)
BASIC = ("tokens", "item_ids", "titles", "identifiers")  # what older files hold


@pytest.fixture(autouse=True, scope="module")
def _no_dictionary() -> Iterator[None]:
    """Looks ids up as in a large catalog, however small this one is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("earn.texts.SMALL", 0)
        yield


@st.composite
def catalogs(draw: st.DrawFn) -> Catalog:
    """Odd ids and titles; identifiers of 1 to 4 tokens, some shared, none the beginning of another."""
    codes = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
    drawn = draw(st.lists(codes, min_size=1, max_size=20))
    left = [one for one in drawn if not any(one != other and other[: len(one)] == one for other in drawn)]
    ids = draw(st.lists(WORDS.filter(bool), min_size=len(left), max_size=len(left), unique=True))
    titles = draw(st.lists(WORDS, min_size=len(left), max_size=len(left)))
    identifiers = tuple(tuple(f"<{'abcd'[at]}_{code}>" for at, code in enumerate(one)) for one in left)
    return Catalog(tuple(ids), identifiers, tuple(titles))


def older(path: Path, packed: bool) -> Path:
    """The same catalog in the form that older versions have written: packed, without the index and the trie."""
    arrays = np.load(path)
    beside = path.with_name("older.npz")
    (np.savez_compressed if packed else np.savez)(beside, **{name: arrays[name] for name in BASIC})
    return beside


@given(catalogs(), st.booleans())
@settings(deadline=None, max_examples=30)
def test_every_form_of_the_file_gives_the_same_catalog(
    tmp_path_factory: pytest.TempPathFactory, saved: Catalog, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("catalog") / "catalog.npz"
    saved.save(path)
    saved.save(path.with_name("lean.npz"), with_trie=False)
    assert not any(name.startswith("trie.") for name in np.load(path.with_name("lean.npz")))
    lean, is_of_one_length = Catalog.load(path.with_name("lean.npz")), len(set(map(len, saved.identifiers))) == 1
    assert ("trie" in vars(lean)) != is_of_one_length  # the lengths alone may ask for one
    for loaded in (Catalog.load(path), Catalog.load(older(path, packed)), lean):
        assert loaded == saved
        assert loaded.tokens == saved.tokens
        assert [loaded.item_ids[item] for item in range(len(loaded))] == list(saved.item_ids)
        assert [loaded.identifiers[item] for item in range(len(loaded))] == list(saved.identifiers)
        assert loaded.index.find(tuple(saved.item_ids)).tolist() == list(range(len(saved)))
        for part, array in vars(saved.trie).items():
            np.testing.assert_array_equal(getattr(loaded.trie, part), array)


@given(st.lists(WORDS.filter(bool), min_size=1, unique=True), st.lists(WORDS | st.text(max_size=9)))
@settings(deadline=None, max_examples=60)
def test_strings_are_found_as_a_dictionary_finds_them(strings: list[str], wanted: list[str]) -> None:
    index = TextIndex.build(Texts.of(strings)).check()
    known = {string: number for number, string in enumerate(strings)}
    assert index.find([*wanted, *strings]).tolist() == [known.get(string, -1) for string in [*wanted, *strings]]
    assert dict(index) == known


def test_thousands_of_strings_that_begin_alike_are_found() -> None:
    strings = [f"a long beginning, {number}" for number in range(5_000)]
    index = TextIndex.build(Texts.of(strings)).check()
    wanted = ["", "a long beginning, 5000", "a long beginning, ", "x" * 10_000, "\ud800", "1\n2"]
    assert index.find(strings[::-1]).tolist() == list(range(5_000))[::-1]
    assert index.find(wanted).tolist() == [-1] * len(wanted)


@pytest.mark.parametrize("length", [7, 8, 9, 16, 17])
def test_strings_of_one_hash_are_told_apart(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hash is 0: all strings stand in one run of slots, and lengths and bytes alone tell them apart."""
    monkeypatch.setattr("earn.texts.Texts.hashes", lambda _, part, longest=None: _zeros(part))
    strings = ["x" * length, "x" * (length + 9)]
    strings += ["x" * at + "y" + "x" * (length - at - 1) for at in range(8, length)]
    index = TextIndex.build(Texts.of(strings)).check()
    assert index.find([*strings, "x" * (length + 10)]).tolist() == [*range(len(strings)), -1]


def _zeros(part: slice) -> NDArray[np.uint64]:
    return np.zeros(part.stop - part.start, np.uint64)


def test_a_wrong_trie_or_index_is_refused(tmp_path: Path) -> None:
    """Every number of every stored array is changed, a few ways: what is loaded is what was saved, or nothing."""
    identifiers = (("a", "b"), ("c", "b", "d"), ("a", "b"), ("c", "e"), ("f",))
    path = tmp_path / "catalog.npz"
    Catalog(("1", "2", "30", "4", "étés"), identifiers, ("",) * 5).save(path)
    arrays = dict(np.load(path))
    for name in arrays.keys() - set(BASIC):
        for place in range(len(arrays[name])):
            for change in (-1, 1, 7, 1 << 30):
                wrong = arrays[name].copy()
                wrong[place] += change
                np.savez(path, **{**arrays, name: wrong})
                with pytest.raises(EarnError, match="not a readable catalog"):
                    Catalog.load(path)
        np.savez(path, **{**arrays, name: arrays[name][:-1]})
        with pytest.raises(EarnError, match="not a readable catalog"):
            Catalog.load(path)
