"""`earn batch`: recommendations for all users of parquet files; in one process, or on Ray."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from earn.cli.arguments import add_bundle_place, add_exclude_history, add_filters, add_json, command, positive
from earn.cli.engine import add_engine, chosen_engine
from earn.console import pairs, progress, show, show_json

if TYPE_CHECKING:
    from earn.cli.arguments import Subparsers
    from earn.serve.batch import BatchReport

COLUMNS = {
    "user": "of any type",
    "items": "lists, oldest first",
    "exclude": "lists; may be missing",
    "allow": "tags, or filters in JSON; may be missing",
    "block": "likewise",
}


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "batch",
        run,
        "recommend for all users of parquet files",
        "Answers every row of parquet files (user, items, optionally exclude) and writes parquet files: user, items, "
        "scores, and the sums of the bundle and its catalog. A run that was stopped goes on where it was when the same "
        "command is given again. Bad rows are set aside with their reason.",
        """
        earn batch BUNDLE histories.parquet --out RECS
        earn batch BUNDLE histories/ --out RECS --workers 8 --exclude-history
        earn batch BUNDLE /shared/histories --out /shared/recs --address auto --workers 64
        """,
    )
    add_bundle_place(parser)
    parser.add_argument(
        "histories", metavar="HISTORIES", type=Path, nargs="+", help="parquet files, or folders that hold them"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RECS", help="folder of the run")
    answers = parser.add_argument_group("what is answered")
    answers.add_argument("-k", type=positive, default=10, help="items for each user (default: %(default)s)")
    answers.add_argument("--beams", type=positive, metavar="N", help="width of the search (default: 20)")
    add_exclude_history(answers)
    add_filters(answers)
    answers.add_argument(
        "--unknown",
        choices=("error", "skip"),
        default="error",
        help="ids that the catalog lacks: set the row aside, or leave them out (default: %(default)s)",
    )
    columns = parser.add_argument_group("columns of the input")
    for role, says in COLUMNS.items():
        columns.add_argument(f"--{role}-column", default=role, metavar="NAME", help=f"{says} (default: %(default)s)")
    work = parser.add_argument_group("how the work is done")
    work.add_argument("--workers", type=positive, default=1, metavar="N", help="processes; more than one need Ray")
    work.add_argument("--address", help='of a Ray cluster, or "auto"; its nodes must see the same paths')
    work.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="threads of a worker (default: %(default)s)"
    )
    work.add_argument(
        "--batch-tokens", type=positive, default=1024, metavar="N", help="tokens of one pass (default: %(default)s)"
    )
    work.add_argument(
        "--block-users",
        type=positive,
        default=2000,
        metavar="N",
        help="rows of an output file: what a stopped run does again at most, per worker (default: %(default)s)",
    )
    add_engine(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Recommends for all."""
    from earn.serve.batch import run_batch
    from earn.serve.batch_input import Columns
    from earn.serve.batch_worker import Job

    job = Job(
        bundle=args.bundle if isinstance(args.bundle, str) else str(args.bundle.resolve()),
        out=args.out.resolve(),
        columns=Columns(**{role: getattr(args, f"{role}_column") for role in COLUMNS}),
        k=args.k,
        beams=args.beams,
        exclude_history=args.exclude_history,
        allow=tuple(args.allow),
        block=tuple(args.block),
        unknown=args.unknown,
        engine=chosen_engine(args.engine, args.bundle),
        threads=args.threads,
        block_users=args.block_users,
        batch_tokens=args.batch_tokens,
    )
    report = run_batch(job, args.histories, args.workers, args.address, progress("users"))
    show_json(asdict(report)) if args.json else show(_table(report, args.out))
    return 0


def _table(report: BatchReport, out: Path) -> str:
    """The report for people."""
    rows = [
        ("users", f"{report.users:,}"),
        ("answered", f"{report.answered:,}"),
        ("rejected", f"{report.rejected:,}"),
        ("blocks", f"{report.blocks:,}, of which {report.blocks_before:,} were done before"),
        ("this run", f"{report.seconds:.1f} s, {report.users_per_second:,.1f} users/s"),
        ("padding", f"{report.padding:.1%} of the tokens"),
        ("written to", str(out)),
    ]
    return pairs(rows)
