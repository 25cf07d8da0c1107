"""`earn calibrate`: writes a bundle of lower precision if it recommends the same as the float bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from earn.calibration.precisions import FASTEST, PORTABLE, PRECISIONS, QUANTIZED
from earn.catalog import CATALOG_FILE, Catalog
from earn.cli.arguments import Subparsers, add_report, add_shared, command, fraction, natural, option, positive
from earn.console import Steps, note, progress, results_kept_clean, show, show_json, size, table
from earn.manifest import Manifest

if TYPE_CHECKING:
    from earn.calibration.calibrate import Calibration

FEW_USERS = 300  # below, chance hides a small loss of accuracy
FAILED = 1  # exit status where the gate fails


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "calibrate",
        run,
        f"write a bundle in {', '.join(QUANTIZED)} that passes the gate",
        "Quantizes a bundle with ranges seen on real histories and compares its recommendations with the float "
        "bundle's for held-out users. Where they differ too much, the most sensitive layers go back to float; a bundle "
        "that still fails is not written, and the exit status is 1. A page with pictures and the same figures as JSON "
        "are written beside the new bundle.",
        """
        earn calibrate BUNDLE ml-100k --out BUNDLE-INT8
        earn calibrate BUNDLE ml-100k --precision int8 --engine tensorrt --out BUNDLE-TRT
        earn calibrate BUNDLE ml-100k --portable --out BUNDLE-WEB
        earn calibrate BUNDLE LC-Rec/Instruments --samples 512 --out BUNDLE-INT8 --json
        """,
    )
    add_shared(parser, "bundle", "data")
    option(parser, "--out BUNDLE2", "folder of the new bundle", Path, required=True)
    labels = ", ".join(PRECISIONS[name].label for name in QUANTIZED)
    choice = parser.add_mutually_exclusive_group()
    option(choice, "--precision NAME", f"{labels}, or {FASTEST}: the faster int8 that passes", default=FASTEST)
    choice.add_argument(
        "--portable",
        dest="precision",
        action="store_const",
        const=PORTABLE,
        help=f"{PORTABLE}, which gives the same lists on every processor, in browsers and on phones",
    )
    option(parser, "--engine NAME", "whose form is written: cpu or tensorrt (default: the precision's usual one)")
    add_report(parser, "BUNDLE2-report.html")
    add_shared(parser, "json")
    group = parser.add_argument_group("calibration")
    option(group, "--samples N", "histories that are run", positive, 128)
    option(group, "--seed N", "of all that is drawn", natural, 0)
    group = parser.add_argument_group("gate")
    option(group, "--users N", "most held-out users", positive, 1000)
    option(group, "--min-overlap X", "share of the best 20 items that must stay, over users", fraction, 0.95)
    add_shared(group, "exclude_history")
    option(group, "--force", "write a bundle that fails; its manifest says so", bool)
    option(group, "--no-compare", "leave the other precisions out of the report: much faster", bool)


def run(args: argparse.Namespace) -> int:
    """Calibrates, reports, and says what to do next."""
    from earn.calibration.calibrate import CalibrationSettings, calibrate, check
    from earn.calibration.samples import draw_samples
    from earn.data.dataset import load_dataset
    from earn.report.calibration import check_page, report_calibration

    settings = CalibrationSettings(
        engine=args.engine,
        least_overlap=args.min_overlap,
        force=args.force,
        compare=not args.no_compare,
        seed=args.seed,
    )
    check(args.bundle, args.out, args.precision, settings)
    out = args.out.resolve()
    if args.precision in QUANTIZED and (why := PRECISIONS[args.precision].experimental):
        note(f"      {args.precision} is experimental: {why}.")
    page = args.report or out.with_name(f"{out.name}-report.html")
    check_page(page, args.bundle, args.out)
    steps = Steps(2)
    steps(f"Read {args.data}")
    dataset = load_dataset(args.data)
    dataset.check_items(Catalog.load(args.bundle / CATALOG_FILE), args.bundle)
    histories, held_out = draw_samples(dataset, args.samples, args.users, args.seed, args.exclude_history)
    steps(f"Calibrate with {len(histories)} histories, ask {len(held_out.histories)} other users")
    if len(held_out.histories) < FEW_USERS:
        note("      So few can hardly show a small loss of accuracy; 1,000 can, where the data has them.")
    with results_kept_clean():
        calibration = calibrate(args.bundle, args.out, histories, held_out, args.precision, settings, progress)
    page = report_calibration(calibration, held_out, settings, args.bundle, args.out, args.data, page)
    (note if args.json else show)(comparison(calibration))
    for reason in calibration.chosen.verdict.reasons:
        note(f"The gate fails: {reason}.")
    note(f"Report: {page}")
    again = "No bundle was written. More --samples may help, or another --precision; --force writes it all the same."
    note(again if calibration.manifest is None else f"Next: earn inspect {args.out}")
    _note_other_catalog(calibration, args)
    if args.json:
        show_json(calibration.summary())
    return 0 if calibration.chosen.verdict.passed else FAILED


def _note_other_catalog(calibration: Calibration, args: argparse.Namespace) -> None:
    """Says so where the bundle's catalog was changed while it was being calibrated."""
    written, present = calibration.manifest, Manifest.load(args.bundle, verify=False)
    if written is not None and written.files[CATALOG_FILE] != present.files[CATALOG_FILE]:
        note(
            f"The catalog of {args.bundle} was changed meanwhile. {args.out} has it as it was when the calibration "
            "began; make the changes there too: earn catalog"
        )


def comparison(calibration: Calibration) -> str:
    """All precisions that were judged, as a table."""
    chosen, fp32_ms = calibration.chosen, _ms(calibration.float_milliseconds)
    rows = [["fp32", size(calibration.float_bytes), fp32_ms, "-", "-", f"{chosen.verdict.ndcg.before:.4f}", "-"]]
    for row in calibration.candidates:
        verdict, refined, in_float = row.verdict, len(row.mixed.refined_kinds), len(row.mixed.float_layers)
        gate = (
            ("passes" if verdict.passed else f"fails by {' and '.join(verdict.shortfalls)}")
            + (f", {refined} refined" if refined else "")
            + (f", {in_float} in float" if in_float else "")
            + (" <-" if row is chosen else "")
        )
        overlaps = f"{verdict.beam_set_overlap:.4f}", f"{verdict.top10_overlap:.4f}"
        figures = size(row.graph_bytes), _ms(row.milliseconds), *overlaps, f"{verdict.ndcg.after:.4f}"
        rows.append([row.precision.name, *figures, gate])
    return table(("", "graphs", "p50 ms", "overlap 20", "overlap 10", "NDCG@10", "gate"), rows)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
