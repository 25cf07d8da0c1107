"""`earn calibrate`: a bundle of lower precision that must prove, on real histories, that it recommends the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from earn.cli.arguments import DATA_HELP, bundle_folder, command, fraction, natural, positive
from earn.console import Steps, note, progress, results_kept_clean, show, show_json, size, table

if TYPE_CHECKING:
    from earn.calibration.calibrate import Calibration
    from earn.cli.arguments import Subparsers

FEW_USERS = 300  # below, chance hides a small loss of accuracy
FAILED = 1  # exit status where the gate stays shut


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "calibrate",
        run,
        "write a bundle in int8, int4 or fp16 that passes the gate",
        "Quantizes a bundle with ranges seen on real histories and compares its recommendations with the float "
        "bundle's for users who were left out. Where they differ too much, the most sensitive layers go back to "
        "float; what still fails is not written, and the exit status is 1. A page with pictures and the same as JSON "
        "stand beside the new bundle.",
        """
        earn calibrate BUNDLE ml-100k --out BUNDLE-INT8
        earn calibrate BUNDLE ml-100k --precision int8 --engine tensorrt --out BUNDLE-TRT
        earn calibrate BUNDLE LC-Rec/Instruments --samples 512 --method percentile --out BUNDLE-INT8 --json
        """,
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help="folder of earn export, in fp32")
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--out", metavar="BUNDLE2", type=Path, required=True, help="folder of the new bundle")
    parser.add_argument(
        "--precision",
        default="fastest",
        metavar="NAME",
        help="int8, int8-dynamic, int4, fp16, or fastest: the faster int8 that passes (default: %(default)s)",
    )
    parser.add_argument(
        "--engine", metavar="NAME", help="whose form is written: cpu or tensorrt (default: the precision's usual one)"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="the page (default: BUNDLE2-report.html)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON; tables go to stderr")
    _add_calibration_options(parser.add_argument_group("calibration"))
    _add_gate_options(parser.add_argument_group("gate"))


def _add_calibration_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--samples", type=positive, default=128, metavar="N", help="histories that are run (default: %(default)s)"
    )
    group.add_argument(
        "--method",
        default="minmax",
        metavar="NAME",
        help="how a range is chosen: minmax, percentile or entropy (default: %(default)s)",
    )
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of all that is drawn (default: 0)")


def _add_gate_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--users", type=positive, default=1000, metavar="N", help="most users who judge (default: %(default)s)"
    )
    group.add_argument(
        "--min-overlap",
        type=fraction,
        default=0.95,
        metavar="X",
        help="share of the best 20 items that must stay, over users (default: %(default)s)",
    )
    group.add_argument("--exclude-history", action="store_true", help="items of the history may not come back")
    group.add_argument("--force", action="store_true", help="write a bundle that fails; its manifest says so")
    group.add_argument(
        "--no-compare", action="store_true", help="leave the other precisions out of the report: much faster"
    )


def run(args: argparse.Namespace) -> int:
    """Calibrates, reports, and says what to do next."""
    from earn.calibration.calibrate import Settings, calibrate, check
    from earn.calibration.samples import draw_samples
    from earn.catalog import CATALOG_FILE, Catalog
    from earn.data.dataset import load_dataset
    from earn.report.calibration import check_page, report_calibration
    from earn.report.page import check_installed

    settings = Settings(
        engine=args.engine,
        method=args.method,
        least_overlap=args.min_overlap,
        force=args.force,
        compare=not args.no_compare,
        seed=args.seed,
    )
    check(args.bundle, args.out, args.precision, settings)
    check_installed()
    out = args.out.resolve()
    page = args.report or out.with_name(f"{out.name}-report.html")
    check_page(page, args.bundle, args.out)
    steps = Steps(2)
    steps(f"Read {args.data}")
    dataset = load_dataset(args.data)
    dataset.check_items(Catalog.load(args.bundle / CATALOG_FILE), args.bundle)
    histories, held_out = draw_samples(dataset, args.samples, args.users, args.seed, args.exclude_history)
    steps(f"Calibrate with {len(histories)} histories; {len(held_out.histories)} other users judge")
    if len(held_out.histories) < FEW_USERS:
        note("      So few can hardly show a small loss of accuracy; 1,000 can, where the data has them.")
    with results_kept_clean():
        found = calibrate(args.bundle, args.out, histories, held_out, args.precision, settings, progress)
    page = report_calibration(found, held_out, settings, args.bundle, args.out, args.data, page)
    (note if args.json else show)(comparison(found))
    for reason in found.chosen.verdict.reasons:
        note(f"The gate stays shut: {reason}.")
    note(f"Report: {page}")
    note(_next(found, args))
    if args.json:
        show_json(found.summary())
    return 0 if found.chosen.verdict.passed else FAILED


def comparison(found: Calibration) -> str:
    """All precisions that were judged, as a table."""
    chosen = found.chosen.verdict
    rows = [
        ["fp32", size(found.float_bytes), _ms(found.float_milliseconds), "-", "-", f"{chosen.ndcg.before:.4f}", "-"]
    ]
    for row in found.candidates:
        verdict = row.verdict
        rows.append(
            [
                row.precision.name,
                size(row.graph_bytes),
                _ms(row.milliseconds),
                f"{verdict.beam_set_overlap:.4f}",
                f"{verdict.top10_overlap:.4f}",
                f"{verdict.ndcg.after:.4f}",
                ("passes" if verdict.passed else "fails")
                + (f", {len(row.mix.fine_kinds)} kinds refined" if row.mix.fine_kinds else "")
                + (f", {len(row.mix.float_units)} layers in float" if row.mix.float_units else "")
                + (" <-" if row is found.chosen else ""),
            ]
        )
    return table(("", "graphs", "p50 ms", "overlap 20", "overlap 10", "NDCG@10", "gate"), rows)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _next(found: Calibration, args: argparse.Namespace) -> str:
    if found.manifest is not None:
        return f"Next: earn inspect {args.out}"
    return "No bundle was written. More --samples may help, or another --precision; --force writes it all the same."
