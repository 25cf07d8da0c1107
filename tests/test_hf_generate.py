"""The dense baseline under the "vocab" rule is what Hugging Face's constrained generate computes."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from earn.catalog import Catalog
from earn.export.stages import torch_recommender
from earn.model.earn_model import EarnModel
from earn.model.reference import build_trie, descend
from earn.prompts import history_tokens

ITEMS = 30
BEAMS = 8


@pytest.fixture(scope="module")
def model() -> EarnModel:
    """A dense model with random weights over a small catalog."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 4, (ITEMS, 3), generator=generator).tolist()
    identifiers = tuple(
        (*(f"<{letter}_{code}>" for letter, code in zip("abc", row, strict=True)), f"<d_{item}>")
        for item, row in enumerate(codes)
    )
    catalog = Catalog(tuple(map(str, range(ITEMS))), identifiers, ("",) * ITEMS)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = EarnModel.dense(LlamaForCausalLM(config), catalog, max_history=6)
    model.eval()
    return model


@pytest.mark.parametrize("history", [[3], [0, 7, 12], [5, 4, 3, 2, 1, 0]])
def test_dense_vocab_search_is_hugging_face_generate(model: EarnModel, history: list[int]) -> None:
    identifiers = [tuple(model.earn.token_ids[code] for code in row) for row in model.catalog.codes.tolist()]
    trie = build_trie(identifiers)
    prompt = history_tokens([identifiers[item] for item in history], model.earn)

    def allowed(batch: int, sequence: torch.Tensor) -> list[int]:
        return list(descend(trie, sequence[len(prompt) :].tolist()))

    backbone = LlamaForCausalLM(model.config).eval()
    backbone.load_state_dict(model.state_dict())
    output = backbone.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=BEAMS,
        num_return_sequences=5,
        max_new_tokens=4,
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    want = [str(identifiers.index(tuple(row[len(prompt) :]))) for row in output.sequences.tolist()]
    got = torch_recommender(model, "vocab").recommend(history, k=5, beams=BEAMS)
    assert [item.item_id for item in got] == want
    assert [item.score for item in got] == pytest.approx(output.sequences_scores.tolist(), abs=1e-4)
