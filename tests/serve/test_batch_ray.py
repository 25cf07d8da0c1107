"""Batch runs on Ray: on this machine, and on a simulated cluster that loses a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from earn.serve.batch import run_batch
from earn.serve.batch_worker import Job
from tests.serve.conftest import USERS, read

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("ray.data", reason='Ray is not installed: pip install "earn-edge[ray]"')
pytestmark = pytest.mark.slow


def assert_same(out: Path, alone: Path) -> None:
    """Every row once, in the order of the input, with the list of a run in one process."""
    for row, want in zip(read(out), read(alone), strict=True):
        assert (row["user"], row["items"]) == (want["user"], want["items"])
        assert row["scores"] == pytest.approx(want["scores"], abs=1e-4)


def test_two_workers_give_what_one_process_gives(toy_bundle: Path, tmp_path: Path, histories: Path) -> None:
    alone = Job(str(toy_bundle), tmp_path / "alone", k=3, block_users=7)
    run_batch(alone, [histories])
    report = run_batch(Job(str(toy_bundle), tmp_path / "two", k=3, block_users=7), [histories], workers=2)
    assert (report.users, report.answered, report.blocks) == (USERS, USERS, 5)  # of 7, 2 rows, ...
    assert_same(tmp_path / "two", alone.out)


def test_a_node_that_is_killed_costs_no_row_and_doubles_none(toy_bundle: Path, tmp_path: Path, histories: Path) -> None:
    from ray.cluster_utils import Cluster

    alone = Job(str(toy_bundle), tmp_path / "alone", k=3, block_users=1)
    run_batch(alone, [histories])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = [cluster.add_node(num_cpus=1)]

    def lose_it(done: int, users: int) -> None:
        if lost and done >= 6:
            cluster.remove_node(lost.pop(), allow_graceful=False)

    try:
        job = Job(str(toy_bundle), tmp_path / "cluster", k=3, block_users=1)
        report = run_batch(job, [histories], workers=2, address=cluster.address, progress=lose_it)
    finally:
        cluster.shutdown()
    assert not lost
    assert (report.answered, report.blocks) == (USERS, USERS)
    assert_same(tmp_path / "cluster", alone.out)
