"""`earn tags`: gives a bundle's items tags from a table, or lists those that they have."""

from __future__ import annotations

import argparse
from pathlib import Path

from earn.bundle_edit import set_tags
from earn.catalog import CATALOG_FILE, Catalog
from earn.cli.arguments import Subparsers, add_shared, command, option
from earn.console import note, show, show_json, table
from earn.errors import EarnError
from earn.manifest import Manifest
from earn.tags import TAGS_FILE, Tags, no_tags, read_tags


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "tags",
        run,
        "tag the items, to filter lists by",
        "Writes tags.npz into a bundle from columns of a table of items (csv or tsv with a header), or lists the tags "
        "that are there. A column of yes and no is a tag of its name; other columns give tags column:value, several "
        'values in a cell with "|" between them.',
        """
        earn tags BUNDLE --from items.csv --columns genre,language,adult --bands price=5,20
        earn tags BUNDLE
        earn recommend BUNDLE --history 50,172 --allow genre:Comedy --block adult
        """,
    )
    add_shared(parser, "bundle")
    option(parser, "--from FILE", "the table; without it, tags are listed", Path, dest="table")
    option(parser, "--columns NAMES", "columns, with commas between them", _names)
    parser.add_argument(
        "--bands",
        type=_bands,
        action="append",
        default=[],
        metavar="COLUMN=A,B",
        help="a column of numbers and where its bands part: below A, A to B, from B; may be given several times",
    )
    option(parser, "--item COLUMN", "the column of item ids (default: the first)")
    add_shared(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Writes tags where a table is given; lists them."""
    tags = _tags(args)
    counts = {name: int(tags.having(name).sum()) for name in tags.names}
    if not counts:
        note(
            f"There are no tags. To make some of a table of items: earn tags {args.bundle} --from FILE --columns NAMES"
        )
    show_json(counts) if args.json else show(table(("tag", "items"), [(name, f"{n}") for name, n in counts.items()]))
    return 0


def _tags(args: argparse.Namespace) -> Tags:
    """The tags that the bundle has afterwards."""
    manifest, catalog = Manifest.load(args.bundle, verify=False), Catalog.load(args.bundle / CATALOG_FILE)
    bands = dict(args.bands)
    if args.table is None:
        if args.columns or bands or args.item:
            raise EarnError("--columns, --bands and --item say how a table is read. Name it: --from FILE.")
        has_tags = TAGS_FILE in manifest.files
        return Tags.load(args.bundle / TAGS_FILE, len(catalog)) if has_tags else no_tags(len(catalog))
    if not args.columns and not bands:
        raise EarnError("No column was named. Name some: --columns genre,language or --bands price=5,20.")
    tags = read_tags(args.table, catalog, args.columns or (), bands, args.item)
    set_tags(args.bundle, tags)
    note(f"Next: earn recommend {args.bundle} --history ... --allow TAG --block TAG")
    return tags


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _bands(text: str) -> tuple[str, list[float]]:
    """A column and where its bands part."""
    column, _, edges = text.rpartition("=")
    try:
        return column, [float(edge) for edge in edges.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form COLUMN=5,20") from error
