"""The folder that `earn import` writes.

users.parquet    user_id: string, items: list<int32>, indices of items.parquet, oldest first; one row per user
items.parquet    item_id, title, metadata: string; one row per item
import.json      what was read, with which columns and options, and what was counted
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from earn.data.import_options import ImportOptions
from earn.data.interactions import Interactions
from earn.data.tables.importing import Imported, ties_of
from earn.errors import EarnError
from earn.files import read_json, write_json

USERS, ITEMS, FACTS = "users.parquet", "items.parquet", "import.json"
VERSION = 1


def is_import(path: Path) -> bool:
    """Whether the path is a folder of `earn import`."""
    return path.is_dir() and (path / USERS).is_file() and (path / FACTS).is_file()


def check_out(folder: Path) -> None:
    """Refuses to replace a folder that holds anything but an import.

    Raises:
        EarnError: it does.
    """
    if folder.exists() and not is_import(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise EarnError(f"{folder}: is there already, and no folder of earn import. Choose another place.")


def write_import(folder: Path, imported: Imported, options: ImportOptions) -> None:
    """Writes the files of this format (module docstring) into a folder."""
    import pyarrow as pa
    from pyarrow import parquet

    data = imported.interactions
    lengths = [len(sequence) for sequence in data.sequences]
    if sum(lengths) >= 1 << 31:
        raise EarnError(f"{data.name}: {sum(lengths):,} interactions; 2,147,483,647 are the most. Filter them.")
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(data.sequences), pa.int32()))
    users = pa.table({"user_id": pa.array(data.user_ids, pa.string()), "items": lists})
    parquet.write_table(users, folder / USERS, row_group_size=1 << 17)
    words = {"item_id": data.item_ids, "title": data.titles, "metadata": data.metadata}
    items = pa.table({name: pa.array(values, pa.string()) for name, values in words.items()})
    parquet.write_table(items, folder / ITEMS)
    facts = {"version": VERSION, "name": data.name, "options": asdict(options), **imported.facts}
    write_json(folder / FACTS, facts)


def read_import(folder: Path) -> Interactions:
    """Reads a folder of `earn import` (module docstring).

    Raises:
        EarnError: it is damaged or from a newer version.
    """
    import pyarrow as pa
    from pyarrow import parquet

    facts = read_json(folder / FACTS)
    version = facts.get("version") if isinstance(facts, dict) else None
    if version != VERSION:
        raise EarnError(f"{folder}: is of version {version}, not {VERSION}. Import the data again.")
    try:
        users = parquet.read_table(folder / USERS)
        items = parquet.read_table(folder / ITEMS)
        lists = users["items"].combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
        codes = lists.flatten().to_numpy().astype(np.int64)
        offsets = lists.offsets.to_numpy()
        item_ids, titles, metadata = (tuple(items[name].to_pylist()) for name in ("item_id", "title", "metadata"))
        user_ids = tuple(users["user_id"].to_pylist())
    except (pa.ArrowException, OSError, KeyError) as error:
        raise EarnError(f"{folder}: cannot be read ({error}). Import the data again.") from error
    sequences = tuple(np.split(codes, offsets[1:-1]))
    return Interactions(str(facts["name"]), item_ids, titles, metadata, user_ids, sequences, None, ties=ties_of(facts))
