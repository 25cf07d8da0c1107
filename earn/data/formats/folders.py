"""Finding a format's files: in the folder that was named, or in one of its subfolders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from earn.errors import EarnError


def matches(folder: Path, pattern: str, subfolder: str = "") -> list[Path]:
    """The files in the folder or its subfolder that match."""
    return [path for place in dict.fromkeys((folder, folder / subfolder)) for path in sorted(place.glob(pattern))]


def only_match(folder: Path, pattern: str, subfolder: str = "") -> Path | None:
    """The one file in the folder or its subfolder that matches, if any.

    Raises:
        EarnError: several match.
    """
    return only_one(folder, matches(folder, pattern, subfolder))


def needed_match(folder: Path, pattern: str, subfolder: str = "", remedy: str = "Put the file there.") -> Path:
    """The one file in the folder or its subfolder that matches.

    Raises:
        EarnError: none or several match; says the remedy for the first.
    """
    path = only_match(folder, pattern, subfolder)
    if path is None:
        places = f", nor does its {subfolder}/" if subfolder else ""
        raise EarnError(f"{folder}: holds no {pattern}{places}. {remedy}")
    return path


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
