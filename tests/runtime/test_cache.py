from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.config import Prompt
from earn.export.stages import TorchEngine, bundle_model
from earn.manifest import Manifest
from earn.model.earn_model import EarnModel
from earn.runtime.cache import KeyValueCache, cache_bytes
from earn.runtime.decoder import Decoder
from earn.runtime.engine import load_engine
from earn.runtime.memory import HOST
from earn.runtime.recommender import Recommender
from earn.specs import NEW, PAST, Limits, Sizes
from tests.support import (
    FAMILIES,
    assert_close,
    naive_logits,
    prompt_of,
    random_catalog,
    small_model,
    watched_recommender,
)

Array = NDArray[Any]
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


ONE = Sizes("llama", 1, 1, 1, 1, 1, 1, 1, 1, 1)  # one layer, one head of size 1


def cache_of(*values: float, room: int = 0, batch: int = 1) -> KeyValueCache:
    """A cache that holds rows with these keys, and as values their negatives."""
    cache = KeyValueCache(ONE, "early", len(values) + room, batch)
    cache.extend(rows(*values))
    return cache


def past(cache: KeyValueCache) -> Array:
    """The rows in use, where they lie."""
    return HOST.to_host(cache.past)


def rows(*keys: float) -> Array:
    """Rows of one user: [rows,1,2,1,1]."""
    return np.array([[key, -key] for key in keys], np.float32).reshape(-1, 1, 2, 1, 1)


def test_rows_are_added_behind_those_that_are_there_as_long_as_there_is_room() -> None:
    cache = cache_of(1, room=4)
    HOST.to_host(cache.grow(2))[:] = rows(3, 4)
    cache.extend(rows(5))
    assert cache.rows == 4
    assert np.array_equal(past(cache), rows(1, 3, 4, 5))
    assert cache.bytes == 5 * 2 * 4  # the room that is left counts too
    for take in (lambda: cache.grow(2), lambda: cache.extend(rows(6, 7))):
        with pytest.raises(ValueError, match="room for 5 rows, not for 6"):
            take()
    assert np.array_equal(past(cache), rows(1, 3, 4, 5))
    cache.shorten(1)
    cache.extend(rows(8, 9))
    assert np.array_equal(past(cache), rows(1, 8, 9))
    cache.shorten(99)
    assert cache.rows == 3


def test_one_users_rows_serve_many() -> None:
    one = cache_of(1, 2)
    many = KeyValueCache(ONE, "early", 3, 3)
    many.extend(one.past)
    HOST.to_host(many.grow(1))[0, :, 0, 0, 0] = [6, 7, 8]
    assert past(many)[:, :, 0, 0, 0].tolist() == [[1, 1, 1], [2, 2, 2], [6, 7, 8]]
    assert past(many)[:2, :, 1, 0, 0].tolist() == [[-1, -1, -1], [-2, -2, -2]]
    assert np.array_equal(past(one), rows(1, 2))


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


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
    generated = bundle.manifest.limits.generated
    state, _ = decoder.prefill(decoder.read([history], generated), generated)
    tokens = np.zeros((1, 4), np.int64)
    for depth in range(model.catalog.depth - 1):
        decoder.step(state, tokens, tokens + depth, np.ones((1, 4, 4 * (depth + 1)), bool))
    assert state.generated == generated
    want = cache_bytes(bundle.manifest.sizes, bundle.manifest.limits, len(history) + 2, 4)
    assert state.early.bytes + state.late.bytes == want
    with pytest.raises(ValueError, match="has room for"):
        decoder.step(state, tokens[:, :1], tokens[:, :1], np.ones((1, 1, generated + 1), bool))


class Watching:
    """An engine that notes where the cache of each call lies."""

    device = HOST

    def __init__(self, folder: Path) -> None:
        self._engine = load_engine("cpu", folder, Manifest.load(folder), 1)
        self.calls: list[tuple[str, Array, Array]] = []  # stage, past and new rows

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        outputs[NEW][:] = np.nan
        self._engine.run(stage, feeds, outputs)
        self.calls.append((stage, feeds[PAST], outputs[NEW]))


@pytest.mark.parametrize("users", [1, 3])
def test_engines_read_and_write_the_caches_own_memory(toy_bundle: Path, users: int) -> None:
    engine = Watching(toy_bundle)
    recommender = Recommender(engine, Manifest.load(toy_bundle), Catalog.load(toy_bundle / "catalog.npz"), lookahead=0)
    engine.calls.clear()  # those of the constant head
    recommender.recommend_batch([[1, 2], [3], [4, 5, 6]][:users], 8, 8)
    for stage in ("early", "late"):
        calls = [(past, new) for name, past, new in engine.calls if name == stage]
        assert len(calls) == 1 + 3  # prompt, and three passes of generated rows
        base = address(calls[0][0])
        for past, new in calls:
            assert past.flags.c_contiguous
            assert new.flags.c_contiguous
            assert np.isfinite(past).all()
            assert np.isfinite(new).all()
            assert address(past) == base
            assert address(new) == base + past.nbytes
        past, _ = calls[-1]
        assert np.shares_memory(past, calls[0][1])  # the prompt's rows, where they were first written


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
    prompted = decoder.read(tokens, 6)
    state, first = decoder.prefill(prompted, 6)
    for user, prompt in enumerate(prompts):
        want = in_bundle_order(model, naive_logits(model, prompt, ()))
        assert_close(want[-1], first[user], 1e-4, f"first code of user {user}")
    # Step 1: the beams 0, 1, 2. Step 2: 0-3, 2-4, 0-5.
    own, depth = np.eye(3, dtype=bool), np.zeros((3, 3), np.int64)
    logits = decoder.step(state, np.tile([0, 1, 2], (3, 1)), depth, np.tile(own, (3, 1, 1)))
    check_beams(model, prompts, logits, [(0,), (1,), (2,)])
    below = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0]], bool)
    sees = np.concatenate((below, own), axis=1)
    logits = decoder.step(state, np.tile([3, 4, 5], (3, 1)), depth + 1, np.tile(sees, (3, 1, 1)))
    check_beams(model, prompts, logits, [(0, 3), (2, 4), (0, 5)])
    # Both steps in one pass, behind the same prompts.
    prompted.early.shorten(prompted.rows)
    state, again = decoder.prefill(prompted, 6)
    assert_close(first, again, 1e-6, "first codes")
    sees = np.block([[own, np.zeros((3, 3), bool)], [below, own]])
    depth = np.tile([0, 0, 0, 1, 1, 1], (3, 1))
    logits = decoder.step(state, np.tile(np.arange(6), (3, 1)), depth, np.tile(sees, (3, 1, 1)))
    check_beams(model, prompts, logits, [(0,), (1,), (2,), (0, 3), (2, 4), (0, 5)])


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
    assert shapes[PAST][0] == 4
    assert engine.shapes[1][1][PAST][0] == 2
