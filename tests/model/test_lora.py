from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from earn.errors import EarnError
from earn.export.stages import torch_recommender
from earn.files import read_json, write_json
from earn.model.earn_model import EarnModel
from earn.model.lora import add_adapters, merge_adapters
from earn.model.packing import pack
from earn.model.training import train
from earn.settings import TrainSettings
from tests import forked
from tests.support import assert_close, scramble, small_backbone, token_identifiers, toy_catalog

pytest.importorskip("peft")
CATALOG = toy_catalog([f"a{item % 4} b{item // 4}" for item in range(12)])
LORA = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-2, lora=4)
NAMES = ("tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3")  # biases, norms of heads, norms of outputs


def sequences() -> list[NDArray[np.int64]]:
    return [np.arange(start, start + 6) % 12 for start in range(12)]


def new_model(name: str = "tiny-llama", **sizes: Any) -> EarnModel:
    """An EARN model over a backbone with words of its own, 20 of them."""
    backbone = small_backbone(name, vocab_size=20, **sizes)
    scramble(backbone)
    return EarnModel.from_backbone(backbone, CATALOG, early_layers=2, max_history=4)


def batch(model: EarnModel) -> dict[str, Tensor]:
    identifiers = token_identifiers(model)
    return pack([[identifiers[item] for item in sequence[:5]] for sequence in sequences()[:3]], model.earn)


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


def score(*scores: float | None) -> Any:
    """Validation that gives these scores; None ends the run there, as a kill would."""
    left = iter(scores)

    def validate(model: EarnModel) -> float:
        value = next(left)
        if value is None:
            raise KeyboardInterrupt
        return value

    return validate


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_merged_model_computes_what_the_adapted_one_did(name: str, tied: bool) -> None:
    model = new_model(name, tie_word_embeddings=tied)
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
    model = new_model(tie_word_embeddings=False)
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
    model = new_model(tie_word_embeddings=tied)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model, sequences(), tmp_path / "ckpt", score(0.1, 0.2), replace(LORA, lora_targets="q,v"))
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
    model = new_model()
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
    train(new_model(), sequences(), tmp_path / "model", score(0.1), replace(LORA, epochs=1))

    def program() -> None:
        forked.forget("earn", "peft")
        sys.modules["peft"] = None  # type: ignore[assignment]
        module = import_module("earn.model.earn_model")
        print(len(module.EarnModel.from_pretrained(str(tmp_path / "model")).identifiers))

    assert forked.run(program, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().strip() == "12"


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_resumed_training_ends_as_an_uninterrupted_one(dtype: str, tmp_path: Path) -> None:
    settings = replace(LORA, epochs=3, dtype=dtype)
    whole, resumed = new_model(), new_model()
    train(whole, sequences(), tmp_path / "whole", score(0.1, 0.2, 0.3), settings)
    with pytest.raises(KeyboardInterrupt):
        train(new_model(), sequences(), tmp_path / "cut", score(0.1, None), settings)
    (saved,) = (tmp_path / "cut/run").glob("checkpoint-*/model.safetensors")
    assert all("lora_" in name or name.endswith(".rows") for name in load_file(saved))  # nothing that is frozen
    train(resumed, sequences(), tmp_path / "cut", score(0.2, 0.3), settings, resume=True)
    for (name, want), got in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert_close(want, got, 1e-5, name)


def test_the_best_epoch_stays(tmp_path: Path) -> None:
    after_one = new_model()
    validated: list[Tensor] = []

    def validate(model: EarnModel) -> float:
        validated.append(logits(model))
        return 1 / len(validated)

    train(after_one, sequences(), tmp_path, validate, replace(LORA, epochs=3))
    assert (validated[0] - validated[2]).abs().max() > 0.1
    assert_close(validated[0], logits(after_one), 1e-4)


def test_a_run_is_not_resumed_over_another_backbone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(new_model(), sequences(), tmp_path, score(0.1, None), LORA)
    other = new_model()
    with torch.no_grad():
        other.model.layers[3].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(EarnError, match="had another weights"):
        train(other, sequences(), tmp_path, score(), LORA, resume=True)


def test_a_run_that_an_older_version_started_is_resumed(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=2, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        train(new_model(), sequences(), tmp_path, score(0.1, None), settings)
    new = ("weights", "lora", "lora_targets", "gradient_checkpointing", "dtype", "users", "validation_users")
    plan = read_json(tmp_path / "run/plan.json")
    write_json(tmp_path / "run/plan.json", {name: value for name, value in plan.items() if name not in new})
    assert train(new_model(), sequences(), tmp_path, score(0.2), settings, resume=True)["ndcg@10"] == 0.2


@pytest.mark.parametrize("lora", [0, 4])
def test_recomputed_layers_give_the_same_gradients(lora: int) -> None:
    gradients = []
    for is_recomputed in (False, True):
        model = new_model()
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


def test_a_training_recomputes_if_it_is_told_to(tmp_path: Path) -> None:
    models = [new_model(), new_model()]
    for index, model in enumerate(models):
        settings = replace(LORA, epochs=1, gradient_checkpointing=bool(index))
        train(model, sequences(), tmp_path / str(index), score(0.1), settings)
    assert_close(logits(models[0]), logits(models[1]), 1e-4)


def test_a_checkpoint_in_bfloat16_loads_as_the_model_that_was_trained(tmp_path: Path) -> None:
    model = new_model()
    search: list[list[str]] = []

    def validate(model: EarnModel) -> float:
        search.append([item.item_id for item in torch_recommender(model).recommend([0, 5, 3], 5)])
        return float(len(search))

    train(model, sequences(), tmp_path, validate, replace(LORA, dtype="bfloat16", gradient_checkpointing=True))
    assert len(search[-1]) == 5
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    loaded = EarnModel.from_pretrained(tmp_path)
    for (name, want), got in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(want, got), name


def test_bfloat16_learns_what_float32_learns(tmp_path: Path) -> None:
    """Losses, not weights: every product is rounded to 8 bits."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        model = new_model()
        with torch.no_grad():
            before = float(model.eval()(**batch(model))["loss"])
        train(model, sequences(), tmp_path / dtype, score(0.1, 0.2, 0.3), replace(LORA, epochs=3, dtype=dtype))
        with torch.no_grad():
            losses[dtype] = float(model.eval()(**batch(model))["loss"])
        assert losses[dtype] < before - 0.3
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lora": 0, "lora_targets": "q"}, "there are no adapters"),
        ({"lora": 0, "dtype": "bfloat16"}, "without lora all are"),
        ({"lora_targets": "q,x"}, "names 'x'"),
        ({"lora_targets": ""}, "names ''"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"lora": -1}, "lora is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EarnError, match=message):
        replace(LORA, **changed)


def test_a_rank_as_large_as_a_matrix_is_refused() -> None:
    with pytest.raises(EarnError, match=r"lora is 16, and the smallest .* has 16 rows"):
        add_adapters(new_model(), replace(LORA, lora=16))
    add_adapters(new_model(), replace(LORA, lora=16, lora_targets="q,gate"))


def test_a_training_in_bfloat16_leaves_later_ones_as_they_are(tmp_path: Path) -> None:
    train(new_model(), sequences(), tmp_path / "first", score(0.1), replace(LORA, dtype="bfloat16", epochs=1))
    model = new_model()
    train(model, sequences(), tmp_path / "second", score(0.1), TrainSettings(epochs=1, batch_size=8))
    loaded = EarnModel.from_pretrained(tmp_path / "second")
    with torch.no_grad():
        losses = [float(each.eval()(**batch(each))["loss"]) for each in (model, loaded)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_command_trains_adapters(tmp_path: Path) -> None:
    from earn.cli.main import build_parser
    from earn.cli.train import _check

    options = ["--lora", "4", "--lora-targets", "q,v", "--gradient-checkpointing", "--dtype", "bfloat16"]
    args = build_parser().parse_args(["train", "any", "--out", str(tmp_path), "--backbone", "folder", *options])
    _check(args, "tiger")
    assert (args.lora, args.lora_targets, args.gradient_checkpointing, args.dtype) == (4, "q,v", True, "bfloat16")
