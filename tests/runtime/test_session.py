from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.config import Prompt
from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.runtime.lists import Recommendation
from earn.runtime.recommender import Recommender
from earn.runtime.session import Session
from tests.support import (
    RULES,
    Agreement,
    CountingEngine,
    histories_of,
    pairs,
    random_catalog,
    small_model,
    watched_recommender,
)

LIMIT = 8  # items of a full window


@pytest.fixture(scope="module")
def model() -> EarnModel:
    """Items on identifiers of 2 to 4 tokens, with separators and text around the history."""
    prompt = Prompt(head=(3, 4, 5), separator=(6, 7), tail=(8,))
    return small_model("tiny-qwen2", random_catalog(40, codes=3), early_layers=2, prompt=prompt, max_history=LIMIT)


@pytest.fixture(scope="module")
def watched(model: EarnModel) -> tuple[Recommender, CountingEngine]:
    return watched_recommender(model)


@pytest.fixture(scope="module")
def recommender(watched: tuple[Recommender, CountingEngine]) -> Recommender:
    return watched[0]


def check_same(want: Sequence[Recommendation], got: Sequence[Recommendation]) -> None:
    assert [item.item_id for item in got] == [item.item_id for item in want]
    assert [item.score for item in got] == pytest.approx([item.score for item in want])


@pytest.mark.parametrize("users", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scoring", RULES)
def test_a_sessions_list_is_that_of_a_fresh_request(model: EarnModel, scoring: str, users: int) -> None:
    recommender, agreement = watched_recommender(model, scoring)[0], Agreement()
    for history in histories_of(model.catalog, users, 2 * LIMIT + 4):  # beyond the limit, so that windows slide
        session = recommender.session(history[:1])
        for item in history[1:]:
            session.append(item)
            agreement.add(str(session.window), pairs(recommender.recommend(session.window)), pairs(session.recommend()))
            wide = recommender.recommend(session.window, 30, 40)
            agreement.add(f"{session.window} wide", pairs(wide), pairs(session.recommend(30, 40)))
    agreement.check()


def test_a_new_item_costs_its_own_tokens_and_the_prompts_end(watched: tuple[Recommender, CountingEngine]) -> None:
    recommender, engine = watched
    session = recommender.session([1, 2, 3])
    engine.shapes.clear()
    session.append(4)
    (stage, shapes), *others = engine.shapes
    codes = len(recommender.catalog.identifiers[4])
    assert (stage, others) == ("early", [])
    assert shapes["input_ids"] == (1, 2 + codes + 2)  # separator, codes, tail and register
    session.recommend()
    assert engine.shapes[1][0] == "late"  # nothing of the prompt is read again
    assert engine.shapes[1][1]["hidden"][1] == 1


def test_the_window_slides_once_for_many_items(watched: tuple[Recommender, CountingEngine]) -> None:
    recommender, engine = watched
    session = recommender.session(range(LIMIT))
    assert session.window == [str(item) for item in range(LIMIT)]
    engine.shapes.clear()
    for item in range(LIMIT, LIMIT + 3):
        session.append(item)
    rows = [shapes["input_ids"][1] for _, shapes in engine.shapes]
    assert rows[0] > 2 * rows[1]
    assert rows[1] <= 8 >= rows[2]
    assert session.window == [str(item) for item in range(3, LIMIT + 3)]
    assert session.history == [str(item) for item in range(LIMIT + 3)]


def test_all_of_the_history_can_be_excluded_though_the_window_slid(recommender: Recommender) -> None:
    session = recommender.session(range(20))
    assert session.window == [str(item) for item in range(20 - LIMIT, 20)]  # it opens with the newest items
    check_same(recommender.recommend(range(20)), session.recommend())
    found = {int(item.item_id) for item in session.recommend(20, 40, exclude=[30], exclude_history=True)}
    assert found == set(range(20, 40)) - {30}


def test_asking_twice_changes_nothing(recommender: Recommender) -> None:
    session = recommender.session([1, 2, 3])
    held = session.memory_bytes
    first = session.recommend(5)
    session.recommend(40, 60, exclude=[1])
    assert session.recommend(5) == first
    assert session.memory_bytes == held


def test_an_empty_session_waits_for_its_first_item(recommender: Recommender) -> None:
    session = recommender.session()
    with pytest.raises(EarnError, match=r"no item yet\. Append"):
        session.recommend()
    restored = recommender.restore_session(session.to_bytes())
    for one in (session, restored):
        one.append("7")
        check_same(recommender.recommend(["7"]), one.recommend())


def test_an_unknown_item_is_refused_and_nothing_is_lost(recommender: Recommender) -> None:
    session = recommender.session([1, 2])
    before = session.recommend()
    with pytest.raises(EarnError, match=r"no item 'Zorro'\. Check the id\.$"):
        session.append("Zorro")
    with pytest.raises(EarnError, match=r"Got \['1', '2'\] where one item id belongs"):
        session.append(["1", "2"])  # type: ignore[arg-type]
    assert session.history == ["1", "2"]
    assert session.recommend() == before
    with pytest.raises(EarnError, match="no item 'x'"):
        recommender.session(["x"])
    assert recommender.session(["x", "1"], unknown="skip").history == ["1"]


def test_a_restored_session_goes_on_without_computing(watched: tuple[Recommender, CountingEngine]) -> None:
    recommender, engine = watched
    session = recommender.session(range(LIMIT + 3))
    saved, found = session.to_bytes(), session.recommend()
    engine.shapes.clear()
    restored = recommender.restore_session(saved)
    assert not engine.shapes
    assert (restored.history, restored.window, restored.memory_bytes) == (
        session.history,
        session.window,
        session.memory_bytes,
    )
    assert restored.recommend() == found
    for one in (session, restored):
        one.append(30)
    assert restored.recommend() == session.recommend()


def test_bytes_of_another_bundle_or_of_no_session_are_refused(model: EarnModel, recommender: Recommender) -> None:
    other = watched_recommender(model, "level")[0].session([1]).to_bytes()
    with pytest.raises(EarnError, match=r"^The session was saved with another bundle\. Open a new session"):
        recommender.restore_session(other)
    saved = recommender.session([1, 2]).to_bytes()
    flipped = bytearray(saved)
    flipped[len(saved) // 2] ^= 1
    for wrong in (b"", b"PK", b"nonsense" * 10, saved[: len(saved) // 2], bytes(flipped)):
        with pytest.raises(EarnError, match=r"no saved session.*Open a new session"):
            recommender.restore_session(wrong)


@pytest.mark.parametrize(
    ("header", "arrays"),
    [
        ({"bundle": None}, {}),
        ({"items": None}, {}),
        ({"format": 99}, {}),
        ({"start": 99}, {}),
        ({"start": "x"}, {}),
        ({"start": -1}, {}),
        ({"items": ["1", "2", "3"]}, {}),
        ({"items": ["1", "Zorro"]}, {}),
        ({}, {"hidden": None}),
        ({}, {"cache": None}),
        ({}, {"header": None}),
        ({}, {"cache": np.zeros((1, 1, 1, 1, 1), np.float32)}),
        ({}, {"cache": np.s_[:-1]}),
        ({}, {"hidden": np.s_[:, :, :-1]}),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_together_are_refused(
    recommender: Recommender, header: dict[str, Any], arrays: dict[str, Any]
) -> None:
    """None leaves a part out, a slice shortens it."""
    with np.load(io.BytesIO(recommender.session([1, 2]).to_bytes())) as file:
        saved: dict[str, Any] = dict(file)
    parts = {**json.loads(saved["header"].tobytes()), **header}
    text = json.dumps({name: part for name, part in parts.items() if part is not None})
    saved["header"] = np.frombuffer(text.encode(), np.uint8)
    saved |= {name: saved[name][part] if isinstance(part, (slice, tuple)) else part for name, part in arrays.items()}
    memory = io.BytesIO()
    np.savez(memory, **{name: part for name, part in saved.items() if part is not None})
    with pytest.raises(EarnError):
        recommender.restore_session(memory.getvalue())


@pytest.mark.parametrize("held", [0, 3, LIMIT])
@pytest.mark.parametrize("is_late", [False, True])
def test_an_append_that_breaks_off_loses_nothing(
    watched: tuple[Recommender, CountingEngine], monkeypatch: pytest.MonkeyPatch, held: int, is_late: bool
) -> None:
    recommender, engine = watched
    session = recommender.session(range(held))
    run = engine.run

    def fail(*arguments: Any) -> None:
        if is_late:
            run(*arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", fail)
        with pytest.raises(MemoryError):
            session.append(20)
    assert session.history == [str(item) for item in range(held)]
    if held:
        found = recommender.restore_session(session.to_bytes()).recommend()
        assert found == recommender.session(range(held)).recommend() == session.recommend()
    session.append(21)
    assert session.window[-1] == "21"
    assert pairs(session.recommend()) == pairs(recommender.recommend(session.window))


def test_threads_may_share_a_session(toy_bundle: Path) -> None:
    recommender = Recommender.load(toy_bundle, threads=1)
    session = recommender.session([1, 2])
    want = session.recommend(8)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == want for found in pool.map(lambda _: session.recommend(8), range(40)))


def test_bytes_are_those_of_the_cache(recommender: Recommender) -> None:
    sizes, limits = recommender.manifest.sizes, recommender.manifest.limits
    rows = limits.prompt + limits.generated
    assert (
        Session(recommender).memory_bytes == 4 * rows * 2 * sizes.early_layers * sizes.key_value_heads * sizes.head_size
    )
