"""The attention analysis of the EARN paper on a checkpoint: where each layer looks, and what cutting it off would cost.

Users' prompts, each followed by the codes of the item that came next but the last one, go through the model's own
stages layer by layer (teacher forcing). For every layer the attention of the reading rows is summed up
(`attention_figures` says what the figures are), and from every early layer k the model goes on a second time as EARN
would: layers above k see the prompt's first rows, its last ones and the generated tokens alone.

    loss(k) = mean of -log p(code) over the codes of all targets, p over the whole vocabulary, as in training

With nothing above k cut off (a dense model's k = N, an EARN model's own k) that is the model's own loss.

Shapes: b users, m rows of a layer, h heads, r reading rows, d hidden, p places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from earn.attention_figures import ABOVE, BINS, HEAD, TAIL, Analysis, LayerFigures
from earn.config import MASKED
from earn.model import EarnModel
from earn.prompts import readout_rows, whole_prompt
from earn.stage import Stage

BATCH_TOKENS = 4096  # of one pass: all heads' attention of so many tokens fits into memory, long prompts' too


@dataclass(frozen=True)
class _Batch:
    """Users whose prompts are equally long, and their targets too: nothing needs padding."""

    prompt: int  # tokens of each prompt
    tokens: Tensor  # [b,m], prompts and generated tokens
    targets: Tensor  # [b,r], the token that each reading row predicts


class LayerSums:
    """One layer's figures, summed over the reading rows of all users."""

    def __init__(self, places: int) -> None:
        self.rows = 0
        self._columns = 0
        self._above = 0.0
        self._received = torch.zeros(places, dtype=torch.float64)
        self._seen = torch.zeros(places, dtype=torch.bool)

    def add(self, shares: Tensor, places: Tensor) -> None:
        """Adds the attention shares [b,h,r,m] of the layer's last r rows, whose columns stand at these places [m,p]."""
        b, h, r, m = shares.shape
        columns = torch.arange(m - r, m) + 1  # that each of the rows may see: all up to itself
        self.rows += b * r
        self._columns += b * int(columns.sum())
        self._above += float(((shares > ABOVE).sum(-1) / columns).sum()) / h
        self._received += shares.double().sum((0, 1, 2)) @ places / h
        self._seen |= (places > 0).any(0)

    def figures(self, layer: int, is_late: bool) -> LayerFigures:
        """The means."""
        return LayerFigures(
            layer=layer,
            is_late=is_late,
            columns=self._columns / self.rows,
            sparsity=self._above / self.rows,
            received=tuple((self._received / self.rows).tolist()),
            seen=tuple(self._seen.tolist()),
        )


class _Watch:
    """A model, and what was found so far."""

    def __init__(self, model: EarnModel) -> None:
        self.model = model
        places = HEAD + BINS + TAIL + model.catalog.depth - 1
        self.layers = [LayerSums(places) for _ in range(model.config.num_hidden_layers)]
        self.losses = torch.zeros(model.earn.early_layers, dtype=torch.float64)  # summed over all codes

    def add(self, batch: _Batch) -> None:
        """One pass over the layers, and from each early one a second on cut rows."""
        rows = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        kept = torch.tensor(kept_rows(self.model, batch.prompt, len(rows)), device=rows.device)
        places = place_weights(batch.prompt, len(rows) - batch.prompt, self.model.catalog.depth - 1)
        hidden = cast(Tensor, self.model.model.embed_tokens(batch.tokens))
        for number, sums in enumerate(self.layers):
            if number == self.model.earn.early_layers:
                hidden, rows, places = hidden[:, kept], kept, places[kept.cpu()]
            stage = self._stage(number, number + 1)
            last = torch.arange(len(rows) - batch.targets.shape[1], len(rows), device=rows.device)
            sums.add(stage.first_shares(hidden, *_causal(rows), last).cpu(), places)
            hidden, _ = stage.run(hidden, *_causal(rows), None, torch.arange(len(rows), device=rows.device))
            if number < self.model.earn.early_layers:
                self.losses[number] += self._loss(number + 1, hidden[:, kept], kept, batch.targets)

    def _loss(self, k: int, hidden: Tensor, kept: Tensor, targets: Tensor) -> float:
        """The sum of the codes' losses when the layers above k go on with these rows [b,m,d] alone."""
        last = torch.arange(len(kept) - targets.shape[1], len(kept), device=kept.device)
        hidden, _ = self._stage(k, None).run(hidden, *_causal(kept), None, last)
        logits = self.model.lm_head(self.model.model.norm(hidden))
        return float(functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum"))

    def _stage(self, start: int, end: int | None) -> Stage:
        layers = cast(Sequence[nn.Module], self.model.model.layers)
        return Stage(layers[start:end], self.model.model.rotary_emb)


@torch.no_grad()
def analyze(
    model: EarnModel,
    examples: Sequence[tuple[Sequence[int], int]],
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """The attention of a model, which is set to evaluation mode.

    Args:
        examples: history (oldest first) and next item of each user, one at least, as indices of the model's catalog.
        progress: called with the number of users done and the number of all.
    """
    model.eval()
    watch, done = _Watch(model), 0
    for batch in _batches(model, examples):
        watch.add(batch)
        done += len(batch.tokens)
        if progress:
            progress(done, len(examples))
    early, rows = model.earn.early_layers, watch.layers[0].rows
    return Analysis(
        users=len(examples),
        rows=rows,
        early_layers=early,
        prefix=_kept_prefix(model),
        suffix=readout_rows(model.earn),
        layers=tuple(sums.figures(number, number > early) for number, sums in enumerate(watch.layers, 1)),
        cut=tuple((watch.losses / rows).tolist()),
    )


def kept_rows(model: EarnModel, prompt: int, rows: int) -> list[int]:
    """The rows of a sequence that a layer beyond the cut sees: the prompt's first and last ones, and what follows."""
    end = prompt - readout_rows(model.earn)
    return [*range(min(_kept_prefix(model), end)), *range(end, rows)]


def _kept_prefix(model: EarnModel) -> int:
    """The prefix registers; a dense model has none, and its head sink takes their place."""
    earn = model.earn
    has_sink = earn.early_layers == model.config.num_hidden_layers and not (earn.prefix_ids or earn.suffix_ids)
    return HEAD if has_sink else len(earn.prefix_ids)


def place_weights(prompt: int, generated: int, most: int) -> Tensor:
    """How the tokens of a sequence are laid onto the places: float64 [prompt+generated,p], each row sums to 1.

    A token of the middle that lies across the border of two bins counts for both in part. In a prompt of fewer than
    HEAD + TAIL tokens the head goes before the tail, but the last token is always the tail's.

    Args:
        prompt: tokens of the prompt.
        generated: tokens behind it.
        most: places for generated tokens.
    """
    head = min(HEAD, prompt - 1)
    tail = min(TAIL, prompt - head)
    end = HEAD + BINS + TAIL
    weights = torch.zeros(prompt + generated, end + most, dtype=torch.float64)
    weights[:head, :head] = torch.eye(head)
    weights[head : prompt - tail, HEAD : HEAD + BINS] = _bin_weights(prompt - head - tail)
    weights[prompt - tail : prompt, end - tail : end] = torch.eye(tail)
    weights[prompt:, end : end + generated] = torch.eye(generated)
    return weights


def _bin_weights(tokens: int) -> Tensor:
    """The part of each of so many equal tokens that lies in each of BINS equal bins: float64 [tokens,BINS]."""
    edges = torch.arange(tokens + 1, dtype=torch.float64)[:, None] * BINS / max(1, tokens)  # in bins
    bins = torch.arange(BINS)
    inside = torch.minimum(edges[1:], bins + 1) - torch.maximum(edges[:-1], bins)
    return inside.clamp(min=0) * tokens / BINS


def _causal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Position ids [1,m] of rows, given as places in the whole sequence [m], and the bias under which each sees those
    before it [1,1,m,m].
    """
    bias = torch.full((len(rows), len(rows)), MASKED, device=rows.device).triu(1)
    return rows[None], bias[None, None]


def _batches(model: EarnModel, examples: Sequence[tuple[Sequence[int], int]]) -> Iterator[_Batch]:
    identifiers, device = model.identifiers, model.device
    alike: dict[tuple[int, int], list[tuple[list[int], tuple[int, ...]]]] = {}
    for history, target in examples:
        prompt, codes = whole_prompt([identifiers[item] for item in history], model.earn), identifiers[target]
        alike.setdefault((len(prompt), len(codes)), []).append((prompt, codes))
    for (length, depth), users in alike.items():
        size = max(1, BATCH_TOKENS // (length + depth - 1))
        for start in range(0, len(users), size):
            chosen = users[start : start + size]
            tokens = torch.tensor([[*prompt, *codes[:-1]] for prompt, codes in chosen], device=device)
            yield _Batch(length, tokens, torch.tensor([codes for _, codes in chosen], device=device))
