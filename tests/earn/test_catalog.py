from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from earn.catalog import Catalog, one_line, read_index
from earn.errors import EarnError

IDENTIFIERS = (("<a_10>", "<b_1>"), ("<a_2>", "<b_1>", "<c_0>"), ("<a_10>", "<b_1>"))


def catalog() -> Catalog:
    return Catalog(("x", "y", "z"), IDENTIFIERS, ("One", "", "Trois étés"))


def test_tokens_are_ordered_by_depth_then_naturally() -> None:
    assert catalog().tokens == ("<a_2>", "<a_10>", "<b_1>", "<c_0>")


def test_codes_index_the_tokens_and_end_in_minus_one() -> None:
    assert catalog().codes.tolist() == [[1, 2, -1], [0, 2, 3], [1, 2, -1]]
    assert catalog().depth == 3
    assert catalog().index == {"x": 0, "y": 1, "z": 2}
    assert len(catalog()) == 3


def test_tokens_with_digits_that_are_no_decimals_are_ordered_too() -> None:
    assert Catalog(("x",), (("a²", "²"),), ("",)).tokens == ("a²", "²")


@pytest.mark.parametrize("titles", [("One", "", "Trois étés"), ("", "", "")])
def test_what_was_saved_is_loaded(tmp_path: Path, titles: tuple[str, ...]) -> None:
    saved = Catalog(("x", "y", "z"), IDENTIFIERS, titles)
    saved.save(tmp_path / "catalog.npz")
    assert Catalog.load(tmp_path / "catalog.npz") == saved
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.npz"]


def test_titles_are_saved_as_one_line(tmp_path: Path) -> None:
    Catalog(("x",), (("a",),), ("One\n two",)).save(tmp_path / "catalog.npz")
    assert Catalog.load(tmp_path / "catalog.npz").titles == ("One two",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_a_file_that_is_no_catalog_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.npz"
    path.write_bytes(content)
    with pytest.raises(
        EarnError, match=r"catalog\.npz: not a readable catalog .* Write the checkpoint or bundle again"
    ):
        Catalog.load(path)


def test_a_missing_catalog_is_named(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match=r"absent\.npz: not a readable catalog"):
        Catalog.load(tmp_path / "absent.npz")


def test_codes_that_name_no_token_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.npz"
    one = np.frombuffer(b"x", np.uint8)
    np.savez(path, tokens=one, item_ids=one, titles=one, identifiers=np.array([[4]], np.int32))
    with pytest.raises(EarnError, match="not a readable catalog"):
        Catalog.load(path)


@pytest.mark.parametrize(
    ("item_ids", "identifiers", "titles", "message"),
    [
        ((), (), (), "no items"),
        (("x",), (("a",),), (), "1 ids, 1 identifiers and 0 titles"),
        (("x", "x"), (("a",), ("b",)), ("", ""), "'x' stands twice"),
        (("",), (("a",),), ("",), "'' is empty"),
        (("x\ny",), (("a",),), ("",), "holds a line break"),
        (("x",), ((),), ("",), r"Item 'x' has the identifier \(\)"),
        (("x",), (("a", ""),), ("",), "no token that is empty"),
        (("x",), (("a\nb",),), ("",), "holds a line break"),
        (("x", "y"), (("a",), ("a", "b")), ("", ""), "item 'x', a, is the beginning of that of item 'y', ab"),
    ],
)
def test_what_is_no_catalog_is_refused(
    item_ids: tuple[str, ...], identifiers: tuple[tuple[str, ...], ...], titles: tuple[str, ...], message: str
) -> None:
    with pytest.raises(EarnError, match=message):
        Catalog(item_ids, identifiers, titles)


def test_an_index_is_read_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "Toys.index.json"
    path.write_text(json.dumps({"7": ["<a_1>", "<b_2>"], "3": ["<a_0>", "<b_2>"]}), encoding="utf-8")
    read = read_index(path, {"3": "Ball"})
    assert read == Catalog(("7", "3"), (("<a_1>", "<b_2>"), ("<a_0>", "<b_2>")), ("", "Ball"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds a list, not an object"),
        ('{"7": "<a_1>"}', "the identifier of item '7' is '<a_1>'"),
        ('{"7": [1.5]}', r"the identifier of item '7' is \[1.5\]"),
        ('{"7": ["a"], "7": ["b"]}', "the key '7' stands twice"),
        ('{"7": ["a"],\n "8": }', "line 2, column 7: not valid JSON"),
        ('{"7": ["a"], "8": ["a", "b"]}', "the beginning of that of item '8'"),
    ],
)
def test_an_index_of_another_form_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "Toys.index.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EarnError, match=rf"Toys\.index\.json.*{message}"):
        read_index(path)


def test_one_line_joins_every_run_of_white_space() -> None:
    assert one_line("  a\tb\r\n\nc ") == "a b c"
