"""The file formats in which sequential recommendation data is shared: one module each, one row of SHAPED each.

A module's docstring says what is read of its format. All readers give `Interactions`. What is wrong in a file raises an
`EarnError` that names file, line (in JSON, the key) and remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from earn.data.formats.lcrec import is_lcrec, read_lcrec
from earn.data.formats.onerec import is_onerec, read_onerec
from earn.data.formats.parts import is_in_parts, read_parts
from earn.data.formats.recbole import is_recbole, read_recbole
from earn.data.formats.timesplit import is_timesplit, read_timesplit
from earn.data.interactions import Interactions
from earn.data.tables.files import holds_tables, read_tables
from earn.data.tables.folder import is_import, read_import

__all__ = ["FORMATS", "Format", "Interactions"]


@dataclass(frozen=True)
class Format:
    """A row of the table that decides which reader a source gets."""

    name: str
    looks_for: str  # what makes a path this format, for messages
    fits: Callable[[Path], bool]
    read: Callable[[Path], Interactions]


SHAPED = (  # formats that a path's names show
    Format(
        "LC-Rec or LETTER",
        "a folder with *.inter.json and *.index.json in it or in its raw/",
        is_lcrec,
        read_lcrec,
    ),
    Format("RecBole", "an *.inter file, or a folder with one", is_recbole, read_recbole),
    Format(
        "AtSpeed",
        "a folder with sequential_train.txt, sequential_valid.txt, sequential_test.txt and one *.json in it or in its "
        "raw/",
        is_timesplit,
        read_timesplit,
    ),
    Format(
        "RecBole's benchmark files, MiniOneRec or Amazon Reviews 2023",
        "a folder with *.train.inter or *.train.csv and its valid and test, or with train/*.csv, valid/ and test/",
        is_in_parts,
        read_parts,
    ),
    Format(
        "OpenOneRec",
        "a parquet file with uid, split, hist_video_pid and target_video_pid, or a folder with one",
        is_onerec,
        read_onerec,
    ),
    Format("earn import", "a folder that earn import wrote", is_import, read_import),
)


def _is_plain(path: Path) -> bool:
    return holds_tables(path) and not any(row.fits(path) for row in SHAPED)


FORMATS = (
    *SHAPED,
    Format(
        "plain table",
        "a table of users, items and times (csv, tsv, ::, json lines, parquet), or a folder of such files",
        _is_plain,
        read_tables,
    ),
)
