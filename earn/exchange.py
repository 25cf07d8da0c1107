"""What `earn.files.folder_written_whole` is made of: at every moment the old folder or the new one stands there.

The new folder is written beside the old one, as `.NAME.XXXXXXXX`, and flushed to the disk. Then:

    Linux       renameat2 exchanges both names in one step
    elsewhere   the old folder is renamed to `.NAME.XXXXXXXX.old`, then the new one to NAME; likewise on a Linux file
                system that cannot exchange. A writer that is killed between these two leaves no folder: the next write
                puts the old one back first.

A writer holds a lock on its folder while it lives. So what a killed one left behind is told from what another is
writing, and removed by the next write of that folder. Where there are no such locks (Windows, some network file
systems) it stays, and two writers of one folder do not learn of each other.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
OLD = ".old"


def exchange(first: Path, second: Path) -> bool:
    """Exchanges what two paths name, in one step; False where system or file system has no such step."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # no such function; no such library
        return False
    paths = [os.fsencode(path) for path in (first, second)]
    return bool(call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)


def new_folder(folder: Path) -> tuple[Path, int]:
    """An empty folder beside `folder`, and the descriptor that holds its lock; -1 where there are no locks."""
    while True:
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        lock = _lock(beside)
        if beside.exists():  # else a writer that came later took it for a left one, before it was locked
            return beside, lock
        if lock >= 0:
            os.close(lock)


def recover(folder: Path) -> None:
    """Puts back, or removes, what killed writers of this folder have left."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}({re.escape(OLD)})?")
    for left in sorted(folder.parent.iterdir(), key=lambda path: not path.name.endswith(OLD)):
        if fcntl is None or not name.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        writer = left.with_name(left.name.removesuffix(OLD))
        try:
            lock = _lock(writer if writer.exists() else left, wait=False)
        except BlockingIOError:  # it lives
            continue
        if lock < 0:
            continue
        if left.name.endswith(OLD) and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)
        os.close(lock)


@contextmanager
def only_writer(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock for a block; yields False if another process has it. Without locks, always True."""
    try:
        lock = _lock(folder, wait=False)
    except BlockingIOError:
        yield False
        return
    try:
        # Where it is not, another writer exchanged the folder just before, and this is the old one.
        yield _is_at(lock, folder) if lock >= 0 else folder.exists()
    finally:
        if lock >= 0:
            os.close(lock)


def _is_at(opened: int, folder: Path) -> bool:
    """Whether an open folder is the one of this name."""
    try:
        return os.path.samestat(os.fstat(opened), folder.stat())
    except OSError:
        return False


def _lock(folder: Path, wait: bool = True) -> int:
    """A descriptor that holds the folder's lock until it is closed; -1 where system or file system has no locks.

    Raises:
        BlockingIOError: another holds it, and `wait` is False.
    """
    if fcntl is None:
        return -1
    opened = -1
    try:
        opened = os.open(folder, os.O_RDONLY)
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if opened >= 0:
            os.close(opened)
        if isinstance(error, BlockingIOError):
            raise
        return -1
    return opened
