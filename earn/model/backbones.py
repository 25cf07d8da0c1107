"""Backbones: the Hugging Face decoders that EARN runs on, built small from scratch or loaded from a folder or file.

FAMILIES is the one table of what is supported. To add a family whose decoder layers compute as Llama's do, add its row;
the tests over `TINY_BACKBONES` then compare it with Hugging Face's own model, in torch, ONNX and the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from earn.errors import EarnError
from earn.model.transformers_versions import float32_weights
from earn.specs import Sizes

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

# RoPE types whose frequencies do not depend on the sequence that is being read.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")

_TINY: Mapping[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,  # Hugging Face's 0.02 suits widths of thousands; narrow layers learn late from it
    "bos_token_id": 0,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Family:
    """A family of decoders, and its small backbone, which is trained from scratch and knows no text but BOS, id 0."""

    config: type[PretrainedConfig]  # of which the model_type is the family's name
    tiny: str  # name of the small backbone
    tiny_sizes: Mapping[str, Any]
    has_sliding_window: bool = False  # whether a configuration may ask for it; then it is refused
    has_head_norms: bool = False  # whether queries and keys are normalised head by head


FAMILIES: Mapping[str, Family] = {
    family.config.model_type: family
    for family in (
        Family(LlamaConfig, "tiny-llama", _TINY),
        Family(Qwen2Config, "tiny-qwen2", _TINY, has_sliding_window=True),
        Family(Qwen3Config, "tiny-qwen3", {**_TINY, "head_dim": 32}, has_sliding_window=True, has_head_norms=True),
    )
}
TINY_BACKBONES: Mapping[str, Family] = {family.tiny: family for family in FAMILIES.values()}


def load_backbone(source: str | Path, seed: int = 0, sizes: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The backbone that `source` names: a tiny one (new weights from `seed`), a Hugging Face folder or a GGUF file.

    Args:
        source: a name of TINY_BACKBONES, a folder with config.json and weights, or an *.gguf file, whose weights are
            taken as what they stand for: float32 of a few bits' precision.
        seed: of the new weights.
        sizes: settings of the family's configuration that replace a tiny backbone's.

    Raises:
        EarnError: no such name or folder, or a family that is not supported.
    """
    tiny = TINY_BACKBONES.get(str(source))
    if tiny is not None:
        config = tiny.config(**{"vocab_size": 1, **tiny.tiny_sizes, **(sizes or {})})
        check_backbone(config)
        torch.manual_seed(seed)
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    elif is_gguf(source) or (Path(source) / "config.json").is_file():
        backbone = _load_trained(Path(source))
    else:
        raise EarnError(
            f"There is no backbone {str(source)!r}. Give one of {', '.join(TINY_BACKBONES)}, "
            "a folder in Hugging Face format that holds config.json and the weights, or a GGUF file."
        )
    return backbone


def is_gguf(source: str | Path) -> bool:
    """Whether the source is a file in llama.cpp's format."""
    return Path(source).suffix == ".gguf" and Path(source).is_file()


def has_tokenizer(source: str | Path) -> bool:
    """Whether a backbone brings a tokenizer."""
    return is_gguf(source) or any((Path(source) / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase | None:
    """A folder's or a GGUF file's tokenizer, if there is one.

    Raises:
        EarnError: it cannot be read, or a GGUF file holds none.
    """
    if not has_tokenizer(source):
        return None
    if is_gguf(source):
        _check_gguf(Path(source))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**_files(Path(source)))
    except Exception as error:  # transformers, tokenizers and json raise classes of their own
        raise EarnError(
            f"{source}: its tokenizer cannot be loaded ({error}). Mend it, or take the method tiger, which needs none."
        ) from error
    return tokenizer


def _files(path: Path) -> dict[str, Any]:
    """The arguments under which transformers finds a folder, or a GGUF file in its folder."""
    arguments = {"pretrained_model_name_or_path": path, "local_files_only": True}
    if is_gguf(path):
        arguments |= {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    return arguments


def _load_trained(folder: Path) -> PreTrainedModel:
    files = _files(folder)
    if is_gguf(folder):
        _check_gguf(folder)
    try:
        config = AutoConfig.from_pretrained(**files)
        check_backbone(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **files,
            config=config,
            attn_implementation="eager",
            **float32_weights(is_gguf(folder)),
            output_loading_info=True,
        )
        backbone: PreTrainedModel
        backbone, loading = loaded
    except EarnError:
        raise
    except Exception as error:  # transformers, safetensors and json raise classes of their own
        raise EarnError(f"{folder}: cannot be loaded as a model ({error}). Copy or write it again.") from error
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if lost := sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])} - tied):
        raise EarnError(
            f"{folder}: {len(lost)} weights are missing or have another shape, such as {lost[0]}. "
            "Copy or write the folder again."
        )
    return backbone


def _check_gguf(path: Path) -> None:
    """Refuses what transformers would read wrongly or with an error that leads astray.

    That is a file that is none or not whole, and RoPE frequencies that are scaled: it would compute without scaling.
    """
    import gguf  # transformers would blame the file where this is missing

    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # of many kinds, by where the file ends
        raise EarnError(f"{path}: is no GGUF file, or not whole ({error}). Fetch it again.") from error
    scaling = {name: field for name, field in reader.fields.items() if ".rope.scaling." in name}
    if any(name.endswith(".type") and bytes(field.parts[-1]) == b"none" for name, field in scaling.items()):
        scaling = {}
    tensors = [tensor.name for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    if scalings := sorted([*scaling, *tensors]):
        raise EarnError(
            f"{path}: scales its RoPE ({scalings[0]}), which is not read of GGUF files. Take the Hugging Face folder."
        )


def check_backbone(config: PretrainedConfig) -> None:
    """Refuses what the stages would compute wrongly.

    Raises:
        EarnError: another family, sliding-window attention, or a RoPE type that looks at the sequence's length.
    """
    if config.model_type not in FAMILIES:
        raise EarnError(f"The backbone is a {config.model_type!r} model. Supported are: {', '.join(FAMILIES)}.")
    if FAMILIES[config.model_type].has_sliding_window and "sliding_attention" in (config.layer_types or ()):
        raise EarnError(
            "The backbone uses sliding-window attention. Set use_sliding_window to false in its config.json."
        )
    scaling = getattr(config, "rope_scaling", None) or {}
    rope = scaling.get("rope_type", scaling.get("type", "default"))
    if rope not in STATIC_ROPE:
        raise EarnError(f"The backbone's RoPE type is {rope!r}. Supported are: {', '.join(STATIC_ROPE)}.")


def sizes_of(config: PretrainedConfig, early_layers: int, embedding_rows: int, logits: int) -> Sizes:
    """The fixed sizes of a model with this backbone."""
    return Sizes(
        family=config.model_type,
        layers=config.num_hidden_layers,
        early_layers=early_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        embedding_rows=embedding_rows,
        logits=logits,
    )
