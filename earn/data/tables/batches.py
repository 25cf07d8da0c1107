"""A table as it is read: in batches of rows, whose cells are columns of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batch:
    """Rows of a table."""

    columns: Mapping[str, Any]  # name -> pyarrow.Array [rows]
    source: str  # for messages
    numbers: Sequence[int]  # [rows], the rows' lines in a text file or numbers from 1 elsewhere
    unit: str  # what these numbers count: "line" or "row"

    def where(self, row: int) -> str:
        """The words for a row in messages."""
        return f"{self.source}, {self.unit} {self.numbers[row]}"


class Source:
    """A table that is read in batches."""

    name: str  # what it is called in messages
    says: str  # what it is, for people
    names: Sequence[str]  # its columns
    roles: Mapping[str, str] = {}  # role -> name of a column, where the kind of file fixes them

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Batches with these columns."""
        raise NotImplementedError
