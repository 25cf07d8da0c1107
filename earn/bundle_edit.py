"""Changes of a bundle's small files, without a new export: the folder as a whole is exchanged for a changed one.

What stays is linked into the new folder, not copied, so a change costs little beside large graphs. Whoever loads the
bundle meanwhile gets the old one or the new one. Changes of the same bundle follow each other, exports and calibrations
over it among them: one that begins while another is being made is refused.

    add_items("bundle", NewItems(["9001"], identifiers=[["<a_1>", "<b_2>"]]))
    edit_catalog("bundle", lambda catalog: removed(catalog, ["50"]))
    roll_back_catalog("bundle")

A catalog that was changed keeps its former versions, as far as MOST_KEPT of them, as catalogs/VERSION.npz.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import ne
from pathlib import Path

import numpy as np

from earn.catalog import CATALOG_FILE, Catalog
from earn.config import SET
from earn.errors import EarnError
from earn.exchange import only_writer
from earn.files import folder_written_whole, link_files
from earn.item_neighbours import ItemNeighbours
from earn.manifest import (
    ITEMS_FILE,
    MOBILE_FILES,
    NEIGHBOURS_FILE,
    NO_MODEL,
    ONE_GRAPH_FILE,
    CatalogVersions,
    FileEntry,
    Manifest,
)
from earn.new_items import NewItems, with_new_items
from earn.quantizer import QUANTIZER_FILE
from earn.tags import TAGS_FILE, Tags

MOST_KEPT = 5  # earlier catalogs
READ = (CATALOG_FILE, QUANTIZER_FILE, TAGS_FILE, NEIGHBOURS_FILE)  # what a change is made from


@contextmanager
def bundle_changed(folder: Path) -> Iterator[Path]:
    """A folder with the bundle's files, which takes the bundle's place when the block ends; not if it raises.

    Files in it are replaced, never written to: they are the old bundle's too.

    Raises:
        EarnError: no bundle, it cannot be written, or another process is changing it.
    """
    Manifest.load(folder, verify=False)  # says what to do where there is none
    with bundle_locked(folder), _copy_put_in_place(folder) as beside:
        yield beside


@contextmanager
def bundle_locked(folder: Path) -> Iterator[None]:
    """Lets nobody else change or replace a bundle during the block; where there is no folder, nothing is locked.

    Raises:
        EarnError: another process is changing it.
    """
    if not folder.exists():
        yield
        return
    with only_writer(folder.resolve()) as is_alone:
        if not is_alone:
            raise EarnError(f"{folder}: another process is changing it. Try again when that has ended.")
        yield


@contextmanager
def _copy_put_in_place(folder: Path) -> Iterator[Path]:
    """`bundle_changed` for whoever has the bundle's lock."""
    with folder_written_whole(folder) as beside:
        link_files(folder.resolve(), beside)
        yield beside


def set_tags(folder: Path, tags: Tags) -> Manifest:
    """Gives a bundle these tags in place of those that it has; its saved sessions stay good.

    Raises:
        EarnError: no bundle, the tags are of another number of items, or it cannot be written.
    """
    with bundle_changed(folder) as changed:
        items = len(Catalog.load(folder / CATALOG_FILE))
        if tags.items != items:  # such as of the catalog before another process changed it
            raise EarnError(f"{folder}: has {items} items, and these are tags of {tags.items}. Make them again.")
        manifest = _with_tags(Manifest.load(folder, verify=False), changed, tags)
        manifest.save(changed)
    return manifest


def edit_catalog(folder: Path, change: Callable[[Catalog], Catalog]) -> Manifest:
    """Gives a bundle a changed catalog as its next version; the former one is kept, to be rolled back to.

    A change that changes nothing writes nothing, and the bundle's manifest is returned as it is. The one graph, which
    holds a catalog of its own, is left out of the bundle: write it again.

    Args:
        folder: the bundle.
        change: gives the new catalog from the present one; see earn.live_catalog and earn.new_items.

    Raises:
        EarnError: no bundle, its catalog is damaged, it cannot be written, the new catalog does not fit the model, or
            what `change` raises.
    """
    Manifest.load(folder, verify=False)  # says what to do where there is none
    with bundle_locked(folder):
        manifest = Manifest.load(folder, verify=READ)
        former = Catalog.load(folder / CATALOG_FILE)
        catalog = change(former)
        if catalog.is_same(former):
            return manifest
        _check_fits(manifest, former, catalog)
        before = manifest.catalog or CatalogVersions(0, ())
        kept = (before.version, *before.kept)
        with _copy_put_in_place(folder) as changed:
            target = changed / CatalogVersions.file(before.version)
            target.parent.mkdir(exist_ok=True)
            os.replace(changed / CATALOG_FILE, target)
            catalog.save(changed / CATALOG_FILE, manifest.model.method != SET, with_quantizer=False)
            for version in kept[MOST_KEPT:]:
                (changed / CatalogVersions.file(version)).unlink()
            versions = CatalogVersions(before.version + 1, kept[:MOST_KEPT])
            return _with_catalog(manifest, changed, versions, len(former), len(catalog))


def add_items(folder: Path, items: NewItems) -> Manifest:
    """`edit_catalog` with `with_new_items`, as the bundle's method wants it.

    Raises:
        EarnError: see both.
    """
    has_rows = Manifest.load(folder, verify=False).model.method == SET
    return edit_catalog(folder, lambda catalog: with_new_items(catalog, items, has_rows))


def roll_back_catalog(folder: Path) -> Manifest:
    """Gives a bundle the newest of its earlier catalogs back, under a number of its own.

    Raises:
        EarnError: no bundle, it has no earlier catalog or a damaged one, or it cannot be written.
    """
    with bundle_changed(folder) as changed:
        manifest = Manifest.load(folder, verify=False)
        versions = manifest.catalog
        if versions is None or not versions.kept:
            raise EarnError(f"{folder}: has no earlier catalog to roll back to.")
        newest, *older = versions.kept
        earlier = CatalogVersions.file(newest)
        Manifest.load(folder, verify=(earlier, *READ))
        before, after = len(Catalog.load(folder / CATALOG_FILE)), len(Catalog.load(folder / earlier))
        os.replace(changed / earlier, changed / CATALOG_FILE)
        return _with_catalog(manifest, changed, CatalogVersions(versions.version + 1, tuple(older)), before, after)


def _check_fits(manifest: Manifest, former: Catalog, catalog: Catalog) -> None:
    """Raises EarnError for a catalog that the bundle's model does not know, or that gives items another index."""
    is_set = manifest.model.method == SET
    named = (catalog.trained, 1) if is_set else (len(catalog.tokens), catalog.depth)
    logits = len(catalog.tokens) if is_set else manifest.sizes.logits
    wanted = (len(manifest.model.token_ids), manifest.limits.depth)
    if named != wanted or logits != manifest.sizes.logits:
        raise EarnError(
            f"The new catalog has {named[0]} trained items or tokens and depth {named[1]}, the model {wanted[0]} and "
            f"{wanted[1]}. Change the bundle's own catalog, by earn.live_catalog and add_items."
        )
    has_same_codes = catalog.tokens == former.tokens and np.array_equal(catalog.codes[: len(former)], former.codes)
    if not has_same_codes or any(map(ne, former.item_ids, catalog.item_ids)):
        raise EarnError(
            "The new catalog lacks items of the former one, or gives them another place, id or identifier, by which "
            "model, histories and tags know them. Change the bundle's own catalog, by earn.live_catalog and add_items."
        )


def _with_catalog(manifest: Manifest, changed: Path, versions: CatalogVersions, before: int, after: int) -> Manifest:
    """Lists a folder's new catalog and the kept ones in its manifest; files that follow from the old one change too.

    Args:
        manifest: the bundle's, as it was.
        changed: the folder that takes the bundle's place.
        versions: of the new catalog.
        before: items of the old catalog.
        after: of the new one.
    """
    by_index = {TAGS_FILE, NEIGHBOURS_FILE}  # what they say of an item stays true
    former = {*NO_MODEL, *(manifest.catalog.files if manifest.catalog else ())} - by_index
    for name in NO_MODEL - {CATALOG_FILE, *by_index}:
        (changed / name).unlink(missing_ok=True)
    files = {name: entry for name, entry in manifest.files.items() if name not in former}
    files |= {name: FileEntry.of(changed / name) for name in (CATALOG_FILE, *versions.files)}
    manifest = replace(manifest, files=files, catalog=versions)
    if TAGS_FILE in files and before != after:
        manifest = _with_tags(manifest, changed, Tags.load(changed / TAGS_FILE, before).resized(after))
    neighbours = ItemNeighbours.load(changed, manifest, before) if after < before else None
    if neighbours is not None:
        neighbours.resized(after).save(changed / NEIGHBOURS_FILE)
        files = {**manifest.files, NEIGHBOURS_FILE: FileEntry.of(changed / NEIGHBOURS_FILE)}
        manifest = replace(manifest, files=files)
    manifest.save(changed)
    return manifest


def set_neighbours(folder: Path, neighbours: ItemNeighbours, catalog: Catalog) -> Manifest:
    """Gives a bundle these neighbours in place of those that it has.

    The one graph, whose lists know none, is left out of the bundle.

    Args:
        folder: the bundle.
        neighbours: of the catalog's items.
        catalog: the bundle's, for which they were made.

    Raises:
        EarnError: no bundle, its catalog is another one by now, the neighbours are none of it, its model gives items no
            probabilities, or it cannot be written.
    """
    with bundle_changed(folder) as changed:
        check_blends(Manifest.load(folder, verify=False), catalog, str(folder))
        neighbours.check(len(catalog), str(folder))
        if not Catalog.load(folder / CATALOG_FILE).is_same(catalog):  # such as changed by another process
            raise EarnError(f"{folder}: its catalog is another one by now. Make the neighbours again.")
        return _with_neighbours(folder, changed, neighbours)


def remove_neighbours(folder: Path) -> Manifest:
    """Takes a bundle's neighbours away; one that has none stays as it is.

    Raises:
        EarnError: no bundle, or it cannot be written.
    """
    manifest = Manifest.load(folder, verify=False)
    if NEIGHBOURS_FILE not in manifest.files:
        return manifest
    with bundle_changed(folder) as changed:
        return _with_neighbours(folder, changed, None)


def check_blends(manifest: Manifest, catalog: Catalog, where: str) -> None:
    """Raises EarnError for a model whose scores are no probabilities of items, so that no weight makes a blend."""
    if manifest.model.method == SET and catalog.depth > 1:
        raise EarnError(
            f"{where}: its items have {catalog.depth} digits each, whose sum is no probability that could be blended. "
            "Train with --digits items, or with beams."
        )


def _with_neighbours(folder: Path, changed: Path, neighbours: ItemNeighbours | None) -> Manifest:
    """Writes neighbours into a folder that takes the bundle's place, and lists them; without the one graph."""
    manifest = Manifest.load(folder, verify=False)
    left_out = {NEIGHBOURS_FILE, ONE_GRAPH_FILE, ITEMS_FILE, *MOBILE_FILES}
    for name in left_out:
        (changed / name).unlink(missing_ok=True)
    files = {name: entry for name, entry in manifest.files.items() if name not in left_out}
    if neighbours is not None:
        neighbours.save(changed / NEIGHBOURS_FILE)
        files[NEIGHBOURS_FILE] = FileEntry.of(changed / NEIGHBOURS_FILE)
    manifest = replace(manifest, files=files)
    manifest.save(changed)
    return manifest


def _with_tags(manifest: Manifest, changed: Path, tags: Tags) -> Manifest:
    """Writes tags into a folder and lists them."""
    tags.save(changed / TAGS_FILE)
    return replace(manifest, files={**manifest.files, TAGS_FILE: FileEntry.of(changed / TAGS_FILE)})
