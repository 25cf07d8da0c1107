"""The scripts beside the package run from end to end and say what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_example_app_recommends_from_a_bundle(toy_bundle: Path) -> None:
    command = [sys.executable, "examples/embed.py", str(toy_bundle), "1", "2"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 5
    scores = [float(score) for score, *_ in lines]
    assert scores == sorted(scores, reverse=True)
    assert not {"1", "2"} & {item_id for _, item_id, *_ in lines}
