"""Bundles that are replaced while somebody is killed or loads them, and a recommender that answers for a long time."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earn.errors import EarnError
from earn.files import folder_written_whole
from earn.runtime.recommender import Recommender

BEAMS = 5  # of the many requests
SETTLED = 0.1  # share of the requests after which memory should grow no more
WRITER = """
import os, shutil, sys
from pathlib import Path
from earn.files import folder_written_whole

out, source, loops = Path(sys.argv[1]), Path(sys.argv[2]), len(sys.argv) > 3
print("ready", flush=True)
while True:
    os.access("/begins", os.F_OK)
    with folder_written_whole(out) as beside:
        for path in sorted(source.iterdir()):
            shutil.copyfile(path, beside / path.name)
    os.access("/ends", os.F_OK)
    if not loops:
        break
"""
_CALL = re.compile(r"(?:\[pid +\d+\] |\d+ +)?(\w+)\(")

Lists = list[list[str]]


def lists(recommender: Recommender, histories: tuple[list[str], ...] = (["1", "2", "3"], ["7"], ["40"])) -> Lists:
    """What a recommender answers."""
    return [[item.item_id for item in recommender.recommend(history, 5)] for history in histories]


def replace(folder: Path, source: Path) -> None:
    """Puts a copy of one bundle in the place of another."""
    with folder_written_whole(folder) as beside:
        shutil.copytree(source, beside, dirs_exist_ok=True)


def kills(old: Path, new: Path, work: Path, random_kills: int) -> dict[str, Any]:
    """Kills writers of a bundle: at every system call of a replacement (with strace), and at random moments.

    Returns:
        How many there were, at which calls, and what stood there afterwards: "old", "new", or a fault.
    """
    folder, right = _placed(old, new, work)
    chance, calls, found = random.Random(0), Counter[str](), Counter[str]()
    aims = [*_calls(folder, new)] if shutil.which("strace") else []
    for aim in [*aims, *[None] * random_kills]:
        replace(folder, old)
        if aim is None:
            _kill_at_random(folder, new, chance.uniform(0, 0.05))
        else:
            status = _strace(folder, new, "-o", "/dev/null", "-e", f"inject={aim[0]}:signal=KILL:when={aim[1]}")
            if status != -signal.SIGKILL:
                found["ended before it was killed"] += 1
        calls[aim[0] if aim else "random"] += 1
        try:
            found[_whose(folder, right)] += 1
        except Exception as error:
            found[f"does not load: {error}"] += 1
        replace(folder, new)
        if (left := [path.name for path in work.iterdir()]) != ["bundle"]:
            found[f"left behind: {left}"] += 1
    return {"calls": dict(calls), "found": dict(found)}


def _calls(folder: Path, source: Path) -> Iterator[tuple[str, int]]:
    """The system calls of a replacement: name, and the how many-eth of that name it is since the process began."""
    trace = folder.with_name("trace")
    _strace(folder, source, "-o", str(trace))
    counts, is_inside = Counter[str](), False
    for line in trace.read_text().splitlines():
        if match := _CALL.match(line):
            counts[match[1]] += 1
            is_inside = (is_inside or '"/begins"' in line) and '"/ends"' not in line
            if is_inside and '"/begins"' not in line:
                yield match[1], counts[match[1]]
    trace.unlink()


def _strace(folder: Path, source: Path, *options: str) -> int:
    """The exit status of strace, which is that of the writer."""
    writer = [sys.executable, "-B", "-c", WRITER, str(folder), str(source)]
    # the same calls each time: no random order of hashes, one thread
    environment = ["-E", "PYTHONHASHSEED=0"]
    command = ["strace", "-f", "-qq", *environment, *options, *writer]
    return subprocess.run(command, capture_output=True, check=False).returncode


def _kill_at_random(folder: Path, source: Path, seconds: float) -> None:
    writer = [sys.executable, "-c", WRITER, str(folder), str(source), "loops"]
    with subprocess.Popen(writer, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)


def _placed(old: Path, new: Path, work: Path) -> tuple[Path, dict[str, Lists]]:
    """Where a copy of the old bundle stands, and what each of the two answers."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    replace(work / "bundle", old)
    right = {name: lists(Recommender.load(path, threads=1)) for name, path in (("old", old), ("new", new))}
    return work / "bundle", right


def _whose(folder: Path, right: dict[str, Lists]) -> str:
    """Which of the two bundles stands there, by its lists."""
    answer = lists(Recommender.load(folder, threads=1))
    return next((name for name, want in right.items() if answer == want), "lists of neither")


def swaps(old: Path, new: Path, work: Path, count: int) -> dict[str, Any]:
    """Replaces a bundle again and again while two threads of another process load it and ask it."""
    folder, right = _placed(old, new, work)
    script = (
        "import sys, time; from pathlib import Path; from tests.reliability.running import replace\n"
        "for index in range(int(sys.argv[4])):\n"
        "    replace(Path(sys.argv[1]), Path(sys.argv[2 + index % 2])); time.sleep(.5)"
    )
    found = Counter[str]()
    writer = subprocess.Popen([sys.executable, "-c", script, str(folder), str(new), str(old), str(count)])

    def ask() -> None:
        while writer.poll() is None:
            try:
                found[_whose(folder, right)] += 1
            except EarnError as error:
                found["refused: replaced" if "was replaced" in str(error) else f"error: {error}"] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"swaps": count, "status": writer.returncode, "found": dict(found)}


def endurance(bundle: Path, requests: int, sessions: int) -> dict[str, Any]:
    """Answers many requests and keeps many sessions; the process's memory along the way.

    Returns:
        "requests" and "sessions": [count, resident bytes] a hundred times; "grown": bytes from a tenth of the requests
        to the end; "wrong": requests whose list was not the one that was given before.
    """
    recommender = Recommender.load(bundle, threads=1)
    ids, chance = recommender.catalog.item_ids, random.Random(0)
    histories = [chance.choices(ids, k=1 + chance.randrange(20)) for _ in range(50)]
    want = [recommender.recommend(history, 5, BEAMS) for history in histories]
    curves: dict[str, list[list[int]]] = {"requests": [], "sessions": []}
    wrong, started = 0, time.monotonic()
    for number in range(requests):
        which = number % len(histories)
        wrong += recommender.recommend(histories[which], 5, BEAMS) != want[which]
        if (number + 1) % max(1, requests // 100) == 0:
            curves["requests"].append([number + 1, _resident()])
    seconds = time.monotonic() - started
    for number in range(sessions):
        session = recommender.session(histories[number % len(histories)][:5])
        for item in chance.choices(ids, k=3):
            session.append(item)
            before = session.recommend(5)
        wrong += recommender.restore_session(session.to_bytes()).recommend(5) != before
        if (number + 1) % max(1, sessions // 100) == 0:
            curves["sessions"].append([number + 1, _resident()])
    points = curves["requests"]
    grown = points[-1][1] - points[int(len(points) * SETTLED)][1]
    return {**curves, "grown": grown, "wrong": wrong, "seconds": seconds}


def _resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
