from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Earn

CSV = "userId,movieId,rating,timestamp\n" + "".join(
    f"{user},{(user + step) % 9},{1 + step % 5},{978300760 + step}\n" for user in range(12) for step in range(8)
)


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def test_a_csv_is_imported_and_then_read_as_data(earn: Earn, ratings: Path, tmp_path: Path) -> None:
    out = tmp_path / "imported"
    done = earn("import", ratings, "--out", out, "--min-rating", 2)
    assert done.status == 0
    assert "interactions" in done.out
    assert "rated below 2" in done.err
    facts = json.loads((out / "import.json").read_text(encoding="utf-8"))
    assert facts["counts"]["interactions"] == 12 * 6
    assert earn("data", out, "--json").json["interactions"] == 12 * 6
    assert earn("import", ratings, "--out", out).status == 0  # an import may be replaced
    assert earn("data", out, "--json").json["interactions"] == 12 * 8


def test_a_table_is_data_as_it_stands(earn: Earn, ratings: Path) -> None:
    done = earn("data", ratings, "--json")
    assert (done.json["users"], done.json["items"]) == (12, 9)
    assert "user userId, item movieId, time timestamp; times: seconds" in done.err


def test_a_folder_of_other_files_is_not_replaced(earn: Earn, ratings: Path) -> None:
    assert "no folder of earn import" in earn("import", ratings, "--out", ratings.parent).error
    assert ratings.is_file()


def test_nothing_is_written_where_the_table_is_refused(earn: Earn, ratings: Path, tmp_path: Path) -> None:
    ratings.write_text(CSV + "1,2\n", encoding="utf-8")
    assert "ratings.csv, line 98: 2 cells" in earn("import", ratings, "--out", tmp_path / "new").error
    assert not (tmp_path / "new").exists()


def test_without_pyarrow_the_extra_is_named(earn: Earn, ratings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "earn-edge[tables]"' in earn("data", ratings).error
