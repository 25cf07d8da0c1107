"""The attention analysis of the EARN paper on a checkpoint: where each layer looks, and what cutting it off would cost.

Users' prompts, each followed by the codes of the item that came next but the last one, go through the model's own
stages layer by layer (teacher forcing). For every layer the attention of the reading rows is summed up
(`attention_figures` says what the figures are), and from every early layer k the model goes on a second time as EARN
would: layers above k see the prompt's first rows, its last ones and the generated tokens alone.

    loss(k) = mean of -log p(code) over the codes of all targets, p over the whole vocabulary, as in training

With nothing above k cut off (a dense model's k = N, an EARN model's own k) that is the model's own loss. How much it
rises is known better than the losses are, for it is the same users' that are compared:

    error(k) = sqrt(sum over users of (rise of the user's codes together - mean rise of a code * codes)^2) / all codes

Shapes: b users of a batch, m rows of a layer, h heads, r reading rows, d hidden, p places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from earn.config import SET
from earn.errors import EarnError
from earn.model.attention_figures import ABOVE, BINS, HEAD, TAIL, Analysis, LayerFigures
from earn.model.earn_model import EarnModel
from earn.model.families import rotary_of
from earn.model.stage import Stage, causal_bias
from earn.prompts import readout_rows, whole_prompt

BATCH_TOKENS = 4096  # of one pass: all heads' attention of so many tokens fits into memory, long prompts' too


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


class Watch:
    """A model, and what was found so far."""

    def __init__(self, model: EarnModel) -> None:
        self.model = model
        places = HEAD + BINS + TAIL + model.catalog.depth - 1
        self.layers = [LayerSums(places) for _ in range(model.config.num_hidden_layers)]
        self.losses: list[Tensor] = []  # of each batch, float64 [early layers,b], summed over a user's codes
        self.codes: list[Tensor] = []  # of each batch, float64 [b], how many they are

    def add(self, tokens: Tensor, targets: Tensor) -> None:
        """One pass over the layers, and from each early one a second on cut rows.

        Args:
            tokens: [b,m], prompts and generated tokens.
            targets: [b,r], the token that each reading row predicts.
        """
        rows, generated = torch.arange(tokens.shape[1], device=tokens.device), targets.shape[1] - 1
        prompt = len(rows) - generated
        kept = torch.tensor(kept_rows(self.model, prompt, len(rows)), device=rows.device)
        places = place_weights(prompt, generated, self.model.catalog.depth - 1)
        positions = rows
        hidden, losses = self.model.early_stage().embed(tokens), []
        for index, sums in enumerate(self.layers):
            if index == self.model.earn.early_layers:
                hidden, positions, places = hidden[:, kept], kept, places[kept.cpu()]
            stage, everything = self._stage(index, index + 1), rows[: len(positions)]
            shares = stage.first_shares(hidden, *_causal(positions), everything[-1 - generated :])
            sums.add(shares.cpu(), places)
            hidden, _ = stage.run(hidden, *_causal(positions), None, everything)
            if index < self.model.earn.early_layers:
                losses.append(self._losses(index + 1, hidden[:, kept], kept, targets))
        self.losses.append(torch.stack(losses).cpu().double())
        self.codes.append(torch.full((len(tokens),), targets.shape[1], dtype=torch.float64))

    def cut(self) -> tuple[Tensor, Tensor]:
        """Mean loss of a code with each cut, and the standard error of its rise over the uncut loss: [early layers]."""
        losses, codes = torch.cat(self.losses, 1), torch.cat(self.codes)
        rises = losses - losses[-1]
        mean_rises = rises.sum(1, keepdim=True) / codes.sum()
        return losses.sum(1) / codes.sum(), (rises - mean_rises * codes).square().sum(1).sqrt() / codes.sum()

    def _losses(self, k: int, hidden: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """The sum of each user's losses [b] when the layers above k go on with these rows [b,m,d] alone."""
        last = torch.arange(len(positions) - targets.shape[1], len(positions), device=positions.device)
        hidden, _ = self._stage(k, None).run(hidden, *_causal(positions), None, last)
        logits = self.model.late_stage().read_off(hidden)
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.view(targets.shape).sum(1)

    def _stage(self, start: int, end: int | None) -> Stage:
        layers = cast(Sequence[nn.Module], self.model.model.layers)
        return Stage(layers[start:end], rotary_of(self.model.model))


@torch.no_grad()
def analyze(
    model: EarnModel,
    examples: Sequence[tuple[Sequence[int], int]],
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """The attention of a model, which is set to evaluation mode.

    Args:
        examples: history (oldest first) and next item of each user, two at least, as indices of the model's catalog.
        progress: called with the number of users done and the number of all.

    Raises:
        EarnError: fewer than two users, of whom no standard error can be told, or a model of the method SET.
    """
    if model.earn.method == SET:
        raise EarnError("The model names all codes at once, and the analysis reads rows of single codes. Take another.")
    if len(examples) < 2:
        raise EarnError(f"The standard errors need two users at least, here are {len(examples)}. Take more.")
    model.eval()
    watch, done = Watch(model), 0
    for tokens, targets in _batches(model, examples):
        watch.add(tokens, targets)
        done += len(tokens)
        if progress:
            progress(done, len(examples))
    early, (losses, errors) = model.earn.early_layers, watch.cut()
    return Analysis(
        users=len(examples),
        rows=watch.layers[0].rows,
        early_layers=early,
        prefix=_kept_prefix(model),
        suffix=readout_rows(model.earn),
        layers=tuple(sums.figures(number, number > early) for number, sums in enumerate(watch.layers, 1)),
        cut=tuple(losses.tolist()),
        errors=tuple(errors.tolist()),
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


def _causal(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Position ids [1,m] of rows at positions [m], and the bias [1,1,m,m] under which each sees those before it."""
    return positions[None], causal_bias(len(positions)).to(positions.device)


def _batches(model: EarnModel, examples: Sequence[tuple[Sequence[int], int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and targets of users whose prompts are equally long, and their targets too: nothing needs padding."""
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
            yield tokens, torch.tensor([codes for _, codes in chosen], device=device)
