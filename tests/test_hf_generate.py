"""A dense model's bundle under the "vocab" rule recommends what Hugging Face's constrained generate finds."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch

from earn.catalog import Catalog
from earn.export.bundle import export_bundle
from earn.model.earn_model import EarnModel
from earn.model.families import TINY_BACKBONES
from earn.model.reference import build_trie, descend
from earn.runtime.recommender import Recommender
from tests.support import Agreement, closest_call, histories_of, pairs, prompt_of, small_model

ITEMS, HISTORIES, LONGEST = 60, 40, 6
BEAMS = 20
QUICK = "tiny-phi3"  # of the families, the one that the quick tests run
DEPTH = 4


def equally_long_catalog() -> Catalog:
    """Items whose first three codes may be shared and whose last is their own."""
    codes = torch.randint(0, 4, (ITEMS, DEPTH - 1), generator=torch.Generator().manual_seed(1)).tolist()
    identifiers = tuple(
        (*(f"<{letter}_{code}>" for letter, code in zip("abc", row, strict=True)), f"<d_{item}>")
        for item, row in enumerate(codes)
    )
    return Catalog(tuple(map(str, range(ITEMS))), identifiers, ("",) * ITEMS)


@torch.no_grad()
def generated(model: EarnModel, histories: list[list[int]]) -> list[list[tuple[int, float]]]:
    """The beams that generate ends with, as (item, score), of histories of one length."""
    prompts = torch.tensor([prompt_of(model, history) for history in histories])
    trie, identifiers, length = build_trie(model.identifiers), model.identifiers, prompts.shape[1]
    output = model.backbone.eval().generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=DEPTH,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=0,
        prefix_allowed_tokens_fn=lambda _, sequence: list(descend(trie, sequence[length:].tolist())),
        return_dict_in_generate=True,
        output_scores=True,
    )
    items = [identifiers.index(tuple(row[length:])) for row in output.sequences.tolist()]
    found = list(zip(items, output.sequences_scores.tolist(), strict=True))
    return [found[start : start + BEAMS] for start in range(0, len(found), BEAMS)]


@pytest.mark.parametrize(
    "family", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TINY_BACKBONES]
)
def test_a_bundle_recommends_what_hugging_face_generates(family: str, tmp_path: Path) -> None:
    model = small_model(family, equally_long_catalog(), max_history=LONGEST, prefix_registers=0, suffix_registers=0)
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for history in histories_of(model.catalog, HISTORIES, LONGEST):
        by_length[len(history)].append(history)
    export_bundle(model, tmp_path / "bundle", [["1", "2"], ["3"]], "vocab", max_batch=4, max_beams=BEAMS)
    recommender, agreement = Recommender.load(tmp_path / "bundle", threads=1), Agreement()
    for histories in by_length.values():
        for history, want in zip(histories, generated(model, histories), strict=True):
            got = pairs(recommender.recommend(list(map(str, history)), BEAMS, BEAMS))
            agreement.add(str(history), want, got, partial(closest_call, model, history, BEAMS, "vocab"))
    assert agreement.lists == HISTORIES
    agreement.check()
