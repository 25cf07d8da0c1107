"""What differs between transformers 4.53 and 5, in one place: what the version that is installed expects."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

IS_5 = int(transformers.__version__.partition(".")[0]) >= 5

# A model's attribute _tied_weights_keys where the head may be the embedding's table.
TIED_HEAD: Any = {"lm_head.weight": "model.embed_tokens.weight"} if IS_5 else ["lm_head.weight"]


def float32_weights(from_gguf: bool) -> dict[str, Any]:
    """The arguments of from_pretrained for weights in float32, those of a GGUF file unpacked."""
    arguments: dict[str, Any] = {"dtype" if IS_5 else "torch_dtype": torch.float32}
    packed = getattr(transformers, "GgufConfig", None)  # of releases that may keep a file's blocks, and train none
    if from_gguf and packed:
        arguments["quantization_config"] = packed(dequantize=True)
    return arguments


def warmup(share: float) -> dict[str, Any]:
    """The argument of TrainingArguments for a warm-up over this share of the steps, from 0, below 1."""
    return {"warmup_steps" if IS_5 else "warmup_ratio": share}


def rotary_share(config: PretrainedConfig) -> float:
    """The share of a head that is turned by position, of a family that has the setting."""
    share: float = config.rope_parameters["partial_rotary_factor"] if IS_5 else config.partial_rotary_factor
    return share
