"""Checkpoint folders as they are found: read as transformers 5 reads them, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from earn.errors import EarnError
from earn.model.backbones import load_backbone
from earn.model.checkpoint_facts import checkpoint_facts
from earn.model.earn_model import EarnModel
from earn.model.families import FAMILIES
from earn.model.stage import causal_bias
from earn.model.training import train
from earn.model.transformers_versions import IS_5
from earn.settings import TrainSettings
from tests.checkpoints.reference import FILE, POSITIONS, TOKENS, write_folder
from tests.support import assert_close, toy_catalog

CASES: Mapping[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["cases"]
READ = [name for name, case in CASES.items() if case["config"]["model_type"] in FAMILIES]


def dense(folder: Path, max_history: int = 2) -> EarnModel:
    model = EarnModel.dense(folder, toy_catalog(), max_history)
    model.eval()
    return model


def stage_logits(model: EarnModel) -> torch.Tensor:
    """Logits [rows, v] of a dense model's stages at the reference's tokens and positions."""
    every = torch.arange(len(TOKENS))
    with torch.no_grad():
        inputs = torch.tensor([TOKENS]), torch.tensor([POSITIONS]), causal_bias(len(TOKENS))
        return model.rows_logits(*inputs, every, every)[0]


def error(model: EarnModel, case: str) -> float:
    """The largest difference of a logit from what transformers 5 computes."""
    want = torch.tensor(CASES[case]["logits"])
    return float((stage_logits(model)[:, : want.shape[1]] - want).abs().max())


def folder_of(case: str, folder: Path, **changes: Any) -> Path:
    """The folder of a case, with some settings of its config.json changed; None takes a setting away."""
    config = {**CASES[case]["config"], **changes}
    for name in [name for name, value in changes.items() if value is None]:
        del config[name]
    return write_folder(folder, config, CASES[case]["shapes"])


def change_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    weights = dict(load_file(folder / "model.safetensors"))
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("case", READ)
def test_stages_compute_what_transformers_5_computes_before_and_after_saving(case: str, tmp_path: Path) -> None:
    model = dense(folder_of(case, tmp_path / "backbone"))
    assert error(model, case) < 1e-4
    model.save_pretrained(tmp_path / "checkpoint")
    again = EarnModel.from_pretrained(tmp_path / "checkpoint").eval()
    assert_close(stage_logits(model), stage_logits(again), 1e-5)


def test_settings_of_each_type_of_layer_are_read_where_all_layers_are_of_one(tmp_path: Path) -> None:
    full, sliding = ({"rope_type": "default", "rope_theta": theta} for theta in (1e6, 7.0))
    nested = {"full_attention": full, "sliding_attention": sliding}
    folder = folder_of("qwen3-theta", tmp_path, rope_parameters=nested)
    if IS_5:  # transformers 5 itself does not take them for this family
        with pytest.raises(EarnError, match="cannot be loaded"):
            load_backbone(folder)
        return
    assert error(dense(folder), "qwen3-theta") < 1e-4


KINDS = ("dynamic", "longrope", "mrope")
METHODS = ("gptq", "awq", "bitsandbytes", "compressed-tensors", "torchao", "quark", "hqq", "fp8", "mxfp4")
OLD = {"rope_parameters": None, "rope_theta": 1e4}  # the dialect of transformers 4


def rope(kind: str = "default", **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **settings}}


@pytest.mark.parametrize(
    ("case", "changes", "says"),
    [
        *(("llama-theta", rope(kind, factor=2.0), f"type '{kind}'") for kind in KINDS),
        *(("llama-theta", {**OLD, "rope_scaling": {"type": kind}}, f"type '{kind}'") for kind in KINDS),
        ("llama-theta", {"rope_parameters": {"mrope_section": [1, 1, 2]}}, "type 'mrope'"),
        ("llama-theta", rope(partial_rotary_factor=0.5), "partial_rotary_factor"),
        ("llama-theta", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        *(("llama-theta", {"quantization_config": {"quant_method": name}}, rf"quantized \({name}") for name in METHODS),
        (
            "llama-biases",
            {"attention_bias": False},
            r"12 weights \(.*bias.*\.\.\.\) are in its files that config\.json",
        ),
        ("llama-theta", {"num_hidden_layers": 2}, r"9 weights \(model\.layers\.2"),
        ("llama-theta", {"num_hidden_layers": 4}, r"9 weights \(model\.layers\.3.* missing"),
        ("llama-theta", {"vocab_size": 30}, r"\[32, 32\], config.json asks for \[30, 32\]"),
        ("qwen3-theta", {"model_type": "llama"}, r"6 weights \(model\.layers\.0\.self_attn\.k_norm"),
    ],
)
def test_settings_that_would_be_computed_wrongly_are_refused_by_name(
    case: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(EarnError, match=says):
        load_backbone(folder_of(case, tmp_path, **changes))


@pytest.mark.parametrize("is_separate", [True, False])
def test_a_separate_head_counts_though_the_config_ties_it(is_separate: bool, tmp_path: Path) -> None:
    folder = folder_of("llama-theta", tmp_path, tie_word_embeddings=True)
    if not is_separate:
        change_weights(
            folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
        )
    model = dense(folder)
    assert (error(model, "llama-theta") < 1e-4) == is_separate
    assert model.config.tie_word_embeddings != is_separate


def test_one_table_under_either_name_is_embedding_and_head(tmp_path: Path) -> None:
    embedding, head, logits = "model.embed_tokens.weight", "lm_head.weight", list[torch.Tensor]()

    def as_head(weights: dict[str, Any]) -> None:
        weights[head] = weights.pop(embedding)

    for change in (as_head, lambda weights: weights.pop(head)):
        folder = folder_of("llama-theta", tmp_path / f"{len(logits)}", tie_word_embeddings=True)
        change_weights(folder, change)
        logits.append(stage_logits(dense(folder)))
    assert torch.equal(*logits)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_codes_that_need_scales_are_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    folder, name = folder_of("llama-theta", tmp_path), "model.layers.0.mlp.up_proj.weight"

    def quantize(weights: dict[str, Any]) -> None:
        weights |= {name: weights[name].to(dtype), f"{name}_scale": torch.ones(1)}

    change_weights(folder, quantize)
    with pytest.raises(EarnError, match=r"1 weights are quantized codes \(\w+\), such as .*up_proj"):
        load_backbone(folder)


def test_an_adapter_beside_a_model_is_ambiguous(tmp_path: Path) -> None:
    folder = folder_of("llama-theta", tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EarnError, match=r"holds an adapter \(LoRA\) beside a model.*a folder of their own"):
        load_backbone(folder)


def test_buffers_that_older_versions_saved_are_no_weights(tmp_path: Path) -> None:
    folder = folder_of("llama-theta", tmp_path)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change_weights(folder, lambda weights: weights.update(buffer))
    load_backbone(folder)


def folders_with_code(parent: Path) -> tuple[Path, Path, Path]:
    """Folders of an unknown and a known family that bring code for all that is read of them, and what it writes."""
    mark, folders = parent / "was run", []
    for name, settings in (("unknown", {"model_type": "mine"}), ("known", {})):
        mapping = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineModel"}
        folder = folder_of("llama-theta", parent / name, auto_map=mapping, **settings)
        Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
        classes = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps({**classes, "unk_token": "<unk>"}))
        (folder / "mine.py").write_text(f"open({str(mark)!r}, 'w')\n")
        folders.append(folder)
    return folders[0], folders[1], mark


def test_a_family_that_is_not_known_is_refused_and_no_code_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", asked.append)
    unknown, known, mark = folders_with_code(tmp_path)
    with pytest.raises(EarnError, match="holds a 'mine' model"):
        EarnModel.from_backbone(unknown, toy_catalog(), max_history=3)
    EarnModel.from_backbone(known, toy_catalog(), max_history=3)
    assert not asked
    assert not mark.exists()


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"num_beams": 1, "early_stopping": True}],
    ids=["sampling", "beams"],
)
def test_settings_of_generate_that_cannot_be_saved_do_not_stop_a_training(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = folder_of("llama-theta", tmp_path / "backbone")
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = dense(folder, 3)
    sequences = [np.arange(start, start + 4) for start in range(4)]
    train(model, sequences, tmp_path / "checkpoint", lambda _: 0.1, TrainSettings(epochs=2, batch_size=8))
    assert_close(stage_logits(model), stage_logits(EarnModel.from_pretrained(tmp_path / "checkpoint")), 1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    folder = folder_of("llama-theta", tmp_path)

    def spoil(weights: dict[str, Any]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    change_weights(folder, spoil)
    with pytest.raises(EarnError, match=r"1 weights hold NaN or infinity, such as model\.layers\.1\.mlp\.up_proj"):
        load_backbone(folder)


SLIDING = {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention"] * 3}
WINDOWS: dict[str, tuple[dict[str, Any], str]] = {  # case: what limits its window to 20 positions, the setting's name
    "qwen2-theta": (SLIDING, r"sliding_window\)\. Lower max_history, which is 9"),
    "mistral": ({"sliding_window": 20}, "sliding_window"),
    "phi3-partial": ({"sliding_window": 20}, "sliding_window"),
    "phi3-longrope": ({"original_max_position_embeddings": 20}, "original_max_position_embeddings; longrope"),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_a_window_is_no_matter_while_prompts_fit_into_it(case: str, tmp_path: Path) -> None:
    """Of longrope, reading compares the window's last position with the family's own code."""
    changes, says = WINDOWS[case]
    folder = folder_of(case, tmp_path, **changes)
    dense(folder)
    with pytest.raises(EarnError, match=rf"takes \d+ positions, and the backbone sees 20 \({says}"):
        dense(folder, 9)
    if case == "phi3-longrope":
        assert checkpoint_facts(folder).positions == 20


LONGROPE = {"short_factor": [1.0, 1.2, 1.5], "long_factor": [1.0, 4.0, 16.0]}


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
def test_longrope_is_read_under_all_names_that_transformers_4_gave_it(name: str, tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"type": name, **LONGROPE}, "partial_rotary_factor": 0.75}
    old = {**OLD, **scaling}
    if name == "su" and IS_5:  # which transformers 5 does not know any more
        with pytest.raises(EarnError, match="original_max_position_embeddings"):
            load_backbone(folder_of("phi3-longrope", tmp_path, **old))
        return
    assert error(dense(folder_of("phi3-longrope", tmp_path, **old)), "phi3-longrope") < 1e-4


def test_longrope_with_a_scaling_of_its_own_is_refused(tmp_path: Path) -> None:
    own = {**CASES["phi3-longrope"]["config"]["rope_parameters"], "attention_factor": 1.5}
    folder = folder_of("phi3-longrope", tmp_path, rope_parameters=own)
    if IS_5:
        load_backbone(folder)
        return
    with pytest.raises(EarnError, match=r"attention_factor': 1\.5.*Install transformers 5"):
        load_backbone(folder)
