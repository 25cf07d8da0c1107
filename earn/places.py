"""Where a bundle may be: a folder, one file, or a repository of the Hugging Face Hub.

    movies-bundle            a folder
    movies-bundle.zip        what `earn pack` writes
    hf://org/name            the newest state of a repository's main branch
    hf://org/name@v1.2       a branch, tag or commit

A repository is fetched through `huggingface_hub`, which keeps it in its cache; without a network the cache answers.
Only a commit, in full, names the same bundle for ever.

The one file is a zip archive whose members are stored as they are: manifest.json, then the files that it lists, nothing
else. The same bundle gives the same bytes. To be loaded, it is copied out into a temporary folder that is gone again
when loading ends: ONNX Runtime maps large weights from files of their own, which a member of an archive is not. So
loading takes the bundle's size on the temporary disk for a moment. (Where an opened file cannot be removed, on Windows,
the mapped ones stay until the system clears that disk.)
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from earn.errors import EarnError, to_install
from earn.files import check_writable, written_whole
from earn.manifest import ENGINES_FOLDER, MANIFEST_FILE, Manifest, check_graphs, is_inside

HUB = "hf://"
LOAD_TRIES = 5
MOST_MEMBERS = 1000  # of a packed bundle

T = TypeVar("T")
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Moment:
    """What tells a bundle at one moment from whatever stands at its path at another."""

    manifest: bytes
    files: tuple[tuple[object, ...], ...]  # each with inode, size and time
    folder: tuple[int, int]  # device and inode
    entries_ns: int  # when an entry was last made in the folder
    changed_ns: int  # when the folder itself was last changed: renamed, too

    @classmethod
    def of(cls, folder: Path) -> Moment:
        """The bundle as it now is.

        Raises:
            EarnError: there is nothing, or it cannot be read.
        """
        try:
            files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
            own = folder.stat()
            return cls(
                (folder / MANIFEST_FILE).read_bytes(),
                tuple((name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in files),
                (own.st_dev, own.st_ino),
                own.st_mtime_ns,
                own.st_ctime_ns,
            )
        except OSError as error:
            raise EarnError(f"{folder}: there is no bundle that can be read ({error}). Check the path.") from error

    def is_still(self, folder: Path) -> bool:
        """Whether the same bundle has stood there ever since."""
        try:
            now = Moment.of(folder)
        except EarnError:  # between the two steps of an exchange that is not atomic
            return False
        # a folder that was exchanged and exchanged back has another time of its own; so has one that got engines/
        was_moved = self.changed_ns != now.changed_ns and self.entries_ns == now.entries_ns
        return (self.manifest, self.files, self.folder) == (now.manifest, now.files, now.folder) and not was_moved


@contextmanager
def bundle_at(place: str | Path) -> Iterator[Path]:
    """Yields the folder of a bundle while it is being opened.

    Raises:
        EarnError: a repository that cannot be had, or a file that is no packed bundle.
    """
    if str(place).startswith(HUB):
        yield _fetched(str(place))
    elif Path(place).is_file():
        with unpacked(Path(place)) as folder:
            yield folder
    else:
        yield Path(place)


def place_name(place: str | Path) -> str:
    """The last part of a place: of a folder, a file, or a repository."""
    if str(place).startswith(HUB):
        return str(place).partition("@")[0].rpartition("/")[2]
    return Path(place).resolve().name


def opened(place: str | Path, open_now: Callable[[Path], T]) -> T:
    """What is opened from the folder of a bundle, whose files were the same ones from the first to the last.

    Args:
        place: where the bundle is.
        open_now: opens it; called again where the bundle was replaced meanwhile.

    Raises:
        EarnError: it cannot be opened, or was replaced during every try; or see `bundle_at`.
    """
    with bundle_at(place) as folder:
        if not (folder / MANIFEST_FILE).is_file():
            return open_now(folder)  # says what to do
        for _ in range(LOAD_TRIES):
            before = Moment.of(folder)
            try:
                made = open_now(folder)
            except (EarnError, OSError):
                if before.is_still(folder):
                    raise
            else:
                if before.is_still(folder):
                    return made
        raise EarnError(f"{folder}: was replaced {LOAD_TRIES} times while it was being loaded. Load it again later.")


def _fetched(place: str) -> Path:
    """The folder of the cache that holds a repository."""
    match = _REPOSITORY.fullmatch(place.removeprefix(HUB))
    if match is None:
        raise EarnError(f"{place!r} names no repository. Write {HUB}org/name or {HUB}org/name@revision.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EarnError(f"{place}: this needs huggingface_hub. Install it: {to_install('hub')}") from error
    repository, revision = match.groups()
    try:
        return Path(snapshot_download(repository, revision=revision, ignore_patterns=f"{ENGINES_FOLDER}/*"))
    except Exception as error:  # of the hub, of HTTP, of the disk: they have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EarnError(f"{place}: cannot be fetched ({reason}). Check name, revision, network and token.") from error


def pack(folder: Path, out: Path) -> Manifest:
    """Writes a bundle as one file, whole or not at all.

    Args:
        folder: the bundle; it is verified first.
        out: the file; one that stands there is replaced.

    Returns:
        The bundle's manifest.

    Raises:
        EarnError: the bundle is damaged, or the file cannot be written.
    """
    manifest = Manifest.load(folder)
    check_graphs(folder, manifest)
    check_writable(out)
    if out.is_dir():
        raise EarnError(f"{out}: is a folder. Name a file.")
    with written_whole(out) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
        for name in (MANIFEST_FILE, *sorted(manifest.files)):
            with (
                (folder / name).open("rb") as file,
                archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member,
            ):
                shutil.copyfileobj(file, member, 1 << 20)
    return manifest


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yields a folder with the members of a packed bundle, which is removed when the block ends.

    What the members hold is not looked at here; whoever loads the folder does that.

    Raises:
        EarnError: the file cannot be read, or is no such archive.
    """
    with tempfile.TemporaryDirectory(prefix="earn-", ignore_cleanup_errors=True) as temporary:
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                _check(archive.infolist(), path.stat().st_size)
                for member in archive.infolist():
                    target = Path(temporary, member.filename)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, target.open("xb") as copy:
                        shutil.copyfileobj(source, copy, 1 << 20)
        except Exception as error:  # zipfile raises nearly anything where its tables are damaged
            raise EarnError(f"{path}: not a packed bundle ({error}). Copy it again, or pack it again.") from error
        try:
            yield Path(temporary)
        except EarnError as error:  # which names files of the folder
            raise EarnError(f"{path}: {str(error).replace(f'{temporary}/', '')}") from error


def _check(members: list[zipfile.ZipInfo], size: int) -> None:
    """Raises ValueError for an archive that `pack` does not write."""
    if len(members) > MOST_MEMBERS or sum(member.file_size for member in members) > size:
        raise ValueError(f"{len(members)} members that claim more than the file's {size} bytes")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or not is_inside(member.filename):
            raise ValueError(f"its member {member.filename!r} is packed, or lies outside the bundle")
