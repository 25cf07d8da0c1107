"""Folders with a LoRA adapter: each is merged into its model, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.model.backbones import load_backbone
from earn.model.checkpoint_facts import checkpoint_facts
from earn.model.earn_model import EarnModel
from tests.support import assert_close, naive_logits, prompt_of, scramble, small_backbone, toy_catalog

pytest.importorskip("peft")


def adapter_folder(tmp_path: Path, targets: tuple[str, ...] = ("q_proj", "up_proj"), tied: bool = True) -> Path:
    """tmp_path/base with a model and tmp_path/adapter with one for it, both written by Hugging Face's own code."""
    from peft import LoraConfig, get_peft_model

    backbone: Any = small_backbone("tiny-llama", vocab_size=20, tie_word_embeddings=tied)
    scramble(backbone)
    backbone.save_pretrained(tmp_path / "base")
    model: Any = get_peft_model(backbone, LoraConfig(r=2, lora_alpha=3, target_modules=list(targets)))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "adapter")
    change_config(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path / "adapter"


def change_config(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    write_json(path, {**read_json(path), **values})


def test_an_adapter_is_merged_into_the_folder_that_it_names(tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    base, merged = (dict(load_backbone(tmp_path / name).named_parameters()) for name in ("base", "adapter"))
    for name, parameter in base.items():
        weight: Tensor = parameter
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in weights:
            delta = weights[f"{key}.lora_B.weight"] @ weights[f"{key}.lora_A.weight"] * 3 / 2  # alpha by rank
            assert delta.abs().max() > 0.1
            weight = weight + delta
        assert_close(weight, merged[name], 1e-5, name)
        assert merged[name].requires_grad
    change_config(adapter, base_model_name_or_path="../base")  # from the adapter's own folder
    model = EarnModel.from_backbone(adapter, toy_catalog(), max_history=4)
    model.save_pretrained(tmp_path / "ckpt")
    prompt = prompt_of(model, [0, 5])
    want, got = (
        naive_logits(each.eval(), prompt, []) for each in (model, EarnModel.from_pretrained(tmp_path / "ckpt"))
    )
    assert_close(want, got, 1e-6)


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NO_FOLDER = r"there is no such folder with a model.*merge_and_unload"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"base_model_name_or_path": base}, NO_FOLDER) for base in ("someone/on-the-hub", None, "/missing")),
        ({"peft_type": "LOHA"}, "of the type 'LOHA'"),
        ({"of_the_future": 1}, "does not know 'of_the_future'"),
        ({"target_modules": ["q_proj"]}, "no place for"),
        ({"target_modules": ["q_proj", "up_proj", "v_proj"]}, "lacks weights"),
        ({"r": 3}, "does not fit"),
        (lambda adapter: (adapter / WEIGHTS).write_bytes(b"none"), "does not fit its model"),
        (lambda adapter: (adapter / WEIGHTS).unlink(), r"there is no adapter_model\.safetensors"),
        (lambda adapter: (adapter / CONFIG).write_text("["), "cannot be read"),
    ],
)
def test_an_adapter_that_cannot_be_merged_whole_is_refused(
    change: dict[str, Any] | Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    adapter = adapter_folder(tmp_path)
    if isinstance(change, dict):
        change_config(adapter, **change)
    else:
        change(adapter)
    with pytest.raises(EarnError, match=message):
        load_backbone(adapter)


def test_without_peft_an_adapter_is_refused_with_the_command_that_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earn.model.adapters.find_spec", lambda name: None)
    with pytest.raises(EarnError, match=r"pip install peft.*merge_and_unload"):
        load_backbone(adapter_folder(tmp_path))


def test_an_adapter_of_a_shared_table_is_refused(tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "tied", ("q_proj", "lm_head"))
    with pytest.raises(EarnError, match="changes lm_head, and embedding and head of its model share a table"):
        load_backbone(adapter)
    load_backbone(adapter_folder(tmp_path / "untied", ("q_proj", "lm_head"), tied=False))


def test_an_adapter_is_described_by_the_model_that_it_is_for(tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path)
    facts = checkpoint_facts(adapter)
    assert facts.kind.startswith("LoRA adapter over ")
    assert facts.family == "llama"
    assert not facts.obstacles
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    assert "elsewhere" in checkpoint_facts(adapter).obstacles[0]
