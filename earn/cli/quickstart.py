"""`earn quickstart`: the whole path for EARN and its dense twin: train, export, calibrate, evaluate, time.

In OUT:
    dense/, earn/                  checkpoints
    dense-bundle/, earn-bundle/    bundles
    int8-bundle/                   the EARN bundle in int8, with int8-report.html and .json beside it
    summary.json                   {"popularity": Q, "dense": M, "earn": M, "seconds": float}
                                   Q = {"recall@10", "ndcg@10"}
                                   B = Q and "p50_ms", "cache_bytes", "bundle_bytes"
                                   M = {"torch": Q, "bundle": B}; that of "earn" has "int8": B and "gate" too

Quality is that of constrained search over the whole catalog for every test user's next item. Items of the history are
left out of every list, popularity's too: nobody rates a film twice, so they would be wasted places. (A data set whose
users choose an item again would count these choices as missed.) Latency is that of the same request, one at a time,
all bundles asked in turn, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import DATA_HELP, command, natural, positive
from earn.console import Steps, note, progress, results_kept_clean, show, table
from earn.errors import EarnError
from earn.settings import TrainSettings

if TYPE_CHECKING:
    from earn.catalog import Catalog
    from earn.cli.arguments import Subparsers
    from earn.data import Example
    from earn.data.dataset import Dataset
    from earn.model.earn_model import EarnModel
    from earn.runtime.recommender import Recommender

TWINS = ("dense", "earn")
INT8 = "int8"

# How both are trained: fields of TrainSettings that differ from its defaults. So few epochs leave nothing to overfit.
RECIPE: Mapping[str, Any] = {"epochs": 4, "dropout": 0.0, "exclude_history": True}

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
    parser.add_argument("--epochs", type=positive, metavar="N", help="of both trainings (default: enough)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--users", type=positive, metavar="N", help="evaluate on a sample of users (default: all)")


def run(args: argparse.Namespace) -> int:
    """Walks the whole path."""
    import onnx_ir  # noqa: F401  (what is missing is to be said before the training, not after it)
    import onnxruntime  # noqa: F401

    from earn.cli.export import write
    from earn.cli.measures import TIMED_REQUESTS, bundle_sizes, p50_ms, quality
    from earn.data.dataset import load_dataset
    from earn.files import write_json
    from earn.report.page import check_installed
    from earn.runtime.recommender import Recommender

    check_installed()
    _refuse_foreign_folder(args.out)
    steps = Steps(8)
    steps(f"Read {args.data}")
    dataset = load_dataset(args.data)
    users = dataset.examples(users=args.users)
    steps(f"Item identifiers of {len(dataset.interactions.item_ids):,} items")
    catalog = dataset.catalog(args.seed)
    _empty(args.out)
    models = {name: _train(name, args, dataset, catalog, steps) for name in TWINS}
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
    for name, milliseconds in p50_ms(bundles, dataset.histories(users)).items():
        place = summary["earn"][INT8] if name == INT8 else summary[name]["bundle"]
        place |= {"p50_ms": milliseconds, **bundle_sizes(bundles[name].manifest)}
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
        for folder in (out / name, out / f"{name}-bundle"):
            shutil.rmtree(folder, ignore_errors=True)
    reports = [f"{INT8}-report{outcome}.{kind}" for outcome in ("", "-failed") for kind in ("html", "json")]
    for name in (SUMMARY, *reports):
        (out / name).unlink(missing_ok=True)


def _train(name: str, args: argparse.Namespace, dataset: Dataset, catalog: Catalog, steps: Steps) -> EarnModel:
    """One twin, as its checkpoint says."""
    from earn.cli.train import describe, fit
    from earn.model.earn_model import EarnModel

    settings = replace(TrainSettings(**RECIPE), seed=args.seed)
    if args.epochs is not None:
        settings = replace(settings, epochs=args.epochs)
    build = EarnModel.dense if name == "dense" else EarnModel.from_backbone
    model = build(args.backbone, catalog, seed=args.seed)
    steps(f"Train {'the dense twin' if name == 'dense' else 'EARN'} (epochs: {settings.epochs})")
    note(f"      {describe(model)}")
    fit(model, dataset, args.out / name, settings)
    return EarnModel.from_pretrained(args.out / name)


def _calibrate(args: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """Writes the int8 bundle and its report; returns what the gate found."""
    from earn.calibration.calibrate import CalibrationSettings, calibrate
    from earn.calibration.samples import HELD_OUT, SAMPLES, draw_samples
    from earn.report.calibration_summary import report_calibration

    try:
        histories, held_out = draw_samples(dataset, SAMPLES, HELD_OUT, args.seed, exclude_history=True)
    except EarnError as error:  # a small data set is no reason to end here
        note(f"      left out: {error}")
        return {"passed": False}
    source, out, page = (args.out / name for name in ("earn-bundle", f"{INT8}-bundle", f"{INT8}-report.html"))
    settings = CalibrationSettings(compare=False, seed=args.seed)
    with results_kept_clean():
        found = calibrate(source, out, histories, held_out, INT8, settings, progress)
    page = report_calibration(found, held_out, settings, source, out, dataset.source, page)
    figures = found.summary()
    note(f"      {figures['beam_set_overlap']:.1%} of the best items stay; see {page}")
    return figures


def _report(
    args: argparse.Namespace,
    summary: Mapping[str, Any],
    recommender: Recommender,
    dataset: Dataset,
    users: Sequence[Example],
) -> None:
    """Prints the comparison, one user's recommendations, and what to type next."""
    from earn.cli.measures import BEAMS
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
    show(f"\nUser {example.user} chose last:")
    for item_id in history[-SHOWN:]:
        show(f"  {item_id}  {titles[item_id]}")
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
        "EARN (torch)": summary["earn"]["torch"],
        "EARN (bundle)": summary["earn"]["bundle"],
        "EARN (int8)": summary["earn"][INT8],
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
