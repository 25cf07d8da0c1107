"""A batch run on Ray Data: one actor for each worker, which holds a loaded bundle and takes block after block.

What goes through Ray are places of rows and reports: workers read and write the files themselves, so these must be
seen from every node under the same paths. Where a node is lost, Ray gives its blocks to another worker.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from earn.errors import EarnError, to_install
from earn.runtime.engine import ONE_GRAPH
from earn.serve.batch_input import Block
from earn.serve.batch_worker import BlockReport, BlockWorker, Job


class RayWorker:
    """A worker as Ray Data calls it."""

    def __init__(self, job: Job, identity: Mapping[str, str]) -> None:
        """Loads the bundle; see `BlockWorker`."""
        self._worker = BlockWorker(job, identity)

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, Any]:
        """Answers a row's block."""
        return asdict(self._worker(pickle.loads(row["block"])))


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
