"""Blended lists: by hand, against the formula over the whole catalog, and as a bundle brings them to every request."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.arrays import write_arrays
from earn.bundle_edit import edit_catalog, remove_neighbours, roll_back_catalog
from earn.bundle_edit import set_neighbours as set_for_catalog
from earn.catalog import CATALOG_FILE, Catalog
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.item_neighbours import ItemNeighbours
from earn.live_catalog import removed
from earn.manifest import MANIFEST_FILE, NEIGHBOURS_FILE, ONE_GRAPH_FILE, SCHEMA, WITH_NEIGHBOURS, FileEntry, Manifest
from earn.new_items import NewItems, with_new_items
from earn.runtime.item_filters import wanted_of
from earn.runtime.recommender import Recommender
from tests.model.test_set_model import set_model

HISTORY, ITEMS = ["1", "2", "3", "5"], 8
TOY = ItemNeighbours(
    np.array([[1, 3, -1], [0, 2, -1], [1, 3, 7], [2, 0, -1], [-1, -1, -1], [6, -1, -1], [5, 7, -1], [2, 6, -1]], "<i4"),
    np.array([[4, 1, 0], [4, 2, 0], [2, 3, 1], [3, 1, 0], [0, 0, 0], [5, 0, 0], [5, 2, 0], [1, 2, 0]], "<f4"),
    decay=0.5,
    weight=0.25,
)


def set_neighbours(folder: Path, neighbours: ItemNeighbours) -> Manifest:
    return set_for_catalog(folder, neighbours, Catalog.load(folder / CATALOG_FILE))


def random_neighbours(seed: int, items: int = 30) -> ItemNeighbours:
    generator = np.random.default_rng(seed)
    likeness = np.sort(generator.random((items, 4)).astype(np.float32) + 0.1)[:, ::-1]
    rows = np.array([generator.permutation(items)[:4] for _ in range(items)], np.int32)
    gone = generator.random((items, 4)) < 0.3
    return ItemNeighbours(
        np.where(gone, -1, rows), np.where(gone, 0, likeness), 0.7, float(generator.choice([0.1, 0.8]))
    )


def blended(neighbours: ItemNeighbours, scores: np.ndarray[Any, Any], history: list[int]) -> np.ndarray[Any, Any]:
    """The scores [items] of the blend by the formula, from the model's of all items."""
    sums = np.zeros(len(scores))
    for age, item in enumerate(reversed(history)):
        if item < len(neighbours.items):
            for other, likeness in zip(neighbours.items[item], neighbours.likeness[item], strict=True):
                if other >= 0:
                    sums[other] += neighbours.decay**age * likeness
    shares = sums / sums.sum() if sums.any() else sums
    weight = neighbours.weight if sums.any() else 0.0
    scores_of_both: np.ndarray[Any, Any] = np.log((1 - weight) * np.exp(scores) + weight * shares)
    return scores_of_both


def test_what_is_near_a_history_by_hand() -> None:
    items, shares = TOY.near([0, 2, 9])  # 9 was added since: it is like nothing, and the others are older for it
    assert items.tolist() == [1, 3, 7]
    np.testing.assert_allclose(shares, np.array([4 / 4 + 2 / 2, 1 / 4 + 3 / 2, 1 / 2]) / 4.25)
    assert [len(each) for each in TOY.near([4, 9])] == [0, 0]
    assert replace(TOY, decay=1e-200).near([7, 0, 0])[0].tolist() == [1, 3]  # 7 is too long ago for any number


@pytest.mark.parametrize("seed", range(40))
def test_lists_are_those_of_the_formula_and_exact_ones_are_those_of_the_whole_catalog(seed: int) -> None:
    generator, neighbours = np.random.default_rng(seed), random_neighbours(seed)
    scores = np.log(generator.dirichlet(np.full(33, 0.3)))  # of 33 items: three were added since
    history = generator.permutation(33)[: generator.integers(1, 6)].tolist()
    unwanted = np.sort(generator.permutation(33)[:5])
    allowed = np.array([item for item in range(33) if item not in unwanted])
    order = allowed[np.argsort(-scores[allowed], kind="stable")]
    want = blended(neighbours, scores, history)
    best = allowed[np.argsort(-want[allowed], kind="stable")][:6]
    for listed in (6, 15, len(order)):
        ranked = [(int(item), float(scores[item])) for item in order[:listed]]
        bound = -np.inf if listed == len(order) else ranked[-1][1]
        got, is_exact = neighbours.blend(
            ranked, bound, neighbours.near(history), lambda items: wanted_of(items, unwanted), 6
        )
        assert is_exact or listed < len(order)
        assert not {item for item, _ in got} & set(unwanted.tolist())
        if is_exact:
            assert [item for item, _ in got] == best.tolist()
            np.testing.assert_allclose([score for _, score in got], want[best])


@pytest.fixture(params=["beams", pytest.param("set", marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest, bundle: Path) -> tuple[Path, ItemNeighbours]:
    """A bundle of each method, and neighbours for it."""
    if request.param == "beams":
        return bundle, TOY
    shutil.rmtree(bundle)
    export_bundle(set_model(form="items"), bundle, [HISTORY], max_beams=60)
    return bundle, random_neighbours(1, len(Catalog.load(bundle / "catalog.npz")))


def test_every_way_to_ask_a_blended_bundle_gives_the_same_list(case: tuple[Path, ItemNeighbours]) -> None:
    folder, neighbours = case
    alone = Recommender.load(folder)
    items = len(alone.catalog)
    width = min(items, alone.manifest.limits.beams)
    scores = np.full(items, -np.inf)
    for item in alone.recommend(HISTORY, width, width):
        scores[alone.indices([item.item_id])] = item.score
    set_neighbours(folder, neighbours)
    recommender = Recommender.load(folder)
    history = recommender.indices(HISTORY)
    want = blended(neighbours, scores, history)
    order = np.argsort(-want, kind="stable")
    got = recommender.recommend(HISTORY, 5, width)
    assert recommender.indices([item.item_id for item in got]) == order[:5].tolist()
    np.testing.assert_allclose([item.score for item in got], want[order[:5]], rtol=1e-5)
    assert recommender.recommend_batch([["4"], HISTORY], 5, width)[1] == got
    assert recommender.session(HISTORY).recommend(5, width) == got
    session = recommender.session(HISTORY[:-1])
    session.append(HISTORY[-1])
    assert [item.item_id for item in session.recommend(5, width)] == [item.item_id for item in got]
    unknown = recommender.recommend(HISTORY, 4, width, exclude_history=True)
    assert recommender.indices([item.item_id for item in unknown]) == [it for it in order if it not in history][:4]
    scores_of = {item.item_id: item.score for item in got}
    for item in unknown:  # what is excluded changes no other score
        assert item.score == pytest.approx(scores_of.get(item.item_id, item.score))


def test_lists_read_the_newest_items_alone_as_the_model_does(bundle: Path) -> None:
    set_neighbours(bundle, TOY)
    recommender = Recommender.load(bundle)
    most = recommender.manifest.limits.history
    long = ["0", "6", *(str(item % ITEMS) for item in range(most))]
    assert recommender.recommend(long, 5) == recommender.recommend(long[-most:], 5)


def test_neighbours_stay_when_the_catalog_changes(bundle: Path) -> None:
    set_neighbours(bundle, TOY)
    before = Recommender.load(bundle)
    first = before.recommend(HISTORY, 8)
    gone = first[0].item_id
    edit_catalog(bundle, lambda catalog: removed(catalog, [gone]))
    fewer = before.with_catalog(bundle).recommend(HISTORY, 7)
    assert [item.item_id for item in fewer] == [item.item_id for item in first if item.item_id != gone]
    edit_catalog(
        bundle, lambda catalog: with_new_items(catalog, NewItems(["9"], [""], identifiers=[["a0", "b0"]]), False)
    )
    assert "9" in {item.item_id for item in Recommender.load(bundle).recommend([*HISTORY, "9"], 8)}
    for _ in range(2):
        roll_back_catalog(bundle)
    assert Recommender.load(bundle).recommend(HISTORY, 8) == first


def test_taken_away_again_nothing_of_them_is_left(bundle: Path) -> None:
    before, lists = (bundle / MANIFEST_FILE).read_bytes(), Recommender.load(bundle).recommend(HISTORY, 8)
    model = Manifest.load(bundle).model_fingerprint
    blended_manifest = set_neighbours(bundle, TOY)
    assert json.loads((bundle / MANIFEST_FILE).read_text())["schema"] == SCHEMA + WITH_NEIGHBOURS
    assert blended_manifest.model_fingerprint == model
    remove_neighbours(bundle)
    assert (bundle / MANIFEST_FILE).read_bytes() == before
    assert not (bundle / NEIGHBOURS_FILE).exists()
    assert Recommender.load(bundle).recommend(HISTORY, 8) == lists


def test_one_graph_cannot_blend_and_says_so(bundle: Path) -> None:
    compose_bundle(bundle)
    set_neighbours(bundle, TOY)
    assert ONE_GRAPH_FILE not in Manifest.load(bundle).files  # its lists would be others
    with pytest.raises(EarnError, match="which one graph cannot"):
        compose_bundle(bundle)
    with pytest.raises(EarnError, match="Take the engine cpu"):
        Recommender.load(bundle, engine="one-graph")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"items": TOY.items[:, :2]}, "it has items"),
        ({"items": np.where(TOY.items == 7, 8, TOY.items).astype("<i4")}, "not of a catalog of 8"),
        ({"items": np.where(TOY.items == 7, -2, TOY.items).astype("<i4")}, "not of a catalog of 8"),
        ({"likeness": np.where(TOY.likeness == 5, np.inf, TOY.likeness)}, "likeness is not above 0"),
        ({"likeness": -TOY.likeness}, "likeness is not above 0"),
        ({"likeness": np.ones_like(TOY.likeness)}, "likeness is not above 0"),
        ({"items": np.where(TOY.items == 3, 1, TOY.items).astype("<i4")}, "names a neighbour of an item twice"),
        ({"weight": 1.0}, "its decay is 0.5 and its weight 1"),
        ({"weight": float("nan")}, "its decay is 0.5 and its weight nan"),
        ({"decay": 0.0}, "its decay is 0"),
    ],
)
def test_neighbours_that_say_nonsense_are_refused(bundle: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(EarnError, match=rf"{says}.*earn blend"):
        set_neighbours(bundle, replace(TOY, **change))
    manifest = set_neighbours(bundle, TOY)
    replace(TOY, **change).save(bundle / NEIGHBOURS_FILE)
    files = {**manifest.files, NEIGHBOURS_FILE: FileEntry.of(bundle / NEIGHBOURS_FILE)}
    replace(manifest, files=files).save(bundle)
    with pytest.raises(EarnError, match=rf"neighbours\.npz: .*{says}.*earn blend"):
        Recommender.load(bundle)


def test_files_that_are_something_else_are_refused(bundle: Path) -> None:
    manifest = set_neighbours(bundle, TOY)
    for arrays in ({"items": TOY.items}, {"items": TOY.likeness, "likeness": TOY.likeness}):
        path = bundle / NEIGHBOURS_FILE
        path.unlink()
        with path.open("wb") as file:
            write_arrays(file, arrays)
        replace(manifest, files={**manifest.files, NEIGHBOURS_FILE: FileEntry.of(path)}).save(bundle)
        with pytest.raises(EarnError, match="no neighbours of items"):
            Recommender.load(bundle)


def test_a_manifest_of_another_schema_than_its_files_is_refused(bundle: Path) -> None:
    set_neighbours(bundle, TOY)
    text = (bundle / MANIFEST_FILE).read_text()
    (bundle / MANIFEST_FILE).write_text(text.replace(f'"schema": {SCHEMA + WITH_NEIGHBOURS}', '"schema": 2'))
    with pytest.raises(EarnError, match="of schema 2, but the files that it lists are of schema 4"):
        Recommender.load(bundle)


def test_a_saved_session_goes_on_when_the_bundle_is_blended(bundle: Path) -> None:
    saved = Recommender.load(bundle).session(HISTORY).to_bytes()
    set_neighbours(bundle, TOY)
    recommender = Recommender.load(bundle)
    assert recommender.restore_session(saved).recommend(5) == recommender.recommend(HISTORY, 5)


def test_tiny_probabilities_keep_their_order() -> None:
    ring = np.array([[1], [0], [-1], [-1], [-1]], "<i4")
    lone = ItemNeighbours(ring, (ring >= 0).astype("<f4"), 1.0, 0.5)
    ranked = [(4, -760.0), (3, -800.0), (2, -900.0)]
    got, is_exact = lone.blend(ranked, -np.inf, lone.near([0]), lambda items: items[:0], 3)
    assert [item for item, _ in got] == [4, 3, 2]
    np.testing.assert_allclose([score for _, score in got], np.log(0.5) + np.array([-760, -800, -900]))
    assert is_exact


def test_a_list_is_exact_where_nothing_left_out_can_be_better() -> None:
    ranked = [(5, float(np.log(0.5)))]
    for bound, exact in ((0.2, True), (0.45, False)):  # 2 is a neighbour of 7 that the model's list lacks
        got = TOY.blend(ranked, float(np.log(bound)), TOY.near([7]), lambda items: items[items == 2], 1)
        assert got[1] is exact


def test_filters_hold_for_what_neighbours_bring_in(bundle: Path) -> None:
    set_neighbours(bundle, replace(TOY, weight=0.9))
    recommender = Recommender.load(bundle)
    whole = {item.item_id: item.score for item in recommender.recommend(HISTORY, 8, 8)}
    kept: list[tuple[dict[str, Any], set[str]]] = [
        ({"allow": ["0", "3", "7"]}, {"0", "3", "7"}),
        ({"block": ["0", "3"]}, set(whole) - {"0", "3"}),
        ({"exclude": ["1"]}, set(whole) - {"1"}),
    ]
    for settings, left in kept:
        got = {item.item_id: item.score for item in recommender.recommend(HISTORY, 8, 8, **settings)}
        assert got.keys() == left
        assert all(score == pytest.approx(whole[item_id], abs=1e-5) for item_id, score in got.items())


def test_a_sliding_session_is_blended_by_its_window(bundle: Path) -> None:
    set_neighbours(bundle, TOY)
    recommender = Recommender.load(bundle)
    session = recommender.session(["0"])
    for step in range(20):
        session.append(str(3 * step % ITEMS))
        want = recommender.recommend(session.window, 3)
        assert [item.item_id for item in session.recommend(3)] == [item.item_id for item in want]


def test_what_a_rolled_back_catalog_lacks_is_nobodys_neighbour_any_more(bundle: Path) -> None:
    """Another item may stand in its place later."""

    def add(item_id: str) -> None:
        new = NewItems([item_id], [""], identifiers=[["a0", "b0"]])
        edit_catalog(bundle, lambda catalog: with_new_items(catalog, new, False))

    add("9")
    items = np.vstack([np.where(TOY.items == 3, 8, TOY.items), [[5, 1, -1]]]).astype("<i4")
    set_neighbours(bundle, replace(TOY, items=items, likeness=np.vstack([TOY.likeness, [[2, 1, 0]]]).astype("<f4")))
    roll_back_catalog(bundle)
    left = Recommender.load(bundle).lists.neighbours
    assert left is not None
    assert left.items.tolist()[:3] == [[1, -1, -1], [0, 2, -1], [1, 7, -1]]
    assert left.likeness.tolist()[:3] == [[4, 0, 0], [4, 2, 0], [2, 1, 0]]
    add("10")
    again = Recommender.load(bundle).lists.neighbours
    assert again is not None
    assert len(again.near([8])[0]) == 0


def test_neighbours_of_another_catalog_are_not_written(bundle: Path) -> None:
    catalog = Catalog.load(bundle / CATALOG_FILE)
    edit_catalog(bundle, lambda catalog: removed(catalog, ["1"]))
    with pytest.raises(EarnError, match="its catalog is another one by now"):
        set_for_catalog(bundle, TOY, catalog)
    assert Manifest.load(bundle).schema == SCHEMA


def test_without_neighbours_there_is_nothing_to_take_away(bundle: Path) -> None:
    compose_bundle(bundle)
    remove_neighbours(bundle)
    assert (bundle / ONE_GRAPH_FILE).exists()


@pytest.mark.slow
def test_all_codes_at_once_are_blended_exactly_but_for_sums_of_digits(bundle: Path) -> None:
    shutil.rmtree(bundle)
    export_bundle(set_model(form="items"), bundle, [HISTORY], max_beams=20)
    alone, neighbours = Recommender.load(bundle), random_neighbours(3, len(Catalog.load(bundle / CATALOG_FILE)))
    set_neighbours(bundle, neighbours)
    recommender = Recommender.load(bundle)
    got = recommender.recommend(HISTORY, 5, 5)
    assert got.exact
    assert got == recommender.recommend(HISTORY, 5, 20)
    assert [item.item_id for item in got] != [item.item_id for item in alone.recommend(HISTORY, 5)]
    export_bundle(set_model(), bundle, [HISTORY])
    with pytest.raises(EarnError, match="digits each, whose sum is no probability"):
        set_neighbours(bundle, neighbours)
