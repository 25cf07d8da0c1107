"""Reading and writing files so that nothing is lost.

Text is UTF-8, or UTF-16 where its first bytes show it, and may be gzipped. What is written appears whole or not at all.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, RawIOBase, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from earn.errors import EarnError
from earn.exchange import OLD, exchange, new_folder, recover

GZIP = b"\x1f\x8b"
PACKED = {  # the first bytes of files that are taken for text now and then
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"PAR1": "a parquet file",
}


def read_text(path: Path) -> str:
    """The file's text; `open_text` says what is read.

    Raises:
        EarnError: the file cannot be read or is no such text; names the line of the first bad byte.
    """
    with open_text(path) as file:
        return file.read()


def read_lines(path: Path) -> list[str]:
    """The file's lines without their ends: LF, CR LF, or in a file that has neither, CR.

    Raises:
        EarnError: as `read_text`.
    """
    # not splitlines(): titles may hold characters that it takes for line ends
    text = read_text(path)
    return [line.rstrip("\r") for line in (text if "\n" in text else text.replace("\r", "\n")).split("\n")]


@contextmanager
def open_text(path: Path, encoding: str | None = None, newline: str | None = "") -> Iterator[TextIO]:
    """Opens a text file, gzipped or not, to be read in pieces.

    Args:
        path: the file; its contents say whether it is gzipped, not its name.
        encoding: of the text; None: UTF-8, or UTF-16 if the file's first bytes show it.
        newline: as of `open`; "" leaves line ends as they are.

    Raises:
        EarnError: the file cannot be read, is no text, or not in this encoding; names the line of the first bad byte.
    """
    try:
        with open_bytes(path) as file:
            start = file.peek(4)[:256]
            encoding = encoding or _encoding(path, start)
            yield TextIOWrapper(file, encoding, newline=newline)
    except UnicodeError as error:
        raise _not_in_encoding(path, encoding or "utf-8") from error
    except LookupError as error:
        raise EarnError(f"{path}: {error}. Name an encoding such as utf-8, latin-1 or cp1252.") from error


@contextmanager
def open_bytes(path: Path) -> Iterator[BufferedReader]:
    """Opens a file, gzipped or not, as bytes.

    Raises:
        EarnError: the file cannot be read or its gzip is damaged.
    """
    try:
        with path.open("rb") as raw:
            if raw.peek(2)[:2] != GZIP:
                yield raw
                return
            with gzip.open(raw) as unpacked:
                yield BufferedReader(cast(RawIOBase, unpacked), 1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise EarnError(f"{path}: its gzip is damaged or cut short ({error}). Fetch the file again.") from error
    except OSError as error:
        raise EarnError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise EarnError(f"{str(path)!r}: a path holds no NUL. Check it.") from error


def _encoding(path: Path, start: bytes) -> str:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    kind = next((kind for magic, kind in PACKED.items() if start.startswith(magic)), None)
    if kind is not None:
        raise EarnError(f"{path}: this is {kind}, not text. Unpack it or save it as a text file first.")
    if 0 in start:
        # text in a Latin script without a byte order mark: every other byte is 0
        halves = {"utf-16-le": start[1::2], "utf-16-be": start[::2]}
        match = next((name for name, half in halves.items() if half.count(0) > 0.9 * len(half)), None)
        if match is None:
            raise EarnError(f"{path}: holds bytes that are no text. Give a text file.")
        return match
    return "utf-8-sig"


def _not_in_encoding(path: Path, encoding: str) -> EarnError:
    """Names the first line that is not in this encoding."""
    if encoding.startswith("utf-8"):
        with open_bytes(path) as file:
            for line, content in enumerate(file, start=1):
                try:
                    content.decode()
                except UnicodeDecodeError as error:
                    return EarnError(
                        f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8. "
                        f"Convert the file first, for example: iconv -f latin1 -t utf-8 {path.name}, or read a table "
                        "as it is: earn import --encoding latin1"
                    )
    return EarnError(f"{path}: is not {encoding} throughout. Convert the file to UTF-8 first.")


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


def check_writable(path: Path) -> None:
    """Refuses a place where nothing can be written, before the work whose result belongs there.

    Args:
        path: of a file or folder to be; neither it nor the folders above it need exist.

    Raises:
        EarnError: the nearest folder above it that exists cannot be written to.
    """
    folder = next(folder for folder in path.resolve().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EarnError(f"{path}: cannot be written ({error.strerror}: {folder}). Choose another place.") from error


@contextmanager
def written_whole(path: Path, owner: str = "") -> Iterator[Path]:
    """Yields a path beside `path` to write a file to, and puts it in its place when the block ends well.

    Args:
        path: the file.
        owner: names who writes, where several may write the same file at once: the last one's stays.
    """
    beside = path.with_name(f"{path.name}{'.' if owner else ''}{owner}.part")
    try:
        yield beside
        to_disk(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk; left out where a system cannot do that."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(opened)
    except OSError:  # nor does it flush what was opened to be read
        pass
    finally:
        os.close(opened)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` to write into, and puts it in its place when the block ends well.

    A folder that stood there before is replaced only then; if the block or the exchange fails, nothing has changed.

    Raises:
        EarnError: nothing can be written there.
    """
    try:
        folder = folder.resolve()  # a link stays a link: what it points to is replaced
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        beside, lock = new_folder(folder)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, or links that go round in a circle
        reason = getattr(error, "strerror", None) or error
        raise EarnError(f"{folder}: cannot be written ({reason}). Choose another place.") from error
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp makes it private
        for path in (*beside.rglob("*"), beside):
            to_disk(path)
        _put_in_place(beside, folder)
        to_disk(folder.parent)
    finally:
        with suppress(OSError):  # another's
            _let_write(beside)
        shutil.rmtree(beside, ignore_errors=True)  # what stood there before
        if lock >= 0:
            os.close(lock)


def link_files(source: Path, target: Path) -> None:
    """Makes `target` hold what the folder `source` holds, as second names of the same files where these can be had.

    Whoever writes there must replace files, as `written_whole` does, and never change them where they stand.
    """

    def link(file: str, name: str) -> None:
        try:
            os.link(os.path.realpath(file), name)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(file, name)

    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
    _let_write(target)


def _let_write(folder: Path) -> None:
    """Lets the owner write into a folder and those below: copies of a read-only one are read-only too."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, os.stat(path).st_mode | 0o700)  # others may do no more than before


def _put_in_place(beside: Path, folder: Path) -> None:
    """Renames `beside` to `folder`; what stood there is `beside` afterwards, or gone."""
    if folder.is_dir() and exchange(beside, folder):
        return
    old = beside.with_name(beside.name + OLD)
    if folder.exists():
        folder.rename(old)
    try:
        beside.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
