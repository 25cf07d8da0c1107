"""The reference search: slow and obvious, the oracle that every fast path is compared with.

Each beam's whole sequence goes through the model uncached, the beams of one step as a batch; the trie is a
dictionary of dictionaries; one user at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

import torch

from earn.config import SCORING_RULES, check_scoring
from earn.digits import Digits
from earn.model.earn_model import EarnModel
from earn.model.set_model import SetModel
from earn.model.stage import causal_bias
from earn.prompts import readout_rows, whole_prompt

Trie = dict[int, Any]  # token id -> the trie below it; an empty one ends an identifier
Beam = tuple[int, ...]


def reference_search(
    model: EarnModel,
    history: Sequence[int],
    k: int = 10,
    beams: int = 20,
    scoring: str = "trie",
    exclude: Collection[int] = (),
) -> list[tuple[int, float]]:
    """The best k items and their scores (log-probabilities), best first.

    Args:
        history: item indices, oldest first.
        exclude: item indices that must not be recommended. Probabilities stay those of the whole catalog, so
            that excluding one item changes no other item's score.
    """
    check_scoring(scoring)
    identifiers = model.identifiers
    whole = build_trie(identifiers)
    left = [identifier for item, identifier in enumerate(identifiers) if item not in exclude]
    allowed = build_trie(left) if exclude else whole
    prompt = whole_prompt([identifiers[item] for item in history], model.earn)
    best: list[tuple[Beam, float]] = [((), 0.0)]
    while unfinished := [beam for beam, _ in best if descend(allowed, beam)]:
        log_probabilities = next_token_scores(model, prompt, unfinished, whole, scoring)
        candidates = []
        for beam, score in best:
            if beam in log_probabilities:
                candidates += [
                    ((*beam, token), score + log_probabilities[beam][token]) for token in descend(allowed, beam)
                ]
            else:  # a finished identifier keeps its place
                candidates.append((beam, score))
        best = sorted(candidates, key=lambda candidate: -candidate[1])[:beams]
    items = [
        (item, score)
        for beam, score in best
        for item, identifier in enumerate(identifiers)
        if identifier == beam and item not in exclude
    ]
    return items[:k]


def next_token_scores(
    model: EarnModel, prompt: Sequence[int], beams: Sequence[Beam], trie: Trie, scoring: str
) -> dict[Beam, dict[int, float]]:
    """Log-probability of each child of each beam, normalised by the scoring rule; beams are equally long."""
    level = tokens_at_depth(trie, len(beams[0]))
    result = {}
    for beam, logits in zip(beams, last_logits(model, prompt, beams), strict=True):
        children = descend(trie, beam)
        over = {"children": children, "level": level, "vocabulary": range(len(logits))}[SCORING_RULES[scoring].over]
        normaliser = torch.logsumexp(logits[list(over)], dim=0)
        result[beam] = {token: float(logits[token] - normaliser) for token in children}
    return result


@torch.no_grad()
def last_logits(model: EarnModel, prompt: Sequence[int], beams: Sequence[Beam]) -> torch.Tensor:
    """Logits [beams,v] (float64) after prompt and beam: one uncached pass over each whole sequence."""
    sequences = torch.tensor([[*prompt, *beam] for beam in beams])
    rows = sequences.shape[1]
    generated_from = len(prompt) - readout_rows(model.earn)
    keep = torch.tensor([*range(len(model.earn.prefix_ids)), *range(generated_from, rows)])
    if model.is_dense:
        keep = torch.arange(rows)  # nothing is dropped in a dense model
    positions, last = torch.arange(rows).expand(len(beams), -1), torch.tensor([len(keep) - 1])
    return model.rows_logits(sequences, positions, causal_bias(rows), keep, last)[:, 0].double()


def build_trie(identifiers: Collection[Sequence[int]]) -> Trie:
    """The identifiers as nested dictionaries."""
    trie: Trie = {}
    for identifier in identifiers:
        node = trie
        for token in identifier:
            node = node.setdefault(token, {})
    return trie


def descend(trie: Trie, beam: Sequence[int]) -> Trie:
    """The trie below a prefix."""
    for token in beam:
        trie = trie[token]
    return trie


def tokens_at_depth(trie: Trie, depth: int) -> set[int]:
    """The tokens that may stand at a depth of an identifier."""
    if depth == 0:
        return set(trie)
    return set().union(*(tokens_at_depth(child, depth - 1) for child in trie.values()))


@torch.no_grad()
def reference_scores(model: SetModel, history: Sequence[int]) -> list[float]:
    """Every item's score where all codes are named at once, in float64: one digit of one item after the other."""
    model = deepcopy(model).double()
    prompt = whole_prompt([model.identifiers[item] for item in history], model.earn)
    logits = last_logits(model, prompt, [()])[0].tolist()
    digits = Digits.of(model.catalog)
    scores = []
    for codes in digits.codes.tolist():
        score = 0.0
        for start, size, weight, code in zip(digits.starts, digits.sizes, digits.weights, codes, strict=True):
            total = sum(math.exp(logit) for logit in logits[start : start + size])
            score += weight * (logits[code] - math.log(total))
        scores.append(float(score))
    return scores
