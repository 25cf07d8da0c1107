"""`earn inspect --verify`: what loading a bundle checks, one line per check, and whether it then answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from earn.console import pairs, show, show_json
from earn.errors import EarnError

PASSED = "passed"


def run(place: str, as_json: bool) -> int:
    """Checks the bundle; 1 if a check fails."""
    found = verify(place)
    is_good = set(found.values()) == {PASSED}
    show_json({"passed": is_good, "checks": found}) if as_json else show(pairs([*found.items()]))
    return 0 if is_good else 1


def verify(place: str) -> dict[str, str]:
    """PASSED for each of CHECKS, or what it found; those behind the first that fails are left out."""
    from earn.places import bundle_at

    found: dict[str, str] = {}
    name = "place"
    try:
        with bundle_at(place) as folder:
            for name, check in CHECKS.items():  # name is that of the check which fails
                check(folder)
                found[name] = PASSED
    except EarnError as error:
        found[name] = str(error)
    return found


def _manifest(folder: Path) -> None:
    from earn.manifest import Manifest

    Manifest.load(folder, verify=False)


def _sums(folder: Path) -> None:
    from earn.manifest import Manifest

    Manifest.load(folder)


def _graphs(folder: Path) -> None:
    from earn.manifest import Manifest, check_graphs

    check_graphs(folder, Manifest.load(folder, verify=False))


def _catalog(folder: Path) -> None:
    from earn.catalog import CATALOG_FILE, Catalog

    Catalog.load(folder / CATALOG_FILE)


def _answer(folder: Path) -> None:
    from earn.runtime.recommender import Recommender

    recommender = Recommender.load(folder, verify=False)
    recommender.recommend(recommender.catalog.item_ids[:1], k=1)


CHECKS: Mapping[str, Callable[[Path], None]] = {
    "manifest": _manifest,  # its form, limits and the files' sizes
    "sums": _sums,
    "graphs": _graphs,  # that they hold only what this package writes
    "catalog": _catalog,
    "answer": _answer,  # that it loads and answers a request, with finite scores
}
