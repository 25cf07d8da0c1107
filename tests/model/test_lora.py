"""Training with adapters: what is trained, merged and saved. `test_training.py` has what holds of every training."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from earn.errors import EarnError
from earn.export.stages import torch_recommender
from earn.model.earn_model import EarnModel
from earn.model.lora import add_adapters, merge_adapters
from earn.model.training import train
from earn.settings import TrainSettings
from tests import forked
from tests.model.trainings import Validation, assert_same_weights, batch, interrupted, loss_of, pretrained, sequences
from tests.support import assert_close

pytest.importorskip("peft")
LORA = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-2, lora=4)
NAMES = ("tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3")  # biases, norms of heads, norms of outputs


@torch.no_grad()
def logits(model: EarnModel) -> Tensor:
    inputs = batch(model)
    bias = torch.where(inputs["visible"], 0.0, -1e9).unsqueeze(1)
    found: Tensor = model.eval().rows_logits(
        inputs["input_ids"], inputs["position_ids"], bias, inputs["keep"], inputs["predict"]
    )
    return found


def draw_trained(model: EarnModel) -> None:
    """Gives every trained parameter something that a training might have."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def trained_ids(model: EarnModel) -> list[int]:
    return sorted({*model.earn.token_ids, *model.earn.prefix_ids, *model.earn.suffix_ids})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_merged_model_computes_what_the_adapted_one_did(name: str, tied: bool) -> None:
    model = pretrained(name, tie_word_embeddings=tied)
    before, kinds = logits(model), {key: type(module) for key, module in model.named_modules()}
    add_adapters(model, LORA)
    assert_close(before, logits(model), 1e-5)  # B is zero: nothing is changed yet
    draw_trained(model)
    adapted = logits(model)
    assert (adapted - before).abs().max() > 0.1
    merge_adapters(model)
    assert_close(adapted, logits(model), 1e-4)
    assert {key: type(module) for key, module in model.named_modules()} == kinds
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_the_search_over_an_adapted_model_is_that_over_the_merged_one() -> None:
    """Validation, which selects an epoch, sees what is saved."""
    model = pretrained(tie_word_embeddings=False)
    add_adapters(model, LORA)
    draw_trained(model)
    histories = [[0, 5, 3], [7], [2, 1, 9, 11]]
    adapted = torch_recommender(model).recommend_batch(histories, 5)
    merge_adapters(model)
    for want, got in zip(adapted, torch_recommender(model).recommend_batch(histories, 5), strict=True):
        assert [item.item_id for item in got] == [item.item_id for item in want]
        assert [item.score for item in got] == pytest.approx([item.score for item in want], abs=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_targets_and_the_rows_of_new_tokens_change(tied: bool, tmp_path: Path) -> None:
    model = pretrained(tie_word_embeddings=tied)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model, sequences(1), tmp_path / "ckpt", Validation(0.1, 0.2), replace(LORA, lora_targets="q,v"))
    after, new = dict(model.named_parameters()), trained_ids(model)
    words = sorted(set(range(len(model.lm_head.weight))) - set(new))
    assert len(words) == 20
    assert after.keys() == before.keys()
    for name, weight in before.items():
        if "embed_tokens" in name or "lm_head" in name:
            assert torch.equal(after[name][words], weight[words]), name
            assert (after[name][new] != weight[new]).any(dim=1).all(), name
        else:
            assert torch.equal(after[name], weight) is not name.endswith(("q_proj.weight", "v_proj.weight")), name
    assert_close(logits(model), logits(EarnModel.from_pretrained(tmp_path / "ckpt")), 1e-6)


def test_every_layer_is_adapted_by_default_and_the_trained_rows_are_float32() -> None:
    model = pretrained()
    add_adapters(model, replace(LORA, dtype="bfloat16"))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    widths = {"q": (32, 32), "k": (32, 16), "v": (32, 16), "o": (32, 32)} | dict.fromkeys(("g", "u", "d"), (32, 64))
    assert trained == 4 * sum(4 * (rows + columns) for rows, columns in widths.values()) + 32 * len(trained_ids(model))


@forked.needs_fork
def test_the_checkpoint_loads_where_peft_is_missing(tmp_path: Path) -> None:
    train(pretrained(), sequences(1), tmp_path / "model", Validation(0.1), replace(LORA, epochs=1))

    def program() -> None:
        forked.forget("earn", "peft")
        sys.modules["peft"] = None  # type: ignore[assignment]
        module = import_module("earn.model.earn_model")
        print(len(module.EarnModel.from_pretrained(str(tmp_path / "model")).identifiers))

    assert forked.run(program, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().strip() == "12"


def test_a_run_is_not_resumed_over_another_backbone(tmp_path: Path) -> None:
    interrupted(pretrained(), tmp_path, LORA, 0.1)
    other = pretrained()
    with torch.no_grad():
        other.model.layers[3].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(EarnError, match="had another weights"):
        train(other, sequences(), tmp_path, Validation(), LORA, resume=True)


@pytest.mark.parametrize("lora", [0, 4])
def test_recomputed_layers_give_the_same_gradients(lora: int) -> None:
    gradients = []
    for is_recomputed in (False, True):
        model = pretrained()
        if lora:
            add_adapters(model, LORA)
            draw_trained(model)
        for layer in model.model.layers:
            layer.is_recomputed, layer.hidden_dropout, layer.self_attn.attention_dropout = is_recomputed, 0.3, 0.2
        calls: list[int] = []
        model.model.layers[1].mlp.down_proj.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        model.train()(**batch(model))["loss"].backward()
        assert len(calls) == 1 + is_recomputed
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    for name, want in gradients[0].items():
        assert want is not None, name
        assert_close(want, gradients[1][name], 1e-6, name)


def test_a_checkpoint_in_bfloat16_loads_as_the_model_that_was_trained(tmp_path: Path) -> None:
    model = pretrained()
    search: list[list[str]] = []

    def validate(model: EarnModel) -> float:
        search.append([item.item_id for item in torch_recommender(model).recommend([0, 5, 3], 5)])
        return float(len(search))

    train(model, sequences(1), tmp_path, validate, replace(LORA, dtype="bfloat16", gradient_checkpointing=True))
    assert all(layer.is_recomputed for layer in model.model.layers)
    assert len(search[-1]) == 5
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    loaded = EarnModel.from_pretrained(tmp_path)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert_same_weights(model, loaded, 0.0)


def test_bfloat16_learns_what_float32_learns(tmp_path: Path) -> None:
    """Losses, not weights: every product is rounded to 8 bits."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        model = pretrained()
        before = loss_of(model)
        train(model, sequences(1), tmp_path / dtype, Validation(0.1, 0.2, 0.3), replace(LORA, epochs=3, dtype=dtype))
        losses[dtype] = loss_of(model)
        assert losses[dtype] < before - 0.3
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.3)


def test_a_rank_as_large_as_a_matrix_is_refused() -> None:
    with pytest.raises(EarnError, match=r"lora is 16, and the smallest .* has 16 rows"):
        add_adapters(pretrained(), replace(LORA, lora=16))
    add_adapters(pretrained(), replace(LORA, lora=16, lora_targets="q,gate"))


def test_a_training_in_bfloat16_leaves_later_ones_as_they_are(tmp_path: Path) -> None:
    train(pretrained(), sequences(1), tmp_path / "first", Validation(0.1), replace(LORA, dtype="bfloat16", epochs=1))
    model = pretrained()
    train(model, sequences(1), tmp_path / "second", Validation(0.1), TrainSettings(epochs=1, batch_size=8))
    assert loss_of(model) == pytest.approx(loss_of(EarnModel.from_pretrained(tmp_path / "second")), abs=1e-6)
