"""What a runtime must not do, whatever it is given: answer wrongly without a word, or fail with another error."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from earn.catalog import CATALOG_FILE, Catalog
from earn.errors import EarnError
from earn.exchange import exchange
from earn.files import folder_written_whole
from earn.runtime.recommender import Recommender
from earn.runtime.session import Session
from tests.earn.test_manifest import seal


@pytest.fixture(scope="module")
def recommender(toy_bundle: Path) -> Recommender:
    return Recommender.load(toy_bundle, threads=1)


def poison(bundle: Path, stage: str, weight: str, value: float) -> None:
    """Writes a number into the middle of the first weight whose name holds `weight`."""
    path = bundle / f"{stage}.onnx"
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if weight in tensor.name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[array.size // 2] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    seal(bundle)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("stage", "weight"), [("early", "norm.weight"), ("late", "norm.weight")])
def test_a_weight_that_is_no_number_is_an_error_that_names_its_stage(
    bundle: Path, stage: str, weight: str, value: float
) -> None:
    poison(bundle, stage, weight, value)
    broken = Recommender.load(bundle, threads=1)
    for ask in (lambda: broken.recommend(["1", "2"]), lambda: broken.session(["1", "2"]).recommend()):
        with pytest.raises(EarnError, match=rf"The {stage} stage gives numbers that are not finite, at token 1 "):
            ask()


def test_the_token_whose_scores_are_no_numbers_is_named(recommender: Recommender, monkeypatch: Any) -> None:
    run = recommender.decoder._engine.run

    def second_pass_is_broken(stage: str, feeds: Any, outputs: Any) -> None:
        run(stage, feeds, outputs)
        if stage == "late" and feeds["hidden"].shape[1] > recommender.manifest.limits.readout:
            outputs["logits"][:] = np.nan

    monkeypatch.setattr(recommender.decoder._engine, "run", second_pass_is_broken)
    with pytest.raises(EarnError, match="The late stage gives numbers that are not finite, at token 2 "):
        recommender.recommend(["1", "2"], 8, 24)


def test_a_restored_cache_that_holds_no_numbers_is_refused(recommender: Recommender) -> None:
    session = recommender.session(["1", "2"])
    np.asarray(session._cache.past)[-1, :, 0] = np.nan
    restored = recommender.restore_session(session.to_bytes())
    with pytest.raises(EarnError, match="The early stage gives numbers that are not finite"):
        restored.recommend()


HISTORIES = {"bytes": b"12", "a set": {"1", "2"}, "a dict": {"1": 5, "2": 3}, "keys": {"1": 5}.keys(), "one": 5}


@pytest.mark.parametrize("what", HISTORIES)
def test_what_is_no_list_of_items_is_no_history(recommender: Recommender, what: str) -> None:
    history: Any = HISTORIES[what]
    asks: list[Callable[[], object]] = [
        lambda: recommender.recommend(history),
        lambda: recommender.recommend_batch([history]),
        lambda: recommender.session(history),
    ]
    for ask in asks:
        with pytest.raises(EarnError, match=r"where a list of item ids belongs|where the order counts"):
            ask()


def test_exclusions_need_no_order_but_are_no_bytes(recommender: Recommender) -> None:
    assert recommender.recommend(["1"], exclude={"2"}) == recommender.recommend(["1"], exclude=["2"])
    with pytest.raises(EarnError, match="where a list of item ids belongs"):
        recommender.recommend(["1"], exclude=b"2")


def test_small_integers_of_numpy_do_not_overflow(recommender: Recommender) -> None:
    most = recommender.manifest.limits.beams
    want = recommender.recommend(["1", "2"], most, most)
    assert recommender.recommend(["1", "2"], np.int8(most), np.uint8(most)) == want  # type: ignore[arg-type]
    assert type(recommender.search_width(np.int8(most), np.int8(most))) is int  # type: ignore[arg-type]


def test_every_bit_flip_of_a_saved_session_is_an_error_or_changes_nothing(recommender: Recommender) -> None:
    session = recommender.session(["1", "2", "3"])
    saved, chance, outcomes = session.to_bytes(), random.Random(0), {"refused": 0, "equal": 0}
    tables = range(len(saved) - 400, len(saved))  # the zip's tables, where most that can go wrong stands
    places = [*chance.choices(range(len(saved)), k=200), *chance.choices(tables, k=200), *range(160)]
    for place in places:
        flipped = bytearray(saved)
        flipped[place] ^= 1 << chance.randrange(8)
        try:
            restored = Session.from_bytes(recommender, bytes(flipped))
        except EarnError:
            outcomes["refused"] += 1
            continue
        outcomes["equal"] += 1
        assert restored.history == session.history
        np.testing.assert_array_equal(restored._cache.past, session._cache.past)
    assert min(outcomes.values()) > 0, outcomes


def test_a_bundle_that_is_exchanged_while_it_is_loaded_is_the_one_or_the_other(
    toy_bundle: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("bundle", "other")]
    for folder in folders:
        shutil.copytree(toy_bundle, folder)
    catalog = Catalog.load(toy_bundle / CATALOG_FILE)
    turned = dict(zip(catalog.item_ids, reversed(catalog.item_ids), strict=True))
    Catalog(tuple(turned.values()), catalog.identifiers, catalog.titles).save(folders[1] / CATALOG_FILE)
    poison(folders[1], "late", "norm.weight", 3.0)
    started = time.perf_counter()
    lists = [Recommender.load(folder, threads=1).recommend(["1"]) for folder in folders]
    pause = max(0.4, 4 * (time.perf_counter() - started))  # at most, in seconds: longer where the machine is busy
    assert lists[0] != lists[1]
    is_over, chance, loaded, refused = threading.Event(), random.Random(0), 0, 0

    def exchange_on() -> None:
        while not is_over.wait(chance.uniform(0, pause)):
            assert exchange(*folders)

    thread = threading.Thread(target=exchange_on)
    thread.start()
    try:
        for _ in range(20):
            try:
                found = Recommender.load(folders[0], threads=1).recommend(["1"])
            except EarnError as error:
                assert "was replaced" in str(error)  # noqa: PT017
                refused += 1
            else:
                assert found in lists
                loaded += 1
    finally:
        is_over.set()
        thread.join()
    assert loaded > refused, (loaded, refused)


def test_a_replaced_bundle_is_loaded_again(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, load, replaced = tmp_path / "bundle", Catalog.load, list[Path]()
    shutil.copytree(toy_bundle, folder)

    def replace_first(path: Path) -> Catalog:
        if len(replaced) < times:
            replaced.append(path)
            with folder_written_whole(folder) as beside:
                shutil.copytree(toy_bundle, beside, dirs_exist_ok=True)
        return load(path)

    monkeypatch.setattr(Catalog, "load", replace_first)
    times = 2
    assert Recommender.load(folder, threads=1).recommend(["1"])
    assert len(replaced) == 2
    times = 100
    with pytest.raises(EarnError, match="was replaced 5 times while it was being loaded"):
        Recommender.load(folder, threads=1)


def test_a_graph_that_fails_when_it_runs_is_named(recommender: Recommender) -> None:
    decoder = recommender.decoder
    with pytest.raises(EarnError, match=r"early\.onnx: ONNX Runtime failed in it"):
        decoder.read([[10**9]], 0)
