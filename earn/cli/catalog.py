"""`earn catalog`: changes a bundle's catalog without an export, as a new version that can be rolled back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from earn.bundle_edit import add_items, edit_catalog, roll_back_catalog
from earn.catalog import BLOCKED, CATALOG_FILE, REMOVED, Catalog
from earn.cli.arguments import ITEM_IDS_HELP, Subparsers, add_shared, command, command_group, item_ids, option
from earn.console import note, pairs, show, show_json
from earn.errors import EarnError
from earn.live_catalog import blocked, removed, renamed
from earn.manifest import CatalogVersions, Manifest
from earn.new_items import NewItems
from earn.places import opened
from earn.tags import read_columns, refuse_twice

WITHDRAWN = {"blocked": BLOCKED, "removed": REMOVED}
COLUMNS = {  # of the tables that are read
    "add": "item_id, and title, metadata, identifier where they are known",
    "rename": "item_id, title",
}


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command and its subcommands."""
    own = command_group(
        subparsers,
        "catalog",
        "add, remove, rename and block items without an export",
        "Each change writes the catalog's next version into the bundle, which is replaced in one step; the five "
        "versions before stay in it, to be rolled back to. Apps take it by Recommender.with_catalog, servers by "
        "POST /catalog/reload.",
        """
        earn catalog add BUNDLE items.csv
        earn catalog remove BUNDLE 50,172
        earn catalog rename BUNDLE titles.csv
        earn catalog block BUNDLE @adult.txt
        earn catalog rollback BUNDLE
        earn catalog list BUNDLE
        """,
    )
    for name, run, takes, what, about in (
        (
            "add",
            run_add,
            "items.csv --vectors items.npy",
            "add items",
            "Adds items, or brings removed ones back. An identifier is of codes that the model knows, with spaces "
            "between them: <a_1> <b_2>. Where items have none, they are made of --vectors or of title and metadata; a "
            "bundle of the method set with digits of vectors holds what that takes.",
        ),
        ("remove", run_remove, "7", "remove items: they stay readable in histories", "Takes items out of all lists."),
        (
            "block",
            run_block,
            "7",
            "recommend items no more, or again",
            "Takes items out of all lists, or back in.",
        ),
        ("rename", run_rename, "titles.csv", "give items other titles", "Changes titles."),
        ("rollback", run_rollback, "", "return to the catalog before the last change", "Undoes the last change."),
        ("list", run_list, "", "show the catalog's version and what is withdrawn", "Shows the catalog's version."),
    ):
        parser = command(own, name, run, what, about, f"earn catalog {name} BUNDLE {takes}")
        add_shared(parser, "bundle")
        if name in COLUMNS:
            option(parser, "items FILE", f"a csv or tsv file with a header: {COLUMNS[name]}", Path)
        if name in ("remove", "block"):
            option(parser, "ids IDS", ITEM_IDS_HELP, item_ids)
        if name == "add":
            option(parser, "--vectors FILE", "the items' vectors [items,c], an .npy file", Path)
        if name == "block":
            option(parser, "--undo", "let them free again", bool)
        add_shared(parser, "json")


def run_add(args: argparse.Namespace) -> int:
    """Adds items."""
    items = _new_items(args.items, args.vectors)
    return _changed(args, lambda: add_items(args.bundle, items))


def run_remove(args: argparse.Namespace) -> int:
    """Removes items."""
    return _edit(args, lambda catalog: removed(catalog, args.ids))


def run_block(args: argparse.Namespace) -> int:
    """Blocks items, or lets them free."""
    return _edit(args, lambda catalog: blocked(catalog, args.ids, not args.undo))


def run_rename(args: argparse.Namespace) -> int:
    """Changes titles."""
    table = read_columns(args.items, ("item_id", "title"))
    refuse_twice(args.items, table["item_id"])
    titles = dict(zip(table["item_id"], table["title"], strict=True))
    return _edit(args, lambda catalog: renamed(catalog, titles))


def run_rollback(args: argparse.Namespace) -> int:
    """Returns to the catalog before."""
    return _changed(args, lambda: roll_back_catalog(args.bundle))


def run_list(args: argparse.Namespace) -> int:
    """Shows version and counts."""
    manifest, catalog = opened(
        args.bundle, lambda folder: (Manifest.load(folder, verify=False), Catalog.load(folder / CATALOG_FILE))
    )
    facts = catalog_facts(manifest, catalog)
    if args.json:
        show_json(facts | {name: [catalog.item_ids[i] for i in _of_status(catalog, name)] for name in WITHDRAWN})
        return 0
    kept = ", ".join(map(str, facts["kept"])) or "none"
    counts = [(name, f"{facts[name]:,}") for name in ("items", *WITHDRAWN)]
    show(pairs([("version", f"{facts['version']}"), ("earlier ones kept", kept), *counts]))
    return 0


def catalog_facts(manifest: Manifest, catalog: Catalog) -> dict[str, Any]:
    """A catalog's version, the earlier ones that the bundle holds, and counts of its items."""
    versions = manifest.catalog or CatalogVersions(0, ())
    counts = {name: len(_of_status(catalog, name)) for name in WITHDRAWN}
    return {"version": versions.version, "kept": list(versions.kept), "items": len(catalog), **counts}


def _of_status(catalog: Catalog, name: str) -> list[int]:
    return [int(item) for item in (catalog.status == WITHDRAWN[name]).nonzero()[0]]


def _edit(args: argparse.Namespace, change: Callable[[Catalog], Catalog]) -> int:
    """Changes the bundle's catalog and shows it."""
    return _changed(args, lambda: edit_catalog(args.bundle, change))


def _changed(args: argparse.Namespace, change: Callable[[], Manifest]) -> int:
    """Makes a change and shows the catalog, and says so where it was so before."""
    before = Manifest.load(args.bundle, verify=False).catalog
    if change().catalog == before:
        note("Nothing was written: the catalog is as this change would have it.")
    return run_list(args)


def _new_items(path: Path, vectors: Path | None) -> NewItems:
    """The items of a table, with vectors from another file."""
    table = read_columns(path, ("item_id",), ("title", "metadata", "identifier"))
    refuse_twice(path, table["item_id"])
    given = None
    if vectors is not None:
        try:
            given = np.load(vectors, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise EarnError(f"{vectors}: is no array of numpy ({error}). Write it by numpy.save.") from error
    identifiers = [cell.replace("><", "> <").split() for cell in table.get("identifier", ())]
    titles, metadata = table.get("title", ()), table.get("metadata", ())
    return NewItems(table["item_id"], titles, metadata, given, identifiers if any(identifiers) else ())
