"""Packed registers: one pass over a history trains every position of it.

A window of items x1..xn becomes one sequence of rows

    base rows    prefix registers, head, x1, separator, x2, ..., x(n-1)
    group t      tail, suffix registers, the codes of x(t+1) but the last          (t = 1..n-1)

Base rows see the base rows before them. Group t sees the prefix, the head, the history up to x_t, and itself; it has
the positions that it would have in its own prompt. No base row sees a group, so each group computes what its prompt
alone would compute. The first code is predicted at the group's last prompt row, the others at the codes before them.

Where nothing follows the history (no tail, no suffix register), the last token of a prompt is that of x_t: the group
then starts with a copy of it, which sees what the token itself sees.

A dense model whose prompt ends so, without separators, needs no groups: its base rows are the rows that predict.

Short windows share a row of the batch: the prefix and the head stand there once, then one window's base rows after the
other's, then the groups of all. Windows do not see each other, and each has its own positions, so nothing is computed
that a row of its own would not compute; but fewer rows are padding.

Rows are laid out alike in a whole batch (base rows padded to the longest, groups to the most and the longest), so that
the rows which the late stage keeps are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earn.config import EarnConfig
from earn.errors import EarnError
from earn.model.earn_model import IGNORED
from earn.prompts import constant_head, prompt_end, readout_rows

PAD_GROUP = -1


@dataclass(frozen=True)
class _Window:
    """One user's tokens."""

    base: list[int]  # token ids of the history, all items
    ends: list[int]  # number of these tokens up to the end of each item
    items: Sequence[Sequence[int]]  # the identifiers, in token ids

    @classmethod
    def of(cls, items: Sequence[Sequence[int]], separator: Sequence[int]) -> _Window:
        """A window of these identifiers."""
        base, ends = list(items[0]), [len(items[0])]
        for identifier in items[1:]:
            base += [*separator, *identifier]
            ends.append(len(base))
        return cls(base, ends, items)

    @property
    def targets(self) -> int:
        """How many items are predicted."""
        return len(self.items) - 1


def pack(windows: Sequence[Sequence[Sequence[int]]], config: EarnConfig, dense: bool = False) -> dict[str, Tensor]:
    """A batch for `EarnModel.forward` from windows of identifiers, each at least two items long.

    Args:
        dense: the model has no late layers.

    Returns:
        input_ids [b,m], position_ids [b,m], visible bool [b,m,m], keep [r], predict [p], labels [b,p]; b rows, at most
        as many as windows.

    Raises:
        EarnError: a window has fewer than two items, so nothing could be predicted.
    """
    if any(len(window) < 2 for window in windows):
        raise EarnError("A training window has fewer than two items. Drop such histories before packing.")
    laid = [_Window.of(window, config.prompt.separator) for window in windows]
    plain = dense and not (prompt_end(config) or config.prompt.separator)
    return _pack_plain(laid, config) if plain else _pack_groups(laid, config)


def share_rows(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Which windows share a row, by their numbers: the longest first, each into the first row with room for it.

    Args:
        sizes: base rows and targets of each window; a row holds as many of both as the largest window has.
    """
    most, taken = np.max(sizes, axis=0), np.zeros((len(sizes), 2), np.int64)
    rows: list[list[int]] = [[] for _ in sizes]
    for window in sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True):
        row = int((taken + sizes[window] <= most).all(axis=1).argmax())  # an empty one has room for any window
        rows[row].append(window)
        taken[row] += sizes[window]
    return [row for row in rows if row]


def _pack_plain(laid: Sequence[_Window], config: EarnConfig) -> dict[str, Tensor]:
    """Without groups: base rows only, each code predicted at the row before it."""
    head = constant_head(config)
    shared = share_rows([(len(window.base), 0) for window in laid])
    rows = len(head) + max(len(window.base) for window in laid)
    sheet = _Sheet(len(shared), rows, len(head))
    labels = np.full((len(shared), rows), IGNORED, np.int64)
    for row, windows in enumerate(shared):
        end = sheet.lay_base(row, 0, head, 0)
        for window in (laid[index] for index in windows):
            start, end = end, sheet.lay_base(row, end, window.base, len(head))
            first = window.ends[0]  # the first item has no history to be predicted from
            labels[row, start + first - 1 : end - 1] = window.base[first:]
    return sheet.batch(np.arange(rows), np.arange(rows), labels)


def _pack_groups(laid: Sequence[_Window], config: EarnConfig) -> dict[str, Tensor]:
    head, fixed = constant_head(config), prompt_end(config)
    shared = share_rows([(window.ends[-2], window.targets) for window in laid])
    base_rows = len(head) + max(window.ends[-2] for window in laid)
    groups = max(window.targets for window in laid)
    codes = max(len(identifier) for window in laid for identifier in window.items[1:])
    size = max(1, len(fixed)) + codes - 1  # rows of a group
    sheet = _Sheet(len(shared), base_rows + groups * size, len(head), base_rows)
    labels = np.full((len(shared), groups, codes), IGNORED, np.int64)
    for row, windows in enumerate(shared):
        end, group = sheet.lay_base(row, 0, head, 0), 0
        for window in (laid[index] for index in windows):
            start, end = end, sheet.lay_base(row, end, window.base[: window.ends[-2]], len(head))
            for history, target in zip(window.ends, window.items[1:], strict=False):
                seen = history if fixed else history - 1
                content = [*(fixed or window.base[seen:history]), *target[:-1]]
                first, position = base_rows + group * size, len(head) + seen
                sheet.lay(row, first, content, position, (start, start + seen), group + 1)
                labels[row, group, : len(target)] = target
                group += 1
    keep, predict = _kept_rows(config, base_rows, groups, size, codes)
    return sheet.batch(keep, predict, labels.reshape(len(shared), -1))


class _Sheet:
    """Token, position and sight of every row of a batch, while they are laid out: [b,m] each."""

    def __init__(self, count: int, rows: int, head: int, base_rows: int | None = None) -> None:
        self._head, self._base_rows = head, rows if base_rows is None else base_rows
        self.tokens = np.zeros((count, rows), np.int64)
        self.positions = np.zeros((count, rows), np.int64)
        self._from = np.zeros((count, rows), np.int64)  # the base rows that a row sees beside the head: from here
        self._to = np.zeros((count, rows), np.int64)  # to here; nothing at all in a row of padding
        self._group = np.full((count, rows), PAD_GROUP)  # 0: base

    def lay(
        self,
        row: int,
        first: int,
        tokens: Sequence[int],
        position: int,
        seen: tuple[int, NDArray[np.int64] | int],
        group: int = 0,
    ) -> None:
        """Tokens from the column `first` on, at positions from `position` on.

        They see the head, the base rows from `seen[0]` to before `seen[1]`, and the rows before them of their group.
        """
        rows = slice(first, first + len(tokens))
        self.tokens[row, rows] = tokens
        self.positions[row, rows] = position + np.arange(len(tokens))
        self._from[row, rows], self._to[row, rows] = seen
        self._group[row, rows] = group

    def lay_base(self, row: int, first: int, tokens: Sequence[int], position: int) -> int:
        """The head, or a window's history, which sees the head and itself; returns the column behind it."""
        self.lay(row, first, tokens, position, (first, first + 1 + np.arange(len(tokens))))
        return first + len(tokens)

    def batch(
        self, keep: NDArray[np.int64], predict: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """The batch in torch, as `pack` returns it."""
        arrays = {"input_ids": self.tokens, "position_ids": self.positions, "visible": self._visible()}
        arrays |= {"keep": keep, "predict": predict, "labels": labels}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def _visible(self) -> NDArray[np.bool_]:
        """Who may see whom [b,m,m]: the head, base rows within the row's sight, and earlier rows of its own group."""
        rows = self.tokens.shape[1]
        column = np.arange(rows)
        in_sight = (column < self._head) | (column >= self._from[:, :, None])
        base = (column < self._base_rows) & (column < self._to[:, :, None]) & in_sight
        group = self._group
        own = (group[:, :, None] == group[:, None, :]) & (group > 0)[:, :, None] & np.tri(rows, dtype=bool)
        visible: NDArray[np.bool_] = base | own
        return visible


def _kept_rows(
    config: EarnConfig, base_rows: int, groups: int, size: int, codes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that the late stage sees (prefix, then each group's readout rows and codes), and those that predict."""
    prefix = np.arange(len(config.prefix_ids))
    tail = max(1, len(prompt_end(config))) - readout_rows(config)  # a group's rows that the late stage never sees
    starts = base_rows + size * np.arange(groups)[:, None]
    keep = np.concatenate((prefix, (starts + np.arange(tail, size)).ravel()))
    kept = size - tail
    predict = len(prefix) + kept * np.arange(groups)[:, None] + np.arange(kept - codes, kept)
    return keep, predict.ravel()
