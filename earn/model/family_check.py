"""Compares what the stages compute with what Hugging Face's own forward pass computes, on a few random tokens.

The parity of an export holds graphs to the stages. This check holds the stages to the family's own code, so that a
family whose layers do something that the stages do not know is refused instead of answered wrongly: whenever weights
are loaded, and again before a bundle is written, with the very stages that it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from earn.errors import EarnError
from earn.model.families import family_of, positions_of, rotary_of, setting
from earn.model.stage import DenseHead, EarlyStage, LateStage, causal_bias

SEQUENCES, TOKENS = 2, 12
TOLERANCE = 1e-3  # of the logits' standard deviation
SMALLEST_SPREAD = 0.1  # of the largest logit: a vocabulary of one token has no deviation


def check_family(backbone: PreTrainedModel, where: str = "The backbone") -> float:
    """Checks all layers of a backbone as one stage; see `check_stages`."""
    model, family = cast(Any, backbone.model), family_of(backbone.config)
    multiplier, divisor = (setting(backbone.config, it) for it in (family.embedding_multiplier, family.logits_divisor))
    early = EarlyStage(model.layers, rotary_of(model), model.embed_tokens, multiplier)
    late = DenseHead([], early.rotary, model.norm, cast(nn.Module, backbone.lm_head), divisor)
    rows = range(backbone.config.vocab_size)
    return check_stages(backbone, early, late, rows, rows, where)


@torch.no_grad()
def check_stages(
    backbone: PreTrainedModel,
    early: EarlyStage,
    late: LateStage,
    embedded: Sequence[int],
    predicted: Sequence[int],
    where: str = "The model",
) -> float:
    """The largest difference of any logit as a share of their standard deviation, at near and at far positions.

    Args:
        backbone: the model whose layers the stages hold.
        early, late: stages that together are all of its layers; every row goes on from one to the other.
        embedded: the backbone's token of each row of the early stage's embedding.
        predicted: the backbone's token of each logit of the late stage.

    Raises:
        EarnError: it is larger than TOLERANCE.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, len(embedded), (SEQUENCES, TOKENS), generator=generator).to(backbone.device)
    tokens = torch.tensor(embedded, device=backbone.device)[rows]
    last = positions_of(backbone.config) - 1
    far = torch.linspace(0, last, TOKENS).long() if last >= TOKENS else torch.arange(TOKENS)
    worst = 0.0
    every, bias = torch.arange(TOKENS).to(backbone.device), causal_bias(TOKENS).to(backbone.device, backbone.dtype)
    with _plainly_evaluated(backbone):
        for each in (torch.arange(TOKENS), far):
            positions = each.expand(SEQUENCES, TOKENS).to(backbone.device)
            # The mask is given whole, for a gap between positions would be taken for the start of another sequence.
            mask = bias.expand(SEQUENCES, 1, TOKENS, TOKENS)
            answer: Any = backbone(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
            theirs = answer.logits.float()[..., list(predicted)]
            hidden, _ = early.run(early.embed(rows), positions, bias, None, every)
            hidden, _ = late.run(hidden, positions, bias, None, every)
            scale = max(float(theirs.std()), SMALLEST_SPREAD * float(theirs.abs().max()))
            worst = max(worst, float((late.read_off(hidden).float() - theirs).abs().max()) / (scale or 1.0))
    if not worst <= TOLERANCE:  # also true of nan
        raise EarnError(
            f"{where}: the stages compute other logits than Hugging Face's own code, by {worst:.2g} of their spread. "
            "Its family has settings that are not supported; please report its config.json."
        )
    return worst


@contextmanager
def _plainly_evaluated(backbone: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and with attention as the family's own code writes it down."""
    config, was_training = backbone.config, cast(nn.Module, backbone.model).training
    implementation = config._attn_implementation
    config._attn_implementation = "eager"
    backbone.eval()
    try:
        yield
    finally:
        config._attn_implementation = implementation
        backbone.train(was_training)
