"""A batch run on Ray Data: one actor for each worker, which holds a loaded bundle and takes block after block.

What goes through Ray are numbers of blocks and reports: workers read and write the files themselves, so these must be
seen from every node under the same paths. Where a node is lost, Ray gives its blocks to another worker.
"""

from __future__ import annotations

import os
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

    def __init__(self, job: Job, identity: Mapping[str, str], blocks: Sequence[Block]) -> None:
        """Loads the bundle; see `BlockWorker`."""
        self._worker, self._blocks = BlockWorker(job, identity), blocks

    def __call__(self, row: Mapping[str, int]) -> dict[str, Any]:
        """Answers the block of that number among the run's."""
        return asdict(self._worker(self._blocks[row["id"]]))


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
    needs = {"num_cpus": job.threads} if job.engine in ("cpu", ONE_GRAPH) else {"num_gpus": 1}
    here = {"num_cpus": workers * job.threads, "include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(**here, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise EarnError(
            f"No Ray cluster answers at {address!r} ({error}). Check the address, or leave it out."
        ) from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        numbers = ray.data.range(len(blocks), override_num_blocks=len(blocks))
        reports = numbers.map(RayWorker, fn_constructor_args=(job, identity, blocks), concurrency=workers, **needs)
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
