"""Rows for new tokens, identifiers and registers, in a backbone's embedding table and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from earn.model.tokenizer import check_rows


def add_tokens(
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tokens: Sequence[str],
    seed: int,
    around_mean: bool,
) -> list[int]:
    """Token ids for `tokens`, with rows in embedding and head; tokens that the tokenizer knows keep theirs.

    New rows of a trained table start near its mean, those of an untrained one near zero.

    Raises:
        EarnError: the tokenizer knows tokens that the tables have no row for.
    """
    old_rows = len(_tables(backbone)[0])
    if tokenizer is None:
        known, token_ids = set(range(old_rows)), list(range(old_rows, old_rows + len(tokens)))
    else:
        check_rows(tokenizer, old_rows)
        known = set(tokenizer.get_vocab().values())
        token_ids = _new_ids(tokenizer, tokens, known)
    backbone.resize_token_embeddings(max(old_rows, max(token_ids, default=0) + 1), mean_resizing=False)
    new = torch.tensor(sorted(set(token_ids) - known), dtype=torch.long)  # there may be none
    trained = torch.tensor(sorted(known), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in _tables(backbone):
            centre = table[trained].mean(0) if around_mean else table.new_zeros(table.shape[1])
            noise = torch.randn(len(new), table.shape[1], generator=generator).to(table.device)
            table[new] = centre + backbone.config.initializer_range * noise
    return token_ids


def _new_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], known: set[int]) -> list[int]:
    """The ids of all tokens; those that the tokenizer does not know are added to it.

    A tokenizer whose ids have holes would give new tokens ids that others have. There the new ones stand behind all of
    its own, and it does not learn of them: prompts are made of ids, not of their texts.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if len(known) <= max(known, default=-1):
        vocabulary |= {token: token_id for token_id, token in enumerate(missing, max(known) + 1)}
        return [vocabulary[token] for token in tokens]
    tokenizer.add_tokens(missing, special_tokens=True)
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    return ids


def _tables(backbone: PreTrainedModel) -> list[Tensor]:
    """The weights of embedding and head, once where they are tied."""
    embedding = cast(nn.Embedding, backbone.get_input_embeddings()).weight
    head = cast(nn.Linear, backbone.get_output_embeddings()).weight
    return [embedding] if head is embedding else [embedding, head]
