"""`earn blend`: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from earn.bundle_edit import edit_catalog, set_neighbours
from earn.catalog import CATALOG_FILE, Catalog
from earn.data.dataset import load_dataset
from earn.data.neighbours import Likeness, likeness
from earn.export import blend
from earn.export.blend import nearest, neighbours_of
from earn.item_neighbours import ItemNeighbours
from earn.live_catalog import removed
from earn.manifest import MANIFEST_FILE, NEIGHBOURS_FILE, Manifest
from earn.runtime.recommender import Recommender
from tests.cli.conftest import ITEMS, Earn


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A bundle of a model that has hardly learned anything, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def test_lists_get_better_by_what_validation_users_chose(bundle: Path, data: Path, earn: Earn) -> None:
    before = earn("evaluate", bundle, data, "--json").json
    found = earn("blend", bundle, data, "--json").json
    assert found["users"] == 90
    assert found["blend"] > found["model"]
    assert 0 < found["weight"] < 1
    written = Recommender.load(bundle).lists.neighbours
    assert written is not None
    assert (written.weight, written.decay) == pytest.approx((found["weight"], found["decay"]))
    valid = earn("evaluate", bundle, data, "--split", "valid", "--json").json
    assert valid["ndcg@10"] == pytest.approx(found["blend"], abs=1e-6)  # what was chosen by is what it gives
    assert earn("evaluate", bundle, data, "--json").json["ndcg@10"] > before["ndcg@10"]
    again = earn("blend", bundle, data, "--json").json  # neighbours that are there already change nothing
    assert again == found
    assert earn("blend", bundle, "--remove").status == 0
    assert NEIGHBOURS_FILE not in Manifest.load(bundle).files


def test_neighbours_of_no_use_are_not_written(
    bundle: Path, data: Path, earn: Earn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All users walk on; a likeness that leads back to where they were finds nothing."""
    back = csr_matrix(np.eye(ITEMS, k=-1) + np.eye(ITEMS, k=-2))
    monkeypatch.setattr(blend, "likeness", lambda *_: Likeness(back.T, None))
    manifest = (bundle / MANIFEST_FILE).read_bytes()
    outcome = earn("blend", bundle, data, "--exclude-history", "--json")
    assert outcome.json["weight"] == 0
    assert "the model alone ranks best" in outcome.err
    assert (bundle / MANIFEST_FILE).read_bytes() == manifest
    items = len(Recommender.load(bundle).catalog)
    ring = (np.arange(items, dtype="<i4")[:, None] + 1) % items
    older = ItemNeighbours(ring, np.ones((items, 1), "<f4"), 1.0, 0.9)
    set_neighbours(bundle, older, Catalog.load(bundle / CATALOG_FILE))
    earn("blend", bundle, data, "--exclude-history")
    assert (bundle / MANIFEST_FILE).read_bytes() == manifest  # those that were there are of no use either


def test_what_was_withdrawn_takes_no_place_of_validation_lists(bundle: Path, data: Path, earn: Earn) -> None:
    edit_catalog(bundle, lambda catalog: removed(catalog, catalog.item_ids[::2]))
    found = earn("blend", bundle, data, "--json").json
    assert found["weight"] > 0
    valid = earn("evaluate", bundle, data, "--split", "valid", "--json").json
    assert valid["ndcg@10"] == pytest.approx(found["blend"], abs=1e-6)


def test_neighbours_stay_where_the_data_is_another(bundle: Path, data: Path, tmp_path: Path, earn: Earn) -> None:
    earn("blend", bundle, data)
    manifest = (bundle / MANIFEST_FILE).read_bytes()
    table = tmp_path / "other.csv"
    rows = [f"u{user},x{item},{item}" for user in range(3) for item in range(4)]
    table.write_text("\n".join(["user,item,time", *rows]) + "\n")
    assert "are not in the catalog" in earn("blend", bundle, table).error
    assert (bundle / MANIFEST_FILE).read_bytes() == manifest


@pytest.mark.parametrize("arguments", [[], ["ml-100k", "--remove"]])
def test_data_or_remove_one_of_the_two(bundle: Path, arguments: list[str], earn: Earn) -> None:
    assert "or --remove: one of the two" in earn("blend", bundle, *arguments).error


def test_the_nearest_are_those_of_the_whole_matrix(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blend, "AT_ONCE", 7 * ITEMS)
    dataset = load_dataset(str(data))
    alike = likeness(dataset.interactions, dataset.split.train)
    whole = alike.times(np.eye(ITEMS))
    np.fill_diagonal(whole, 0)
    items, found = nearest(alike, 9, lambda done, total: None)
    np.testing.assert_allclose(found, np.maximum(0, np.sort(whole, axis=1)[:, :-10:-1]), rtol=1e-6)
    for item in range(ITEMS):
        there = items[item] >= 0
        assert len(set(items[item, there])) == there.sum() == (found[item] > 0).sum()
        np.testing.assert_allclose(found[item, there], whole[item, items[item, there]], rtol=1e-6)


def test_large_catalogs_have_fewer_neighbours_of_each_item() -> None:
    assert [neighbours_of(items) for items in (100, 1_682, 12_101, 1_000_000)] == [100, 256, 86, 32]
