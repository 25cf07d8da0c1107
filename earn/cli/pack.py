"""`earn pack`: a bundle as one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from earn.cli.arguments import Subparsers, add_shared, command, option
from earn.console import note, pairs, show, size
from earn.places import opened, pack


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "pack",
        run,
        "write a bundle as one file",
        "Writes the files of a bundle into one zip archive, stored as they are, which Recommender.load opens as it "
        "opens the folder. The bundle is verified first.",
        """
        earn pack BUNDLE
        earn pack BUNDLE --out movies.zip
        """,
    )
    add_shared(parser, "bundle")
    option(parser, "--out FILE", "the file (default: BUNDLE.zip)", Path)


def run(args: argparse.Namespace) -> int:
    """Packs the bundle."""
    out = args.out or Path(f"{args.bundle.resolve()}.zip")
    manifest = opened(args.bundle, lambda folder: pack(folder, out))
    show(pairs([("file", str(out)), ("size", size(out.stat().st_size)), ("fingerprint", manifest.fingerprint)]))
    note(f'Next: Recommender.load("{out.name}"), or earn inspect {out}')
    return 0
