"""Trains and measures a grid of models: data x method x backbone x {dense, EARN and its variants} x seed.

    python -m experiments smoke                      # every kind of run on made-up data: a minute
    python -m experiments cpu --jobs 2               # what docs/results.md shows: hours on two cores
    python -m experiments cpu --only ml-100k/tiger-tiny-llama/earn-k2-seed0
    python -m experiments cpu --list                 # what there is, and what is done
    python -m experiments cpu --analyze              # then: attention of the dense models, and their k
    python -m experiments cpu --speed                # then: latency of what was trained, one after the other
    python -m experiments cpu --quantize --only beauty/tiger-tiny-llama/earn-k2-seed0    # then: int8 bundles

Data sets are folders of their names in $EARN_DATA (MovieLens is fetched). A GPU is used where there is one.

Each run has a folder below OUT: checkpoint/ (a training that was interrupted goes on from its last epoch), made.json
with what that is made of, result.json, ranks.npy with the place of each user's item, attention.json, speed.json,
int8.json with the gate's verdict beside bundle/, int8-bundle/ and int8-report.html, log.txt. What is done is not done
again, so the same command goes on with what is missing. `python -m experiments.results` makes the tables of
docs/results.md from these folders.

Every figure is by constrained search over the whole catalog with 20 beams, for all test users; lists leave out the
history, for nobody in these data sets chooses an item twice. Weights are chosen by NDCG@10 on validation users.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from earn.console import note, quiet
from earn.errors import EarnError
from earn.files import read_json
from experiments.afterwards import analyze_all, quantize_all, time_all
from experiments.grid import PRESETS, Preset, Run
from experiments.runs import LOG, RESULT, check_made, measure, write_walks

OUT = Path("runs/experiments")
ROOT = Path(__file__).resolve().parent.parent  # where Python finds this package

# Options that look at what was trained, instead of training.
AFTERWARDS = {"analyze": analyze_all, "speed": time_all, "quantize": quantize_all}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a preset."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments", description=__doc__, formatter_class=raw)
    parser.add_argument(
        "preset", choices=PRESETS, help="; ".join(f"{name}: {row.about}" for name, row in PRESETS.items())
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these runs; see --list")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show the runs and end")
    instead.add_argument("--analyze", action="store_true", help="analyze the attention of the dense models")
    instead.add_argument("--speed", action="store_true", help="time what was trained")
    instead.add_argument("--quantize", action="store_true", help="write int8 bundles of what was trained as EARN")
    parser.add_argument(
        "--jobs", type=_positive, default=1, metavar="N", help="trainings at once (default: %(default)s)"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="of each training (default: cores by jobs)")
    args = parser.parse_args(argv)
    try:
        with quiet(), _ended_as_by_ctrl_c():
            return _run(args)
    except EarnError as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.prog}: interrupted; the same command goes on")


def _run(args: argparse.Namespace) -> int:
    preset = PRESETS[args.preset]
    runs = _chosen(preset, args.only)
    for run in runs:
        check_made(run, preset, args.out)
    if args.list:
        for run in runs:
            print("done" if (args.out / run.name / RESULT).is_file() else "    ", run.name)
    elif afterwards := [do for name, do in AFTERWARDS.items() if getattr(args, name)]:
        if not any((args.out / run.name / RESULT).is_file() for run in runs):
            raise EarnError(f"{args.out}: none of these runs is done there. Train them first, or mend --out.")
        afterwards[0](runs, args.out)
    elif args.only and args.jobs == 1:
        _use_threads(args.threads)
        for run in runs:
            measure(run, args.preset, args.out)
    else:
        return _run_all(runs, args)
    return 0


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM interrupts, so that the trainings of a scheduler that is ended end with it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _chosen(preset: Preset, names: Sequence[str] | None) -> list[Run]:
    runs = {run.name: run for run in preset.runs}
    if unknown := [name for name in names or () if name not in runs]:
        raise EarnError(f"The preset has no run {unknown[0]!r}. See --list.")
    return [runs[name] for name in names or runs]


def _run_all(runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Each training in a process of its own, together with the runs that ask its checkpoint."""
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        if not (args.out / run.name / RESULT).is_file():
            tasks.setdefault(run.trained.name, []).append(run)
    missing = sum(map(len, tasks.values()))
    note(f"{len(runs)} runs, {len(runs) - missing} of them done; {len(tasks)} processes to go, {args.jobs} at once")
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    started, failed, done = time.monotonic(), 0, 0
    if any(run.data == "walks" for run in runs):
        write_walks(args.out / "walks-data")  # before several processes would
    running: list[Popen[bytes]] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            futures = {pool.submit(_in_process, task, args, threads, running): task for task in tasks.values()}
            for future in as_completed(futures):
                task, status = futures[future], future.result()
                minutes = (time.monotonic() - started) / 60
                for run in task:
                    done += 1
                    note(f"{done:3d} of {missing}  {minutes:5.1f} min  {run.name}  {_outcome(run, args.out)}")
                failed += status != 0
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    if failed:
        note(f"{failed} processes failed; their {LOG} says why. The same command tries again.")
    return min(failed, 1)


def _in_process(task: Sequence[Run], args: argparse.Namespace, threads: int, running: list[Popen[bytes]]) -> int:
    folder = args.out / task[0].trained.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "experiments",
        args.preset,
        "--out",
        str(args.out.resolve()),
        "--threads",
        str(threads),
    ]
    with (folder / LOG).open("a", encoding="utf-8") as log:
        names = [run.name for run in task]
        arguments = [*command, "--threads", str(threads), "--only", *names]
        process = Popen(arguments, stdout=log, stderr=log, cwd=ROOT)
        running.append(process)
        return process.wait()


def _outcome(run: Run, out: Path) -> str:
    path = out / run.name / RESULT
    if not path.is_file():
        return "failed"
    figures = read_json(path)
    return f"Recall@10 {figures['recall@10']:.4f}, NDCG@10 {figures['ndcg@10']:.4f}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _use_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
