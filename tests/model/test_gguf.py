from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from earn.errors import EarnError
from earn.model.backbones import load_backbone
from earn.model.earn_model import EarnModel
from earn.model.methods import build_model
from earn.model.tokenizer import load_tokenizer
from earn.model.transformers_versions import IS_5
from tests.support import assert_close, small_backbone, toy_catalog

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    scaling: gguf.RopeScalingType | None = None,
    factors: bool = False,
    family: str = "llama",
) -> None:
    """A Llama as llama.cpp stores it: pairs of rotary rows stand next to each other."""
    config = model.config
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"] if IS_5 else config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output.weight", weights["lm_head.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for own, theirs in NAMES.items():
            value = weights[f"model.layers.{layer}.{own}.weight"]
            writer.add_tensor(
                f"blk.{layer}.{theirs}.weight", _paired(value, heads[theirs]) if theirs in heads else value
            )
    if scaling:
        writer.add_rope_scaling_type(scaling)
    if factors:
        writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _paired(value: NDArray[Any], heads: int) -> NDArray[Any]:
    rows, columns = value.shape
    pairs = value.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows, columns))


def test_a_gguf_file_is_the_model_that_it_was_written_from(tmp_path: Path) -> None:
    backbone = small_backbone("tiny-llama", tie_word_embeddings=False)
    write_gguf(backbone, tmp_path / "small.gguf")
    loaded = load_backbone(tmp_path / "small.gguf")
    assert loaded.config.model_type == "llama"
    tokens = torch.arange(12)[None] % backbone.config.vocab_size
    with torch.no_grad():
        assert_close(backbone.eval()(input_ids=tokens).logits, loaded.eval()(input_ids=tokens).logits, 1e-5)
    model = build_model("tiger", tmp_path / "small.gguf", toy_catalog(), 2)
    table = model.model.embed_tokens.weight.detach()
    mean, new = table[: backbone.config.vocab_size].mean(0), table[list(model.earn.token_ids)]
    assert (new - mean).std() < 2 * model.config.initializer_range
    model.save_pretrained(tmp_path / "checkpoint")
    saved = EarnModel.from_pretrained(tmp_path / "checkpoint")
    assert_close(table, saved.model.embed_tokens.weight.detach(), 0.0)


def test_without_a_tokenizer_there_are_no_words(tmp_path: Path) -> None:
    write_gguf(small_backbone("tiny-llama", tie_word_embeddings=False), tmp_path / "small.gguf")
    with pytest.raises(EarnError, match="take the method tiger"):
        build_model("lcrec", tmp_path / "small.gguf", toy_catalog(), 2)


def test_a_rope_that_would_be_computed_wrongly_is_refused(tmp_path: Path) -> None:
    backbone, path = small_backbone("tiny-llama", tie_word_embeddings=False), tmp_path / "small.gguf"
    write_gguf(backbone, path, factors=True)
    with pytest.raises(EarnError, match=r"small\.gguf: scales its RoPE \(rope_freqs\.weight\)"):
        load_backbone(path)
    write_gguf(backbone, path, gguf.RopeScalingType.LINEAR)
    with pytest.raises(EarnError, match=r"scales its RoPE \(llama\.rope\.scaling\.type\)"):
        load_backbone(path)
    write_gguf(backbone, path, gguf.RopeScalingType.NONE)
    load_backbone(path)


def test_a_family_whose_settings_are_not_read_of_such_files_is_refused(tmp_path: Path) -> None:
    write_gguf(small_backbone("tiny-llama", tie_word_embeddings=False), tmp_path / "small.gguf", family="phi3")
    with pytest.raises(EarnError, match=r"which part of each head a 'phi3' model turns.*Take the Hugging Face folder"):
        load_backbone(tmp_path / "small.gguf")


def test_without_gguf_its_absence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.gguf"
    path.touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    for load in (load_backbone, load_tokenizer):
        with pytest.raises(ModuleNotFoundError, match="gguf"):
            load(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but nothing behind it")
    with pytest.raises(EarnError, match=r"broken\.gguf: is no GGUF file, or not whole"):
        load_backbone(tmp_path / "broken.gguf")
