"""`earn batch`: recommendations for all users of parquet files; in one process, or on Ray."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from earn.cli.arguments import Subparsers, add_filters, add_shared, add_unknown, command, option, positive
from earn.cli.engine import add_engine, chosen_engine
from earn.console import pairs, progress, show, show_json

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
    add_shared(parser, "place")
    option(parser, "histories HISTORIES", "parquet files, or folders that hold them", Path, nargs="+")
    option(parser, "--out RECS", "folder of the run", Path, required=True)
    answers = parser.add_argument_group("what is answered")
    option(answers, "-k", "items for each user", positive, 10)
    add_shared(answers, "beams", "exclude_history")
    add_filters(answers)
    add_unknown(answers, "ids that the catalog lacks: set the row aside, or leave them out")
    columns = parser.add_argument_group("columns of the input")
    for role, says in COLUMNS.items():
        option(columns, f"--{role}-column NAME", says, default=role)
    work = parser.add_argument_group("how the work is done")
    option(work, "--workers N", "processes; more than one need Ray", positive, 1)
    option(work, "--address", 'of a Ray cluster, or "auto"; its nodes must see the same paths')
    option(work, "--threads N", "threads of a worker", positive, 1)
    option(work, "--batch-tokens N", "tokens of one pass", positive, 1024)
    rows = "rows of an output file: what a stopped run does again at most, per worker"
    option(work, "--block-users N", rows, positive, 2000)
    add_engine(parser)
    add_shared(parser, "json")


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
    if args.json:
        show_json(asdict(report))
        return 0
    rows = [
        ("users", f"{report.users:,}"),
        ("answered", f"{report.answered:,}"),
        ("rejected", f"{report.rejected:,}"),
        ("blocks", f"{report.blocks:,}, of which {report.blocks_before:,} were done before"),
        ("this run", f"{report.seconds:.1f} s, {report.users_per_second:,.1f} users/s"),
        ("padding", f"{report.padding:.1%} of the tokens"),
        ("written to", str(args.out)),
    ]
    show(pairs(rows))
    return 0
