from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from earn.runtime.item_filters import Exclusions, find
from earn.trie import ItemTrie
from tests.support import toy_catalog

Codes = NDArray[np.int32]


@st.composite
def catalogs(draw: st.DrawFn) -> Codes:
    """Identifiers of 1 to 4 tokens out of four, some shared, none the beginning of another."""
    tokens = st.lists(st.integers(0, 3), min_size=1, max_size=4)
    drawn = [tuple(identifier) for identifier in draw(st.lists(tokens, min_size=1, max_size=30))]
    left = [one for one in drawn if not any(one != other and other[: len(one)] == one for other in drawn)]
    depth = max(map(len, left))
    return np.array([[*identifier, *[-1] * (depth - len(identifier))] for identifier in left], np.int32)


def identifiers_of(codes: Codes) -> list[tuple[int, ...]]:
    return [tuple(code for code in row if code >= 0) for row in codes.tolist()]


def prefixes(trie: ItemTrie) -> list[tuple[int, ...]]:
    """The prefix of every node, by walking down its children."""
    found: dict[int, tuple[int, ...]] = {0: ()}
    for node in range(len(trie)):
        for child in range(trie.child_start[node], trie.child_start[node + 1]):
            found[child] = (*found[node], int(trie.token[child]))
    return [found[node] for node in range(len(trie))]


@given(catalogs())
@settings(deadline=None, max_examples=60)
def test_nodes_leaves_and_levels_say_what_the_identifiers_say(codes: Codes) -> None:
    trie, identifiers = ItemTrie.build(codes), identifiers_of(codes)
    prefix, nodes = prefixes(trie), np.arange(len(trie))
    assert prefix == sorted(prefix, key=lambda one: (len(one), one))  # breadth first, and in the order of the prefixes
    assert (trie.token[0], trie.parent[0], trie.child_start[0], trie.item_start[0]) == (-1, -1, 1, 0)
    assert (len(trie.child_start), trie.child_start[-1]) == (len(trie) + 1, len(trie))
    assert (np.diff(trie.child_start) >= 0).all()
    assert trie.sorted_items.tolist() == sorted(range(len(codes)), key=lambda item: (codes[item].tolist(), item))
    leaves, levels = trie.determined(nodes).tolist(), trie.level(nodes).tolist()
    for node, own in enumerate(prefix):
        items = [item for item, identifier in enumerate(identifiers) if identifier[: len(own)] == own]
        below = {identifiers[item] for item in items}
        assert sorted(trie.items(node).tolist()) == items
        assert (trie.below[node], levels[node]) == (len(items), len(own))
        assert bool(trie.is_leaf(nodes[node : node + 1])[0]) == (own in identifiers)
        assert not node or prefix[trie.parent[node]] == own[:-1]
        assert (leaves[node] >= 0) == (len(below) == 1)
        assert leaves[node] < 0 or {prefix[leaves[node]]} == below
    assert [prefix[node] for node in trie.leaf] == identifiers
    for depth, tokens in enumerate(trie.level_tokens):
        assert tokens.tolist() == sorted({one[depth] for one in identifiers if depth < len(one)})


@given(catalogs(), st.data())
@settings(deadline=None, max_examples=60)
def test_exclusions_leave_every_user_what_a_slow_count_says(codes: Codes, data: st.DataObject) -> None:
    trie, identifiers = ItemTrie.build(codes), identifiers_of(codes)
    items = st.lists(st.integers(0, len(codes) - 1), max_size=len(codes) + 3)  # some twice
    excluded = data.draw(st.lists(items, min_size=1, max_size=4))
    exclusions, prefix = Exclusions.of(trie, excluded), prefixes(trie)
    assert exclusions.any == any(excluded)
    pairs = [(user, node) for user in range(len(excluded)) for node in range(1, len(trie))]
    pairs = data.draw(st.permutations(pairs))
    want = [
        sum(one[: len(prefix[node])] == prefix[node] for item, one in enumerate(identifiers) if item not in missing)
        for missing, node in ((excluded[user], node) for user, node in pairs)
    ]
    users, nodes = np.array(pairs).T
    assert exclusions.left(users, nodes).tolist() == want


@given(st.sets(st.integers(-9, 9), min_size=1), st.lists(st.integers(-12, 12)))
def test_numbers_are_found_where_they_stand(numbers: set[int], wanted: list[int]) -> None:
    ascending = sorted(numbers)
    place, is_there = find(np.array(ascending), np.array(wanted, np.int64))
    assert is_there.tolist() == [number in numbers for number in wanted]
    for number, where, there in zip(wanted, place.tolist(), is_there.tolist(), strict=True):
        assert not there or ascending[where] == number


def test_the_toy_catalog_by_hand() -> None:
    """Tokens: a0 a1 a2 a3 are 0-3, b0 b1 4-5, c0 c1 6-7, d0 d1 8-9."""
    trie = ItemTrie.build(toy_catalog().codes)
    #                 root | a0 a1 a2 a3 | b0 b0 b0 b1 b0 b1 | c0 c0 c1 c1 c0 | d0 d1 d0
    assert trie.token.tolist() == [-1, 0, 1, 2, 3, 4, 4, 4, 5, 4, 5, 6, 6, 7, 7, 6, 8, 9, 8]
    assert trie.child_start.tolist() == [1, 5, 6, 7, 9, 11, 11, 12, 13, 14, 15, 16, 16, 18, 19, 19, 19, 19, 19, 19]
    nodes = np.arange(len(trie))
    assert trie.determined(nodes).tolist() == [-1, 5, 11, -1, -1, 5, 11, -1, 18, 14, 15, 11, -1, 18, 14, 15, 16, 17, 18]
    assert trie.parent.tolist() == [-1, 0, 0, 0, 0, 1, 2, 3, 3, 4, 4, 6, 7, 8, 9, 10, 12, 12, 13]
    assert trie.level(nodes).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4]
    assert trie.below.tolist() == [8, 2, 1, 3, 2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1]
    assert trie.items(5).tolist() == [0, 4]
    assert trie.leaf[5] == 18


def test_one_item_is_a_trie() -> None:
    trie = ItemTrie.build(np.array([[0]], np.int32))
    assert len(trie) == 2
    assert trie.determined(np.arange(len(trie))).tolist() == [1, 1]
    assert Exclusions.of(trie, [[0]]).left(np.array([0]), np.array([1])).tolist() == [0]


@pytest.mark.parametrize("items", [1, 1000])
def test_a_deep_chain_and_a_wide_root_are_built(items: int) -> None:
    codes = np.arange(items, dtype=np.int32)[:, None] if items > 1 else np.arange(40, dtype=np.int32)[None]
    trie = ItemTrie.build(codes)
    assert len(trie) == codes.size + 1
    assert trie.determined(np.array([0]))[0] == (-1 if items > 1 else 40)
