"""Drives the two stages: constant head once, then prompts through the early stage, then passes of generated rows.

    early stage   sees everything: constant head, history, prompt end, generated rows
    late stage    sees the registers and the generated rows alone

All rows that a pass adds belong to one sequence per user (tree attention): the bias lets each see the prompt and its
own ancestors. Prompts of a batch end at the same row; shorter ones are padded in front, and nobody sees the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earn.config import MASKED
from earn.constant_head import ConstantHead, head_shapes
from earn.errors import EarnError
from earn.manifest import HEAD_FILE, Manifest
from earn.prompts import constant_head, prompt_end
from earn.runtime.cache import KeyValueCache
from earn.runtime.engine import Engine
from earn.runtime.memory import Memory
from earn.runtime.request import check_deadline
from earn.specs import NEW, PAST, PIECE

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ReadPrompts:
    """Prompts of a batch that the early stage has read."""

    early: KeyValueCache
    padding: Ints  # [b] rows behind the constant head that are no part of the user's prompt
    hidden: Memory  # [b,readout,d] what goes on to the late stage
    rows: int  # of the early cache, prompt end included


@dataclass
class Decoding:
    """A batch between two passes."""

    early: KeyValueCache
    late: KeyValueCache
    early_bias: Floats  # [b,1,1,rows] of the prompt's rows in the early cache: padding is masked
    late_bias: Floats  # [b,1,1,rows] likewise of the late cache, where nothing is
    next_position: Ints  # [b] position of the first generated token
    hidden: Memory  # [b,m,d] what the early stage handed on last

    @property
    def generated(self) -> int:
        """Generated rows so far."""
        return self.early.rows - int(self.early_bias.shape[3])


class Decoder:
    """Both stages of a bundle, with the keys and values of its constant head."""

    def __init__(self, engine: Engine, manifest: Manifest, head: ConstantHead | None = None) -> None:
        """Takes the head that the bundle brings, or computes it.

        Raises:
            EarnError: the bundle brings one, and it was not given: its graphs would compute another one.
        """
        if manifest.brings_head and head is None:
            raise EarnError(
                f"The bundle brings {HEAD_FILE}, which was not loaded. Take Recommender.load, or give "
                "head=ConstantHead.load(folder, manifest)."
            )
        if head is not None and head.shapes != head_shapes(manifest):
            raise EarnError(
                f"The constant head has the shapes {head.shapes}, the bundle needs {head_shapes(manifest)}."
            )
        self._engine = engine
        self.device = engine.device
        self._sizes = manifest.sizes
        self._end = prompt_end(manifest.model)
        self._readout = manifest.limits.readout
        self._head = constant_head(manifest.model)
        self._prefix = len(manifest.model.prefix_ids)
        self._early_head = KeyValueCache(self._sizes, "early", len(self._head), 1, self.device)
        self._late_head = KeyValueCache(self._sizes, "late", self._prefix, 1, self.device)
        if head is not None:
            self._early_head.extend(head.early)
            self._late_head.extend(head.late)
        elif self._head:
            self._compute_head()

    def _compute_head(self) -> None:
        """Keys and values of the prompt's constant start: it sees nothing of a request."""
        kept = max(1, self._prefix)
        hidden = self._read_rows(self._early_head, np.array([self._head]), np.zeros(1, np.int64), slice(0, kept))
        if self._prefix:
            bias = causal_bias(self._prefix, self._prefix)
            self._late(self._late_head, hidden, np.arange(self._prefix)[None], bias, 1)

    @property
    def head(self) -> ConstantHead:
        """Keys and values of the constant head, copied to the host's memory."""
        caches = self._early_head, self._late_head
        return ConstantHead(*(np.array(self.device.to_host(cache.past)) for cache in caches))

    def early_cache(self, rows: int, batch: int = 1) -> KeyValueCache:
        """A cache for the early stage with the constant head in it and room for `rows` rows more."""
        cache = KeyValueCache(self._sizes, "early", len(self._head) + rows, batch, self.device)
        cache.extend(self._early_head.past)
        return cache

    def prompt_rows(self, history: int) -> int:
        """Rows that a history of so many tokens takes behind the constant head."""
        return history + len(self._end)

    def read(self, histories: Sequence[Sequence[int]], generated: int) -> ReadPrompts:
        """Reads the history tokens of each user; leaves room for `generated` rows more."""
        users, rows = len(histories), self.prompt_rows(max(map(len, histories)))
        tokens = np.zeros((users, rows), np.int64)
        padding = np.array([rows - self.prompt_rows(len(history)) for history in histories])
        for user, history in enumerate(histories):
            tokens[user, padding[user] :] = [*history, *self._end]
        return self._read(self.early_cache(rows + generated, users), tokens, padding)

    def read_on(self, early: KeyValueCache, tokens: Sequence[int]) -> ReadPrompts:
        """Reads one user's further history tokens behind those that the cache holds, and the prompt's end."""
        return self._read(early, np.array([[*tokens, *self._end]]), np.zeros(1, np.int64))

    def _read(self, early: KeyValueCache, tokens: Ints, padding: Ints) -> ReadPrompts:
        rows = tokens.shape[1]
        hidden = self._read_rows(early, tokens, padding, slice(rows - self._readout, rows))
        return ReadPrompts(early, padding, hidden, early.rows)

    def _read_rows(self, early: KeyValueCache, tokens: Ints, padding: Ints, kept: slice) -> Memory:
        """Reads prompt rows, in pieces: their attention then stays in the processor's caches, and masks half as much.

        Args:
            tokens: [b,m]; every row sees those before it, but for the padding.
            kept: the rows whose hidden states are wanted.

        Returns:
            hidden [b,kept,d].
        """
        users, rows = tokens.shape
        before = early.rows
        pieces = -(-rows // PIECE)
        for piece in range(pieces):
            start, stop = (rows * edge // pieces for edge in (piece, piece + 1))
            first, last = max(start, kept.start), min(stop, kept.stop)
            wanted = np.arange(first, last) if first < last else np.array([start])  # a stage gives one row at least
            bias = causal_bias(stop - start, before + stop)
            if padding.any():
                bias = np.minimum(bias, self._padding_bias(padding, before + stop))
            bias = np.broadcast_to(bias, (users, *bias.shape[1:]))
            position = np.maximum(before + np.arange(start, stop) - padding[:, None], 0)
            hidden = self._early(early, tokens[:, start:stop], position, bias, wanted - start)
            if first < last:
                kept_hidden = hidden  # all of them: of several pieces, each holds MOST_REGISTERS rows at least
        return kept_hidden

    def _padding_bias(self, padding: Ints, rows: int) -> Floats:
        """[b,1,1,rows]: what masks the padding, which stands between constant head and history."""
        row = np.arange(rows) - len(self._head)
        is_padding = (row >= 0) & (row < padding[:, None])
        return np.where(is_padding, np.float32(MASKED), np.float32(0))[:, None, None]

    def prefill(self, prompts: ReadPrompts, generated: int) -> tuple[Decoding, Floats]:
        """The late stage over prompts that were read.

        Args:
            generated: rows that decoding may add.

        Returns:
            The batch before its first pass, and the logits [b,v] of the first code.
        """
        users, readout = len(prompts.padding), self._readout
        late = KeyValueCache(self._sizes, "late", self._prefix + readout + generated, users, self.device)
        late.extend(self._late_head.past)
        next_position = prompts.rows - prompts.padding
        position = next_position[:, None] - np.arange(readout, 0, -1)
        bias = np.broadcast_to(
            causal_bias(readout, self._prefix + readout), (users, 1, readout, self._prefix + readout)
        )
        logits = self._late(late, prompts.hidden, position, bias, 1)
        state = Decoding(
            early=prompts.early,
            late=late,
            early_bias=self._padding_bias(prompts.padding, prompts.rows),
            late_bias=np.zeros((users, 1, 1, self._prefix + readout), np.float32),
            next_position=next_position,
            hidden=prompts.hidden,
        )
        return state, logits[:, 0]

    def step(self, state: Decoding, tokens: Ints, depth: Ints, sees: Bools) -> Floats:
        """One pass of generated rows.

        Args:
            tokens: [b,m].
            depth: [b,m], how many codes stand before each of these tokens.
            sees: [b,m,generated], which generated rows each sees, these m rows last.

        Returns:
            logits [b,m,v].
        """
        rows = tokens.shape[1]
        position = state.next_position[:, None] + depth
        generated = np.where(sees, np.float32(0), np.float32(MASKED))[:, None]  # [b,1,m,generated]
        early_bias, late_bias = (_beside(bias, generated) for bias in (state.early_bias, state.late_bias))
        state.hidden = self._early(state.early, tokens, position, early_bias, np.arange(rows))
        return self._late(state.late, state.hidden, position, late_bias, rows)

    def not_finite(self, state: Decoding, level: int) -> EarnError:
        """What is wrong where scores of an identifier's token number `level`, from 1 on, are no finite numbers."""
        stage = "late" if np.isfinite(self.device.to_host(state.hidden)).all() else "early"
        return EarnError(
            f"The {stage} stage gives numbers that are not finite, at token {level} of the identifiers. Its weights, "
            "or a restored session, are damaged: copy the bundle again, or open a new session."
        )

    def _early(self, cache: KeyValueCache, tokens: Ints, position: Ints, bias: Floats, keep: Ints) -> Memory:
        """Hidden states [b,r,d] of the rows `keep`."""
        check_deadline()
        users, rows = tokens.shape
        feeds: dict[str, Memory] = {"input_ids": tokens, "position_ids": position, "attention_bias": bias}
        feeds |= {PAST: cache.past, "keep": keep}
        hidden = self.device.empty((users, len(keep), self._sizes.hidden))
        self._engine.run("early", feeds, {"hidden": hidden, NEW: cache.grow(rows)})
        return hidden

    def _late(self, cache: KeyValueCache, hidden: Memory, position: Ints, bias: Floats, kept: int) -> Floats:
        """Logits [b,kept,v] of the last rows."""
        check_deadline()
        users, rows, _ = hidden.shape
        feeds: dict[str, Memory] = {"hidden": hidden, "keep": np.arange(rows - kept, rows)}
        logits = np.empty((users, kept, self._sizes.logits), np.float32)
        outputs: dict[str, Memory] = {"logits": logits}
        if self._sizes.stage_layers("late"):
            feeds |= {"position_ids": position, "attention_bias": bias, PAST: cache.past}
            outputs[NEW] = cache.grow(rows)
        self._engine.run("late", feeds, outputs)
        return logits


def causal_bias(rows: int, seen: int) -> Floats:
    """[1,1,rows,seen]: the last of `seen` rows see what stands before them and themselves, so 0 there."""
    return np.where(np.tri(rows, seen, seen - rows, dtype=bool), np.float32(0), np.float32(MASKED))[None, None]


def _beside(prompt: Floats, generated: Floats) -> Floats:
    """The bias [b,1,m,rows+generated] of rows that all see a prompt [b,1,1,rows] and some generated rows."""
    users, _, rows, _ = generated.shape
    return np.concatenate((np.broadcast_to(prompt, (users, 1, rows, prompt.shape[3])), generated), axis=3)
