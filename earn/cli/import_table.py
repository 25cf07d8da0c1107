"""`earn import`: a table of interactions becomes a folder that every command reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from earn.cli.arguments import Subparsers, command, natural, option
from earn.console import note, pairs, show
from earn.data.import_options import DEDUPE, ORDERS, TIES, UNITS, Columns, ImportOptions

COLUMNS = {
    "user": "the user",
    "item": "the item",
    "time": "the time",
    "rating": "the rating",
    "title": "the item's title",
}


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "import",
        run,
        "read a table of users, items and times",
        "Reads csv, tsv, :: (MovieLens), json lines or parquet, each also gzipped, and writes a folder that every "
        "command takes as DATA. Columns are found by their usual names. What was read, left out and odd is said.",
        """
        earn import ratings.csv --out data/ratings
        earn import part-*.parquet --items products.jsonl.gz --k-core 5 --out data/shop
        earn import clicks.dat --user 1 --time 2 --item 3 --dedupe consecutive --out data/clicks
        """,
    )
    option(parser, "files FILE", "tables of one kind, a folder of them, or addresses", nargs="+")
    option(parser, "--out", "the folder to write", Path, required=True)
    option(parser, "--items FILE", "a table of items: id, title, other words")
    columns = parser.add_argument_group("columns", "names, or numbers from 1 where the file has no header")
    for role, what in COLUMNS.items():
        option(columns, f"--{role} COLUMN", f"{what} (default: by its usual names)")
    filters = parser.add_argument_group("what is kept")
    option(filters, "--min-rating R", "interactions rated at least so", float)
    option(filters, "--since TIME", "interactions from then on; ISO text or a number")
    option(filters, "--until TIME", "interactions before then")
    option(filters, "--k-core K", "users and items with at least K interactions each", natural, 0)
    dedupe = "drop an item right after itself (consecutive), or wherever a user had it before (all)"
    option(filters, "--dedupe", dedupe, default="none", choices=DEDUPE)
    option(filters, "--drop-missing", "leave out rows that lack a value", bool)
    reading = parser.add_argument_group("how it is read")
    option(reading, "--order", "file: rows are in order, times are not read", default="time", choices=ORDERS)
    option(reading, "--ties", "equal times of a user: the file's order, or drawn", default="keep", choices=TIES)
    option(reading, "--seed", "of --ties shuffle", natural, 0)
    option(reading, "--unit", "of times that are numbers (default: told from their size)", choices=UNITS)
    option(reading, "--encoding", "of text files (default: UTF-8, or UTF-16 where the file shows it)")


def run(args: argparse.Namespace) -> int:
    """Imports the files."""
    from earn.data.tables.files import import_files
    from earn.data.tables.folder import check_out, write_import
    from earn.files import folder_written_whole

    options = ImportOptions(
        columns=Columns(**{role: getattr(args, role) for role in COLUMNS}),
        min_rating=args.min_rating,
        since=args.since,
        until=args.until,
        dedupe=args.dedupe,
        k_core=args.k_core,
        ties=args.ties,
        seed=args.seed,
        order=args.order,
        unit=args.unit,
        drop_missing=args.drop_missing,
        encoding=args.encoding,
    )
    check_out(args.out)
    with folder_written_whole(args.out) as beside:  # first of all, so that a place that cannot be written is known
        imported = import_files(args.files, args.items, options, note)
        write_import(beside, imported, options)
    counts = imported.facts["counts"]
    rows = [(what, f"{count:,}") for what, count in counts.items()]
    show(pairs([*rows, ("next", f"earn train {args.out} --out CHECKPOINT")]))
    return 0
