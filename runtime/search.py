"""Beam search for a batch: which rows a pass of the model needs, and when the answer is settled.

A row is a node of the trie under a user's prompt, so no row is ever computed twice. Three things save passes, each
without changing an answer (but for int8-dynamic, whose ranges are those of a call):

    determined    under the rule "trie" a prefix that leads to one leaf needs no row (see earn.runtime.beam)
    lookahead     where few tokens can follow the beams, the same pass computes their rows too and saves the next pass:
                  a pass costs the reading of all weights, however few its rows
    settled       a user whose best k items can no longer change needs no further row: scores only fall
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from earn.config import ScoringRule
from earn.runtime.beam import Beams, Floats, child_scores, children, rank_in_group, root_beams, step
from earn.runtime.decoder import Decoder, Decoding
from earn.runtime.item_filters import ItemsLeft, find
from earn.trie import Ints, ItemTrie

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Search:
    """The settings of a search."""

    trie: ItemTrie
    rule: ScoringRule
    width: int  # beams per user
    k: int  # items per user
    lookahead: int | None = None  # most rows per user that a pass computes for the next level; None: the width

    def run(self, decoder: Decoder, state: Decoding, first: NDArray[np.float32], exclusions: ItemsLeft) -> Beams:
        """Searches from prompts that were read; `first` [b,v] are the logits of the first code."""
        users, settings = len(first), (self.trie, self.rule, self.width, exclusions)
        rows = Rows(self, decoder, state, first, exclusions)
        beams = step(root_beams(users), np.ones(users, bool), rows.scores, *settings)
        for _ in range(1, self.trie.depth):
            is_open = ~self.trie.is_leaf(beams.node)
            is_open &= ~self._is_settled(beams, is_open, exclusions, users)[beams.user]
            if not is_open.any():
                break
            scores = rows.scores_below(beams.user[is_open], beams.node[is_open])
            beams = step(beams, is_open, scores, *settings)
        return beams

    def _is_settled(self, beams: Beams, is_open: Bools, exclusions: ItemsLeft, users: int) -> Bools:
        """Of which users the best beams, all finished, name k items: no open beam can overtake those any more."""
        open_before = np.cumsum(is_open)
        start = np.searchsorted(beams.user, np.arange(users))
        leads: Bools = open_before - np.concatenate(([0], open_before))[start[beams.user]] == 0
        named = np.bincount(beams.user[leads], exclusions.left(beams.user, beams.node)[leads], users)
        settled: Bools = named >= self.k
        return settled


class Rows:
    """The rows of a batch that the model has seen, and the log-probabilities of what may follow each."""

    def __init__(
        self, search: Search, decoder: Decoder, state: Decoding, first: NDArray[np.float32], exclusions: ItemsLeft
    ) -> None:
        self._search, self._decoder, self._state, self._exclusions = search, decoder, state, exclusions
        self._users = len(first)
        roots = np.zeros(self._users, np.int64)
        self._key = np.arange(self._users) * len(search.trie)  # ascending: user * c + node
        self._row = np.full(self._users, -1)  # of each key, among the generated rows of its user's sequence
        self._start = np.arange(self._users) * int(search.trie.child_start[1] - 1)
        self.scores = self._scores_of(roots, first)  # of all keys, each from its start

    def scores_below(self, user: Ints, node: Ints) -> Floats:
        """Log-probabilities of all children of these nodes, as `children` orders them; runs the model if it must."""
        trie = self._search.trie
        key = user * len(trie) + node
        index, is_known = find(self._key, key)
        if not is_known.all():
            self._compute(user[~is_known], node[~is_known])
            index, _ = find(self._key, key)
        parent, child = children(trie, node)
        scores: Floats = self.scores[self._start[index][parent] + child - trie.child_start[node][parent]]
        return scores

    def _compute(self, user: Ints, node: Ints) -> None:
        """One pass for these nodes, all of one level, and for those that may follow where these are few."""
        trie, asked = self._search.trie, len(node)
        ahead_user, ahead = self._ahead(user, node)
        user, node = np.concatenate((user, ahead_user)), np.concatenate((node, ahead))
        order = np.argsort(user, kind="stable")
        slot = np.empty_like(order)
        slot[order] = rank_in_group(user[order])
        before = self._state.generated
        self._remember(user, node, before + slot)
        shape = (self._users, int(slot.max()) + 1)
        tokens, depth = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        tokens[user, slot], depth[user, slot] = trie.token[node], trie.level(node) - 1
        sees = self._sees(user, node, slot, before + shape[1])
        logits = self._decoder.step(self._state, tokens, depth, sees)[user, slot]
        new = [self._scores_of(node[:asked], logits[:asked])]
        if len(ahead):
            new.append(self._scores_of(ahead, logits[asked:]))
        self.scores = np.concatenate((self.scores, *new))

    def _scores_of(self, node: Ints, logits: NDArray[np.float32]) -> Floats:
        """`child_scores` of these nodes.

        Raises:
            EarnError: one is not finite; any list that followed from it would be arbitrary.
        """
        scores = child_scores(node, logits, self._search.trie, self._search.rule)
        if not isfinite(scores.sum()):  # as is each of them: log-probabilities do not cancel each other
            raise self._decoder.not_finite(self._state, int(self._search.trie.level(node[:1])[0]) + 1)
        return scores

    def _ahead(self, user: Ints, node: Ints) -> tuple[Ints, Ints]:
        """The nodes below these that the next level would need; none where a user has too many of them."""
        search, trie = self._search, self._search.trie
        parent, child = children(trie, node)
        user = user[parent]
        needed = trie.determined(child) < 0 if search.rule.finishes_determined else ~trie.is_leaf(child)
        if self._exclusions.any:
            needed &= self._exclusions.left(user, child) > 0
        user, child = user[needed], child[needed]
        room = search.width  # caches have room for as many rows again
        most = room if search.lookahead is None else min(search.lookahead, room)
        if np.bincount(user, minlength=1).max() > most:
            return user[:0], child[:0]
        return user, child

    def _remember(self, user: Ints, node: Ints, row: Ints) -> None:
        """Notes the rows of these nodes, whose children's log-probabilities come next."""
        trie = self._search.trie
        _, count = trie.children(node)
        start = len(self.scores) + np.cumsum(count) - count
        key = np.concatenate((self._key, user * len(trie) + node))
        order = np.argsort(key)
        self._key = key[order]
        self._row = np.concatenate((self._row, row))[order]
        self._start = np.concatenate((self._start, start))[order]

    def _sees(self, user: Ints, node: Ints, slot: Ints, rows: int) -> Bools:
        """Which generated rows each slot sees [b,m,rows]: its own, and those above it in the trie but the root."""
        trie = self._search.trie
        sees = np.zeros((self._users, int(slot.max()) + 1, rows), bool)
        while len(node):
            sees[user, slot, self._row[find(self._key, user * len(trie) + node)[0]]] = True
            node = trie.parent[node].astype(np.int64)
            user, slot, node = user[node > 0], slot[node > 0], node[node > 0]
        return sees
