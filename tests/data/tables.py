"""Small data for the tests: files, and interactions as they are read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog
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


def write_files(folder: Path, files: Mapping[str, object]) -> Path:
    """Writes the files name -> content; what is neither text nor bytes is written as JSON."""
    for name, content in files.items():
        write(folder / name, content if isinstance(content, str | bytes) else json.dumps(content))
    return folder


def toy(
    sequences: Iterable[Sequence[int] | NDArray[np.int64]],
    items: int,
    titles: Sequence[str] = (),
    catalog: Catalog | None = None,
    held_out: tuple[tuple[int, int], ...] | None = None,
) -> Interactions:
    """Items i0, i1, ... without titles, unless these are given, and users u0, u1, ..."""
    arrays = tuple(np.array(sequence, np.int64) for sequence in sequences)
    ids, users = (
        tuple(f"{kind}{number}" for number in range(count)) for kind, count in (("i", items), ("u", len(arrays)))
    )
    none = ("",) * items
    return Interactions("toy", ids, tuple(titles) or none, none, users, arrays, catalog, held_out)


def read(path: Path, items: Path | None = None, **options: Any) -> tuple[Interactions, str]:
    """What was read, and what was said."""
    said: list[str] = []
    return import_files([path], items, ImportOptions(**options), said.append).interactions, "\n".join(said)


def packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)
