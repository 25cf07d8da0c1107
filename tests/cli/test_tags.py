"""`earn tags` and the filters of `earn recommend`."""

from __future__ import annotations

from pathlib import Path

import pytest

from earn.catalog import CATALOG_FILE
from earn.manifest import Manifest
from earn.tags import TAGS_FILE
from tests.cli.conftest import Earn

TABLE = "id,genre,adult,price\n0,Comedy|Drama,no,4\n1,Comedy,yes,9\n2,Drama,no,9\n3,Drama,no,30\n"


@pytest.fixture
def tagged(bundle: Path, earn: Earn) -> Path:
    """The toy bundle, of items 0 to 7, with tags."""
    table = bundle.parent / "items.csv"
    table.write_text(TABLE)
    facts = earn("tags", bundle, "--from", table, "--columns", "genre,adult", "--bands", "price=5,20", "--json").json
    assert facts == {"adult": 1, "genre:Comedy": 2, "genre:Drama": 3, "price:5-20": 2, "price:<5": 1, "price:>=20": 1}
    return bundle


def test_lists_hold_what_the_tags_allow(tagged: Path, earn: Earn) -> None:
    def items(*filters: str) -> set[str]:
        got = earn("recommend", tagged, "--history", "1,2", "-k", "8", "--json", *filters).json
        return {item["item_id"] for item in got}

    assert items("--allow", "genre:Drama") == {"0", "2", "3"}
    assert items("--allow", "genre:Drama", "--allow", "genre:Comedy") == {"0"}
    assert items("--block", "adult", "--block", '{"items": [4, "5"]}') == {"0", "2", "3", "6", "7"}
    assert items("--allow", '{"or": [{"tag": "adult"}, {"tag": "price:>=20"}]}', "--exclude", "3") == {"1"}
    assert items("--allow", '{"and": [{"tag": "adult"}, {"not": {"tag": "adult"}}]}') == set()


def test_tags_are_listed_and_their_files_are_whole(tagged: Path, earn: Earn) -> None:
    assert "genre:Drama" in earn("tags", tagged).out
    assert {TAGS_FILE, CATALOG_FILE} <= set(Manifest.load(tagged).files)
    assert [path.name for path in tagged.parent.iterdir() if path.name.startswith(".")] == []


def test_an_unknown_tag_is_refused(tagged: Path, earn: Earn) -> None:
    assert "no tag 'comedy'" in earn("recommend", tagged, "--history", "1", "--allow", "comedy").error


def test_a_bundle_without_tags_lists_none(bundle: Path, earn: Earn) -> None:
    outcome = earn("tags", bundle, "--json")
    assert outcome.json == {}
    assert "--from FILE" in outcome.err
