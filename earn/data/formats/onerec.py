"""OpenOneRec's released data (RecIF): histories and targets of users as lists; a folder, or its one file.

    *.parquet            uid, split: 0 for users to train with, 1 for test users; hist_video_pid, target_video_pid: item
                         numbers, oldest first; hist_ad_pid, target_ad_pid and other domains likewise
    *pid2sid.parquet     pid, sid: three whole numbers per item, which become <s_a_N><s_b_N><s_c_N>; optional

One domain is read: video, or else the first of DOMAINS that is there. A user's sequence is the history and then the
targets. The targets of test users are held out. The data names no items for validation: the newest of each user to
train with is taken. Where there are identifiers, items without one are left out and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from earn.catalog import Catalog
from earn.console import note
from earn.data.formats.folders import only_one
from earn.data.interactions import Interactions, from_histories
from earn.errors import EarnError

DOMAINS = {  # name -> the files with its identifiers
    "video": ("video_ad_pid2sid.parquet", "*video*pid2sid.parquet"),
    "ad": ("video_ad_pid2sid.parquet", "*ad*pid2sid.parquet"),
    "goods": ("goods_pid2sid.parquet", "product_pid2sid.parquet"),
    "product": ("product_pid2sid.parquet", "goods_pid2sid.parquet"),
}
LEVELS = "abcdefgh"


def is_onerec(path: Path) -> bool:
    """Whether the path is such a file, or a folder with one."""
    return bool(_user_files(path))


def read_onerec(path: Path) -> Interactions:
    """Reads the data (module docstring).

    Raises:
        EarnError: several files fit, a list holds no numbers, a user stands twice, or nothing is left.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder = path if path.is_dir() else path.parent
    file = only_one(folder, _user_files(path))
    if file is None:
        raise EarnError(f"{path}: holds no parquet file with the columns uid and hist_video_pid. Put it there.")
    domain, *others = _domains(file)
    columns = ["uid", "split", f"hist_{domain}_pid", f"target_{domain}_pid"]
    try:
        rows = parquet.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise EarnError(f"{file}: cannot be read ({error}). Fetch it again.") from error
    note(f"      {file}: domain {domain}" + (f"; not read: {', '.join(others)}" if others else ""))
    identifiers = _identifiers(folder, domain)
    sequences: dict[str, list[str]] = {}
    held_out: list[tuple[int, int]] = []
    dropped = 0
    for number, row in enumerate(rows.to_pylist(), start=1):
        user, is_test, *lists = (row[name] for name in columns)
        if user is None or is_test not in (0, 1):
            raise EarnError(f"{file}, row {number}: uid is {user!r}, split is {is_test!r}. Give a number, and 0 or 1.")
        if str(user) in sequences:
            raise EarnError(f"{file}, row {number}: the user {user} stands twice. Keep one of the rows.")
        given = [list(map(str, _numbers(values, f"{file}, row {number}"))) for values in lists]
        history, targets = ([item for item in part if identifiers is None or item in identifiers] for part in given)
        dropped += sum(map(len, given)) - len(history) - len(targets)
        if items := history + targets:
            sequences[str(user)] = items
            held_out.append((0, len(targets)) if is_test else (int(len(items) > 1), 0))
    if dropped:
        note(f"      {file}: {dropped:,} interactions with items without an identifier are left out")
    if not sequences:
        raise EarnError(
            f"{file}: no interaction is left. Give users with histories, and the identifiers of their items."
        )
    item_ids = tuple(dict.fromkeys(item for sequence in sequences.values() for item in sequence))
    catalog = None
    if identifiers is not None:
        catalog = Catalog(item_ids, tuple(identifiers[item] for item in item_ids), ("",) * len(item_ids))
    return from_histories(folder.resolve().name, item_ids, sequences, {}, catalog, tuple(held_out))


def _user_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    return [file for file in files if _domains(file)]


def _domains(file: Path) -> list[str]:
    """The domains whose columns a file has; none of another file, or one that is no parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        names = set(parquet.read_schema(file).names)
    except (pa.ArrowException, OSError):
        return []
    domains = [domain for domain in DOMAINS if {f"hist_{domain}_pid", f"target_{domain}_pid"} <= names]
    return domains if {"uid", "split"} <= names else []


def _identifiers(folder: Path, domain: str) -> dict[str, tuple[str, ...]] | None:
    from pyarrow import parquet

    files = dict.fromkeys(file for pattern in DOMAINS[domain] for file in sorted(folder.glob(pattern)))
    if not files:
        return None
    file = next(iter(files))
    table = parquet.read_table(file)
    if not {"pid", "sid"} <= set(table.column_names):
        raise EarnError(f"{file}: has the columns {', '.join(table.column_names)}. Give pid and sid.")
    identifiers = {}
    for number, (pid, sid) in enumerate(zip(table["pid"].to_pylist(), table["sid"].to_pylist(), strict=True), start=1):
        codes = _numbers(sid, f"{file}, row {number}")
        if pid is None or not 0 < len(codes) <= len(LEVELS):
            raise EarnError(f"{file}, row {number}: pid is {pid!r}, sid is {sid!r}. Give a number, and one per level.")
        tokens = (f"<s_{level}_{code}>" for level, code in zip(LEVELS, codes, strict=False))
        identifiers[str(int(pid))] = tuple(tokens)
    return identifiers


def _numbers(values: Any, where: str) -> list[int]:
    """A cell's whole numbers; none where the list is missing."""
    if values is None:
        return []
    if not isinstance(values, list) or any(value is None or value != int(value) for value in values):
        raise EarnError(f"{where}: {str(values)[:60]} is no list of whole numbers. Mend it.")
    return [int(value) for value in values]
