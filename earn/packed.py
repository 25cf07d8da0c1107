"""A bundle as one file: a zip archive whose members are stored as they are, `manifest.json` first.

    earn pack movies-bundle                          # writes movies-bundle.zip
    Recommender.load("movies-bundle.zip")

The archive holds the files that the manifest lists, nothing else, and the same bundle gives the same bytes.

To be loaded, it is copied out into a temporary folder that is gone again when loading ends: ONNX Runtime maps large
weights from files of their own, which a member of an archive is not. So loading takes the bundle's size on the
temporary disk for a moment. (Where an opened file cannot be removed, on Windows, the mapped ones stay until the system
clears that disk.)
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from earn.errors import EarnError
from earn.files import check_writable, written_whole
from earn.manifest import MANIFEST_FILE, Manifest, check_graphs, is_inside

MOST_MEMBERS = 1000
_PIECE = 1 << 20  # bytes copied at a time


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
                shutil.copyfileobj(file, member, _PIECE)
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
                        shutil.copyfileobj(source, copy, _PIECE)
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
