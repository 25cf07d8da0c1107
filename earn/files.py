"""Reading and writing files so that nothing is lost: text is UTF-8, and what is written appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from earn.errors import EarnError


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        EarnError: the file cannot be read or is not UTF-8; names the line of the first bad byte.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EarnError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EarnError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8. "
            f"Convert the file first, for example: iconv -f latin1 -t utf-8 {path.name}"
        ) from error


def read_json(path: Path) -> Any:
    """The file's JSON value, with duplicate keys refused (they would silently drop data).

    Raises:
        EarnError: unreadable, not JSON (names line and column), a key stands twice in one object, or a text holds half
            a character, which nothing could write again.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise EarnError(f"{path}: the key {twice!r} stands twice in one object. Keep one of them.")
        return result

    text = read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise EarnError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). Mend the file."
        ) from error
    except EarnError:  # a ValueError too
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise EarnError(f"{path}: cannot be read as JSON ({error}). Mend the file.") from error
    _check_characters(path, text, value)
    return value


def _check_characters(path: Path, text: str, value: Any) -> None:
    r"""Refuses \ud800 to \udfff without their other half, as of a title that was cut inside an emoji."""
    if "\\ud" not in text.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 40) : error.start + 40].encode(errors="replace").decode()
        raise EarnError(
            f"{path}: half a character (\\u{ord(error.object[error.start]):x}) in {around!r}. Mend the file."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write a file to, and puts it in its place when the block ends well."""
    beside = path.with_name(path.name + ".part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` to write into, and puts it in its place when the block ends well.

    A folder that stood there before is replaced only then; if the block or the exchange fails, nothing has changed.

    Raises:
        EarnError: nothing can be written there.
    """
    folder = folder.resolve()  # a link stays a link: what it points to is replaced
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise EarnError(f"{folder}: cannot be written ({error.strerror}). Choose another place.") from error
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp makes it private
        old = beside.with_name(beside.name + ".old")
        if folder.exists():
            folder.rename(old)
        try:
            beside.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
