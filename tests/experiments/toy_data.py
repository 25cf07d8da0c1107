"""Data over the items of a small bundle."""

from __future__ import annotations

import json
from pathlib import Path

from earn.runtime.recommender import Recommender


def write_toy_data(folder: Path, bundle: Path, users: int, items: int) -> None:
    """Writes so many users in LC-Rec's form; each walks through so many items from a start of its own."""
    index = {str(item): list(row) for item, row in enumerate(Recommender.load(bundle).catalog.identifiers)}
    (folder / "T.index.json").write_text(json.dumps(index))
    bought = {f"u{user}": [str((user + step) % len(index)) for step in range(items)] for user in range(users)}
    (folder / "T.inter.json").write_text(json.dumps(bought))
