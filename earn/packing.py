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

Rows are laid out alike in a whole batch (base rows padded to the longest, groups to the most and the longest), so that
the rows which the late stage keeps are the same for every user.
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
from earn.model import IGNORED
from earn.prompts import constant_head, prompt_end, readout_rows

PAD_GROUP = -1


@dataclass
class _Window:
    """One user's rows while they are laid out."""

    base: list[int]  # token ids of the base rows
    ends: list[int]  # number of base rows up to the end of each item
    items: list[Sequence[int]]  # the identifiers, in token ids


def pack(windows: Sequence[Sequence[Sequence[int]]], config: EarnConfig, dense: bool = False) -> dict[str, Tensor]:
    """A batch for `EarnModel.forward` from windows of identifiers, each at least two items long.

    Args:
        dense: the model has no late layers.

    Returns:
        input_ids [b,m], position_ids [b,m], late_position_ids [b,r], visible bool [b,m,m], keep [r], predict [p],
        labels [b,p].

    Raises:
        EarnError: a window has fewer than two items, so nothing could be predicted.
    """
    if any(len(window) < 2 for window in windows):
        raise EarnError("A training window has fewer than two items. Drop such histories before packing.")
    laid = [_lay_base(window, config) for window in windows]
    plain = dense and not (prompt_end(config) or config.prompt.separator)
    return _pack_plain(laid) if plain else _pack_groups(laid, config)


def _lay_base(window: Sequence[Sequence[int]], config: EarnConfig) -> _Window:
    base, ends = constant_head(config), []
    for number, identifier in enumerate(window):
        if number:
            base += config.prompt.separator
        base += identifier
        ends.append(len(base))
    return _Window(base, ends, list(window))


def _pack_plain(laid: Sequence[_Window]) -> dict[str, Tensor]:
    """Without groups: base rows only, each code predicted at the row before it."""
    rows = max(len(window.base) for window in laid)
    tokens = np.zeros((len(laid), rows), np.int64)
    labels = np.full((len(laid), rows), IGNORED, np.int64)
    for user, window in enumerate(laid):
        tokens[user, : len(window.base)] = window.base
        first = window.ends[0]  # the first item has no history to be predicted from
        labels[user, first - 1 : len(window.base) - 1] = window.base[first:]
    visible = np.broadcast_to(np.tri(rows, dtype=bool), (len(laid), rows, rows))
    everything = np.arange(rows)
    positions = np.broadcast_to(everything, tokens.shape)
    return _tensors(tokens, positions, positions, visible, everything, everything, labels)


def _pack_groups(laid: Sequence[_Window], config: EarnConfig) -> dict[str, Tensor]:
    fixed = prompt_end(config)
    users, base_rows = len(laid), max(window.ends[-2] for window in laid)
    groups = max(len(window.items) for window in laid) - 1
    codes = max(len(identifier) for window in laid for identifier in window.items[1:])
    size = max(1, len(fixed)) + codes - 1  # rows of a group
    rows = base_rows + groups * size
    tokens = np.zeros((users, rows), np.int64)
    positions = np.zeros((users, rows), np.int64)
    limit = np.zeros((users, rows), np.int64)  # how many base rows a row sees
    group = np.full((users, rows), PAD_GROUP)  # 0: base
    labels = np.full((users, groups, codes), IGNORED, np.int64)
    for user, window in enumerate(laid):
        n = window.ends[-2]
        tokens[user, :n] = window.base[:n]
        positions[user, :n] = np.arange(n)
        limit[user, :n] = np.arange(n) + 1
        group[user, :n] = 0
        for t, (history, target) in enumerate(zip(window.ends, window.items[1:], strict=False)):
            seen = history if fixed else history - 1
            content = [*(fixed or window.base[seen:history]), *target[:-1]]
            place = slice(base_rows + t * size, base_rows + t * size + len(content))
            tokens[user, place] = content
            positions[user, place] = seen + np.arange(len(content))
            limit[user, place] = seen
            group[user, place] = t + 1
            labels[user, t, : len(target)] = target
    keep, predict = _kept_rows(config, base_rows, groups, size, codes)
    late_positions = positions[:, keep]
    if config.positions == "compact":
        late_positions = np.broadcast_to(
            _compact_positions(len(config.prefix_ids), groups, len(keep)), (users, len(keep))
        )
    visible = _visible(limit, group, base_rows)
    return _tensors(tokens, positions, late_positions, visible, keep, predict, labels.reshape(users, -1))


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


def _compact_positions(prefix: int, groups: int, kept: int) -> NDArray[np.int64]:
    """Positions [r] of the kept rows when they are counted anew in each group: prefix, then the group's own rows."""
    own = np.arange((kept - prefix) // groups)
    return np.concatenate((np.arange(prefix), np.tile(prefix + own, groups)))


def _visible(limit: NDArray[np.int64], group: NDArray[np.int64], base_rows: int) -> NDArray[np.bool_]:
    """Who may see whom [b,m,m]: base rows below the row's limit, and earlier rows of its own group."""
    rows = limit.shape[1]
    column = np.arange(rows)
    base = (column < base_rows) & (column < limit[:, :, None])
    own = (group[:, :, None] == group[:, None, :]) & (group > 0)[:, :, None] & np.tri(rows, dtype=bool)
    visible: NDArray[np.bool_] = base | own
    return visible


def _tensors(
    tokens: NDArray[np.int64],
    positions: NDArray[np.int64],
    late_positions: NDArray[np.int64],
    visible: NDArray[np.bool_],
    keep: NDArray[np.int64],
    predict: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> dict[str, Tensor]:
    arrays = {
        "input_ids": tokens,
        "position_ids": positions,
        "late_position_ids": late_positions,
        "visible": visible,
        "keep": keep,
        "predict": predict,
        "labels": labels,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
