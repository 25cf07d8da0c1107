"""All codes at once: a model that names every digit of the next item in one pass, without beams.

    item     one row of the history: the weighted mean of its digits' embeddings
    output   the last suffix register's hidden state h after the final norm (without registers the last row's)
    digit j  softmax over its values c of  h . e(j,c) / (|e(j,c)| sqrt(d) temperature);  |h| is about sqrt(d), which the
             norm sees to, so this is a cosine divided by the temperature
    loss     the weighted mean of the digits' cross entropies
    score    of an item: the weighted sum of its digits' log-probabilities

after SETRec (arXiv 2502.10833) and RPG (arXiv 2506.05781). Digits are tokens of the backbone, so their embeddings are
rows of its embedding table and its head, and a checkpoint is the same as of other methods. RPG's projection for each
digit is left out: where embedding and head are separate tables, the head's rows already are all that it could make.

In `input_ids` and `labels` item i has the id v + i, where v is the number of the embedding's rows.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from earn.catalog import Catalog
from earn.config import SET, EarnConfig
from earn.digits import Digits
from earn.model.earn_model import IGNORED, EarnModel
from earn.model.stage import EarlyStage, LateStage


class SetModel(EarnModel):
    """An EARN model whose items are sets of digits."""

    method = SET

    def __init__(
        self,
        backbone: PreTrainedModel,
        earn: EarnConfig,
        catalog: Catalog,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        digits = Digits.of(catalog)
        super().__init__(backbone, earn, catalog, tokenizer)
        self.digit_sizes: list[int] = digits.sizes.tolist()
        rows = len(cast(nn.Embedding, self.model.embed_tokens).weight)
        plain = np.repeat(np.arange(rows)[:, None], len(digits.starts), axis=1)
        members = np.concatenate((plain, np.array(earn.token_ids)[digits.codes]))
        weights = digits.weights / digits.weights.sum()
        buffers = {
            "token_ids": torch.tensor(earn.token_ids),
            "members": torch.from_numpy(members),  # [v+items,m] the tokens of which an id's row is the mean
            "digit_weights": torch.tensor(weights, dtype=torch.float32),  # [m]; their sum is 1
            "targets": torch.from_numpy(digits.codes - digits.starts),  # [items,m] within each digit
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    @property
    def history_ids(self) -> list[int]:
        """The ids of the items."""
        rows = len(cast(Tensor, self.members))
        return list(range(rows - len(self.catalog), rows))

    @property
    def identifiers(self) -> list[tuple[int, ...]]:
        """The catalog's items as they stand in a history: one id each."""
        return [(item,) for item in self.history_ids]

    def early_stage(self) -> EarlyStage:
        """Layers 1..k and the embedding of items, sharing this model's parameters."""
        early = super().early_stage()
        members, weights = cast(Tensor, self.members), cast(Tensor, self.digit_weights)
        early.embedding = ItemEmbedding(cast(nn.Embedding, early.embedding), members, weights)
        return early

    def late_stage(self) -> LateStage:
        """Layers k+1..N, the final norm and the digits' head, sharing this model's parameters."""
        late = super().late_stage()
        late.head = DigitHead(cast(nn.Linear, late.head), cast(Tensor, self.token_ids), self.earn.temperature)
        late.divisor = 1.0
        return late

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted mean of the digits' cross entropies; labels [b,p] are ids of items."""
        is_asked = labels != IGNORED
        targets = cast(Tensor, self.targets)
        wanted = targets[labels[is_asked] - (len(cast(Tensor, self.members)) - len(targets))]  # [asked,m]
        by_digit = logits[is_asked].float().split(self.digit_sizes, dim=1)
        losses = [functional.cross_entropy(each, wanted[:, digit]) for digit, each in enumerate(by_digit)]
        return torch.stack(losses) @ cast(Tensor, self.digit_weights)


class ItemEmbedding(nn.Module):
    """Rows of tokens, and of items as weighted means of their digits' rows."""

    def __init__(self, table: nn.Embedding, members: Tensor, weights: Tensor) -> None:
        """`members` [ids,m]: the tokens that make up each id's row; `weights` [m]: of each, 1 together."""
        super().__init__()
        self.table = table
        self.register_buffer("members", members, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Rows [...,d] of ids [...]."""
        members = cast(Tensor, self.members)[input_ids].flatten(0, -2)  # [rows,m]
        weights = cast(Tensor, self.weights).to(self.table.weight.dtype).expand(members.shape).contiguous()
        rows = functional.embedding_bag(members, self.table.weight, mode="sum", per_sample_weights=weights)
        return rows.view(*input_ids.shape, -1)


class DigitHead(nn.Module):
    """The logits of all digits' values, side by side."""

    def __init__(self, head: nn.Linear, token_ids: Tensor, temperature: float) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("token_ids", token_ids, persistent=False)
        self._factor = 1 / (temperature * math.sqrt(head.in_features))

    @property
    def weight(self) -> Tensor:
        """The one matrix [v,d] that the head is."""
        rows = self.head.weight[cast(Tensor, self.token_ids)]
        return functional.normalize(rows, dim=1) * self._factor

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [...,v] of normed hidden states [...,d]."""
        return functional.linear(hidden, self.weight)
