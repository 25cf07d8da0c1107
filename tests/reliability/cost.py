"""What the checks cost: load time and latency of this code beside an older one, alternating, each in its own process.

    git worktree add --detach OLD 206cdd5
    python -m tests.reliability cost --against OLD

Each side exports the same untrained model over 12,000 items with its own code. A round starts a process of each side,
in turns; it loads the bundle LOADS times and then answers REQUESTS requests. The figures are medians over all rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

ITEMS, LOADS, REQUESTS = 12_000, 7, 60
HERE = Path(__file__).parent.parent.parent
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
EXPORT = f"""
import sys; from pathlib import Path
namespace = {{}}
exec(Path(sys.argv[2]).read_text(), namespace)
namespace["make"](Path(sys.argv[1]), {ITEMS}, 0, {SIZES!r})
"""
MEASURE = f"""
import json, sys, time, random
from earn.runtime.recommender import Recommender
found = {{"load": [], "request": []}}
Recommender.load(sys.argv[1], threads=1)
for _ in range({LOADS}):
    started = time.perf_counter(); recommender = Recommender.load(sys.argv[1], threads=1)
    found["load"].append(time.perf_counter() - started)
chance = random.Random(0)
for number in range({REQUESTS}):
    history = chance.choices(recommender.catalog.item_ids, k=20)
    started = time.perf_counter(); recommender.recommend(history, 10)
    found["request"].append(time.perf_counter() - started)
print(json.dumps(found))
"""


def compare(old: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Median seconds of both sides, and by how much this code takes longer, as a share."""
    sides = {"old": old.resolve(), "new": HERE}
    times: dict[str, dict[str, list[float]]] = {name: {"load": [], "request": []} for name in sides}
    for name, tree in sides.items():
        _python(tree, EXPORT, work / name, HERE / "tests/reliability/made.py")
    for number in range(rounds):
        for name in sorted(sides, reverse=number % 2 == 1):
            measured = json.loads(_python(sides[name], MEASURE, work / name).splitlines()[-1])
            for what, seconds in measured.items():
                times[name][what] += seconds
    medians = {name: {what: median(seconds) for what, seconds in each.items()} for name, each in times.items()}
    more = {what: medians["new"][what] / medians["old"][what] - 1 for what in ("load", "request")}
    return {"items": ITEMS, "rounds": rounds, "seconds": medians, "more": more}


def _python(tree: Path, script: str, *arguments: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout
