"""The worker of a batch run: answers a block's rows in batches, and writes the block's files whole.

Rows are answered shortest history first, so that the users of a batch have histories of about the same length: within
a batch all are padded to the longest. A batch is filled by tokens, not by users, so that its memory has a bound.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import getpid
from pathlib import Path
from platform import node
from typing import Any

import numpy as np

from earn.catalog import CATALOG_FILE
from earn.errors import EarnError
from earn.files import sha256, written_whole
from earn.filters import AllOf, AnyOf, Filter, from_text
from earn.manifest import MANIFEST_FILE, Manifest
from earn.places import bundle_at
from earn.runtime.lists import Recommendations
from earn.runtime.recommender import Recommender
from earn.runtime.request import EXACT
from earn.serve.batch_input import ANSWERS, REJECTED, Block, Columns, Row, rows_of


@dataclass(frozen=True)
class Job:
    """What a batch run does, as its workers are told."""

    bundle: str
    out: Path
    columns: Columns = field(default_factory=Columns)
    k: int = 10
    beams: int | str | None = None  # as of `Recommender.recommend`
    exclude_history: bool = False
    allow: tuple[str, ...] = ()  # filters (earn.filters.from_text) that hold for all rows; those of a row hold besides
    block: tuple[str, ...] = ()
    unknown: str = "error"  # what to do with unknown items: "error" sets the row aside, "skip" leaves them out
    engine: str = "cpu"
    threads: int = 1  # of one worker
    block_users: int = 2000  # rows of a block: what a stopped run does again at most, per worker
    batch_tokens: int = 1024  # history tokens, padding included, that one pass reads at most

    def settings(self) -> dict[str, Any]:
        """What the answers and their division into blocks depend on, beside the bundle and the input."""
        of_this_machine = ("bundle", "out", "threads", "batch_tokens")
        return {name: value for name, value in asdict(self).items() if name not in of_this_machine}


@dataclass(frozen=True)
class BlockReport:
    """What a worker says of a block that it has finished."""

    index: int
    rows: int
    rejected: int
    seconds: float
    tokens: int  # of the histories that were answered
    padded: int  # tokens that were computed for them


def bundle_identity(bundle: str) -> dict[str, str]:
    """The SHA-256 of the bundle's manifest, which lists the sums of all its files, and of its catalog.

    Raises:
        EarnError: there is no bundle.
    """
    with bundle_at(bundle) as folder:
        manifest = Manifest.load(folder, verify=False)
        return {"bundle": sha256(folder / MANIFEST_FILE), "catalog": manifest.files[CATALOG_FILE].sha256}


class BlockWorker:
    """Holds a loaded bundle and answers one block after another."""

    def __init__(self, job: Job, identity: Mapping[str, str]) -> None:
        """Loads the bundle that has this identity.

        Raises:
            EarnError: it is another one, damaged, cannot be loaded, or does not allow the job's settings.
        """
        self._job, self._identity = job, identity
        self._recommender = Recommender.load(job.bundle, job.engine, job.threads, arena=True)
        if bundle_identity(job.bundle) != identity:  # asked now, for it may have been replaced at any time before
            raise EarnError(f"{job.bundle}: is not the bundle that the run began with. Copy that one here.")
        self._recommender.search_width(job.k, None if job.beams == EXACT else job.beams)
        self._allow, self._block = AllOf(map(from_text, job.allow)), AnyOf(map(from_text, job.block))
        self._recommender.filters.check(self._allow, self._block, job.unknown)

    def __call__(self, block: Block) -> BlockReport:
        """Answers a block and writes its files.

        Raises:
            EarnError: the input has changed, or the bundle cannot answer.
        """
        started = time.perf_counter()
        users, rows = rows_of(block, self._job.columns)
        reasons = [self._problem(*each) for each in zip(users.is_null(), rows, strict=True)]
        good = [row for row, reason in enumerate(reasons) if reason is None]
        bad = [row for row, reason in enumerate(reasons) if reason is not None]
        lengths = {row: self._length(rows[row]) for row in good}
        answers: dict[int, Recommendations] = {}
        padded = 0
        for batch in batches(lengths, self._job.batch_tokens, self._recommender.manifest.limits.batch):
            padded += lengths[batch[-1]] * len(batch)
            answers |= zip(batch, self._answer([rows[row] for row in batch]), strict=True)
        if bad:
            columns = {
                "user": users.take(np.array(bad, np.int64)),
                "file": [block.file.path] * len(bad),
                "row": [block.first_row + row for row in bad],
                "reason": [reasons[row] for row in bad],
            }
            _write(block.path(self._job.out, REJECTED), columns)
        columns = {"user": users.take(np.array(good, np.int64)), **self._answer_columns([answers[row] for row in good])}
        _write(block.path(self._job.out, ANSWERS), columns)
        return BlockReport(
            block.index, block.rows, len(bad), time.perf_counter() - started, sum(lengths.values()), padded
        )

    def _problem(self, has_no_user: Any, row: Row) -> str | None:
        """Why a row cannot be answered."""
        if has_no_user.as_py():
            return "The row has no user."
        if not row.history:
            return "The history is empty."
        if None in row.history or None in (row.exclude or ()):
            return "A list holds a null where an item id belongs."
        try:
            known = self._recommender.history(_ids(row.history), self._job.unknown)
            self._recommender.indices(_ids(row.exclude), self._job.unknown)
            self._recommender.filters.check(*self._filters(row), self._job.unknown)
        except EarnError as error:
            return str(error)
        return None if known else "The history has no item of the catalog."

    def _length(self, row: Row) -> int:
        """Tokens of a row's history as the model reads it."""
        return len(self._recommender.tokens(self._recommender.history(_ids(row.history), self._job.unknown)))

    def _filters(self, row: Row) -> tuple[Filter, Filter]:
        """What a row allows and blocks, with what the run does."""
        allow = self._allow if row.allow is None else self._allow & from_text(row.allow)
        return allow, self._block if row.block is None else self._block | from_text(row.block)

    def _answer(self, rows: Sequence[Row]) -> list[Recommendations]:
        job = self._job
        histories, exclusions = [_ids(row.history) for row in rows], [_ids(row.exclude) for row in rows]
        allow, block = zip(*map(self._filters, rows), strict=True)
        return self._recommender.recommend_batch(
            histories, job.k, job.beams, exclusions, job.exclude_history, job.unknown, allow, block
        )

    def _answer_columns(self, answers: Sequence[Recommendations]) -> dict[str, Any]:
        import pyarrow as pa

        return {
            "items": pa.array([[item.item_id for item in items] for items in answers], pa.list_(pa.string())),
            "scores": pa.array([[item.score for item in items] for items in answers], pa.list_(pa.float64())),
            **{name: pa.array([value] * len(answers), pa.string()) for name, value in self._identity.items()},
        }


def _ids(values: Sequence[str | int | None] | None) -> list[str | int]:
    """A list's item ids; a null in it was found before."""
    return [value for value in values or () if value is not None]


def batches(lengths: Mapping[int, int], most_tokens: int, most_rows: int) -> Iterator[list[int]]:
    """Rows in batches, the shortest first; one row at least, however long.

    Args:
        lengths: tokens of each row.
        most_tokens: of a batch, where each of its rows counts as long as the longest.
        most_rows: of a batch.
    """
    batch: list[int] = []
    for row in sorted(lengths, key=lambda row: lengths[row]):
        if batch and (len(batch) == most_rows or lengths[row] * (len(batch) + 1) > most_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    """Writes a parquet file, whole, even where two workers were given the same block."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    with written_whole(path, owner=f"{node()}-{getpid()}") as beside:
        write_table(pa.table(dict(columns)), beside)
