"""Compares what the stages compute with what Hugging Face's own forward pass computes, on a few random tokens.

The comparison of an export holds graphs to the stages. This one holds the stages to the family's own code, so that a
family whose layers do something that the stages do not know is refused instead of answered wrongly.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from earn.config import MASKED
from earn.errors import EarnError
from earn.model.families import family_of, rotary_of, setting
from earn.model.stage import DenseHead, EarlyStage

TOKENS = 12
TOLERANCE = 1e-3  # of the logits' standard deviation
SMALLEST_SPREAD = 0.1  # of the largest logit: a vocabulary of one token has no deviation


@torch.no_grad()
def check_family(backbone: PreTrainedModel, where: str = "The backbone") -> float:
    """The largest difference of any logit as a share of their standard deviation, at near and at far positions.

    Raises:
        EarnError: it is larger than TOLERANCE.
    """
    was_training = backbone.training
    backbone.eval()
    config, device = backbone.config, backbone.device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (1, TOKENS), generator=generator).to(device)
    last = config.max_position_embeddings - 1
    far = torch.linspace(0, last, TOKENS).long() if last >= TOKENS else torch.arange(TOKENS)
    worst = 0.0
    for positions in (torch.arange(TOKENS), far):
        theirs, ours = _both(backbone, tokens, positions[None].to(device))
        scale = max(float(theirs.std()), SMALLEST_SPREAD * float(theirs.abs().max()))
        worst = max(worst, float((ours - theirs).abs().max()) / (scale or 1.0))
    backbone.train(was_training)
    if not worst <= TOLERANCE:  # also true of nan
        raise EarnError(
            f"{where}: the stages compute other logits than Hugging Face's own code, by {worst:.2g} of their spread. "
            "Its family has settings that are not supported; please report its config.json."
        )
    return worst


def _both(backbone: PreTrainedModel, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [1,m,v] of Hugging Face's forward pass and of the stages, in float32."""
    rows = tokens.shape[1]
    blocked = torch.triu(torch.ones(rows, rows, dtype=torch.bool, device=tokens.device), diagonal=1)[None, None]
    # Given whole, for a gap between positions would be taken for the start of another sequence.
    mask = torch.zeros(1, 1, rows, rows, dtype=backbone.dtype, device=tokens.device)
    mask = mask.masked_fill(blocked, torch.finfo(backbone.dtype).min)
    answer: Any = backbone(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
    model = cast(Any, backbone.model)
    family = family_of(backbone.config)
    multiplier, divisor = (setting(backbone.config, it) for it in (family.embedding_multiplier, family.logits_divisor))
    early = EarlyStage(model.layers, rotary_of(model), model.embed_tokens, multiplier)
    every = torch.arange(rows, device=tokens.device)
    bias = torch.where(blocked, MASKED, 0.0).to(backbone.dtype)
    hidden, _ = early.run(early.embed(tokens), positions, bias, None, every)
    late = DenseHead([], early.rotary, model.norm, cast(nn.Module, backbone.lm_head), divisor)
    return answer.logits.float(), late(hidden, every)["logits"].float()
