"""The families of decoders that EARN runs on, a row each, and what is refused of their settings.

A stage calls the submodules of Hugging Face's own decoder layers one by one. What a family does beyond Llama's layer is
named in its row, and `earn.model.stage` reads it there; `earn.model.family_check` compares the result with the family's
own code whenever weights are loaded. To add a family, add its row, and a case with reference logits to the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import (
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.smollm3.configuration_smollm3 import SmolLM3Config

from earn.errors import refuse
from earn.model.rope import longrope_window, rope_by_layer_type, rope_problems
from earn.model.transformers_versions import rotary_share
from earn.specs import Sizes

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
    has_head_norms: bool = False  # queries and keys are normalised head by head
    has_output_norms: bool = False  # what attention and MLP add is normalised too, and the MLP's input by another norm
    has_rotary_by_layer_type: bool = False  # full and sliding layers turn by other angles
    has_partial_rotary: bool = False  # only the first elements of a head may be turned
    has_joined_projections: bool = False  # q, k and v are one linear layer, and so are gate and up (see joined)
    embedding_multiplier: str = ""  # the setting by which embeddings are multiplied, "" where they are not
    residual_multiplier: str = ""  # the setting by which what attention and MLP add is multiplied
    logits_divisor: str = ""  # the setting by which logits are divided


FAMILIES: Mapping[str, Family] = {
    family.config.model_type: family
    for family in (
        Family(LlamaConfig, "tiny-llama", _TINY),
        Family(Qwen2Config, "tiny-qwen2", _TINY),
        Family(Qwen3Config, "tiny-qwen3", {**_TINY, "head_dim": 32}, has_head_norms=True),
        Family(MistralConfig, "tiny-mistral", {**_TINY, "sliding_window": None}),
        Family(
            GraniteConfig,
            "tiny-granite",
            {**_TINY, "attention_multiplier": 24**-0.5, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
            embedding_multiplier="embedding_multiplier",
            residual_multiplier="residual_multiplier",
            logits_divisor="logits_scaling",
        ),
        Family(SmolLM3Config, "tiny-smollm3", {**_TINY, "pad_token_id": None}),
        Family(
            Gemma3TextConfig,
            "tiny-gemma3",
            {**_TINY, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 2048, "pad_token_id": None},
            has_head_norms=True,
            has_output_norms=True,
            has_rotary_by_layer_type=True,
        ),
        Family(
            Phi3Config,
            "tiny-phi3",
            {**_TINY, "partial_rotary_factor": 0.75, "pad_token_id": None},
            has_partial_rotary=True,
            has_joined_projections=True,
        ),
    )
}
TINY_BACKBONES: Mapping[str, Family] = {family.tiny: family for family in FAMILIES.values()}

# Settings that, if they are set, change what a layer computes in a way that no stage knows.
UNKNOWN_TO_STAGES = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")


def family_of(config: PretrainedConfig) -> Family:
    """The family's row."""
    return FAMILIES[config.model_type]


def setting(config: PretrainedConfig, name: str) -> float:
    """A multiplier that a row names; 1 where it names none."""
    return float(getattr(config, name)) if name else 1.0


def check_backbone(config: PretrainedConfig, where: str = "The backbone") -> None:
    """Refuses what the stages would compute wrongly.

    Raises:
        EarnError: another family, or a rotary embedding of a type or on a part of the head that is not supported.
    """
    refuse(backbone_problems(config, where))


def backbone_problems(config: PretrainedConfig, where: str) -> Iterator[str]:
    """What the stages would compute wrongly."""
    if config.model_type not in FAMILIES:
        yield f"{where}: is a {config.model_type!r} model. Supported are: {', '.join(FAMILIES)}."
        return
    settings = config.to_dict()
    yield from rope_problems(settings, where)
    factors = {settings.get("partial_rotary_factor")}
    factors |= {rope.get("partial_rotary_factor") for rope in rope_by_layer_type(settings).values()}
    partial = set() if family_of(config).has_partial_rotary else factors - {None, 1.0}
    if partial:
        yield (
            f"{where}: turns {partial.pop():.0%} of each head by position (partial_rotary_factor), which models of the "
            f"family {config.model_type!r} do not compute. Take the folder as its author wrote it."
        )
    for name in UNKNOWN_TO_STAGES:
        if settings.get(name):
            yield f"{where}: {name} is {settings[name]!r}, which is not supported."


def turned_size(config: PretrainedConfig) -> int:
    """How many elements of a head, from its first on, are turned by position."""
    share = rotary_share(config) if family_of(config).has_partial_rotary else 1.0
    return int(head_size(config) * share)


def rotary_of(model: nn.Module) -> nn.Module:
    """The rotary position embedding of a backbone's inner model.

    Where types of layers have their own, one module holds the frequencies of all, named `<type>_inv_freq` and
    `<type>_attention_scaling`, as transformers 5 has it; version 4 has two modules.
    """
    rotary = cast(nn.Module, model.rotary_emb)
    local = getattr(model, "rotary_emb_local", None)
    return rotary if local is None else RotaryByLayerType({"full_attention": rotary, "sliding_attention": local})


class RotaryByLayerType(nn.Module):
    """The rotary position embeddings of a model's types of layers."""

    def __init__(self, by_type: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for kind, rotary in by_type.items():
            self.register_buffer(f"{kind}_inv_freq", cast(Any, rotary.inv_freq), persistent=False)
            setattr(self, f"{kind}_attention_scaling", rotary.attention_scaling)


def window_of(config: PretrainedConfig) -> int | None:
    """Tokens that the narrowest sliding window holds; None where every layer sees all."""
    types = getattr(config, "layer_types", None)
    if types is not None and "sliding_attention" not in types:
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def positions_of(config: PretrainedConfig) -> int:
    """The most positions at which the stages compute what the family's own code computes."""
    positions: int = config.max_position_embeddings
    return min(positions, longrope_window(config.to_dict()) or positions)


def head_size(config: PretrainedConfig) -> int:
    """Elements of a head."""
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


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
        head_size=head_size(config),
        embedding_rows=embedding_rows,
        logits=logits,
    )
