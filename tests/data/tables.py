"""Small tables for the tests of what is imported from plain files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from earn.data import Interactions
from earn.data.import_options import ImportOptions
from earn.data.tables.files import import_files

HEADER = "user_id,item_id,timestamp\n"
TWO = HEADER + "u,y,2\nu,x,1\n"
RATED = (
    "user_id,item_id,timestamp,rating\n"
    "u,a,2020-01-01,5\nu,b,2020-01-02,1\nu,c,2020-01-03,3.5\nu,a,2020-01-04,5\nu,a,2020-01-05,5\nv,a,2020-01-06,4\n"
)


def sequences(data: Interactions) -> dict[str, list[str]]:
    return {
        user: [data.item_ids[item] for item in sequence]
        for user, sequence in zip(data.user_ids, data.sequences, strict=True)
    }


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    return path


def read(path: Path, items: Path | None = None, **options: Any) -> tuple[Interactions, str]:
    """What was read, and what was said."""
    said: list[str] = []
    return import_files([path], items, ImportOptions(**options), said.append).interactions, "\n".join(said)


def packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)
