"""Expressions over tags and items: what they hold, their JSON, and the file of tags."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earn.errors import EarnError
from earn.filters import EVERYTHING, NOTHING, AllOf, AnyOf, Filter, Items, Not, Tag, from_json, from_text, mask, to_json
from earn.tags import Tags, band_names, read_columns, read_tags
from tests.support import toy_catalog

NAMES = ("a", "b", "c")


def expressions(names: Sequence[str], items: int, leaves: int) -> st.SearchStrategy[Filter]:
    """Expressions over these tags and so many items."""
    return st.recursive(
        st.one_of(st.sampled_from(names).map(Tag), st.sets(st.integers(0, items - 1)).map(Items)),
        lambda parts: st.one_of(
            st.lists(parts, max_size=3).map(AllOf), st.lists(parts, max_size=3).map(AnyOf), parts.map(Not)
        ),
        max_leaves=leaves,
    )


def holds(expression: Filter, item: int, tagged: Mapping[str, Collection[int]]) -> bool:
    """The slow reference: one item at a time, by Python's own all and any."""
    value = to_json(expression)

    def says(value: dict[str, Any]) -> bool:
        ((form, content),) = value.items()
        meaning: dict[str, Callable[[], bool]] = {
            "tag": lambda: item in tagged[content],
            "items": lambda: str(item) in content,
            "and": lambda: all(map(says, content)),
            "or": lambda: any(map(says, content)),
            "not": lambda: not says(content),
        }
        return meaning[form]()

    return says(value)


@given(expressions(NAMES, 10, 8), st.fixed_dictionaries({name: st.sets(st.integers(0, 9)) for name in NAMES}))
@settings(deadline=None, max_examples=60)
def test_an_expression_holds_what_its_json_says_item_by_item(expression: Filter, tagged: dict[str, set[int]]) -> None:
    tags = Tags.of({name: sorted(items) for name, items in tagged.items()}, 10)
    held = mask(expression, 10, tags.having, lambda item_ids: [int(item_id) for item_id in item_ids])
    assert held.tolist() == [holds(expression, item, tagged) for item in range(10)]
    again = from_json(to_json(expression))
    assert again == expression
    assert hash(again) == hash(expression)


def test_operators_and_their_neutral_elements() -> None:
    kids, horror = Tag("kids"), Tag("horror")
    assert kids & ~horror == AllOf([kids, Not(horror)])
    assert kids | Items([7, "8"]) == AnyOf([kids, Items(["8", "7"])])
    assert EVERYTHING & kids == NOTHING | kids == kids
    assert to_json(AllOf([kids])) != to_json(AnyOf([kids]))
    assert (kids | horror) & kids & horror == AllOf([kids | horror, kids, horror])
    assert from_text("kids") == from_text(' {"tag": "kids"}') == kids


def test_a_block_list_that_grew_item_by_item_is_read_again() -> None:
    grown = NOTHING
    for number in range(2000):
        grown = grown | Items([number]) | Tag(f"tag {number % 3}")
    assert set(grown.parts) == {Items(range(2000)), *(Tag(f"tag {number}") for number in range(3))}  # type: ignore[attr-defined]
    assert from_json(to_json(grown)) == grown


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"tag": 1},
        {"tag": "a", "items": []},
        {"items": "12"},
        {"items": [True]},
        {"items": [1.5]},
        {"and": {"tag": "a"}},
        {"xor": []},
        {"not": [{"tag": "a"}]},
        {"or": [{"tag": "a"}] * 2000},
    ],
)
def test_odd_json_is_refused(value: Any) -> None:
    with pytest.raises(EarnError, match="filter"):
        from_json(value)


def test_deep_json_is_refused_as_value_and_as_text() -> None:
    deep: dict[str, Any] = {"tag": "a"}
    for _ in range(60):
        deep = {"not": deep}
    with pytest.raises(EarnError, match="levels"):
        from_json(deep)
    for text in ('{"not":' * 100_000, "{"):
        with pytest.raises(EarnError, match="JSON"):
            from_text(text)


@pytest.mark.parametrize(
    ("kind", "value"), [(Items, "12"), (Items, 3), (AllOf, ["a"]), (Not, "a"), (Tag, 3), (Tag("a").__and__, 3)]
)
def test_what_is_no_filter_is_refused(kind: Callable[[Any], Filter], value: Any) -> None:
    with pytest.raises(EarnError, match="Got"):
        kind(value)


def test_tags_are_saved_and_those_of_another_catalog_refused(tmp_path: Path) -> None:
    path, items = tmp_path / "tags.npz", 21
    tags = Tags.of({"adult": [20], "x": [0, 7, 8]}, items)
    tags.save(path)
    loaded = Tags.load(path, items)
    assert (loaded.names, loaded.bits.tolist()) == (tags.names, tags.bits.tolist())
    assert np.flatnonzero(loaded.having("x")).tolist() == [0, 7, 8]
    for other in (20, 22, 64):
        with pytest.raises(EarnError, match=r"tags.npz: these are"):
            Tags.load(path, other)
    with pytest.raises(EarnError, match=r"no tag 'adul'.*'adult'"):
        loaded.having("adul")
    Tags.of({}, 3).save(path)
    assert Tags.load(path, 3).names == ()
    with pytest.raises(EarnError, match="different names"):
        Tags(("a", "a"), np.zeros((2, 1), np.uint8), 8)


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_a_damaged_file_of_tags_is_an_error_of_ours_or_other_tags(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / "tags.npz"
    Tags.of({"a": [1, 2], "b": []}, 9).save(path)
    bytes_ = bytearray(path.read_bytes())
    bytes_[data.draw(st.integers(0, len(bytes_) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes_)
    with suppress(EarnError):
        assert Tags.load(path, 9).items == 9


TABLE = """id,genre,adult,price,note
1,Comedy|Drama,no,4.99,
9,Comedy,yes,1,not in the catalog
3,Drama | ,,5,x
4,,1,20,
"""


@pytest.mark.parametrize("tab", [False, True])
def test_a_tables_cells_become_tags(tmp_path: Path, tab: bool) -> None:
    """By hand: item 1 is comedy and drama below 5; 3 drama from 5; 4 adult from 20; 9 is unknown."""
    path = tmp_path / "items.csv"
    path.write_text(TABLE.replace(",", "\t") if tab else TABLE)
    tags = read_tags(path, toy_catalog(), ["genre", "adult"], {"price": [5, 20]})
    got = {name: np.flatnonzero(tags.having(name)).tolist() for name in tags.names}
    assert got == {
        "adult": [4],
        "genre:Comedy": [1],
        "genre:Drama": [1, 3],
        "price:5-20": [3],
        "price:<5": [1],
        "price:>=20": [4],
    }


def test_tables_that_say_nothing_are_refused(tmp_path: Path) -> None:
    path, catalog = tmp_path / "items.csv", toy_catalog()
    path.write_text(TABLE)
    with pytest.raises(EarnError, match=r"no column 'color'.*id, genre"):
        read_tags(path, catalog, ["color"])
    with pytest.raises(EarnError, match="no row"):
        read_tags(path, catalog, ["genre"], item_column="note")
    with pytest.raises(EarnError, match="genre is 'Comedy"):
        read_tags(path, catalog, [], {"genre": [1]})
    path.write_text(TABLE + "1,Horror,,,\n")
    with pytest.raises(EarnError, match="the item '1' has 2 rows"):
        read_tags(path, catalog, ["genre"])
    for edges in ([], [2.0, 1.0], [float("nan")]):
        with pytest.raises(EarnError, match="ascending"):
            band_names("price", edges)


def test_a_table_that_csv_cannot_read_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('item_id,title\n9,"' + "never closed " * 11_000)
    with pytest.raises(EarnError, match="is no csv or tsv file"):
        read_columns(path, ("item_id",))
