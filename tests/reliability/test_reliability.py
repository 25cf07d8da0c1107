"""The command that tries what bundles withstand: its changes, and how it writes its page."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from earn.errors import EarnError
from earn.runtime.recommender import Recommender
from tests.reliability.__main__ import PAGE, PARTS, is_good, written
from tests.reliability.bad_bundles import KINDS, lists


def test_there_are_at_least_500_bad_bundles() -> None:
    assert sum(kind.count for kind in KINDS.values()) >= 500


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"bomb"}))
def test_a_bad_bundle_is_refused_or_right(toy_bundle: Path, tmp_path: Path, name: str) -> None:
    want = Recommender.load(toy_bundle, threads=1).recommend(["1"])
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    with suppress(EarnError):
        got = Recommender.load(KINDS[name].change(folder, random.Random(0)), threads=1).recommend(["1"])
        assert KINDS[name].renews_sums or got == want


def test_lists_are_items_and_scores(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.reliability.bad_bundles.HISTORIES", (["1"], ["2", "3"]))
    recommender = Recommender.load(toy_bundle, threads=1)
    want = [[(item.item_id, item.score) for item in recommender.recommend(ids, 5)] for ids in (["1"], ["2", "3"])]
    assert lists(recommender) == want


def test_a_part_is_written_between_its_markers_alone() -> None:
    page = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n<!-- begin: y -->\n<!-- end: y -->\n"
    assert written(page, "x", ["new", "lines"]) == page.replace("old", "new\nlines")
    for part in PARTS:
        assert "new" in written(PAGE.read_text(), part, ["new"])


@pytest.mark.parametrize(
    ("part", "found", "good"),
    [
        ("bad", {"bit": {"faults": []}}, True),
        ("bad", {"bit": {"faults": ["bit 3: ended"]}}, False),
        ("kills", {"found": {"old": 3, "new": 1}}, True),
        ("kills", {"found": {"old": 3, "does not load: x": 1}}, False),
        ("swaps", {"status": 0, "found": {"lists of neither": 1}}, False),
        ("swaps", {"status": 1, "found": {"old": 1}}, False),
        ("endurance", {"wrong": 1}, False),
    ],
)
def test_what_is_not_as_it_must_be_is_known(part: str, found: dict[str, object], good: bool) -> None:
    assert is_good(part, found) is good
