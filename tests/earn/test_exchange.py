"""Replacing a folder: whoever is killed when, the old one or the new one stands there, and nothing stays behind."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import earn.exchange
import earn.files
from earn.errors import EarnError
from earn.exchange import OLD, exchange, only_writer
from earn.files import folder_written_whole, link_files

fcntl = pytest.importorskip("fcntl")

WRITER = """
import itertools, sys
from pathlib import Path
from earn import files

if sys.argv[2] == "renames":
    files.exchange = lambda first, second: False
print("ready", flush=True)
for count in itertools.count():
    with files.folder_written_whole(Path(sys.argv[1])) as beside:
        for name in ("one", "two"):
            (beside / name).write_text(f"{sys.argv[3]} {count}" * 1000)
"""


def write(folder: Path, text: str) -> None:
    with folder_written_whole(folder) as beside:
        (beside / "one").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_two_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "file").read_text() for name in ("a", "b")] == ["b", "a"]
    assert not exchange(tmp_path / "a", tmp_path / "absent")


@pytest.mark.parametrize("is_atomic", [True, False])
def test_a_folder_is_replaced_and_nothing_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_atomic: bool
) -> None:
    if not is_atomic:
        monkeypatch.setattr(earn.files, "exchange", lambda first, second: False)
    folder = tmp_path / "some/folder"
    for text in ("old", "new"):
        write(folder, text)
        assert (folder / "one").read_text() == text
        assert names(folder.parent) == ["folder"]


def test_what_a_killed_writer_left_is_removed_but_not_what_a_living_one_writes(tmp_path: Path) -> None:
    for name in (".folder.aaaaaaaa", ".folder.bbbbbbbb" + OLD, ".other.cccccccc", ".folder.not-ours"):
        (tmp_path / name).mkdir()
    with folder_written_whole(tmp_path / "folder") as beside:
        write(tmp_path / "folder", "first")  # another writer, at the same time
        assert beside.is_dir()
        (beside / "one").write_text("second")
    assert (tmp_path / "folder/one").read_text() == "second"
    assert names(tmp_path) == [".folder.not-ours", ".other.cccccccc", "folder"]


def test_an_old_folder_is_put_back_where_its_writer_was_killed_between_two_renames(tmp_path: Path) -> None:
    write(tmp_path / "folder", "old")
    (tmp_path / "folder").rename(tmp_path / f".folder.aaaaaaaa{OLD}")
    with pytest.raises(ZeroDivisionError), folder_written_whole(tmp_path / "folder"):
        print(1 / 0)
    assert (tmp_path / "folder/one").read_text() == "old"
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name == "nt", reason="without locks leftovers stay")
@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_killed_writer_leaves_the_old_or_the_new_folder(tmp_path: Path, way: str) -> None:
    folder, chance, missing = tmp_path / "folder", random.Random(0), 0
    write(folder, "start")
    (folder / "two").write_text("start")
    for number in range(12 if way == "exchange" else 8):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), way, str(number)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if way == "renames" and not folder.exists():
            missing += 1
            with pytest.raises(ZeroDivisionError), folder_written_whole(folder):
                print(1 / 0)
        assert (folder / "one").read_text() == (folder / "two").read_text()
    write(folder, "end")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("name", ["a\0b", "loop/folder", "file/folder"])
def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(EarnError, match=r"cannot be written \(.+\)\. Choose another place"):
        write(tmp_path / name, "")
    with pytest.raises(EarnError, match=r"cannot be read|holds no NUL"):
        earn.files.read_text(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="locks folders")
def test_whoever_locks_a_folder_that_was_just_replaced_is_not_its_only_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, beside = tmp_path / "folder", tmp_path / "beside"
    folder.mkdir()
    beside.mkdir()
    lock = fcntl.flock

    def late(*arguments: int) -> None:
        exchange(folder, beside)
        lock(*arguments)

    with only_writer(folder) as is_alone:
        assert is_alone
    monkeypatch.setattr(fcntl, "flock", late)
    with only_writer(folder) as is_alone:
        assert not is_alone


@pytest.mark.skipif(sys.platform != "linux", reason="locks folders")
def test_a_file_system_without_locks_does_not_look_like_another_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: int) -> None:
        raise OSError(errno.EBADF, "no locks of folders")  # what NFS says

    monkeypatch.setattr(fcntl, "flock", lacking)
    with only_writer(tmp_path) as is_alone:
        assert is_alone
    with only_writer(tmp_path / "nothing") as is_alone:
        assert not is_alone
    write(tmp_path / "folder", "first")
    write(tmp_path / "folder", "second")
    assert (tmp_path / "folder/one").read_text() == "second"


@pytest.mark.skipif(sys.platform != "linux", reason="locks folders")
def test_one_of_two_is_the_writer(tmp_path: Path) -> None:
    with only_writer(tmp_path) as first, only_writer(tmp_path) as second:
        assert (first, second) == (True, False)


def test_what_is_linked_from_a_read_only_folder_can_be_changed(tmp_path: Path) -> None:
    (tmp_path / "folder/below").mkdir(parents=True)
    (tmp_path / "folder/below/one").write_text("old")
    for path in (tmp_path / "folder/below", tmp_path / "folder"):
        path.chmod(0o555)
    with folder_written_whole(tmp_path / "folder") as beside:
        link_files(tmp_path / "folder", beside)
        assert all(path.stat().st_mode & 0o777 == 0o755 for path in (beside, beside / "below"))
        (beside / "below/one").unlink()
        (beside / "below/one").write_text("new")
    assert (tmp_path / "folder/below/one").read_text() == "new"
    assert names(tmp_path) == ["folder"]


def test_what_is_linked_from_a_private_folder_stays_private(tmp_path: Path) -> None:
    (tmp_path / "folder/below").mkdir(parents=True)
    (tmp_path / "folder/below").chmod(0o500)
    link_files(tmp_path / "folder", tmp_path / "other")
    assert (tmp_path / "other/below").stat().st_mode & 0o777 == 0o700
