"""Trains and measures a grid of models: data x method x backbone x {dense, EARN and its variants} x seed.

    python -m experiments smoke                      # every kind of run on made-up data: a minute
    python -m experiments cpu --jobs 2               # what docs/results.md shows: hours on two cores
    python -m experiments set --jobs 2               # all codes at once, and its rivals: hours on two cores
    python -m experiments recbole                    # RecBole's SASRec and GRU4Rec, in an environment of their own
    python -m experiments tuning                     # what was tried to rank better on Beauty: a night on two cores
    python -m experiments pretrained                 # a pretrained backbone, instructions in words: minutes on a GPU
    python -m experiments paper                      # the paper's data, larger models: hours on a GPU
    python -m experiments cpu --list                 # what there is, and what is done
    python -m experiments cpu --analyze              # then: attention of the dense models, and their k
    python -m experiments set --rare                 # then: the users whose item is rare in training
    python -m experiments cpu --speed                # then: latency of what was trained, one after the other
    python -m experiments cpu --quantize --only beauty/tiger-tiny-llama/earn-k2-seed0    # then: int8 bundles

Data sets are folders of their names in $EARN_DATA (MovieLens is fetched). A GPU is used where there is one. Trainings
share the cores; $OMP_NUM_THREADS sets the threads of each.

Each run has a folder below OUT: checkpoint/ (an interrupted training goes on from its last checkpoint), made.json with
what that is made of, result.json, ranks.npy with the place of each user's item, attention.json, speed.json,
rare.json, int8.json with the gate's verdict beside bundle/, int8-bundle/ and int8-report.html, log.txt. What is done is
not done again, so the same command goes on with what is missing. `python -m experiments.results` makes the tables of
docs/results.md from these folders.

Every figure is over the whole catalog for all test users, by constrained search with 20 beams, or exact lists of all
codes at once and of the rivals (see experiments.rivals); lists leave out the
history, for nobody in these data sets chooses an item twice. Weights are chosen by NDCG@10 on validation users.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from earn.console import note, quiet
from earn.errors import EarnError
from experiments.grid import PRESETS, Run
from experiments.runs import LOOKS, RESULT, check_made, look_at, measure, write_walks

OUT = Path("runs/experiments")
LOG = "log.txt"
# What trainings need: each is a copy of one process that has imported this once.
LIBRARIES = ["earn.export.stages", "earn.export.validation", "earn.model.methods", "earn.model.training"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a preset."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments", description=__doc__, formatter_class=raw)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these runs; see --list")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at once (default: %(default)s)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show the runs and end")
    for name, look in LOOKS.items():
        instead.add_argument(f"--{name}", dest="look", action="store_const", const=look, help=f"write {look.file}")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error("--jobs takes a whole number from 1")
    try:
        with quiet():
            return _run(args)
    except EarnError as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.prog}: interrupted; the same command goes on")


def _run(args: argparse.Namespace) -> int:
    preset, known = PRESETS[args.preset], {run.name: run for run in PRESETS[args.preset].runs}
    if unknown := [name for name in args.only or () if name not in known]:
        raise EarnError(f"The preset has no run {unknown[0]!r}. See --list.")
    runs = [known[name] for name in args.only or known]
    for run in runs:
        check_made(run, preset, args.out)
    missing = [run for run in runs if not (args.out / run.name / RESULT).is_file()]
    if args.list:
        for run in runs:
            print("    " if run in missing else "done", run.name)
    elif args.look:
        if missing == runs:
            raise EarnError(f"{args.out}: none of these runs is done there. Train them first, or mend --out.")
        look_at(runs, args.look, args.out)
    elif args.only and args.jobs == 1:
        for run in missing:
            measure(run, args.preset, args.out)
    else:
        note(f"{len(runs)} runs, {len(runs) - len(missing)} of them done")
        return _run_all(missing, args)
    return 0


def _run_all(runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Each training in a process of its own, together with the runs that need its checkpoint."""
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        tasks.setdefault(run.start.name, []).append(run)
    if any(run.data == "walks" for run in runs):
        write_walks(args.out / "walks-data")  # before several processes would
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # the other check, of a GPU, forbids copies
    get_context("forkserver").set_forkserver_preload(LIBRARIES)
    waiting, running, failed = list(tasks.values()), dict[BaseProcess, list[Run]](), 0
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                task = waiting.pop(0)
                running[_start(task, args)] = task
            wait([process.sentinel for process in running])
            for process in [each for each in running if each.exitcode is not None]:
                failed += process.exitcode != 0
                for run in running.pop(process):
                    outcome = "done" if (args.out / run.name / RESULT).is_file() else "failed"
                    note(f"{len(tasks) - len(waiting) - len(running):3d} of {len(tasks)}  {run.name}  {outcome}")
    except KeyboardInterrupt:
        for process in running:
            process.terminate()
        for process in running:
            process.join()
        raise
    if failed:
        note(f"{failed} processes failed; their {LOG} says why. The same command tries again.")
    return min(failed, 1)


def _start(task: Sequence[Run], args: argparse.Namespace) -> BaseProcess:
    folder = args.out / task[0].trained.name
    folder.mkdir(parents=True, exist_ok=True)
    return start([args.preset, "--out", str(args.out.resolve()), "--only", *(run.name for run in task)], folder / LOG)


def start(arguments: Sequence[str], log: Path) -> BaseProcess:
    """Starts `python -m experiments ARGUMENTS` in a process; all that it prints is added to a file."""
    from experiments.__main__ import _follow  # by this name the process can import it, and not by "__main__"

    process: BaseProcess = get_context("forkserver").Process(target=_follow, args=(arguments, log.resolve()))
    process.start()
    return process


def _follow(arguments: Sequence[str], log: Path) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with log.open("a", encoding="utf-8") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    sys.exit(main(arguments))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # trainings end with the scheduler that is ended
    sys.exit(main())
