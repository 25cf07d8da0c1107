"""What a request of the one graph says: which items it names, its prompt, and a pass of the bundle's stages.

`Request` writes what stands before any scoring, for beams and for all codes at once alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from earn.config import MASKED, SET
from earn.export.graph_writer import BOOL, FLOAT, INT64, LAST, GraphWriter, Value
from earn.graph_files import MOST_ROUNDS
from earn.prompts import prompt_end
from earn.runtime.recommender import Recommender
from earn.specs import PAST, PIECE

Ints = NDArray[np.int64]
State = dict[str, str]  # names of tensors by what they are, see `Request.prompt`

ANSWERED, EMPTY, OUT_OF_RANGE, NO_NUMBER = range(4)  # what `status` says
DEAD = -1e30  # the score of what must not be chosen


@dataclass(frozen=True)
class Answer:
    """The items of all users, names of tensors."""

    items: str  # int64 [b,k] best first
    scores: str  # float [b,k]
    is_item: str  # bool [b,k] false where the catalog has no more
    exact: str  # bool [b]
    status: str  # int64 [b]


class Request:
    """The inputs `history`, `excluded` and `k`, checked; names of tensors in the graph `g`."""

    def __init__(self, recommender: Recommender, stages: Mapping[str, Any], width: int, k: int, is_fixed: bool) -> None:
        """Takes what the graph is written with.

        Args:
            stages: the bundle's graphs.
            width: of a search; the most items.
            k: items wanted where the caller does not say.
            is_fixed: whether shapes must follow from the inputs' shapes alone, see `earn.export.one_graph.Form`.
        """
        self.g = g = GraphWriter("main")
        self.is_fixed = is_fixed
        self.recommender, self.manifest, self.stages, self.width = recommender, recommender.manifest, stages, width
        self.catalog = recommender.catalog
        self.users = g.size("history", 0)  # [1]
        history, is_known, self.status = self._checked_history()  # status [b]
        self._tokens, self._padding = self._prompt_tokens(history, is_known)
        self.banned = self._banned()  # [b,items+1] 1 where an item must not come back
        self.wanted = g.scalar(g.add("Slice", g.concat("k", [k], axis=0), [0], [1], [0]))  # [] items

    def per_user(self, value: Any, *more: int) -> str:
        """A constant [1,...] once for every user."""
        return self.g.add("Expand", value, self.g.concat(self.users, list(more), axis=0) if more else self.users)

    def _checked_history(self) -> tuple[str, str, str]:
        """The history [b,n], -1 for what is none; which of it are items; and the status [b]."""
        g, items = self.g, np.int64(len(self.catalog))
        history = g.concat(self.per_user(np.array([[-1]]), 1), "history", axis=1)  # never without a column
        excluded = g.concat(self.per_user(np.array([[-1]]), 1), "excluded", axis=1)
        is_wrong = [
            g.add("Or", g.add("GreaterOrEqual", indices, items), g.add("Less", indices, np.int64(-1)))
            for indices in (history, excluded)
        ]
        wrong = g.add("ReduceMax", g.concat(*map(g.whole, is_wrong), axis=1), [1], keepdims=0)
        is_known = g.add("And", g.add("GreaterOrEqual", history, np.int64(0)), g.add("Not", is_wrong[0]))
        known = g.add("ReduceMax", g.whole(is_known), [1], keepdims=0)
        status = g.add("Where", g.add("Equal", known, np.int64(0)), np.int64(EMPTY), np.int64(ANSWERED))
        status = g.add("Where", g.add("Greater", wrong, np.int64(0)), np.int64(OUT_OF_RANGE), status)
        return g.add("Where", is_known, history, np.int64(-1)), is_known, status

    def _last_ones(self, values: str, is_valid: str, width: str) -> str:
        """The valid ones of [b,n], in their order, at the end of [b,width]; what does not fit in front is left out."""
        g = self.g
        count = g.scalar(g.size(values, 1))
        place = g.range(0, count)
        key = g.add("Where", is_valid, place, g.add("Sub", place, count))
        _, index = g.top(key, width)
        return g.pick(values, g.add("Slice", index, [-1], [-(2**31)], [1], [-1]))

    def _prompt_tokens(self, history: str, is_known: str) -> tuple[str, str]:
        """The prompt's tokens [b,m] behind the constant head, padded in front, and the padding [b,1]."""
        g, model, limits = self.g, self.manifest.model, self.manifest.limits
        items = self._last_ones(history, is_known, g.add("Min", g.size(history, 1), [limits.history]))
        is_item = g.add("GreaterOrEqual", items, np.int64(0))
        is_set, separator = model.method == SET, np.array(model.prompt.separator, np.int64)
        codes = np.arange(len(self.catalog))[:, None] if is_set else self.catalog.codes  # an item's rows
        spelled = np.concatenate((np.tile(separator, (len(codes), 1)), codes), axis=1)  # [items,q]
        rows = g.add("Gather", spelled, g.add("Max", items, np.int64(0)), axis=0)  # [b,h,q]
        is_token = g.add("And", g.add("GreaterOrEqual", rows, np.int64(0)), g.unsqueeze(is_item, 2))
        if len(separator):  # none stands before the first item
            count = g.scalar(g.size(items, 1))
            first = g.add("Sub", count, g.add("ReduceSum", g.whole(is_item), [1], keepdims=1))  # [b,1]
            is_first = g.unsqueeze(g.add("Equal", g.range(0, count), first), 2)
            is_separator = np.arange(spelled.shape[1]) < len(separator)
            is_token = g.add("And", is_token, g.add("Not", g.add("And", is_first, is_separator)))
        flat = g.concat(self.users, [-1], axis=0)
        rows = g.add("Reshape", g.add("Where", is_token, rows, np.int64(0)), flat)
        is_token = g.add("Reshape", is_token, flat)
        length = g.add("ReduceSum", g.whole(is_token), [1], keepdims=1)  # [b,1]
        if self.is_fixed:
            longest = g.scalar(g.size(rows, 1))
        else:
            longest = g.add("Max", g.add("ReduceMax", length, keepdims=0), np.int64(1))
        tokens = self._last_ones(rows, is_token, g.unsqueeze(longest, 0))
        if end := prompt_end(model):
            tokens = g.concat(tokens, self.per_user(np.array([end]), 1), axis=1)
        return tokens, g.add("Sub", longest, length)

    def prompt(self) -> tuple[State, str]:
        """The pass that reads the prompt, and the position [b,1] of the first generated token.

        Returns:
            The pass, all of it per user:

                tokens, positions [b,m]   its rows                   cache [s,b,2l,g,e]   rows before them, early stage
                bias [b,1,m,s+m]          what each row sees         late_...             likewise of the late stage,
                                                                                          where that has layers
        """
        g, limits, tokens, padding = self.g, self.manifest.limits, self._tokens, self._padding
        past, masked = self.recommender.decoder.head, np.float32(MASKED)
        head = np.int64(limits.head)
        seen = g.add("Add", g.scalar(g.size(tokens, 1)), head)
        column, row = g.range(0, seen), g.range(head, seen)
        causal = g.add("Where", g.add("LessOrEqual", column, g.unsqueeze(row, 1)), np.float32(0), masked)  # [m,S]
        behind = g.add("Sub", column, head)
        is_padding = g.add("And", g.add("GreaterOrEqual", behind, np.int64(0)), g.add("Less", behind, padding))
        hidden_rows = g.unsqueeze(g.add("Where", is_padding, masked, np.float32(0)), 1, 2)  # [b,1,1,S]
        next_position = g.add("Sub", seen, padding)
        early = {
            "tokens": tokens,
            "positions": g.add("Max", g.add("Sub", row, padding), np.int64(0)),
            "bias": g.add("Min", causal, hidden_rows),
            "cache": self._head_cache(past.early),
        }
        if not self.manifest.sizes.stage_layers("late"):
            return early, next_position
        readout, rows = limits.readout, limits.prefix + limits.readout
        bias = np.where(np.tri(readout, rows, rows - readout, dtype=bool), np.float32(0), masked)[None, None]
        return early | {
            "late_positions": g.add("Add", next_position, np.arange(-readout, 0)),
            "late_bias": self.per_user(bias, 1, 1, 1),
            "late_cache": self._head_cache(past.late),
        }, next_position

    def _head_cache(self, past: NDArray[np.float32]) -> str:
        """A stage's keys and values of the constant start [s,1,2l,g,e] for every user."""
        g = self.g
        return g.add("Expand", past, g.concat([1], self.users, [1, 1, 1], axis=0))

    def _banned(self) -> str:
        """Which items must not come back [b,items+1]: all of them where there is no answer."""
        g, items = self.g, len(self.catalog)
        in_range = g.add(
            "And", g.add("GreaterOrEqual", "excluded", np.int64(0)), g.add("Less", "excluded", np.int64(items))
        )
        index = g.add("Where", in_range, "excluded", np.int64(items))  # a place behind the last item takes the others
        index = g.concat(index, self.per_user(np.array([[items]]), 1), axis=1)
        banned = self.per_user(np.zeros((1, 1), np.int64), items + 1)
        ones = g.add("Expand", np.array([[1]]), g.add("Shape", index))
        banned = g.add("ScatterElements", banned, index, ones, axis=1)
        unanswered = g.unsqueeze(g.whole(g.add("Not", g.add("Equal", self.status, np.int64(ANSWERED)))), 1)
        return g.add("Max", banned, unanswered)

    def best(self, values: str) -> tuple[str, str, str]:
        """The largest of values [b,n], as many as are wanted, largest first.

        Returns:
            Their values [b,k], their places [b,k] and whether each was wanted [k]: with `is_fixed` k is as wide as the
            graph's lists can be, and what is behind the wanted ones must be left out.
        """
        g = self.g
        wanted = g.add("Max", self.wanted, np.int64(0))
        most = np.int64(self.width) if self.is_fixed else wanted
        best, places = g.top(values, g.unsqueeze(g.add("Min", g.scalar(g.size(values, 1)), most), 0))
        return best, places, g.add("Less", g.range(0, g.scalar(g.size(best, 1))), wanted)

    def final_status(self, is_broken: str) -> tuple[str, str]:
        """The status [b] where scores that are no numbers `is_broken` [b], and who is answered [b]."""
        g = self.g
        is_broken = g.add("And", is_broken, g.add("Equal", self.status, np.int64(ANSWERED)))
        status = g.add("Where", is_broken, np.int64(NO_NUMBER), self.status)
        return status, g.add("Equal", status, np.int64(ANSWERED))


def run_stages(s: GraphWriter, stages: Mapping[str, Any], state: State, rows: Value) -> tuple[str, State]:
    """Both stages over a pass: the logits [b,r,v] of its last `rows` [] rows, and the caches with the new rows."""
    has_late = "late_cache" in state
    onward = s.scalar(s.size(state["late_positions"], 1)) if has_late else rows
    hidden, cache = _early(s, stages["early"], state, onward)
    caches = {"cache": cache}
    feeds = {"hidden": hidden, "keep": s.range(s.add("Sub", onward, rows), onward)}
    if not has_late:
        return s.embed("late", stages["late"], feeds)[0], caches
    feeds |= {"position_ids": state["late_positions"], "attention_bias": state["late_bias"]}
    logits, added = s.embed("late", stages["late"], {**feeds, PAST: state["late_cache"]})
    return logits, {**caches, "late_cache": s.concat(state["late_cache"], added, axis=0)}


def piece_lengths(most: int) -> Ints | None:
    """The length of the pieces in which so many rows are read, for 0 to `most` rows; None where there is one piece.

    They are those of `earn.runtime.decoder`, but for prompts of which more than MOST_ROUNDS would be needed.
    """
    piece = max(PIECE, -(-most // MOST_ROUNDS))
    rows = np.arange(most + 1)
    pieces = np.maximum(1, -(-rows // piece))
    return -(-rows // pieces) if most > piece else None


def read_in_pieces(g: GraphWriter, early: Any, prompt: State, lengths: Ints) -> State:
    """Reads a prompt piece by piece in a loop, all but its last piece: the pass that is left.

    Args:
        lengths: of the pieces, by the number of rows; see `piece_lengths`.
    """
    count = g.scalar(g.size(prompt["tokens"], 1))
    length = g.add("Gather", lengths, count, axis=0)
    before = g.scalar(g.size(prompt["cache"], 0))
    body = GraphWriter("piece", g)
    index, condition, cache = "piece/index", "piece/condition", "piece/cache"
    start = body.add("Mul", index, length)
    stop = body.add("Add", start, length)
    first, last = body.unsqueeze(start, 0), body.unsqueeze(stop, 0)
    part = {name: body.add("Slice", prompt[name], first, last, [1]) for name in ("tokens", "positions")}
    seen = body.unsqueeze(body.add("Add", before, stop), 0)
    sliced = [body.concat(one, other, axis=0) for one, other in ((first, [0]), (last, seen))]
    part |= {"bias": body.add("Slice", prompt["bias"], *sliced, [2, 3]), "cache": cache}
    _, after = _early(body, early, part, np.int64(1))
    goes_on = body.add("Less", body.add("Add", stop, length), count)
    value = helper.make_tensor_value_info
    inputs = [value(index, INT64, []), value(condition, BOOL, []), value(cache, FLOAT, [None] * 5)]
    graph = body.graph("piece", inputs, [value(goes_on, BOOL, []), value(after, FLOAT, [None] * 5)])
    rounds = np.int64((len(lengths) - 1) // int(lengths.max()))
    read = g.add("Loop", rounds, g.add("Less", length, count), prompt["cache"], body=graph)
    done = g.add("Sub", g.size(read, 0), g.unsqueeze(before, 0))
    axes = {"tokens": 1, "positions": 1, "bias": 2}
    return prompt | {"cache": read} | {n: g.add("Slice", prompt[n], done, [LAST], [axes[n]]) for n in axes}


def _early(s: GraphWriter, early: Any, rows: State, onward: Value) -> tuple[str, str]:
    """The early stage: the hidden states [b,onward,d] of the last rows, and the cache with all of them."""
    new = s.scalar(s.size(rows["tokens"], 1))
    feeds = {
        "input_ids": rows["tokens"],
        "position_ids": rows["positions"],
        "attention_bias": rows["bias"],
        PAST: rows["cache"],
        "keep": s.range(s.add("Sub", new, onward), new),
    }
    hidden, added = s.embed("early", early, feeds)
    return hidden, s.concat(rows["cache"], added, axis=0)
