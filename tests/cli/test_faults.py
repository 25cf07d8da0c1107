from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from earn.cli.arguments import item_ids
from earn.cli.main import EXTRAS
from earn.errors import to_install
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


@pytest.mark.parametrize("command", ["train {data}", "export {checkpoint}", "calibrate {exported} {data}"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    command: str, data: Path, checkpoint: Path, exported: Path, earn: Earn, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    argv = command.format(data=data, checkpoint=checkpoint, exported=exported).split()
    outcome = earn(*argv, "--out", tmp_path / "file/inside/out")
    assert "cannot be written" in outcome.error
    assert "[1/" not in outcome.err


@pytest.mark.parametrize("package", EXTRAS["train"])
def test_a_training_without_its_packages_says_how_to_install_them(
    package: str, data: Path, earn: Earn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: object) -> int:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("earn.data.dataset.load_dataset", run)
    assert to_install("train") in earn("train", data, "--out", tmp_path / "out").error
