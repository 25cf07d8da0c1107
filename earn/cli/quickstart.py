"""`earn quickstart`: the whole path for both methods: train, export, calibrate, evaluate, time.

    earn    EARN with beams        dense   its dense twin        set   EARN with all codes at once

In OUT:
    NAME-checkpoint/, NAME-bundle/           of each of them
    int8-bundle/, set-int8-bundle/           "earn" and "set" in int8, with int8-report.html and .json beside them
    summary.json                             {"popularity": Q, "dense": M, "earn": M, "set": M, "seconds": float}
                                             Q = {"recall@10", "ndcg@10"}
                                             B = Q and "p50_ms", "session_ms", "cache_bytes", "bundle_bytes"
                                             M = {"torch": Q, "bundle": B}; those of "earn" and "set" have
                                             "int8": B and "gate" too

Two trainings run at a time, in processes of their own with one thread each: torch's threads gain little on a small
model, and on a busy machine they wait for each other. Whatever is trained is exported, calibrated and evaluated here
while others still train.

Quality is that of constrained search over the whole catalog for every test user's next item. Items of the history are
left out of every list, popularity's too: nobody rates a film twice, so they would be wasted places. (A data set whose
users choose an item again would count these choices as missed.) Latency is that of the same request, one at a time,
and of an open session to which an item is added. All bundles are asked in turn, so that other load on the machine
affects all of them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import DATA_HELP, Subparsers, command, natural, option, positive
from earn.console import Steps, detail, note, progress, results_kept_clean, show, table
from earn.errors import EarnError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from earn.data import Example
    from earn.data.dataset import Dataset
    from earn.runtime.recommender import Recommender


@dataclass(frozen=True)
class Side:
    """One of the models that are compared."""

    label: str
    options: tuple[str, ...]  # its own of earn train
    int8: str = ""  # how names of what is calibrated start; "": nothing is

    @property
    def has_beams(self) -> bool:
        """Whether it searches with beams."""
        return "set" not in self.options


_BEAMS = ("--method", "tiger", "--dropout", "0")  # so few epochs leave nothing to overfit
SIDES: Mapping[str, Side] = {  # in the order of training
    "earn": Side("beams, EARN", _BEAMS, "int8"),
    "set": Side("all at once, EARN", ("--method", "set"), "set-int8"),
    "dense": Side("beams, dense", (*_BEAMS, "--dense")),
}
SHOWN_SIDES = ("dense", "earn", "set")  # in the order of the table
EPOCHS = 4  # of trainings with beams
SET_EPOCHS = 1  # of all codes at once: from scratch it starts as a neighbours' mean, which one epoch refines
VALIDATION_USERS = 300
FROM_SCRATCH = "tiny-"  # how names of such backbones start; the table, in earn.model.families, takes seconds to load
LAYERS = 3  # of a backbone from scratch with beams, as many as all codes at once has; the usual eight take far longer

JUDGED_USERS = 300  # of the gate, which asks each of them once per attempt
K, BEAMS = 10, 20  # of a timed request; the cache's size is that of as many beams
TIMED_REQUESTS, WARM_UP_REQUESTS = 100, 10  # per bundle
SHOWN = 5  # items of the example user's history, and of his recommendations

AT_ONCE = 2  # trainings
DETAIL = "      "  # how lines start that tell a training's progress
MARKER = ".earn-quickstart"  # stands in OUT while and after a quickstart wrote it
SUMMARY = "summary.json"


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "quickstart",
        run,
        "the whole path on MovieLens 100k: train, export, evaluate, recommend",
        "Trains EARN with beams, its dense twin, and EARN with all codes at once; exports them, calibrates EARN to "
        "int8, and compares quality, latency, cache and size. A second run into the same folder replaces the first "
        "one's results.",
        """
        earn quickstart
        earn quickstart --epochs 2 --users 200 --out try
        earn quickstart --data LC-Rec/Instruments --backbone tiny-qwen3 --out instruments
        """,
    )
    option(parser, "--out DIR", "folder", Path, Path("quickstart"))
    option(parser, "--data", DATA_HELP, default="ml-100k")
    option(parser, "--backbone NAME|PATH", "see earn train; a NAME is for beams alone", default="tiny-llama")
    epochs = f"of every training; all codes at once takes {SET_EPOCHS} from scratch"
    option(parser, "--epochs N", epochs, positive, EPOCHS)
    option(parser, "--seed N", "of all that is drawn", natural, 0)
    option(parser, "--users N", "evaluate on a sample of users (default: all)", positive)


def run(args: argparse.Namespace) -> int:
    """Walks the whole path."""
    import onnx_ir  # noqa: F401  (a missing package is reported before the training, not after it)
    import onnxruntime  # noqa: F401

    from earn.data.dataset import load_dataset
    from earn.files import write_json
    from earn.report.page import check_installed

    check_installed()
    _refuse_foreign_folder(args.out)
    steps = Steps(len(SIDES) + 3)
    steps(f"Read {args.data}")
    dataset = load_dataset(args.data)
    users = dataset.examples(users=args.users)
    dataset.examples("valid")  # refuses data without validation users before the training
    _empty(args.out)
    summary: dict[str, Any] = {}
    steps(f"Train {', '.join(SIDES)}, two at a time")
    with trainings({name: _options(args, name) for name in SIDES}) as wait:
        import torch

        import earn.model.earn_model  # noqa: F401  (torch and transformers take seconds to load, which are free here)
        from earn.data import popularity_ranks

        torch.set_num_threads(1)
        popularity = popularity_ranks(dataset.split, len(dataset.interactions.item_ids), users)
        summary["popularity"] = _at_ten(popularity)
        for name in SIDES:
            wait(name)
            steps(f"{SIDES[name].label}: export, {'calibrate, ' if SIDES[name].int8 else ''}evaluate")
            summary[name] = _side(args, name, dataset, users)
    steps(f"Time {TIMED_REQUESTS} requests to each bundle, in turn")
    bundles = _time(args, summary, dataset.histories(users))
    summary["seconds"] = round(steps.seconds, 1)
    write_json(args.out / SUMMARY, summary)
    _report(args, summary, bundles, dataset, users)
    return 0


def _options(args: argparse.Namespace, name: str) -> list[object]:
    """Of `earn train` for one side."""
    own: list[object] = ["--backbone", args.backbone, "--epochs", args.epochs]
    if args.backbone.startswith(FROM_SCRATCH) and not Path(args.backbone).exists():
        own = [*own, "--layers", LAYERS] if SIDES[name].has_beams else ["--epochs", SET_EPOCHS]
    common = ["--seed", args.seed, "--exclude-history", "--validation-users", VALIDATION_USERS]
    return [args.data, *SIDES[name].options, *own, *common, "--out", args.out / f"{name}-checkpoint"]


def _side(args: argparse.Namespace, name: str, dataset: Dataset, users: Sequence[Example]) -> dict[str, Any]:
    """Exports and evaluates one side, and calibrates it where it is to be; returns its part of the summary."""
    from earn.cli.export import write
    from earn.export.stages import torch_recommender
    from earn.model.earn_model import EarnModel
    from earn.runtime.recommender import Recommender

    model, side = EarnModel.from_pretrained(args.out / f"{name}-checkpoint"), SIDES[name]
    write(model, dataset, args.out / f"{name}-bundle")
    gate = _calibrate(args, name, dataset) if side.int8 else {}
    asked = {"torch": torch_recommender(model), "bundle": Recommender.load(args.out / f"{name}-bundle", threads=1)}
    if gate.get("passed"):
        asked["int8"] = Recommender.load(args.out / f"{side.int8}-bundle", threads=1)
    figures = {form: quality(recommender, form, dataset, users) for form, recommender in asked.items()}
    return figures | ({"int8": {**figures.get("int8", {}), "gate": gate}} if side.int8 else {})


def _time(
    args: argparse.Namespace, summary: Mapping[str, Any], histories: Sequence[Sequence[str]]
) -> dict[str, Recommender]:
    """Adds times and sizes of all bundles to the summary; returns the float ones."""
    from earn.runtime.cache import cache_bytes
    from earn.runtime.evaluation import median_ms
    from earn.runtime.recommender import Recommender

    folders = {(name, "bundle"): f"{name}-bundle" for name in SIDES}
    folders |= {
        (name, "int8"): f"{side.int8}-bundle"
        for name, side in SIDES.items()
        if side.int8 and summary[name]["int8"]["gate"]["passed"]
    }
    bundles = {folder: Recommender.load(args.out / folder) for folder in folders.values()}
    asked = (bundles, histories, K, BEAMS, True, TIMED_REQUESTS, WARM_UP_REQUESTS)
    latency, in_session = median_ms(*asked), median_ms(*asked, in_session=True)
    for (name, form), folder in folders.items():
        manifest = bundles[folder].manifest
        summary[name][form] |= {
            "p50_ms": latency[folder],
            "session_ms": in_session[folder],
            "cache_bytes": cache_bytes(manifest.sizes, manifest.limits, manifest.limits.prompt, BEAMS),
            "bundle_bytes": manifest.bundle_bytes,
        }
    return {name: bundles[f"{name}-bundle"] for name in SIDES}


def _refuse_foreign_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise EarnError(f"{out}: exists and is not a quickstart's. Choose another folder with --out.")


def _empty(out: Path) -> None:
    """Makes the folder, or takes an earlier quickstart's results out of it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("earn quickstart replaces its results in this folder.\n", encoding="utf-8")
    calibrated = [side.int8 for side in SIDES.values() if side.int8]
    for name in (*SIDES, *calibrated):
        for kind in ("checkpoint", "bundle"):
            shutil.rmtree(out / f"{name}-{kind}", ignore_errors=True)
    ends = [f"-report{outcome}.{kind}" for outcome in ("", "-failed") for kind in ("html", "json")]
    for name in (SUMMARY, *(f"{name}{end}" for name in calibrated for end in ends)):
        (out / name).unlink(missing_ok=True)


def _calibrate(args: argparse.Namespace, name: str, dataset: Dataset) -> dict[str, Any]:
    """Writes the int8 bundle and its report; returns the gate's figures."""
    from earn.calibration.calibrate import CalibrationSettings, calibrate
    from earn.calibration.samples import SAMPLES, draw_samples
    from earn.report.calibration import report_calibration

    try:
        histories, held_out = draw_samples(dataset, SAMPLES, JUDGED_USERS, args.seed, exclude_history=True)
    except EarnError as error:  # a small data set is no reason to end here
        note(f"      left out: {error}")
        return {"passed": False}
    int8 = SIDES[name].int8
    source, out, page = (args.out / each for each in (f"{name}-bundle", f"{int8}-bundle", f"{int8}-report.html"))
    settings = CalibrationSettings(compare=False, seed=args.seed, threads=1)
    with results_kept_clean():
        calibration = calibrate(source, out, histories, held_out, "int8", settings, progress)
    page = report_calibration(calibration, held_out, settings, source, out, dataset.source, page)
    figures = calibration.summary()
    note(f"      {figures['beam_set_overlap']:.1%} of the best items stay; see {page}")
    return figures


def quality(recommender: Recommender, form: str, dataset: Dataset, users: Sequence[Example]) -> dict[str, float]:
    """Recall@10 and NDCG@10; no list holds items of its user's history."""
    from earn.runtime.evaluation import target_ranks

    return _at_ten(target_ranks(recommender, users, dataset.interactions.item_ids, True, progress(form)))


def _at_ten(ranks: NDArray[np.int64]) -> dict[str, float]:
    from earn.metrics import summarise

    return {name: value for name, value in summarise(ranks).items() if name in ("recall@10", "ndcg@10")}


def _report(
    args: argparse.Namespace,
    summary: Mapping[str, Any],
    bundles: Mapping[str, Recommender],
    dataset: Dataset,
    users: Sequence[Example],
) -> None:
    """Prints the comparison, one user's recommendations, and what to type next."""
    from earn.cli.recommend import items_table

    show(f"\n{_comparison(summary)}")
    show(
        f"Recall and NDCG: the next items of {len(users):,} users, full ranking; no list holds items of the history.\n"
        f"request: the median, one at a time, all bundles in turn. session: one item more, and the new list. "
        f"Cache: a full prompt and, with beams, {BEAMS} of them."
    )
    best = max(SIDES, key=lambda name: summary[name]["bundle"]["ndcg@10"])
    recommender = bundles[best]
    example = next((user for user in users if len(user.history) >= SHOWN), users[0])
    history = dataset.histories([example])[0]
    titles = dict(zip(recommender.catalog.item_ids, recommender.catalog.titles, strict=True))
    chosen = "\n".join(f"  {item_id}  {titles[item_id]}" for item_id in history[-SHOWN:])
    show(f"\nUser {example.user} chose last:\n{chosen}")
    items = items_table(recommender.recommend(history, k=SHOWN, exclude_history=True))
    show(f"\nThe best of them ({SIDES[best].label}) recommends:\n{items}")
    bundle = shlex.quote(str(args.out / f"{best}-bundle"))
    note(
        f"\nWhat to type next:\n"
        f"  earn recommend {bundle} --history {shlex.quote(','.join(history[-SHOWN:]))} --exclude-history\n"
        f"  earn inspect {bundle}\n"
        f"  earn evaluate {bundle} {shlex.quote(args.data)} --exclude-history"
    )


def _comparison(summary: Mapping[str, Any]) -> str:
    """The summary as a table."""
    rows = {"popularity": summary["popularity"]}
    for name in SHOWN_SIDES:
        rows[SIDES[name].label] = summary[name]["bundle"]
        if SIDES[name].int8:
            rows[f"{SIDES[name].label} int8"] = summary[name]["int8"]
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "Recall@10": ("recall@10", "{:.4f}".format),
        "NDCG@10": ("ndcg@10", "{:.4f}".format),
        "request ms": ("p50_ms", "{:.1f}".format),
        "session ms": ("session_ms", "{:.1f}".format),
        "cache KiB": ("cache_bytes", lambda count: f"{count / 2**10:,.0f}"),
        "bundle MiB": ("bundle_bytes", lambda count: f"{count / 2**20:.1f}"),
    }
    cells = [
        (name, *(text(row[key]) if key in row else "-" for key, text in columns.values())) for name, row in rows.items()
    ]
    return table(("", *columns), cells)


@contextmanager
def trainings(options: Mapping[str, Sequence[object]]) -> Iterator[Callable[[str], None]]:
    """Trains in the given order, and shows the progress of each under its name.

    What the context gives waits for the training of a name. It raises an EarnError if that one has failed, or another
    one meanwhile. Those that still run when the context is left are ended.

    Args:
        options: of `earn train`, by a training's name.
    """
    processes: list[subprocess.Popen[str]] = []
    starting, is_over = Lock(), Event()
    pool = ThreadPoolExecutor(AT_ONCE)

    def train(name: str) -> None:
        with starting:
            if is_over.is_set():
                return
            process = _start_training(options[name])
            processes.append(process)
        try:
            _follow_training(name, process)
        except EarnError:
            pool.shutdown(wait=False, cancel_futures=True)  # those that wait are not started
            raise

    ends = {name: pool.submit(train, name) for name in options}

    def wait(name: str) -> None:
        for end in as_completed(ends.values()):
            end.result()
            if end is ends[name]:
                return

    try:
        yield wait
    finally:  # after a failure or Ctrl-C too
        pool.shutdown(wait=False, cancel_futures=True)
        with starting:
            is_over.set()
            for process in processes:
                process.terminate()


def _start_training(options: Sequence[object]) -> subprocess.Popen[str]:
    """`earn train` in a process with one thread, what it prints in one pipe."""
    paths = [path or os.getcwd() for path in sys.path]  # what can be imported here can be imported there
    environment = {
        **os.environ,
        **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        **{"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8", "TQDM_DISABLE": "1"},
    }
    return subprocess.Popen(
        [sys.executable, "-m", "earn.cli.main", "train", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )


def _follow_training(name: str, process: subprocess.Popen[str]) -> None:
    """Shows the indented lines that a training prints, which tell its progress, until it ends.

    Raises:
        EarnError: it failed; gives its last line.
    """
    assert process.stdout is not None
    last = "It printed nothing."
    with process.stdout as output:
        for line in output:
            last = line.strip() or last
            if line.startswith(DETAIL):
                detail(f"{name}: {line.strip()}")
    if process.wait():
        reason = last.removeprefix("earn: error: ")
        raise EarnError(f"The training of {name} failed with status {process.returncode}. {reason}")
