"""The scripts beside the package run from end to end and say what they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.latency import check_same_work
from earn.runtime.recommender import Recommendation

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_latency_prints_its_line_of_json() -> None:
    command = [sys.executable, "benchmarks/latency.py", "--shape", "tiny", "--repeats", "1", "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["prompt"] == 44
    assert result["speedup_vs_hf"] == round(result["hf_generate_ms"] / result["earn_fp32_ms"], 2)
    assert result["speedup_vs_dense"] == round(result["dense_fp32_ms"] / result["earn_fp32_ms"], 2)
    assert result["earn_fp32_trie_ms"] > 0
    assert result["machine"]
    # Rows of 2 heads of 16 numbers, keys and values, 4 bytes each; 20 beams over 3 steps; 1 early layer of 4.
    row, generated = 2 * 2 * 16 * 4, 20 * 3
    assert result["cache_bytes"] == {
        "dense": 4 * row * (44 + generated),
        "earn": row * (44 + generated) + 3 * row * (2 + generated),
    }


def test_latency_is_not_measured_where_the_dense_sides_differ() -> None:
    got = [Recommendation("1", -1.0, ""), Recommendation("2", -2.0, ""), Recommendation("3", -2.00001, "")]
    check_same_work(["1", "2", "3"], got)
    check_same_work(["1", "3", "2"], got)  # a near tie
    for want in (["2", "1", "3"], ["1", "2", "4"], ["1", "2"]):
        with pytest.raises(SystemExit, match="differ"):
            check_same_work(want, got)


def test_the_example_app_recommends_from_a_bundle(toy_bundle: Path) -> None:
    command = [sys.executable, "examples/embed.py", str(toy_bundle), "1", "2"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 5
    scores = [float(score) for score, *_ in lines]
    assert scores == sorted(scores, reverse=True)
    assert not {"1", "2"} & {item_id for _, item_id, *_ in lines}
