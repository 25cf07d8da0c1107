"""What differs between transformers 4.53 and 5, in one place: what the version that is installed expects."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PretrainedConfig

IS_5 = int(transformers.__version__.partition(".")[0]) >= 5

# The argument of from_pretrained for the type of the weights.
DTYPE = "dtype" if IS_5 else "torch_dtype"

# A model's attribute _tied_weights_keys where the head may be the embedding's table.
TIED_HEAD: Any = {"lm_head.weight": "model.embed_tokens.weight"} if IS_5 else ["lm_head.weight"]


def warmup(share: float) -> dict[str, float]:
    """The argument of TrainingArguments for a warm-up over this share of the steps, from 0, below 1."""
    return {"warmup_steps" if IS_5 else "warmup_ratio": share}


def rope_theta(config: PretrainedConfig) -> float:
    """The base of the rotary frequencies."""
    base: float = config.rope_parameters["rope_theta"] if IS_5 else config.rope_theta
    return base
