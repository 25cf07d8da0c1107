"""Drives the two stages: constant head once, then per request a prefill of the prompts and steps of beam rows.

    early stage   sees everything: constant head, history, prompt end, generated rows
    late stage    sees the registers and the generated rows alone

All rows that a step adds belong to one sequence per user (tree attention): the bias lets each see the prompt and its
own ancestors. Prompts of a batch end at the same row; shorter ones are padded in front, and nobody sees the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.config import MASKED
from earn.manifest import Manifest
from earn.prompts import constant_head, prompt_end
from earn.runtime.cache import KeyValueCache
from earn.runtime.engine import Array, Engine

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass
class Decoding:
    """The state of one batch between steps."""

    early: KeyValueCache
    late: KeyValueCache
    early_sees: Bools  # [b,1,rows] which prompt rows of the early cache are not padding
    late_sees: Bools  # [b,1,rows] likewise of the late cache, where nothing is
    next_position: Ints  # [b] position of the first generated token


class Decoder:
    """Both stages of a bundle, with its constant head computed."""

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self._engine = engine
        self._sizes = manifest.sizes
        self._end = prompt_end(manifest.model)
        self._readout = manifest.limits.readout
        self._head = constant_head(manifest.model)
        self._prefix = len(manifest.model.prefix_ids)
        self._early_head = KeyValueCache.empty(self._sizes.early_layers, 1, self._sizes)
        self._late_head = KeyValueCache.empty(self._sizes.layers - self._sizes.early_layers, 1, self._sizes)
        self._compute_head()

    def _compute_head(self) -> None:
        """Keys and values of the prompt's constant start: it sees nothing of a request."""
        if not self._head:
            return
        rows = len(self._head)
        keep = np.arange(max(1, self._prefix))
        position = np.arange(rows)[None]
        hidden = self._early(self._early_head, np.array([self._head]), position, np.tri(rows, dtype=bool)[None], keep)
        if self._prefix:
            late_sees = np.tri(self._prefix, dtype=bool)[None]
            self._late(self._late_head, hidden, position[:, : self._prefix], late_sees, keep[-1:])

    def prefill(self, histories: Sequence[Sequence[int]]) -> tuple[Decoding, Floats]:
        """Reads the history tokens of each user; returns the state and the logits [b,v] of the first code."""
        users, end, head = len(histories), len(self._end), len(self._head)
        rows = max(map(len, histories)) + end
        tokens = np.zeros((users, rows), np.int64)
        padding = np.array([rows - end - len(history) for history in histories])
        for user, history in enumerate(histories):
            tokens[user, padding[user] :] = [*history, *self._end]
        is_real = np.arange(rows) >= padding[:, None]  # [b,m]
        position = np.maximum(head + np.arange(rows) - padding[:, None], 0)
        early_sees = np.concatenate((np.ones((users, head), bool), is_real), axis=1)[:, None]
        state = Decoding(
            early=self._early_head.repeated(users),
            late=self._late_head.repeated(users),
            early_sees=early_sees,
            late_sees=np.ones((users, 1, self._prefix + self._readout), bool),
            next_position=head + rows - padding,
        )
        causal = np.tri(rows, head + rows, head, dtype=bool)
        keep = np.arange(rows - self._readout, rows)
        hidden = self._early(state.early, tokens, position, early_sees & causal, keep)
        late_causal = np.tri(self._readout, self._prefix + self._readout, self._prefix, dtype=bool)
        logits = self._late(
            state.late,
            hidden,
            position[:, keep],
            state.late_sees & late_causal,
            np.array([self._readout - 1]),
        )
        return state, logits[:, 0]

    def step(self, state: Decoding, tokens: Ints, depth: int, sees: Bools) -> Floats:
        """Feeds the open beams' last tokens.

        Args:
            tokens: [b,m].
            depth: how many codes stand before these tokens.
            sees: [b,m,generated], which generated rows each sees, these m rows last.

        Returns:
            logits [b,m,v].
        """
        rows = tokens.shape[1]
        position = np.repeat(state.next_position[:, None] + depth, rows, axis=1)
        keep = np.arange(rows)
        hidden = self._early(state.early, tokens, position, _beside(state.early_sees, sees), keep)
        return self._late(state.late, hidden, position, _beside(state.late_sees, sees), keep)

    def _early(self, cache: KeyValueCache, tokens: Ints, position: Ints, sees: Bools, keep: Ints) -> Floats:
        feeds: dict[str, Array] = {
            "input_ids": tokens,
            "position_ids": position,
            "attention_bias": _bias(sees),
            "keep": keep,
        }
        outputs = self._engine.run("early", feeds | cache.feeds())
        cache.append(outputs)
        return outputs["hidden"]

    def _late(self, cache: KeyValueCache, hidden: Floats, position: Ints, sees: Bools, keep: Ints) -> Floats:
        feeds: dict[str, Array] = {"hidden": hidden, "keep": keep}
        if self._sizes.stage_layers("late"):
            feeds |= {"position_ids": position, "attention_bias": _bias(sees), **cache.feeds()}
        outputs = self._engine.run("late", feeds)
        cache.append(outputs)
        return outputs["logits"]


def _bias(sees: Bools) -> Floats:
    """0 where a row [b,m] sees a column, a large negative number elsewhere: [b,1,m,s+m]."""
    return np.where(sees, np.float32(0), np.float32(MASKED))[:, None]


def _beside(prompt: Bools, generated: Bools) -> Bools:
    """Prompt columns [b,1,rows], seen by every row, beside the generated ones [b,m,generated]."""
    users, rows, _ = generated.shape
    return np.concatenate((np.broadcast_to(prompt, (users, rows, prompt.shape[2])), generated), axis=2)
