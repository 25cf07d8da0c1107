"""Catalogs that change under a finished model: lists by brute force, swaps under load, kills, sessions."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earn.bundle_edit import MOST_KEPT, edit_catalog, roll_back_catalog, set_tags
from earn.catalog import BLOCKED, CATALOG_FILE, OFFERED, REMOVED, Catalog
from earn.config import SET
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.filters import Tag
from earn.live_catalog import blocked, removed, renamed
from earn.manifest import Manifest
from earn.model.earn_model import EarnModel
from earn.model.set_model import SetModel
from earn.new_items import NewItems, with_new_items
from earn.runtime.lists import Recommendation
from earn.runtime.recommender import Recommender
from earn.tags import TAGS_FILE, Tags
from tests.model.test_set_model import naive_scores, set_model
from tests.support import brute_force

HISTORY = ["1", "2"]
FRESH = {  # identifiers that no item has
    "beams": ["a3 b1 c1", "a1 b1 c1", "a2 b0 c1 d0"],
    "set": ["<d0_0> <d1_1> <d2_2>", "<d0_2> <d1_2> <d2_0>"],
}


@dataclass(frozen=True)
class Case:
    model: EarnModel
    folder: Path  # not to be changed
    recommender: Recommender


@pytest.fixture(scope="module")
def cases(toy_model: EarnModel, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Of each method a model and its bundle."""
    digits, folder = set_model(), tmp_path_factory.mktemp("set") / "bundle"
    export_bundle(digits, folder, [HISTORY], max_beams=60)
    models = {"beams": (toy_model, toy_bundle), "set": (digits, folder)}
    return {name: Case(model, folder, Recommender.load(folder, threads=1)) for name, (model, folder) in models.items()}


@dataclass(frozen=True)
class Item:
    identifier: tuple[str, ...]
    title: str
    status: int = OFFERED


State = dict[str, Item]  # by item id, in the catalog's order


def add(catalog: Catalog, has_rows: bool, item_id: str, identifier: Sequence[str], title: str = "") -> Catalog:
    return with_new_items(catalog, NewItems([item_id], [title], identifiers=[identifier]), has_rows)


def step(data: st.DataObject, name: str, folder: Path, states: list[State]) -> None:
    """One change that is drawn, of the bundle and of the states that it has had."""
    state, has_rows = states[-1], name == "set"
    there = [item_id for item_id, item in state.items() if item.status != REMOVED]
    gone = [item_id for item_id in state if item_id not in there]
    what = data.draw(st.sampled_from(["add", "back", "remove", "block", "undo", "rename", "rollback"]))
    if what == "rollback":
        if len(states) == 1:
            with pytest.raises(EarnError, match="no earlier catalog"):
                roll_back_catalog(folder)
        else:
            roll_back_catalog(folder)
            states.pop()
        return
    if what == "add":
        known = [" ".join(item.identifier) for item in state.values()]
        tokens = tuple(data.draw(st.sampled_from([*FRESH[name], *known[:3]])).split())
        item_id = f"new{len(state)}"
        edit_catalog(folder, lambda catalog: add(catalog, has_rows, item_id, tokens, "new"))
        state = {**state, item_id: Item(tokens, "new")}
    elif what == "back" and gone:
        item_id = data.draw(st.sampled_from(gone))
        edit_catalog(folder, lambda catalog: add(catalog, has_rows, item_id, state[item_id].identifier, "back"))
        state = {**state, item_id: replace(state[item_id], title="back", status=OFFERED)}
    elif what == "rename" and there:
        item_id = data.draw(st.sampled_from(there))
        edit_catalog(folder, lambda catalog: renamed(catalog, {item_id: "Another"}))
        state = {**state, item_id: replace(state[item_id], title="Another")}
    elif there:
        ids = data.draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True))
        if what == "remove":
            edit_catalog(folder, lambda catalog: removed(catalog, ids))
        else:
            edit_catalog(folder, lambda catalog: blocked(catalog, ids, what != "undo"))
        status = {"remove": REMOVED, "undo": OFFERED}.get(what, BLOCKED)
        state = {**state, **{item_id: replace(state[item_id], status=status) for item_id in ids}}
    if state != states[-1]:  # else nothing was written
        states.append(state)
    del states[: -MOST_KEPT - 1]


def oracle(model: EarnModel, state: State) -> dict[str, tuple[str, float]]:
    """Title and score of each item that is offered."""
    grown = copy(model)
    identifiers, titles = [item.identifier for item in state.values()], [item.title for item in state.values()]
    grown.catalog = Catalog(tuple(state), identifiers, titles)
    history = [list(state).index(item_id) for item_id in HISTORY]
    scores = naive_scores(grown, history) if isinstance(grown, SetModel) else brute_force(grown, history, "trie")
    rows = zip(state.items(), scores, strict=True)
    return {item_id: (item.title, score) for (item_id, item), score in rows if item.status == OFFERED}


@pytest.mark.parametrize("name", ["beams", pytest.param("set", marks=pytest.mark.slow)])
@given(data=st.data())
@settings(deadline=None, max_examples=6)
def test_after_any_changes_lists_are_those_of_brute_force(
    cases: dict[str, Case], name: str, data: st.DataObject
) -> None:
    case = cases[name]
    catalog = case.recommender.catalog
    rows = zip(catalog.item_ids, catalog.identifiers, catalog.titles, strict=True)
    states: list[State] = [{item_id: Item(identifier, title) for item_id, identifier, title in rows}]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(case.folder, Path(temporary, "bundle")))
        for _ in range(data.draw(st.integers(1, 7))):
            step(data, name, folder, states)
        Manifest.load(folder)
        changed = case.recommender.with_catalog(folder)
    want = oracle(case.model, states[-1])
    limit = changed.manifest.limits.beams
    got = changed.recommend(HISTORY, min(limit, max(1, len(want))), limit if name == "beams" else None)
    assert {item.item_id: item.title for item in got} == {item_id: title for item_id, (title, _) in want.items()}
    assert [item.score for item in got] == pytest.approx([want[item.item_id][1] for item in got], abs=2e-4)


@pytest.mark.parametrize("swaps", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_swaps_under_load_give_no_mixed_list(bundle: Path, swaps: int) -> None:
    first = Recommender.load(bundle, threads=1)
    serving, stopped = [first], threading.Event()
    seen: list[list[Recommendation]] = []

    def ask() -> None:
        while not stopped.wait(0.002):
            seen.append(serving[0].recommend(HISTORY, 8))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    known = [first.recommend(HISTORY, 8)]
    try:
        for swap in range(swaps):
            if swap % 2:
                roll_back_catalog(bundle)
            else:
                edit_catalog(bundle, lambda catalog: renamed(removed(catalog, ["3"]), {"4": "Four"}))
            serving[0] = serving[0].with_catalog(bundle)
            if swap < 1:
                known.append(serving[0].recommend(HISTORY, 8))
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    assert known[0] != known[1]
    assert seen
    assert all(items in known for items in seen)
    versions = Manifest.load(bundle).catalog
    assert versions is not None
    assert versions.version == swaps


class EndBefore:
    """An audit hook that ends the process before it touches a file for the n-th time."""

    EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "ctypes.dlsym")

    def __init__(self, touches: int) -> None:
        self._left = touches

    def __call__(self, event: str, arguments: object) -> None:
        if event in self.EVENTS:
            self._left -= 1
            if self._left < 0:
                os._exit(1)


def version_of(folder: Path) -> tuple[int, int]:
    """The version of a bundle's catalog, once its files were verified, and how many items are removed."""
    versions = Manifest.load(folder).catalog
    return versions.version if versions else 0, Catalog.load(folder / CATALOG_FILE).status.tolist().count(REMOVED)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads, which these children do not use
@pytest.mark.parametrize("stride", [7, pytest.param(2, marks=pytest.mark.slow)])
def test_a_kill_at_any_step_leaves_a_bundle_that_loads(bundle: Path, stride: int) -> None:
    version, ends = 0, set[bool]()
    for touches in range(0, 2000, stride):
        child = os.fork()
        if child == 0:
            sys.addaudithook(EndBefore(touches))
            edit_catalog(bundle, lambda catalog: removed(catalog, ["3"]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        after = version_of(bundle)
        assert after in ((version, 0), (version + 1, 1))
        ends.add(after[0] > version)
        if after[0] > version:
            roll_back_catalog(bundle)
            version += 2
            assert version_of(bundle) == (version, 0)
        if status == 0:
            break
    assert status == 0
    assert ends == {False, True}
    edit_catalog(bundle, lambda catalog: blocked(catalog, ["4"]))
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert len(Recommender.load(bundle).recommend(HISTORY, 8)) == 7


def test_sessions_keep_their_catalog_and_are_restored_over_another(bundle: Path) -> None:
    old = Recommender.load(bundle, threads=1)
    session = old.session(["1", "3"])
    before = session.recommend(8)
    edit_catalog(bundle, lambda catalog: removed(catalog, ["3"]))
    new = old.with_catalog(bundle)
    assert session.recommend(8) == before
    moved = new.restore_session(session.to_bytes())
    assert moved.history == ["1", "3"]  # removed items are read
    want = [item for item in before if item.item_id != "3"]
    assert moved.recommend(8) == new.recommend(["1", "3"], 8)
    assert [item.item_id for item in moved.recommend(8)] == [item.item_id for item in want]
    edit_catalog(bundle, lambda catalog: add(catalog, False, "9", ["a0", "b0"]))
    newer = new.with_catalog(bundle)
    moved = newer.restore_session(moved.to_bytes())
    moved.append("9")
    with pytest.raises(EarnError, match="no item '9'"):
        old.restore_session(moved.to_bytes())
    new.close()
    assert newer.recommend(["9"], 1)
    roll_back_catalog(bundle)
    roll_back_catalog(bundle)
    assert newer.with_catalog(bundle).restore_session(session.to_bytes()).recommend(8) == before


def test_what_cannot_be_changed_is_refused_and_changes_nothing(cases: dict[str, Case], bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    for change, message in (
        (lambda catalog: removed(catalog, ["x"]), "no item 'x'"),
        (lambda catalog: blocked(removed(catalog, ["3"]), ["3"]), "'3' was removed"),
        (lambda catalog: renamed(catalog, {"x": ""}), "no item 'x'"),
        (lambda catalog: renamed(catalog, {"3": "a", 3: "b"}), "'3' is given two titles"),  # type: ignore[dict-item]
        (lambda catalog: add(catalog, False, "3", ["a0", "b0"]), "stands twice"),
        (lambda catalog: add(removed(catalog, ["3"]), False, "3", ["a0", "b0"]), "had the identifier a2 b0 c0 d1"),
        (lambda catalog: add(catalog, False, "9", ["b0", "a0"]), "code 'b0' in place 1"),
        (lambda catalog: add(catalog, False, "9", ["a0"]), "of 1 codes; this catalog's have 2 or 3 or 4"),
        (lambda catalog: add(catalog, False, "9", ["a0", "b0", "c0"]), "is the beginning of"),
        (lambda catalog: with_new_items(catalog, NewItems(["9"], ["t"])), "Give each one's identifier"),
        (lambda catalog: replace(catalog, item_ids=catalog.item_ids[::-1]), "another place, id or identifier"),
        (lambda catalog: replace(catalog, identifiers=catalog.identifiers[::-1]), "another place, id or identifier"),
    ):
        with pytest.raises(EarnError, match=message):
            edit_catalog(bundle, change)
    assert (bundle / "manifest.json").read_bytes() == before
    with pytest.raises(EarnError, match="another model"):
        cases["set"].recommender.with_catalog(bundle)


def test_tags_follow_the_catalog(bundle: Path) -> None:
    set_tags(bundle, Tags.of({"all": range(8)}, 8))
    edit_catalog(bundle, lambda catalog: add(catalog, False, "9", ["a0", "b0"]))
    grown = Recommender.load(bundle)
    assert "9" in {item.item_id for item in grown.recommend(HISTORY, 9)}
    assert "9" not in {item.item_id for item in grown.recommend(HISTORY, 9, allow=Tag("all"))}
    roll_back_catalog(bundle)
    assert len(Recommender.load(bundle).recommend(HISTORY, 8, allow=Tag("all"))) == 8
    assert Tags.of({"a": [0, 9]}, 10).resized(3).resized(10).having("a").tolist() == [True, *[False] * 9]


def test_tags_of_another_catalog_and_damaged_ones_are_not_taken_over(bundle: Path) -> None:
    with pytest.raises(EarnError, match="has 8 items, and these are tags of 9"):
        set_tags(bundle, Tags.of({"all": [0]}, 9))
    set_tags(bundle, Tags.of({"all": range(8)}, 8))
    damaged = bytearray((bundle / TAGS_FILE).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (bundle / TAGS_FILE).unlink()
    (bundle / TAGS_FILE).write_bytes(damaged)
    with pytest.raises(EarnError, match="its SHA-256 is not the manifest's"):
        edit_catalog(bundle, lambda catalog: add(catalog, False, "9", ["a0", "b0"]))


def test_a_session_with_an_item_added_in_memory_is_read_again_where_its_codes_are_others(toy_bundle: Path) -> None:
    first = Recommender.load(toy_bundle, threads=1)
    grown, other = (
        first.with_new_items(NewItems(["9"], identifiers=[identifier]))
        for identifier in (["a3", "b1", "c1"], ["a1", "b1", "c1"])
    )
    saved = grown.session(["1", "9"]).to_bytes()
    assert grown.restore_session(saved).recommend(8) == grown.session(["1", "9"]).recommend(8)
    assert other.restore_session(saved).recommend(8) == other.session(["1", "9"]).recommend(8)
    with pytest.raises(EarnError, match="no item '9'"):
        first.restore_session(saved)


def test_added_items_of_a_model_with_rows_are_read_as_the_one_that_is_most_like_them(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases["set"]
    assert case.recommender.manifest.model.method == SET
    like = case.recommender.catalog.identifiers[7]
    folder = Path(shutil.copytree(case.folder, tmp_path / "bundle"))
    edit_catalog(folder, lambda catalog: add(catalog, True, "new", like))
    grown = Recommender.load(folder, threads=1)
    same = list(case.recommender.catalog.identifiers).index(like)
    want = {item.item_id: item.score for item in case.recommender.recommend([same], 10)}
    got = {item.item_id: item.score for item in grown.recommend(["new"], 10, exclude=["new"])}
    assert got == pytest.approx(want, abs=1e-5)
