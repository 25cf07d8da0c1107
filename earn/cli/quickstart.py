"""`earn quickstart`: the whole path for EARN and its dense twin: train, export, calibrate, evaluate, time.

In OUT:
    dense-checkpoint/, earn-checkpoint/
    dense-bundle/, earn-bundle/
    int8-bundle/                   the EARN bundle in int8, with int8-report.html and .json beside it
    summary.json                   {"popularity": Q, "dense": M, "earn": M, "seconds": float}
                                   Q = {"recall@10", "ndcg@10"}
                                   B = Q and "p50_ms", "cache_bytes", "bundle_bytes"
                                   M = {"torch": Q, "bundle": B}; that of "earn" has "int8": B and "gate" too

The twins train side by side, each in a process of its own with one thread: torch's threads gain little on so small a
model, and on a busy machine they wait for each other. This process loads its libraries meanwhile.

Quality is that of constrained search over the whole catalog for every test user's next item. Items of the history are
left out of every list, popularity's too: nobody rates a film twice, so they would be wasted places. (A data set whose
users choose an item again would count these choices as missed.) Latency is that of the same request, one at a time.
All bundles are asked in turn, so that other load on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import DATA_HELP, command, natural, positive
from earn.console import Steps, note, progress, results_kept_clean, show, table
from earn.errors import EarnError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from earn.cli.arguments import Subparsers
    from earn.data import Example
    from earn.data.dataset import Dataset
    from earn.model.earn_model import EarnModel
    from earn.runtime.recommender import Recommender

TWINS: Mapping[str, Sequence[str]] = {"dense": ("--dense",), "earn": ()}  # with their own options of earn train
INT8 = "int8"
EPOCHS = 4  # of both trainings
# Options of both. So few epochs leave nothing to overfit.
RECIPE = ("--method", "tiger", "--dropout", "0", "--exclude-history", "--validation-users", "300")
FROM_SCRATCH = "tiny-"  # how names of such backbones start; the table, in earn.model.families, takes seconds to load
LAYERS = 4  # of a backbone from scratch: half of the usual ones take half the time, and rank almost as well

JUDGED_USERS = 300  # of the gate, which asks each of them once per attempt
K, BEAMS = 10, 20  # of a timed request; the cache's size is that of as many beams
TIMED_REQUESTS, WARM_UP_REQUESTS = 100, 10  # per bundle
SHOWN = 5  # items of the example user's history, and of his recommendations

MARKER = ".earn-quickstart"  # stands in OUT while and after a quickstart wrote it
SUMMARY = "summary.json"


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "quickstart",
        run,
        "the whole path on MovieLens 100k: train, export, evaluate, recommend",
        "Trains an EARN model and its dense twin of equal size, exports both, calibrates EARN to int8, and compares "
        "quality, latency, cache and size. A second run into the same folder replaces the first one's results.",
        """
        earn quickstart
        earn quickstart --epochs 2 --users 200 --out try
        earn quickstart --data LC-Rec/Instruments --backbone tiny-qwen3 --out instruments
        """,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("quickstart"), metavar="DIR", help="folder (default: %(default)s)"
    )
    parser.add_argument("--data", default="ml-100k", help=f"{DATA_HELP} (default: %(default)s)")
    parser.add_argument(
        "--backbone", default="tiny-llama", metavar="NAME|PATH", help="see earn train (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs", type=positive, default=EPOCHS, metavar="N", help="of both trainings (default: %(default)s)"
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--users", type=positive, metavar="N", help="evaluate on a sample of users (default: all)")


def run(args: argparse.Namespace) -> int:
    """Walks the whole path."""
    import onnx_ir  # noqa: F401  (a missing package is reported before the training, not after it)
    import onnxruntime  # noqa: F401

    from earn.data.dataset import load_dataset
    from earn.report.page import check_installed

    check_installed()
    _refuse_foreign_folder(args.out)
    steps = Steps(6)
    steps(f"Read {args.data}")
    dataset = load_dataset(args.data)
    users = dataset.examples(users=args.users)
    dataset.examples("valid")  # refuses data without validation users before the training
    _empty(args.out)
    steps(f"Train EARN and its dense twin side by side (epochs: {args.epochs})")
    _train_twins(args)
    return _compare_twins(args, steps, dataset, users)


def _compare_twins(args: argparse.Namespace, steps: Steps, dataset: Dataset, users: Sequence[Example]) -> int:
    """Exports, calibrates, evaluates and times what was trained, and writes and prints the summary."""
    import torch

    from earn.cli.export import write
    from earn.files import write_json
    from earn.model.earn_model import EarnModel
    from earn.runtime.cache import cache_bytes
    from earn.runtime.evaluation import median_ms
    from earn.runtime.recommender import Recommender

    torch.set_num_threads(1)
    models = {name: EarnModel.from_pretrained(args.out / f"{name}-checkpoint") for name in TWINS}
    steps("Export both and compare the graphs with torch")
    bundles: dict[str, Recommender] = {}
    for name, model in models.items():
        write(model, dataset, folder := args.out / f"{name}-bundle")
        bundles[name] = Recommender.load(folder)
    steps("Calibrate EARN to int8")
    gate = _calibrate(args, dataset)
    if gate["passed"]:
        bundles[INT8] = Recommender.load(args.out / f"{INT8}-bundle")
    steps(f"Evaluate on {len(users):,} test users")
    summary = quality(models, bundles, dataset, users)
    summary["earn"][INT8] = {**summary.pop(INT8, {}), "gate": gate}
    steps(f"Time {TIMED_REQUESTS} requests to each bundle, in turn")
    histories = dataset.histories(users)
    latency = median_ms(bundles, histories, K, BEAMS, True, TIMED_REQUESTS, WARM_UP_REQUESTS)
    for name, milliseconds in latency.items():
        manifest = bundles[name].manifest
        figures = summary["earn"][INT8] if name == INT8 else summary[name]["bundle"]
        figures["p50_ms"] = milliseconds
        figures["cache_bytes"] = cache_bytes(manifest.sizes, manifest.limits, manifest.limits.prompt, BEAMS)
        figures["bundle_bytes"] = manifest.bundle_bytes
    summary["seconds"] = round(steps.seconds, 1)
    write_json(args.out / SUMMARY, summary)
    _report(args, summary, bundles["earn"], dataset, users)
    return 0


def _refuse_foreign_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise EarnError(f"{out}: exists and is not a quickstart's. Choose another folder with --out.")


def _empty(out: Path) -> None:
    """Makes the folder, or takes an earlier quickstart's results out of it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("earn quickstart replaces its results in this folder.\n", encoding="utf-8")
    for name in (*TWINS, INT8):
        for kind in ("checkpoint", "bundle"):
            shutil.rmtree(out / f"{name}-{kind}", ignore_errors=True)
    reports = [f"{INT8}-report{outcome}.{kind}" for outcome in ("", "-failed") for kind in ("html", "json")]
    for name in (SUMMARY, *reports):
        (out / name).unlink(missing_ok=True)


def _train_twins(args: argparse.Namespace) -> None:
    """Trains both side by side with `earn train`, and shows their progress.

    Raises:
        EarnError: one failed; the other is stopped then.
    """
    common = [args.data, "--backbone", args.backbone, "--epochs", args.epochs, "--seed", args.seed, *RECIPE]
    if args.backbone.startswith(FROM_SCRATCH) and not Path(args.backbone).exists():
        common += ["--layers", LAYERS]
    trainings = {
        name: _start_training([*common, *own, "--out", args.out / f"{name}-checkpoint"]) for name, own in TWINS.items()
    }
    with ThreadPoolExecutor(len(trainings)) as pool:
        try:
            following = [pool.submit(_follow, *training) for training in trainings.items()]
            import earn.model.earn_model  # noqa: F401  (torch and transformers take seconds to load, which are free here)

            for ended in as_completed(following):
                ended.result()
        finally:  # after a failure or Ctrl-C too
            for process in trainings.values():
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


def _follow(name: str, process: subprocess.Popen[str]) -> None:
    """Shows the indented lines that a training prints, which tell its progress, until it ends.

    Raises:
        EarnError: it failed; gives its last line.
    """
    assert process.stdout is not None
    last = "It printed nothing."
    with process.stdout as output:
        for line in output:
            last = line.strip() or last
            if line.startswith("      "):
                note(f"      {name}: {line.strip()}")
    if process.wait():
        reason = last.removeprefix("earn: error: ")
        raise EarnError(f"The training of {name} failed with status {process.returncode}. {reason}")


def _calibrate(args: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """Writes the int8 bundle and its report; returns the gate's figures."""
    from earn.calibration.calibrate import CalibrationSettings, calibrate
    from earn.calibration.samples import SAMPLES, draw_samples
    from earn.report.calibration import report_calibration

    try:
        histories, held_out = draw_samples(dataset, SAMPLES, JUDGED_USERS, args.seed, exclude_history=True)
    except EarnError as error:  # a small data set is no reason to end here
        note(f"      left out: {error}")
        return {"passed": False}
    source, out, page = (args.out / name for name in ("earn-bundle", f"{INT8}-bundle", f"{INT8}-report.html"))
    settings = CalibrationSettings(compare=False, seed=args.seed)
    with results_kept_clean():
        calibration = calibrate(source, out, histories, held_out, INT8, settings, progress)
    page = report_calibration(calibration, held_out, settings, source, out, dataset.source, page)
    figures = calibration.summary()
    note(f"      {figures['beam_set_overlap']:.1%} of the best items stay; see {page}")
    return figures


def quality(
    models: Mapping[str, EarnModel], bundles: Mapping[str, Recommender], dataset: Dataset, users: Sequence[Example]
) -> dict[str, Any]:
    """Recall@10 and NDCG@10 of popularity, of each bundle, and of its model in torch where there is one.

    No list holds items of its user's history.
    """
    from earn.data import popularity_ranks
    from earn.export.stages import torch_recommender
    from earn.metrics import summarise
    from earn.runtime.evaluation import target_ranks

    item_ids = dataset.interactions.item_ids

    def at_ten(ranks: NDArray[np.int64]) -> dict[str, float]:
        return {name: value for name, value in summarise(ranks).items() if name in ("recall@10", "ndcg@10")}

    def searched(recommender: Recommender, label: str) -> dict[str, float]:
        return at_ten(target_ranks(recommender, users, item_ids, True, progress(label)))

    figures: dict[str, Any] = {"popularity": at_ten(popularity_ranks(dataset.split, len(item_ids), users))}
    for name, recommender in bundles.items():
        figures[name] = searched(recommender, f"{name}, bundle")
        if name in models:
            in_torch = searched(torch_recommender(models[name]), f"{name}, torch")
            figures[name] = {"torch": in_torch, "bundle": figures[name]}
    return figures


def _report(
    args: argparse.Namespace,
    summary: Mapping[str, Any],
    recommender: Recommender,
    dataset: Dataset,
    users: Sequence[Example],
) -> None:
    """Prints the comparison, one user's recommendations, and what to type next."""
    from earn.cli.recommend import items_table

    show(f"\n{_comparison(summary)}")
    show(
        f"Recall and NDCG: the next items of {len(users):,} users, full ranking; no list holds items of the history.\n"
        f"p50: the same request, history left out, one at a time, all bundles in turn. "
        f"Cache: a full prompt and {BEAMS} beams."
    )
    example = next((user for user in users if len(user.history) >= SHOWN), users[0])
    history = dataset.histories([example])[0]
    titles = dict(zip(recommender.catalog.item_ids, recommender.catalog.titles, strict=True))
    chosen = "\n".join(f"  {item_id}  {titles[item_id]}" for item_id in history[-SHOWN:])
    show(f"\nUser {example.user} chose last:\n{chosen}")
    show(f"\nEARN recommends:\n{items_table(recommender.recommend(history, k=SHOWN, exclude_history=True))}")
    bundle = shlex.quote(str(args.out / "earn-bundle"))
    note(
        f"\nWhat to type next:\n"
        f"  earn recommend {bundle} --history {shlex.quote(','.join(history[-SHOWN:]))} --exclude-history\n"
        f"  earn inspect {bundle}\n"
        f"  earn evaluate {bundle} {shlex.quote(args.data)} --exclude-history"
    )


def _comparison(summary: Mapping[str, Any]) -> str:
    """The summary as a table."""
    rows = {
        "popularity": summary["popularity"],
        "dense": summary["dense"]["bundle"],
        **{f"EARN ({kind})": figures for kind, figures in summary["earn"].items()},
    }
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "Recall@10": ("recall@10", "{:.4f}".format),
        "NDCG@10": ("ndcg@10", "{:.4f}".format),
        "p50 ms": ("p50_ms", "{:.1f}".format),
        "cache KiB": ("cache_bytes", lambda count: f"{count / 2**10:,.0f}"),
        "bundle MiB": ("bundle_bytes", lambda count: f"{count / 2**20:.1f}"),
    }
    cells = [
        (name, *(text(row[key]) if key in row else "-" for key, text in columns.values())) for name, row in rows.items()
    ]
    return table(("", *columns), cells)
