from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from earn.data import download
from earn.data.download import FILES, MEMBERS, cache_folder, fetch_ml100k
from earn.errors import EarnError
from earn.files import sha256

METADATA = "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its package index; the cache is a new folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("EARN_CACHE", str(tmp_path / "cache"))
    return folder


def put_wheel(index: Path, files: tuple[str, ...] = FILES) -> Path:
    path = index / "recbole-1.2.1-py3-none-any.whl"
    with ZipFile(path, "w") as wheel:
        for name in files:
            wheel.writestr(MEMBERS + name, f"content of {name}")
        wheel.writestr("recbole-1.2.1.dist-info/METADATA", METADATA)
        wheel.writestr("recbole-1.2.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("recbole-1.2.1.dist-info/RECORD", "")
    return path


def test_two_files_of_the_wheel_are_kept_and_not_fetched_again(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = put_wheel(index)
    monkeypatch.setattr(download, "WHEEL_SHA256", sha256(wheel))
    folder = tmp_path / "cache" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "u.data").write_text("what else lies there")
    assert fetch_ml100k() == folder
    contents = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert contents == {"u.data": "what else lies there"} | {name: f"content of {name}" for name in FILES}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["ml-100k"]
    wheel.unlink()
    assert fetch_ml100k() == folder


def test_what_pip_says_and_a_remedy_are_named(index: Path, tmp_path: Path) -> None:
    message = r"pip could not download .*recbole==1\.2\.1: No matching distribution found.* Check the network"
    with pytest.raises(EarnError, match=message):
        fetch_ml100k()
    assert not (tmp_path / "cache").exists()


def test_another_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    put_wheel(index)
    with pytest.raises(EarnError, match=r"recbole-1\.2\.1-py3-none-any\.whl has the SHA-256 [0-9a-f]{64}, not 9c9948"):
        fetch_ml100k()
    assert not (tmp_path / "cache").exists()


def test_an_interrupted_fetch_leaves_nothing(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WHEEL_SHA256", sha256(put_wheel(index, files=FILES[:1])))
    with pytest.raises(KeyError):  # the second file is not there: the fetch stops after the first
        fetch_ml100k()
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WHEEL_SHA256", sha256(put_wheel(index)))
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(EarnError, match=r"ml-100k: cannot be written .*Set EARN_CACHE"):
        fetch_ml100k()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, ".cache/earn-edge"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/earn-edge"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "Library/Caches/earn-edge"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/earn-edge"),
        ("linux", {"EARN_CACHE": "/own", "XDG_CACHE_HOME": "/x"}, "/own"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EARN_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path.home() / expected


def test_the_last_error_of_pip_is_the_reason() -> None:
    output = "WARNING: retrying\nERROR: first\nERROR: No matching distribution found\n[notice] A new release\n"
    assert download._reason(output) == "No matching distribution found."
    assert download._reason("/usr/bin/python: No module named pip\n") == "/usr/bin/python: No module named pip."
    assert download._reason("") == "it gave no reason."
