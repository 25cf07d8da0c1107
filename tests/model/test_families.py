"""What holds of every family: stages compute what its own code computes, every weight is trained, attention is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.model.families import TINY_BACKBONES
from earn.model.family_check import check_family
from earn.model.stage import Stage, causal_bias
from earn.model.training import train
from earn.settings import TrainSettings
from tests.support import assert_close, scramble, small_backbone, small_model

SETTINGS = TrainSettings(epochs=1, batch_size=8, learning_rate=3e-3)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, {}) for name in TINY_BACKBONES),
        *((name, {"tie_word_embeddings": False}) for name in ("tiny-llama", "tiny-qwen2")),
        ("tiny-llama", {"attention_bias": True, "mlp_bias": True}),
        ("tiny-qwen3", {"attention_bias": True, "tie_word_embeddings": False}),
        ("tiny-llama", {"num_key_value_heads": 4}),  # each head has keys and values of its own
        ("tiny-llama", {"head_dim": 12}),  # not what hidden size and heads suggest
        ("tiny-llama", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
        ("tiny-llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("tiny-qwen2", {"rope_scaling": YARN}),
    ],
    ids=str,
)
def test_stages_compute_what_the_familys_own_code_computes(name: str, sizes: dict[str, Any]) -> None:
    backbone = small_backbone(name, vocab_size=40, **sizes)
    scramble(backbone)
    assert check_family(backbone) < 1e-4


@pytest.mark.parametrize("name", TINY_BACKBONES)
def test_every_weight_is_trained_saved_and_read_again(name: str, tmp_path: Path) -> None:
    model = small_model(name, max_history=4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    generator = np.random.default_rng(0)
    train(model, [generator.integers(0, 8, 6) for _ in range(16)], tmp_path, lambda _: 0.1, SETTINGS)
    again = dict(EarnModel.from_pretrained(tmp_path).named_parameters())
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert torch.equal(parameter, again[name]), name


@pytest.mark.parametrize("name", TINY_BACKBONES)
@torch.no_grad()
def test_attention_is_that_of_the_familys_own_code(name: str) -> None:
    model = small_model(name, early_layers=2)
    rows = 12
    tokens = torch.randint(0, model.config.vocab_size, (2, rows), generator=torch.Generator().manual_seed(0))
    answer: Any = model.backbone.eval()(input_ids=tokens, output_attentions=True, output_hidden_states=True)
    rotary, every = model.early_stage().rotary, torch.arange(rows)
    for layer, hidden, want in zip(model.model.layers, answer.hidden_states, answer.attentions, strict=False):
        assert_close(want, Stage([layer], rotary).first_shares(hidden, every[None], causal_bias(rows), every), 1e-5)


def test_a_joined_projection_stands_once_in_a_checkpoint() -> None:
    model = small_model("tiny-phi3")
    check_family(model.backbone)  # which makes stages
    names = [name for name in model.state_dict() if "layers.0" in name and "proj" in name]
    parts = ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert sorted(names) == sorted(f"model.layers.0.{part}.weight" for part in parts)


def test_a_stage_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = small_backbone("tiny-llama", vocab_size=40)
    scramble(backbone)
    monkeypatch.setattr("earn.model.stage.scaled", lambda values, factor: values * 1.01)
    with pytest.raises(EarnError, match=r"The backbone: the stages compute other logits .* by 0\.\d+ of their spread"):
        check_family(backbone)
