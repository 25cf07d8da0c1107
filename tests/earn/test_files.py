from __future__ import annotations

from pathlib import Path

import pytest

from earn.errors import EarnError
from earn.files import folder_written_whole


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "some/folder"
    with folder_written_whole(folder) as beside:
        (beside / "file").write_text("first")
        assert not folder.exists()
    with pytest.raises(ZeroDivisionError), folder_written_whole(folder) as beside:
        (beside / "file").write_text(str(1 / 0))
    assert (folder / "file").read_text() == "first"
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_place_that_takes_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(EarnError, match=r"file/folder: cannot be written \(.+\)\. Choose another place"),
        folder_written_whole(tmp_path / "file/folder"),
    ):
        pass
