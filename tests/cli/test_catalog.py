"""`earn catalog`: changes of a bundle, what they show, and mistakes."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Earn


def test_a_catalog_is_changed_step_by_step_and_rolled_back(bundle: Path, earn: Earn) -> None:
    table = bundle.parent / "new.csv"
    table.write_text('item_id,title,identifier\n9,"Nine, new",a3 b1 c1\n10,,<a>\n'.replace("<a>", "a0 b0"))
    assert earn("catalog", "list", bundle, "--json").json == {
        "version": 0,
        "kept": [],
        "items": 8,
        "blocked": [],
        "removed": [],
    }
    assert earn("catalog", "add", bundle, table, "--json").json["items"] == 10
    assert earn("catalog", "remove", bundle, "3,4", "--json").json["removed"] == ["3", "4"]
    assert earn("catalog", "block", bundle, "5", "--json").json["blocked"] == ["5"]
    (bundle.parent / "titles.tsv").write_text("item_id\ttitle\n0\tZero\n")
    facts = earn("catalog", "rename", bundle, bundle.parent / "titles.tsv", "--json").json
    assert (facts["version"], facts["kept"]) == (4, [3, 2, 1, 0])
    found = earn("recommend", bundle, "--history", "3,9", "-k", "10", "--json").json
    assert {item["item_id"]: item["title"] for item in found} == {
        **{"0": "Zero", "1": "t1", "2": "t2", "6": "t6", "7": "t7"},
        **{"9": "Nine, new", "10": ""},
    }
    assert earn("inspect", bundle, "--verify").status == 0
    facts = earn("catalog", "rollback", bundle, "--json").json
    assert (facts["version"], facts["kept"], facts["blocked"]) == (5, [2, 1, 0], ["5"])
    assert earn("catalog", "block", bundle, "5", "--undo", "--json").json["blocked"] == []
    assert "earlier ones kept  5, 2, 1, 0" in earn("catalog", "list", bundle).out


def test_a_change_that_changes_nothing_says_so_and_writes_nothing(bundle: Path, earn: Earn) -> None:
    (bundle.parent / "titles.csv").write_text("item_id,title\n0,Zero\n")
    (bundle.parent / "none.csv").write_text("item_id,title,identifier\n")
    assert earn("catalog", "block", bundle, "5", "--json").json["version"] == 1
    assert earn("catalog", "rename", bundle, bundle.parent / "titles.csv", "--json").json["version"] == 2
    manifest, inode = (bundle / "manifest.json").read_bytes(), bundle.stat().st_ino
    for change in (
        ("block", bundle, "5,5"),
        ("block", bundle, "6", "--undo"),
        ("rename", bundle, bundle.parent / "titles.csv"),
        ("add", bundle, bundle.parent / "none.csv"),
    ):
        outcome = earn("catalog", *change, "--json")
        assert (outcome.status, outcome.json["version"], outcome.json["blocked"]) == (0, 2, ["5"])
        assert "Nothing was written" in outcome.err
    assert ((bundle / "manifest.json").read_bytes(), bundle.stat().st_ino) == (manifest, inode)


def test_inspect_shows_version_and_counts(bundle: Path, earn: Earn) -> None:
    assert earn("inspect", bundle, "--json").json["catalog"] == {
        **{"version": 0, "kept": [], "items": 8, "blocked": 0, "removed": 0}
    }
    earn("catalog", "block", bundle, "5,6")
    earn("catalog", "remove", bundle, "3")
    facts = earn("inspect", bundle, "--json").json["catalog"]
    assert facts == {"version": 2, "kept": [1, 0], "items": 8, "blocked": 2, "removed": 1}
    shown = earn("inspect", bundle).out
    assert "version 2, 2 earlier ones kept" in shown
    assert "8 items, 2 blocked, 1 removed" in shown
