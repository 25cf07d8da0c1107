"""Each command with a bundle that is one file or a repository: it works as with the folder, or says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from earn.cli import profile
from earn.cli.serve import _service
from earn.manifest import Manifest
from earn.places import pack, place_name
from earn.serve.bundles import ServedBundle
from earn.serve.limits import Limits
from tests.cli.conftest import Earn
from tests.hub import hub_of

KINDS = ("one file", "repository")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the exported bundle also is."""
    if request.param == "repository":
        return hub_of(exported, tmp_path / "hub", monkeypatch)
    pack(exported, tmp_path / "movies.zip")
    return str(tmp_path / "movies.zip")


def test_it_is_asked_evaluated_and_inspected_as_its_folder_is(
    place: str, exported: Path, data: Path, earn: Earn
) -> None:
    for command, *options in (
        ("recommend", "--history", "i1,i2"),
        ("recommend", "--history", "i1,i2", "--engine", "auto"),
        ("evaluate", str(data), "--users", 5),
        ("inspect",),
        ("inspect", "--verify"),
    ):
        there, here = (earn(command, where, *options, "--json") for where in (place, exported))
        assert (there.status, there.json) == (here.status, here.json) == (0, here.json)
    assert "Leave away --scoring" in earn("evaluate", place, data, "--scoring", "vocab").error


def test_all_users_are_answered_from_it(place: str, exported: Path, earn: Earn, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"user": ["a", "b"], "items": [["i1", "i2"], ["i3"]]}), tmp_path / "users.parquet")
    found: list[Any] = []
    for name, where in (("there", place), ("here", exported)):
        assert earn("batch", where, tmp_path / "users.parquet", "--out", tmp_path / name).status == 0
        found.append(pq.read_table(tmp_path / name / "recommendations").to_pylist())
    assert found[0] == found[1]


def test_it_is_served_and_loaded_again(place: str, exported: Path) -> None:
    def served(where: str | Path, engine: str) -> ServedBundle:
        return _service([where], engine, 1, Limits()).bundle(None)

    bundle = served(place if place.startswith("hf") else Path(place), "auto")
    assert bundle.name == ("movies" if place.startswith("hf") else "movies.zip")
    assert bundle.current.fingerprint == served(exported, "cpu").current.fingerprint
    assert bundle.reload() is False


def test_it_is_profiled_as_a_folder(place: str, exported: Path, earn: Earn, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {}

    def measure(args: object, folders: Mapping[str, Path]) -> int:
        measured.update({name: Manifest.load(folder) for name, folder in folders.items()})
        return 0

    monkeypatch.setattr(profile, "_measure", measure)
    assert earn("profile", place, "--against", exported).status == 0
    assert measured == dict.fromkeys([place_name(place), exported.name], Manifest.load(exported))


@pytest.mark.parametrize(
    "command",
    [
        ("catalog", "list"),
        ("catalog", "block", "i1"),
        ("tags",),
        ("compose",),
        ("pack",),
        ("engine", "check"),
        ("calibrate", "data", "--out", "x"),
    ],
)
def test_who_needs_a_folder_says_how_to_make_one(place: str, earn: Earn, command: tuple[str, ...]) -> None:
    at = 2 if command[0] in ("catalog", "engine") else 1
    says = "hf download org/movies --local-dir BUNDLE" if place.startswith("hf") else "python -m zipfile -e"
    assert says in earn(*command[:at], place, *command[at:]).error
