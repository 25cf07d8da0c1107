from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from benchmarks import peers, sides
from benchmarks.sides import Answer, OwnProcess, measure, timed
from earn.catalog import Catalog


def write_data(folder: Path, items: Catalog, users: Mapping[str, Sequence[str]]) -> str:
    """Writes data: the items' identifiers, and what users chose. Returns the folder's name."""
    folder.mkdir(exist_ok=True)
    (folder / "T.index.json").write_text(json.dumps(dict(zip(items.item_ids, items.identifiers, strict=True))))
    (folder / "T.inter.json").write_text(json.dumps(dict(users)))
    return str(folder)


class Here(OwnProcess):
    """Stands for a process of its own: the object is in this one, so that no libraries are imported anew."""

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        self._object = make(*arguments)

    def __exit__(self, *error: object) -> None:
        del self._object

    def ask(self, method: str, *arguments: object) -> Answer:
        return timed(partial(getattr(self._object, method), *arguments))()


@pytest.fixture
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides take turns in this process and without pauses: what they say is looked at, not how fast they are."""
    monkeypatch.setattr(peers, "OwnProcess", Here)
    monkeypatch.setattr(sides, "KEEP_MEMORY", {})
    monkeypatch.setattr(sides, "measure", partial(measure, pause=0))
