"""Beam search over the item trie as pure functions: scores in, beams out, all users of a batch at once.

A step takes the log-probabilities of the children of the beams that are still open, and keeps each user's best.
Finished beams keep their place with their score. How scores are normalised is a row of `earn.config.SCORING_RULES`.
Under a rule that finishes determined beams, a beam whose prefix leads to one leaf alone is finished at once, because
every further token has probability 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from earn.config import ScoringRule
from earn.runtime.item_filters import ItemsLeft
from earn.trie import Ints, ItemTrie

Floats = NDArray[np.float64]
NOTHING: Floats = np.zeros(0)


@dataclass(frozen=True)
class Beams:
    """The n beams of all users of a batch, by user, then best first."""

    user: Ints  # [n]
    node: Ints  # [n] node in the trie
    score: Floats  # [n] log-probability of the prefix
    parent: Ints  # [n] the beam of the step before that this one continues; -1 at the start
    # [b] the best score that each user's search ever dropped; NOTHING where that is not kept
    dropped: Floats = field(default_factory=lambda: NOTHING)


def root_beams(users: int) -> Beams:
    """One beam per user that has chosen nothing yet."""
    nodes, nothing = np.zeros(users, np.int64), np.full(users, -np.inf)
    return Beams(np.arange(users), nodes, np.zeros(users), np.full(users, -1), nothing)


def step(
    beams: Beams,
    is_open: NDArray[np.bool_],
    log_probabilities: Floats,
    trie: ItemTrie,
    rule: ScoringRule,
    width: int,
    exclusions: ItemsLeft,
) -> Beams:
    """One step of the search.

    Args:
        beams: n beams.
        is_open: [n], which of them go on; the others keep their place.
        log_probabilities: of all children of the open beams, as `children` orders them.
        rule: how the log-probabilities were normalised.
        width: beams that each user keeps.
        exclusions: nodes that these leave without an item are not entered.
    """
    closed, opened = np.flatnonzero(~is_open), np.flatnonzero(is_open)
    index, child = children(trie, beams.node[opened])
    parent = opened[index]
    score = beams.score[parent] + log_probabilities
    if exclusions.any:
        is_alive = exclusions.left(beams.user[parent], child) > 0
        parent, child, score = parent[is_alive], child[is_alive], score[is_alive]
    if rule.finishes_determined:
        leaf = trie.determined(child)
        child = np.where(leaf >= 0, leaf, child)
    parent = np.concatenate((closed, parent))
    return best(
        beams.user[parent],
        np.concatenate((beams.node[closed], child)),
        np.concatenate((beams.score[closed], score)),
        parent,
        width,
        beams.dropped,
    )


def child_scores(nodes: Ints, logits: NDArray[np.float32], trie: ItemTrie, rule: ScoringRule) -> Floats:
    """Log-probabilities of all children of some nodes, as `children` orders them.

    Args:
        nodes: [n], all of one level.
        logits: [n,v], what the model says after each of them.
        rule: says over which tokens they are normalised.
    """
    parent, child = children(trie, nodes)
    values = logits[parent, trie.token[child]].astype(np.float64)
    level = trie.level_tokens[int(trie.level(nodes[:1])[0])]
    scores: Floats = values - NORMALISERS[rule.over](logits, values, parent, level)[parent]
    return scores


def best(user: Ints, node: Ints, score: Floats, parent: Ints, width: int, dropped: Floats = NOTHING) -> Beams:
    """Each user's `width` best candidates, best first; among equals the one that stands first.

    Args:
        dropped: [b], what the steps before have dropped.
    """
    if len(dropped) == 1:  # one user
        order = (-score).argsort(kind="stable")
        kept, next_best = order[:width], order[width : width + 1]
    else:
        order = np.lexsort((-score, user))
        rank = rank_in_group(user[order])
        kept, next_best = order[rank < width], order[rank == width]
    if dropped.size and next_best.size:
        dropped = dropped.copy()
        dropped[user[next_best]] = np.maximum(dropped[user[next_best]], score[next_best])
    return Beams(user[kept], node[kept], score[kept], parent[kept], dropped)


def children(trie: ItemTrie, nodes: Ints) -> tuple[Ints, Ints]:
    """All children of the nodes: for each child the index of its parent in `nodes`, and its own node."""
    start, count = trie.children(nodes)
    parent = np.arange(len(nodes)).repeat(count)
    before = count.cumsum() - count
    return parent, np.arange(len(parent)) + (start - before).repeat(count)


def rank_in_group(group: Ints) -> Ints:
    """For ascending group numbers: how many entries of its own group stand before each entry."""
    return np.arange(len(group)) - np.searchsorted(group, group)


def log_sum_exp(values: Floats) -> Floats:
    """log(sum(exp(values))) over the last axis."""
    top = values.max(-1, keepdims=True)
    total: Floats = np.log(np.exp(values - top).sum(-1)) + top[..., 0]
    return total


def _over_children(logits: NDArray[np.float32], values: Floats, parent: Ints, level: Ints) -> Floats:
    """log-sum-exp of the children's logits, per open beam; an only child's is its logit, so it costs exactly 0."""
    starts = np.searchsorted(parent, np.arange(len(logits)))
    top = np.maximum.reduceat(values, starts)
    total: Floats = np.log(np.add.reduceat(np.exp(values - top[parent]), starts)) + top
    return total


# What is subtracted from a logit [n], by `ScoringRule.over`. Arguments: the logits [n,v]; those of the children, with
# the index of each child's parent; the tokens that may stand at this depth.
Normaliser = Callable[[NDArray[np.float32], Floats, Ints, Ints], Floats]
NORMALISERS: Mapping[str, Normaliser] = {
    "children": _over_children,
    "level": lambda logits, values, parent, level: log_sum_exp(logits[:, level].astype(np.float64)),
    "vocabulary": lambda logits, values, parent, level: log_sum_exp(logits.astype(np.float64)),
}
