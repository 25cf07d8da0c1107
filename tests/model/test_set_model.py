"""The method "set": digits, the model's rows and scores, its loss, its bundles, and the runtime's lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from earn.catalog import Catalog
from earn.config import BEAMS, SET, to_json
from earn.digits import Digits
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.stages import TorchEngine, bundle_model, torch_recommender
from earn.filters import Tag
from earn.manifest import SET_FIELDS, Manifest
from earn.model.earn_model import IGNORED, EarnModel, read_earn
from earn.model.packing import pack
from earn.model.reference import reference_scores
from earn.model.set_model import SetModel
from earn.runtime.recommender import Recommender
from earn.tags import Tags
from tests.support import FAMILIES, assert_close, histories_of, pairs, scramble, small_backbone, small_model

ITEMS = 40
FORMS = {"digits": (3, False), "items": (0, True), "both": (3, True)}


def digit_catalog(digits: int = 3, has_items: bool = False, items: int = ITEMS, values: int = 3) -> Catalog:
    """Random digits, so that some items share all of them; every value occurs."""
    codes = np.random.default_rng(0).integers(0, values, (items, digits))
    codes[:values] = np.arange(values)[:, None]
    rows = [[f"<d{digit}_{code}>" for digit, code in enumerate(row)] for row in codes.tolist()]
    if has_items:
        rows = [[*row, f"<i_{item}>"] for item, row in enumerate(rows)]
    numbers = tuple(map(str, range(items)))
    return Catalog(numbers, tuple(map(tuple, rows)), tuple(map("t{}".format, numbers)))


def set_model(family: str = "tiny-llama", form: str = "digits", **settings: Any) -> SetModel:
    digits, has_items = FORMS[form]
    # A high temperature keeps scores near each other, so that lists are of many items.
    model = SetModel.from_backbone(
        small_backbone(family), digit_catalog(digits, has_items), temperature=0.5, **settings
    )
    scramble(model)
    model.eval()
    assert isinstance(model, SetModel)
    return model


@torch.no_grad()
def naive_scores(model: SetModel, history: Sequence[int]) -> list[float]:
    """Every item's score by Hugging Face's own layers, from embeddings that are averaged here."""
    earn, table = model.earn, cast(Tensor, model.model.embed_tokens.weight)
    identifiers = [[earn.token_ids[code] for code in row] for row in model.catalog.codes.tolist()]
    whole = [len(set(column)) == len(identifiers) for column in zip(*identifiers, strict=True)]
    share = [1.0 if not any(whole) or len(whole) == 1 else len(whole) - 1.0 if own else 1.0 for own in whole]

    def row(item: int) -> Tensor:
        parts = [weight * table[token] for weight, token in zip(share, identifiers[item], strict=True)]
        return torch.stack(parts).sum(0) / sum(share)

    fixed = [table[token] for token in (*earn.prefix_ids, *earn.prompt.head)]
    rows = [*fixed, *map(row, history[-earn.max_history :]), *(table[token] for token in earn.suffix_ids)]
    hidden, positions = torch.stack(rows)[None], torch.arange(len(rows))[None]
    registers = [*range(len(earn.prefix_ids)), *range(len(rows) - max(1, len(earn.suffix_ids)), len(rows))]
    layers = cast(Sequence[nn.Module], model.model.layers)
    for number, layer in enumerate(layers):
        if number == earn.early_layers:
            hidden, positions = hidden[:, registers], positions[:, registers]
        mask = torch.full((hidden.shape[1],) * 2, -1e9, dtype=table.dtype).triu(1)[None, None]
        rotation = model.model.rotary_emb(hidden, positions)
        out = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotation)
        hidden = out[0] if isinstance(out, tuple) else out
    last = model.model.norm(hidden)[0, -1].double()
    head = cast(Tensor, model.lm_head.weight).double()
    unit = head / head.norm(dim=1, keepdim=True)
    scores = torch.zeros(len(identifiers), dtype=torch.float64)
    for digit, weight in enumerate(share):
        tokens = [identifier[digit] for identifier in identifiers]
        values = sorted(set(tokens))
        logits = unit[values] @ last / (earn.temperature * len(last) ** 0.5)
        chance = torch.log_softmax(logits, 0)
        scores += weight * chance[[values.index(token) for token in tokens]]
    return cast(list[float], scores.tolist())


def ranked(scores: Sequence[float], k: int, excluded: Collection[int] = ()) -> list[tuple[int, float]]:
    """The best k; scores that differ by rounding alone count as equal, and ties keep the catalog's order."""
    left = [item for item in range(len(scores)) if item not in excluded]
    return [(item, scores[item]) for item in sorted(left, key=lambda item: (-round(scores[item], 9), item))[:k]]


def assert_lists(want: Sequence[tuple[int, float]], got: Sequence[tuple[int, float]], scores: Sequence[float]) -> None:
    """The same scores place by place, and each item has its own; so only near ties may change places."""
    assert len(want) == len(got) == len({item for item, _ in got})
    assert_close([score for _, score in want], [score for _, score in got], 2e-4)
    assert_close([scores[item] for item, _ in got], [score for _, score in got], 2e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lists_are_those_of_every_item_scored(family: str, form: str) -> None:
    model = set_model(family, form, max_history=6)
    recommender = torch_recommender(model)
    histories = histories_of(model.catalog, 12, 8)
    texts = [list(map(str, history)) for history in histories]
    batch = recommender.recommend_batch(texts, 15, exclude_history=True)
    same = 0
    for history, text, together in zip(histories, texts, batch, strict=True):
        scores = naive_scores(model, history)
        assert_close(scores, reference_scores(model, history), 1e-4)
        alone = recommender.recommend(text, 15)
        assert alone.exact
        assert_lists(ranked(scores, 15), pairs(alone), scores)
        want = ranked(scores, 15, history)
        assert_lists(want, pairs(together), scores)
        assert not {item for item, _ in pairs(together)} & set(history)
        same += [item for item, _ in want] == [item for item, _ in pairs(together)]
    assert same >= 11


@pytest.mark.parametrize(
    "family",
    [family if family == "tiny-qwen2" else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES],
)
def test_300_filtered_lists_are_those_of_every_item_scored_in_float64(family: str) -> None:
    model = set_model(family, "both", max_history=6)
    exact, bundle = deepcopy(model).double(), bundle_model(model)
    histories, generator = histories_of(model.catalog, 300, 8), np.random.default_rng(1)
    excluded = [set(generator.integers(0, ITEMS, 5).tolist()) for _ in histories]
    tagged = {"even": range(0, ITEMS, 2), "most": range(4, ITEMS), "few": range(20, 27)}
    tags = Tags.of({name: list(items) for name, items in tagged.items()}, ITEMS)
    allow = [(None, Tag("even"), Tag("most"), Tag("few"))[user % 4] for user in range(300)]
    block = [(None, Tag("few"), Tag("even"))[user % 3] for user in range(300)]
    recommender = Recommender(TorchEngine(bundle.stages), bundle.manifest, model.catalog, tags=tags)
    texts, left_out = ([list(map(str, items)) for items in lists] for lists in (histories, excluded))
    lists = recommender.recommend_batch(texts, 10, None, left_out, exclude_history=True, allow=allow, block=block)
    same = 0
    for history, items, allowed, blocked, got in zip(histories, excluded, allow, block, lists, strict=True):
        scores, left = naive_scores(exact, history), set(tagged[allowed.name] if allowed else range(ITEMS))
        left -= {*items, *history, *(tagged[blocked.name] if blocked else ())}
        want = ranked(scores, 10, set(range(ITEMS)) - left)
        assert_lists(want, pairs(got), scores)  # near ties of float32 alone may change places
        same += [item for item, _ in want] == [item for item, _ in pairs(got)]
    assert same >= 295


def test_a_session_gives_the_list_of_its_window() -> None:
    model = set_model(form="both", max_history=4)
    recommender = torch_recommender(model)
    session = recommender.session(["1", "2"])
    for item in ("7", "9", "30"):
        session.append(item)
    want, got = recommender.recommend(session.window, 10), session.recommend(10)
    assert [item.item_id for item in want] == [item.item_id for item in got]
    assert recommender.restore_session(session.to_bytes()).recommend(10) == got


def test_items_that_share_all_digits_stand_in_the_order_of_the_catalog() -> None:
    model = set_model()
    items = [item for item, _ in pairs(torch_recommender(model).recommend(["5"], ITEMS))]
    assert sorted(items) == list(range(ITEMS))
    codes = [tuple(row) for row in model.catalog.codes.tolist()]
    twins = [(one, two) for one in range(ITEMS) for two in range(one + 1, ITEMS) if codes[one] == codes[two]]
    assert twins
    assert all(items.index(one) < items.index(two) for one, two in twins)


@pytest.mark.parametrize("dense", [False, True])
def test_the_packed_loss_is_that_of_every_prompt_on_its_own(dense: bool) -> None:
    registers: dict[str, Any] = {"early_layers": 4, "prefix_registers": 0, "suffix_registers": 0} if dense else {}
    model = set_model(form="both", **registers)
    windows = [[3, 1, 4, 8], [5, 9]]
    batch = pack([[model.identifiers[item] for item in window] for window in windows], model.earn, model.is_dense)
    assert int((batch["labels"] != IGNORED).sum()) == 4
    digits, losses = Digits.of(model.catalog), []
    for window in windows:
        for end in range(1, len(window)):
            losses.append(-naive_scores(model, window[:end])[window[end]] / digits.weights.sum())
    loss = model(**batch)["loss"]
    assert_close(np.mean(losses), loss, 1e-4)
    loss.backward()
    assert float(model.model.embed_tokens.weight.grad.abs().sum()) > 0


def test_an_items_row_is_the_mean_of_its_digits() -> None:
    model = set_model(form="both")
    weights, table = model.early_stage().embedding, cast(Tensor, model.model.embed_tokens.weight)
    tokens = [model.earn.token_ids[code] for code in model.catalog.codes[7].tolist()]
    want = (table[tokens[:3]].mean(0) + table[tokens[3]]) / 2
    assert_close(want, weights(torch.tensor(model.history_ids))[7], 1e-6)
    assert_close(table, weights(torch.arange(len(table))), 1e-6)


def test_a_checkpoint_keeps_method_and_scores(tmp_path: Path) -> None:
    model = set_model(form="both")
    model.save_pretrained(tmp_path)
    again = EarnModel.from_pretrained(tmp_path)
    assert isinstance(again, SetModel)
    assert again.earn == model.earn
    again.eval()
    assert reference_scores(again, [1, 2]) == pytest.approx(reference_scores(model, [1, 2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_gives_the_lists_of_every_item_scored(tmp_path: Path, family: str) -> None:
    model = set_model(family, "both", max_history=6)
    histories = histories_of(model.catalog, 4, 8)
    texts = [list(map(str, history)) for history in histories]
    manifest = export_bundle(model, tmp_path / "bundle", texts)
    assert manifest.model.method == SET
    assert Manifest.load(tmp_path / "bundle") == manifest
    recommender = Recommender.load(tmp_path / "bundle", threads=1)
    for history, text in zip(histories, texts, strict=True):
        scores = naive_scores(model, history)
        got = pairs(recommender.recommend(text, 20, exclude=["4", "17"]))
        assert_lists(ranked(scores, 20, {4, 17}), got, scores)


def test_what_the_method_cannot_do_is_refused() -> None:
    numbers, model = ("0", "1"), set_model()
    for identifiers in ((("a", "b"), ("c",)), (("a", "b"), ("b", "a"))):
        with pytest.raises(EarnError, match="no digits"):
            Digits.of(Catalog(numbers, identifiers, numbers))
    with pytest.raises(EarnError, match="at once"):
        torch_recommender(model, "vocab")
    with pytest.raises(EarnError, match="model_class"):
        EarnModel(model.backbone, model.earn, model.catalog)


def test_a_dense_twin_of_the_method_is_split_into_one() -> None:
    dense = set_model(early_layers=4, prefix_registers=0, suffix_registers=0)
    scores = naive_scores(dense, [3, 1, 20])
    assert_lists(ranked(scores, 10), pairs(torch_recommender(dense).recommend(["3", "1", "20"], 10)), scores)
    split = EarnModel.from_dense(dense, 1)
    assert isinstance(split, SetModel)
    assert (split.earn.method, split.earn.temperature, split.earn.early_layers) == (SET, 0.5, 1)


def test_settings_without_a_method_search_with_beams() -> None:
    settings = to_json(set_model().earn)
    older = {name: value for name, value in settings.items() if name not in SET_FIELDS}
    assert read_earn(older, "config.json").method == BEAMS
    with pytest.raises(EarnError, match="method is 'sets'"):
        read_earn({**settings, "method": "sets"}, "config.json")


def test_bundles_with_beams_keep_the_fingerprint_of_before() -> None:
    manifest = bundle_model(small_model()).manifest
    value = to_json(manifest)
    del value["catalog"]
    for name in SET_FIELDS:
        del value["model"][name]
    assert manifest.fingerprint == hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
