"""`earn compose`: the bundle's whole search as one ONNX graph, for apps in any language."""

from __future__ import annotations

import argparse
from pathlib import Path

from earn.cli.arguments import Subparsers, add_shared, command, option, positive
from earn.console import note, results_kept_clean, show, size, table
from earn.manifest import ITEMS_FILE, MOBILE_FILES, ONE_GRAPH_FILE


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "compose",
        run,
        "write the whole search as one graph",
        f"Writes {ONE_GRAPH_FILE} and {ITEMS_FILE} into a bundle: one ONNX graph that takes a history and gives items, "
        "the whole search inside, of standard operators alone.",
        """
        earn compose BUNDLE
        earn compose BUNDLE --form unrolled --beams 40 -k 20
        earn compose BUNDLE --mobile
        earn compose BUNDLE --triton REPOSITORY
        """,
    )
    add_shared(parser, "bundle")
    mobile = f"write {' and '.join(MOBILE_FILES)} too, for reduced builds of ONNX Runtime"
    option(parser, "--mobile", mobile, bool)
    add_triton(parser)
    form = "loop (the default), or unrolled for TensorRT; where all codes are named at once plain or fixed"
    option(parser, "--form NAME", form)
    option(parser, "--beams N", "width of a search with beams (default: 20)", positive)
    option(parser, "-k N", "items where the caller does not say (default: 10)", positive)


def run(args: argparse.Namespace) -> int:
    """Writes the graph and lists it."""
    from earn.export.mobile import convert_bundle
    from earn.export.one_graph import compose_bundle

    with results_kept_clean():
        manifest = compose_bundle(args.bundle, args.form, args.beams, args.k)
        if args.mobile:
            manifest = convert_bundle(args.bundle)
    names = [name for name in (ONE_GRAPH_FILE, ITEMS_FILE, *MOBILE_FILES) if name in manifest.files]
    show(table(("file", "size"), [(name, size(manifest.files[name].bytes)) for name in names]))
    write_triton(args, args.bundle)
    note(f"Next: earn recommend {args.bundle} --engine one-graph --history ...")
    return 0


def add_triton(parser: argparse.ArgumentParser) -> None:
    """Declares --triton."""
    option(parser, "--triton DIR", "write the graph as a model of this Triton repository too", Path)


def write_triton(args: argparse.Namespace, bundle: Path) -> None:
    """Writes the bundle's one graph into the Triton repository that was asked for, if any was."""
    if args.triton is not None:
        from earn.export.triton import write_repository

        with results_kept_clean():
            folder = write_repository(bundle, args.triton)
        note(f"For Triton: {folder}")
