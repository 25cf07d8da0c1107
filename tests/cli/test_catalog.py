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


def test_mistakes_are_one_line(bundle: Path, earn: Earn) -> None:
    table = bundle.parent / "new.csv"
    table.write_text("id,title\n9,Nine\n")
    assert "no column 'item_id'" in earn("catalog", "add", bundle, table).error
    table.write_text("item_id,title\n9,Nine\n")
    assert "Give each one's identifier" in earn("catalog", "add", bundle, table).error
    assert "by numpy.save" in earn("catalog", "add", bundle, table, "--vectors", table).error
    assert "no item 'x'" in earn("catalog", "remove", bundle, "x").error
    assert "no earlier catalog" in earn("catalog", "rollback", bundle).error
    assert "there is no bundle" in earn("catalog", "list", bundle.parent / "none").error
