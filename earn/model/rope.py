"""The rotary position embedding's settings in config.json, in both dialects of transformers.

    4.x    rope_theta, rope_scaling {rope_type or type, factor, ...}, partial_rotary_factor; Gemma 3 has
           rope_local_base_freq for its sliding layers
    5.x    rope_parameters {rope_type, rope_theta, factor, ...}, or one such dictionary per type of layer

Version 5 reads both. Version 4 takes what it does not know for absent, and would compute with its defaults.

longrope (Phi-3-mini-128k, Phi-4-mini) divides the frequencies by short factors while a sequence fits into the window of
the first training, and by long factors beyond. It is read as long as every prompt fits, so with the short ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from transformers import PreTrainedModel

from earn.errors import EarnError
from earn.model.transformers_versions import IS_5

# RoPE types whose frequencies do not depend on the sequence that is being read.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")

# Families that are trained with longrope, and older names that transformers takes for it there.
LONGROPE_FAMILIES = ("phi3",)
LONGROPE_NAMES = ("longrope", "su", "yarn")

LAYER_TYPES = ("full_attention", "sliding_attention")


def rope_by_layer_type(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings by type of layer, as transformers 5 reads them; under "" where all layers share them."""
    given = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    nested = {kind: dict(given[kind]) for kind in LAYER_TYPES if isinstance(given.get(kind), Mapping)}
    by_type = nested or {"": given}
    for settings in by_type.values():
        older = settings.pop("type", None)
        kind = settings.get("rope_type") or older or "default"
        is_longrope = config.get("model_type") in LONGROPE_FAMILIES and kind in LONGROPE_NAMES
        settings["rope_type"] = "longrope" if is_longrope else kind
    return by_type


def longrope_window(config: Mapping[str, Any]) -> int | None:
    """Up to how many positions longrope's short factors hold; None of other types."""
    is_longrope = any(settings["rope_type"] == "longrope" for settings in rope_by_layer_type(config).values())
    return int(config["original_max_position_embeddings"]) if is_longrope else None


def rope_problems(config: Mapping[str, Any], where: str) -> Iterator[str]:
    """Types of rotary embeddings that the stages would compute wrongly."""
    supported = (*STATIC_ROPE, "longrope") if config.get("model_type") in LONGROPE_FAMILIES else STATIC_ROPE
    for settings in rope_by_layer_type(config).values():
        kind = "mrope" if "mrope_section" in settings else settings["rope_type"]
        if kind not in supported:
            yield (
                f"{where}: the rotary embedding is of type {kind!r}, whose angles depend on more than a token's "
                f"position. Supported are: {', '.join(supported)}."
            )


def in_dialect_of_version_4(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same settings as transformers 4 reads them; those of version 4's own dialect stay as they are.

    Raises:
        EarnError: types of layers have settings that version 4 cannot express.
    """
    plain = dict(config)
    if not plain.pop("rope_parameters", None) or config.get("rope_scaling"):
        return _with_plain_longrope(plain, where)
    by_type = rope_by_layer_type(config)
    if "" not in by_type:
        used = set(config.get("layer_types") or by_type)
        by_type = {kind: settings for kind, settings in by_type.items() if kind in used}
    shared = by_type.get("full_attention") or next(iter(by_type.values()))
    if config.get("model_type") == "gemma3_text" and (local := by_type.get("sliding_attention")):
        if local["rope_type"] != "default":
            raise EarnError(
                f"{where}: the rotary embedding of its sliding layers is of type {local['rope_type']!r}, which this "
                "version of transformers cannot compute. Install transformers 5."
            )
        plain["rope_local_base_freq"] = local.get("rope_theta", 1e4)
    elif any(settings != shared for settings in by_type.values()):
        raise EarnError(
            f"{where}: its types of layers have different rotary embeddings ({', '.join(by_type)}), which models of "
            f"the family {config.get('model_type')!r} do not compute. Take the folder as its author wrote it."
        )
    scaling = dict(shared)
    for name in ("rope_theta", "partial_rotary_factor"):
        if (value := scaling.pop(name, None)) is not None:
            plain[name] = value
    plain["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    return _with_plain_longrope(plain, where)


def _with_plain_longrope(config: dict[str, Any], where: str) -> dict[str, Any]:
    """longrope's settings with the three names that version 4 accepts; other types as they are.

    Raises:
        EarnError: there is a scaling of attention that version 4 does not compute.
    """
    settings = rope_by_layer_type(config).get("", {})
    original = config.get("original_max_position_embeddings")
    if settings.get("rope_type") != "longrope":
        return config
    own = {name: settings[name] for name in ("attention_factor", "factor") if settings.get(name) is not None}
    if own and own != {"factor": config.get("max_position_embeddings", 0) / (original or 1)}:
        raise EarnError(
            f"{where}: its longrope has a scaling of attention of its own ({own}), which this version of transformers "
            "cannot compute. Install transformers 5."
        )
    factors = {name: settings.get(name) for name in ("short_factor", "long_factor")}
    return {**config, "rope_scaling": {"type": "longrope", **factors}}


def correct_yarn(backbone: PreTrainedModel, config: Mapping[str, Any]) -> None:
    """Gives a backbone of transformers 4 the frequencies that version 5 computes for yarn, in place.

    Version 5 scales by the factor that stands in the settings, version 4 by max_position_embeddings over
    original_max_position_embeddings, whatever the factor.
    """
    settings = rope_by_layer_type(config).get("", {})
    original, factor = settings.get("original_max_position_embeddings"), settings.get("factor")
    if IS_5 or settings.get("rope_type") != "yarn" or original is None or factor is None:
        return
    stretched = deepcopy(backbone.config)
    stretched.max_position_embeddings = round(factor * original)
    backbone.model.rotary_emb = type(backbone.model.rotary_emb)(config=stretched)
