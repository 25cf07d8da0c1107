"""Recommendations for all users of parquet files: `earn batch BUNDLE HISTORIES --out RECS`.

The histories are cut into blocks of so many users. A block is the unit of work: one worker answers it and writes its
files whole, so a block that has its file is done, and a run that was stopped goes on with the others.

    RECS/run.json                            what the run answers with, and its blocks (`Run`)
    RECS/recommendations/block-000000.parquet    user, items, scores, bundle, catalog; the rows of the block in order
    RECS/rejected/block-000000.parquet           user, file, row, reason; written first, and only where rows are bad

The blocks of a run follow from its input files alone. Run again with another bundle, other settings or other files,
the same folder is refused.

    report = run_batch(Job(bundle, out), files, progress=print)

With several workers a run is on Ray Data: one actor for each worker, which holds a loaded bundle and takes block after
block. What goes through Ray are places of rows and reports: workers read and write the files themselves, so these must
be seen from every node under the same paths. Where a node is lost, Ray gives its blocks to another worker.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from earn.errors import EarnError, to_install
from earn.exchange import only_writer
from earn.files import check_writable, read_json, write_json
from earn.runtime.engine import ONE_GRAPH
from earn.serve.batch_input import ANSWERS, REJECTED, Block, blocks_of, parquet_files
from earn.serve.batch_worker import BlockReport, BlockWorker, Job, bundle_identity

RUN_FILE = "run.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BatchReport:
    """What a run has done, and how fast."""

    users: int  # rows of the input
    answered: int  # rows with recommendations, those of earlier runs too
    rejected: int  # rows that were set aside, likewise
    blocks: int
    blocks_before: int  # blocks that were done before this run
    seconds: float  # of this run
    users_per_second: float  # rows of this run
    padding: float  # share of the computed history tokens that was padding


class RayWorker:
    """A worker as Ray Data calls it."""

    def __init__(self, job: Job, identity: Mapping[str, str]) -> None:
        """Loads the bundle; see `BlockWorker`."""
        self._worker = BlockWorker(job, identity)

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, Any]:
        """Answers a row's block."""
        return asdict(self._worker(pickle.loads(row["block"])))


def run_batch(
    job: Job, histories: Sequence[Path], workers: int = 1, address: str | None = None, progress: Progress | None = None
) -> BatchReport:
    """Answers every row of the files, or what is left of them, and writes the answers.

    Args:
        job: the bundle, the settings and where the answers go.
        histories: parquet files, or folders of such.
        workers: processes that hold the bundle; more than one run on Ray.
        address: of a Ray cluster ("auto": the one of this machine); its nodes see the same files.
        progress: called with users done and users in all, after each block.

    Raises:
        EarnError: a file that cannot be read, or a folder that holds another run.
    """
    check_writable(job.out / RUN_FILE)
    if any(job.out.resolve().is_relative_to(place.resolve()) for place in histories):
        raise EarnError(f"{job.out}: lies within the histories and would be read with them. Choose another folder.")
    blocks = list(blocks_of(parquet_files(histories), job.block_users, job.columns))
    if not blocks:
        raise EarnError("The files hold no row. Check the paths.")
    identity = bundle_identity(job.bundle)
    run = {
        **identity,
        "settings": job.settings(),
        "files": [asdict(file) for file in dict.fromkeys(block.file for block in blocks)],
    }
    job.out.mkdir(parents=True, exist_ok=True)
    with only_writer(job.out) as is_alone:
        if not is_alone:
            raise EarnError(f"{job.out}: another run is writing there. Wait for it, or choose another folder.")
        _begin(job.out, run)
        left = [block for block in blocks if not block.path(job.out, ANSWERS).exists()]
        started = time.perf_counter()
        reports = []
        users = sum(block.rows for block in blocks)
        done = users - sum(block.rows for block in left)
        for report in _reports(job, identity, left, workers, address):
            reports.append(report)
            done += report.rows
            if progress:
                progress(done, users)
        return _report(job, blocks, reports, time.perf_counter() - started)


def _begin(out: Path, run: Mapping[str, Any]) -> None:
    """Writes the run's manifest, or compares it with the one that is there, and removes what a killed run has left."""
    path = out / RUN_FILE
    if path.exists():
        before = read_json(path)
        differs = [
            key for key in run if not isinstance(before, dict) or before.get(key) != json.loads(json.dumps(run[key]))
        ]
        if differs:
            raise EarnError(
                f"{out}: holds a run with another {' and '.join(differs)}. Choose another folder, or remove this one."
            )
    elif any(out.iterdir()):
        raise EarnError(f"{out}: holds files but no {RUN_FILE}. Choose an empty or new folder.")
    else:
        write_json(path, run)
    for folder in (ANSWERS, REJECTED):
        (out / folder).mkdir(exist_ok=True)
        for left in (out / folder).glob("*.part"):
            left.unlink()


def _reports(
    job: Job, identity: Mapping[str, str], blocks: Sequence[Block], workers: int, address: str | None
) -> Iterator[BlockReport]:
    """The reports of blocks, as these get done."""
    if not blocks:
        return iter(())
    if workers == 1 and address is None:
        return map(BlockWorker(job, identity), blocks)
    return reports_of_cluster(job, identity, blocks, workers, address)


def reports_of_cluster(
    job: Job, identity: Mapping[str, str], blocks: Sequence[Block], workers: int, address: str | None
) -> Iterator[BlockReport]:
    """Answers blocks on a cluster, and yields their reports as they get done.

    Args:
        job: what is answered, and how.
        identity: of the bundle, which every worker compares with its own.
        blocks: what is left to do.
        workers: actors; each takes the job's threads as CPUs, or one GPU.
        address: of the cluster; None starts one on this machine, and stops it at the end.

    Raises:
        EarnError: there is no Ray or no such cluster, or a worker met an error.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no request to another host
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EarnError(f"Several workers need Ray. Install it: {to_install('ray')}") from error
    on_cpu = job.engine in ("cpu", ONE_GRAPH)
    here: dict[str, Any] = (
        {"num_cpus": workers * job.threads, "include_dashboard": False} if address is None else {"address": address}
    )
    try:
        ray.init(**here, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise EarnError(
            f"No Ray cluster answers at {address!r} ({error}). Check the address, or leave it out."
        ) from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [{"block": pickle.dumps(block)} for block in blocks]
        waiting = ray.data.from_items(rows, override_num_blocks=len(rows))
        reports = waiting.map(
            RayWorker,
            fn_constructor_args=(job, identity),
            concurrency=workers,
            num_cpus=job.threads if on_cpu else None,
            num_gpus=None if on_cpu else 1,
        )
        for report in reports.iter_rows():
            yield BlockReport(**report)
    except Exception as error:  # Ray's are many, and wrap what a worker raised
        raise EarnError(_reason(error)) from error
    finally:
        ray.shutdown()


def _reason(error: Exception) -> str:
    """What a worker of ours has said, which stands at the end of Ray's text, or else Ray's own first line."""
    said = re.findall(rf"{re.escape(EarnError.__module__)}\.EarnError: (.*)", str(error))
    if said:
        return str(said[-1])
    return f"Ray stopped the run ({str(error).strip().splitlines()[0]}). Run the same command again: it goes on."


def _report(job: Job, blocks: Sequence[Block], reports: Sequence[BlockReport], seconds: float) -> BatchReport:
    """Counts the rows of all files that the run has written.

    Raises:
        EarnError: rows are missing.
    """
    from pyarrow.parquet import read_metadata

    answered, rejected = (
        sum(read_metadata(path).num_rows for block in blocks if (path := block.path(job.out, kind)).exists())
        for kind in (ANSWERS, REJECTED)
    )
    users, done = sum(block.rows for block in blocks), sum(report.rows for report in reports)
    if answered + rejected != users:
        raise EarnError(
            f"{job.out}: {users} rows came in, {answered} were answered and {rejected} rejected. Files were changed: "
            "run again in another folder."
        )
    padded = sum(report.padded for report in reports)
    return BatchReport(
        users=users,
        answered=answered,
        rejected=rejected,
        blocks=len(blocks),
        blocks_before=len(blocks) - len(reports),
        seconds=seconds,
        users_per_second=done / seconds if reports else 0.0,
        padding=1 - sum(report.tokens for report in reports) / padded if padded else 0.0,
    )
