from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from earn.config import Prompt
from earn.export.stages import TorchEngine, bundle_model
from earn.model import EarnModel
from earn.runtime.cache import KeyValueCache, cache_bytes
from earn.runtime.decoder import Decoder
from earn.specs import Limits, Sizes
from tests.support import (
    FAMILIES,
    assert_close,
    naive_logits,
    prompt_of,
    random_catalog,
    small_model,
    watched_recommender,
)

SIZES = Sizes("llama", 4, 1, 32, 64, 4, 2, 8, 20, 18)
TEXT = Prompt(head=(1, 2), separator=(3,), tail=(4, 5))
SHAPES: dict[str, dict[str, Any]] = {
    "one register per side": {},
    "two registers per side, text": {"prefix_registers": 2, "suffix_registers": 2, "prompt": TEXT, "early_layers": 2},
    "suffix register alone": {"prefix_registers": 0},
    "suffix register alone, head": {"prefix_registers": 0, "prompt": TEXT},
    "tail instead of a suffix register": {"suffix_registers": 0, "prompt": Prompt(tail=(4, 5))},
    "registers, but no late layer": {"early_layers": 4},
    "dense": {"prefix_registers": 0, "suffix_registers": 0},
    "dense, text": {"prefix_registers": 0, "suffix_registers": 0, "prompt": TEXT},
}


def rows(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Keys or values of one user, one head of size 1."""
    return np.array(values, np.float32).reshape(1, 1, -1, 1)


def test_rows_are_added_behind_those_that_are_there() -> None:
    cache = KeyValueCache(1, [rows(1), rows(2)])
    cache.append({"new_key_values.0.key": rows(3, 4), "new_key_values.0.value": rows(5, 6), "hidden": rows(9)})
    feeds = cache.feeds()
    assert list(feeds) == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [part.ravel().tolist() for part in feeds.values()] == [[1, 3, 4], [2, 5, 6]]
    assert cache.bytes == 6 * 4


def test_one_users_rows_serve_many() -> None:
    one = KeyValueCache(1, [rows(1), rows(2)])
    many = one.repeated(3)
    new = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1)
    many.append({"new_key_values.0.key": new, "new_key_values.0.value": -new})
    assert [part[:, 0, :, 0].tolist() for part in many.feeds().values()] == [
        [[1, 0], [1, 1], [1, 2]],
        [[2, 0], [2, -1], [2, -2]],
    ]
    assert [part.ravel().tolist() for part in one.feeds().values()] == [[1], [2]]


def test_an_empty_cache_has_no_rows() -> None:
    cache = KeyValueCache.empty(2, 3, SIZES)
    assert len(cache.feeds()) == 4
    assert {part.shape for part in cache.feeds().values()} == {(3, 2, 0, 8)}
    assert cache.bytes == 0


def test_its_size_is_that_of_the_papers_formula() -> None:
    limits = Limits(batch=1, beams=5, history=6, prompt=30, head=1, prefix=1, readout=1, depth=4)
    row = 2 * 2 * 8 * 4  # key and value, heads, head size, bytes
    # k = 1 layer holds the prompt, the 3 above it two registers; both hold 5 beams of 3 codes.
    assert cache_bytes(SIZES, limits, prompt=20, beams=5) == row * (1 * (20 + 15) + 3 * (2 + 15))


def test_decoding_holds_no_more_than_that() -> None:
    model = small_model(catalog=random_catalog(30), early_layers=2)
    bundle = bundle_model(model, "vocab", max_batch=2, max_beams=4)
    decoder = Decoder(TorchEngine(bundle.stages), bundle.manifest)
    history = [code for identifier in model.catalog.codes[:3].tolist() for code in identifier if code >= 0]
    state, _ = decoder.prefill([history])
    for depth in range(model.catalog.depth - 1):
        decoder.step(state, np.zeros((1, 4), np.int64), depth, np.ones((1, 4, 4 * (depth + 1)), bool))
    want = cache_bytes(bundle.manifest.sizes, bundle.manifest.limits, len(history) + 2, 4)
    assert state.early.bytes + state.late.bytes == want


def decoder_of(model: EarnModel) -> Decoder:
    bundle = bundle_model(model, "vocab", max_batch=4, max_beams=8)  # keeps the model's whole vocabulary
    return Decoder(TorchEngine(bundle.stages), bundle.manifest)


def in_bundle_order(model: EarnModel, logits: torch.Tensor) -> torch.Tensor:
    """Logits [m,v] in the order of a bundle's head: identifier tokens first."""
    known = list(model.earn.token_ids)
    return logits[:, known + sorted(set(range(logits.shape[1])) - set(known))]


@pytest.mark.parametrize(
    ("shape", "name"),
    [*((shape, "tiny-llama") for shape in SHAPES), *(("two registers per side, text", name) for name in FAMILIES[1:])],
)
@torch.no_grad()
def test_cached_staged_tree_attended_inference_equals_one_uncached_pass(shape: str, name: str) -> None:
    """Three users of unequal prompts; beams of two steps, among them one parent with two children and one with none."""
    model = small_model(name, random_catalog(12), **SHAPES[shape])
    decoder, histories = decoder_of(model), ([3, 1, 4, 1, 5], [9], [2, 6])
    number = {token: place for place, token in enumerate(model.earn.token_ids)}
    prompts = [prompt_of(model, history) for history in histories]
    head = len(model.earn.prefix_ids) + len(model.earn.prompt.head)
    end = len(model.earn.prompt.tail) + len(model.earn.suffix_ids)
    assert len({len(prompt) for prompt in prompts}) == 3
    # The bundle's own token numbers: identifier tokens, then the others ascending.
    others = sorted({*TEXT.head, *TEXT.separator, *TEXT.tail} - set(number))
    number |= {token: len(number) + place for place, token in enumerate(others)}
    tokens = [[number[token] for token in prompt[head : len(prompt) - end]] for prompt in prompts]
    state, first = decoder.prefill(tokens)
    for user, prompt in enumerate(prompts):
        want = in_bundle_order(model, naive_logits(model, prompt, ()))
        assert_close(want[-1], first[user], 1e-4, f"first code of user {user}")
    # Step 1: the beams 0, 1, 2. Step 2: 0-3, 2-4, 0-5.
    own = np.eye(3, dtype=bool)
    logits = decoder.step(state, np.tile([0, 1, 2], (3, 1)), 0, np.tile(own, (3, 1, 1)))
    check_beams(model, prompts, logits, [(0,), (1,), (2,)])
    sees = np.concatenate((np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0]], bool), own), axis=1)
    logits = decoder.step(state, np.tile([3, 4, 5], (3, 1)), 1, np.tile(sees, (3, 1, 1)))
    check_beams(model, prompts, logits, [(0, 3), (2, 4), (0, 5)])


def check_beams(model: EarnModel, prompts: list[list[int]], logits: Any, beams: list[tuple[int, ...]]) -> None:
    for user, prompt in enumerate(prompts):
        for place, beam in enumerate(beams):
            generated = [model.earn.token_ids[code] for code in beam]
            want = in_bundle_order(model, naive_logits(model, prompt, generated))[-1]
            assert_close(want, logits[user, place], 1e-4, f"beam {beam} of user {user}")


def test_the_constant_head_is_computed_once() -> None:
    model = small_model(prefix_registers=2, prompt=TEXT, max_history=6)
    recommender, engine = watched_recommender(model)
    assert [(stage, shapes.get("input_ids", shapes.get("hidden"))) for stage, shapes in engine.shapes] == [
        ("early", (1, 4)),  # two prefix registers, two words
        ("late", (1, 2, 32)),
    ]
    engine.shapes.clear()
    recommender.recommend(["0", "6"])
    shapes = engine.shapes[0][1]
    assert shapes["input_ids"] == (1, 2 + 1 + 3 + 2 + 1)  # two identifiers, a separator, the tail, a suffix register
    assert shapes["past_key_values.0.key"][2] == 4
    assert engine.shapes[1][1]["past_key_values.0.key"][2] == 2


def test_beams_that_are_determined_run_no_more() -> None:
    """Every first token of this catalog leads to one leaf, so that one pass over the prompt answers."""
    catalog = random_catalog(1)
    model = small_model(catalog=catalog)
    calls = {}
    for rule in ("trie", "level"):
        recommender, engine = watched_recommender(model, rule)
        engine.shapes.clear()
        recommender.recommend(["0"])
        calls[rule] = len(engine.shapes)
    assert calls == {"trie": 2, "level": 2 * catalog.depth}
