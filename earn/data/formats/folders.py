"""Finding a format's files: in the folder that was named, or in its subfolder raw/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from earn.errors import EarnError


def matches(folder: Path, pattern: str) -> list[Path]:
    """The files in the folder or its raw/ that match."""
    return sorted(folder.glob(pattern)) + sorted((folder / "raw").glob(pattern))


def only_match(folder: Path, pattern: str) -> Path | None:
    """The one file in the folder or its raw/ that matches, if any.

    Raises:
        EarnError: several match.
    """
    return only_one(folder, matches(folder, pattern))


def only_one(folder: Path, paths: Sequence[Path]) -> Path | None:
    """The one path, if any.

    Raises:
        EarnError: there are several; names them as seen from the folder.
    """
    if len(paths) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in paths)
        raise EarnError(
            f"{folder}: holds {len(paths)} files where one is expected: {names}. Keep one, or name a single data set."
        )
    return paths[0] if paths else None
