from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from earn.config import MASKED, Prompt
from earn.model.earn_model import EarnModel
from earn.model.reference import reference_search
from earn.runtime.decoder import causal_bias
from tests.support import Agreement, histories_of, pairs, random_catalog, small_model, watched_recommender


@pytest.fixture(scope="module")
def model() -> EarnModel:
    """A head longer than the pieces below, two registers at both ends, text behind the history."""
    prompt = Prompt(head=tuple(range(3, 12)), tail=(4,))
    registers = {"prefix_registers": 2, "suffix_registers": 2}
    return small_model(
        "tiny-qwen3", random_catalog(40, codes=3), prompt=prompt, early_layers=2, max_history=9, **registers
    )


@pytest.mark.parametrize("piece", [3, 4, 7])  # every piece then holds the two registers of an end
def test_prompts_read_in_pieces_give_what_whole_ones_give(
    model: EarnModel, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = watched_recommender(model)
    monkeypatch.setattr("earn.runtime.decoder.PIECE", piece)
    pieces, engine = watched_recommender(model)
    histories, agreement = histories_of(model.catalog, 7, 9), Agreement()
    for want, got in zip(whole.recommend_batch(histories), pieces.recommend_batch(histories), strict=True):
        agreement.add("batch", pairs(want), pairs(got))
    for history in histories:
        agreement.add(str(history), pairs(whole.recommend(history)), pairs(pieces.recommend(history)))
    agreement.check()
    engine.shapes.clear()
    session = pieces.session(histories[0])
    assert max(shapes["input_ids"][1] for _, shapes in engine.shapes) <= piece
    assert pairs(session.recommend()) == pairs(pieces.recommend(histories[0]))


PROMPTS: dict[str, dict[str, Any]] = {
    "several registers": {"prefix_registers": 2, "suffix_registers": 3},
    "no prefix": {"prefix_registers": 0},
    "nothing after the history": {"suffix_registers": 0},
    "no registers, separators": {
        "prefix_registers": 0,
        "suffix_registers": 0,
        "prompt": Prompt(head=(3,), separator=(4, 5)),
    },
}


@pytest.mark.parametrize("name", PROMPTS)
def test_every_kind_of_prompt_gives_the_reference_searchs_list(name: str) -> None:
    model = small_model("tiny-qwen3", random_catalog(40, codes=3), early_layers=2, max_history=5, **PROMPTS[name])
    recommender, agreement = watched_recommender(model)[0], Agreement()
    histories = histories_of(model.catalog, 5, 7)
    batch = recommender.recommend_batch(histories)
    for history, together in zip(histories, batch, strict=True):
        want = reference_search(model, history)
        agreement.add(f"{history} in a batch", want, pairs(together))
        agreement.add(str(history), want, pairs(recommender.recommend(history)))
    session = recommender.session(histories[0][:1])
    for number, item in enumerate(histories[0][1:4], start=2):
        session.append(item)
        agreement.add(f"session {number}", reference_search(model, histories[0][:number]), pairs(session.recommend()))
    agreement.check()


def test_the_last_rows_see_what_stands_before_them() -> None:
    assert causal_bias(2, 4)[0, 0].tolist() == [[0, 0, 0, np.float32(MASKED)], [0, 0, 0, 0]]
