from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from earn.cli.arguments import item_ids
from tests.cli.conftest import Earn


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a, b,,c", ["a", "b", "c"]),
        ('["a,b", "c"]', ["a,b", "c"]),
        (' ["@x", 7]', ["@x", "7"]),
        ("[]", []),
    ],
)
def test_item_ids_are_separated_by_commas_or_a_json_list(text: str, ids: list[str], tmp_path: Path) -> None:
    assert item_ids(text) == ids
    (tmp_path / "ids").write_text(text)
    assert item_ids(f"@{tmp_path / 'ids'}") == (ids if text.strip().startswith("[") else [text])


def test_a_file_has_an_id_per_line(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a,b\r\n\n  c \n")
    assert item_ids(f"@{tmp_path / 'ids.txt'}") == ["a,b", "c"]


@pytest.mark.parametrize("text", ['["a"', "[1.5]", "[null]", "[true]", "[['a']]", "@nowhere"])
def test_what_is_no_list_of_ids_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        item_ids(text)


@pytest.mark.parametrize(
    ("option", "values", "says"),
    [
        ("--learning-rate", ("0", "-1", "nan", "inf", "fast"), "a finite number above 0"),
        ("--weight-decay", ("-0.1", "nan", "inf"), "a finite number from 0"),
        ("--dropout", ("-0.1", "1", "nan"), "a number from 0, below 1"),
        ("--warmup", ("-0.1", "1", "nan"), "a number from 0, below 1"),
    ],
)
def test_settings_out_of_range_are_refused(option: str, values: tuple[str, ...], says: str, earn: Earn) -> None:
    for value in values:
        error = earn("train", "nowhere", "--out", "x", f"{option}={value}").error
        assert f"{option}: {value!r} is not {says}" in error
    assert "nowhere: there is no such file" in earn("train", "nowhere", "--out", "x", f"{option}=0.5").error
