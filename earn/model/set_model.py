"""All codes at once: a model that names every digit of the next item in one pass, without beams.

    item     one row of the history: the weighted mean of its digits' embeddings
    output   the last suffix register's hidden state h after the final norm (without registers the last row's)
    digit j  softmax over its values c of  h . e(j,c) / (|e(j,c)| sqrt(d) temperature);  |h| is about sqrt(d), which the
             norm sees to, so this is a cosine divided by the temperature
    loss     the weighted mean of the digits' cross entropies; of a digit with very many values the softmax may be
             sampled (`SetModel.sample_negatives`)
    score    of an item: the weighted sum of its digits' log-probabilities

after SETRec (arXiv 2502.10833) and RPG (arXiv 2506.05781). Digits are tokens of the backbone, so their embeddings are
rows of its embedding table and its head, and a checkpoint is the same as of other methods. RPG's projection for each
digit is left out: where embedding and head are separate tables, the head's rows already are all that it could make.

In `input_ids` and `labels` item i has the id v + i, where v is the number of the embedding's rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
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
        self._negatives, self._shares = 0, list[Tensor]()
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

    def sample_negatives(self, count: int, sequences: Sequence[NDArray[np.int64]]) -> None:
        """Lets the loss of a digit with more than 2 `count` values be a sampled softmax; 0: never.

        A step's candidates are its targets and `count` values drawn evenly. From each logit the logarithm of the chance
        to be a candidate is taken, as in Jean and others (arXiv 1412.2007), so that values that many choose are not
        pushed down for being there often. The best logits are the same; the number is smaller, as there are fewer.

        Args:
            sequences: what is trained on, as indices of the catalog's items.
        """
        self._negatives = count
        chosen = np.bincount(np.concatenate(sequences), minlength=len(self.catalog))
        shares = torch.from_numpy(chosen / chosen.sum())
        targets = cast(Tensor, self.targets).cpu()
        self._shares = [
            torch.zeros(size, dtype=torch.float64).index_add(0, targets[:, digit], shares)
            for digit, size in enumerate(self.digit_sizes)
        ]

    def loss_of(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The weighted mean of the digits' cross entropies; hidden [b,p,d], labels [b,p] are ids of items."""
        is_asked = labels != IGNORED
        targets = cast(Tensor, self.targets)
        wanted = targets[labels[is_asked] - (len(cast(Tensor, self.members)) - len(targets))]  # [asked,m]
        late = self.late_stage()
        normed = late.norm(hidden[is_asked])
        heads = cast(DigitHead, late.head).weight.split(self.digit_sizes)
        losses = [self._digit_loss(normed, head, digit, wanted[:, digit]) for digit, head in enumerate(heads)]
        return torch.stack(losses) @ cast(Tensor, self.digit_weights)

    def _digit_loss(self, normed: Tensor, head: Tensor, digit: int, wanted: Tensor) -> Tensor:
        """The cross entropy [] of one digit, whole or sampled: normed [asked,d], head [values,d], wanted [asked]."""
        values = len(head)
        if not (self.training and 0 < 2 * self._negatives < values):
            return functional.cross_entropy(functional.linear(normed, head).float(), wanted)
        drawn = torch.randint(values, (self._negatives,), device=wanted.device)
        candidates, places = torch.cat((wanted, drawn)).unique(return_inverse=True)
        shares = self._shares[digit].to(wanted.device)[candidates]
        chance = 1 - (1 - shares) ** len(wanted) * (1 - 1 / values) ** self._negatives
        logits = functional.linear(normed, head[candidates]).float() - chance.log().float()
        return functional.cross_entropy(logits, places[: len(wanted)])


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
