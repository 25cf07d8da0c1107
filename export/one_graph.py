"""One graph that recommends: a history in, items and scores out, the whole beam search inside.

    history   int64 [b,n]  item indices, oldest first; -1 anywhere is padding. The newest `max_history` are read
    excluded  int64 [b,x]  item indices that must not come back; -1 is padding
    k         int64 [j]    items wanted, up to the search's width, as its first number; empty: the graph's default.
                           (An input that may be left out altogether is unknown to ONNX Runtime in browsers.)

    items     int64 [b,k]  item indices, best first; -1 where the catalog has no more
    scores    float [b,k]  log-probabilities of their identifiers; minus infinity where there is no item
    count     int64 [b]    items found
    exact     bool  [b]    no beam was ever dropped that could still have made the list: these are the best k items of
                           the whole catalog
    status    int64 [b]    0: answered; 1: the history holds no item; 2: an index is out of range; 3: the model gave
                           what is no number, so its weights are damaged. Rows with another status than 0 hold no
                           items, and no other row suffers from them

It holds the bundle's own stages, so any precision; the catalog's trie as tables; the keys and values of the prompt's
constant start. Standard operators alone, so that every ONNX Runtime runs it in one call. Its forms are rows of FORMS.

The search is that of `earn.runtime.search` without its lookahead: the stage is the same function for a prompt and for
beams, so the loop's first iteration reads the prompt and each later one the rows of the beams that are still open.
Scores are added up in float32, as TensorRT and browsers can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from earn.catalog import CATALOG_FILE, Catalog
from earn.config import MASKED, SET
from earn.errors import EarnError
from earn.export.graph_writer import BOOL, FLOAT, INT64, GraphWriter
from earn.export.one_graph_search import DEAD, Level, SearchTables, State
from earn.files import write_json, written_whole
from earn.manifest import GRAPH_FILES, ITEMS_FILE, ONE_GRAPH_FILE, FileEntry, Manifest
from earn.prompts import prompt_end
from earn.runtime.one_graph import METADATA
from earn.runtime.recommender import DEFAULT_BEAMS, Recommender

DEFAULT_K = 10
ANSWERED, EMPTY, OUT_OF_RANGE, NO_NUMBER = range(4)  # what `status` says


@dataclass(frozen=True)
class Form:
    """How the levels of an identifier are written."""

    meaning: str
    write: Callable[[GraphWriter, Level, State, int], State]  # the state after so many levels


def compose(folder: Path, form: str = "loop", beams: int = DEFAULT_BEAMS, k: int = DEFAULT_K) -> ModelProto:
    """The one graph of a bundle. Large weights stay where the stages have them: the graph belongs into that folder.

    Args:
        folder: the bundle.
        form: one of FORMS.
        beams: width of the search; 1 to the bundle's most.
        k: items that come back where the caller does not say; 1 to `beams`.

    Raises:
        EarnError: the bundle is damaged or has no beams, there is no such form, or a number is out of range.
    """
    if form not in FORMS:
        raise EarnError(f"There is no form {form!r}. Take one of: {', '.join(FORMS)}.")
    recommender = Recommender.load(folder)
    if recommender.manifest.model.method == SET:
        raise EarnError(f"{folder}: names all codes at once; the one graph is written for searches with beams alone.")
    most = recommender.manifest.limits.beams
    if not 1 <= beams <= most:
        raise EarnError(f"beams is {beams}. This bundle takes 1 to {most}; export with a larger --max-beams for more.")
    if not 1 <= k <= beams:
        raise EarnError(f"k is {k}. Take 1 to {beams}, the width of the search.")
    stages = {stage: onnx.load(folder / name, load_external_data=False) for stage, name in GRAPH_FILES.items()}
    graph = _Composer(recommender, {name: model.graph for name, model in stages.items()}, beams, k).write(FORMS[form])
    early = stages["early"]
    model: ModelProto = helper.make_model(
        graph, opset_imports=early.opset_import, ir_version=early.ir_version, producer_name="earn-edge"
    )
    helper.set_model_props(model, {METADATA: json.dumps({"form": form, "beams": beams, "k": k})})
    return model


def compose_bundle(folder: Path, form: str = "loop", beams: int = DEFAULT_BEAMS, k: int = DEFAULT_K) -> Manifest:
    """Writes a bundle's one graph and its items.json into the bundle, and lists them in its manifest; see `compose`.

    If it is interrupted, the bundle is one without such a graph.
    """
    model = compose(folder, form, beams, k)
    manifest = Manifest.load(folder, verify=False)
    stages = {name: entry for name, entry in manifest.files.items() if name not in (ONE_GRAPH_FILE, ITEMS_FILE)}
    manifest = replace(manifest, files=stages)
    manifest.save(folder)
    catalog = Catalog.load(folder / CATALOG_FILE)
    write_json(folder / ITEMS_FILE, {"beams": beams, "item_ids": [*catalog.item_ids], "titles": [*catalog.titles]})
    with written_whole(folder / ONE_GRAPH_FILE) as beside:
        onnx.save_model(model, str(beside))
    own = {name: FileEntry.of(folder / name) for name in (ONE_GRAPH_FILE, ITEMS_FILE)}
    manifest = replace(manifest, files=stages | own)
    manifest.save(folder)
    return manifest


class _Composer:
    """Writes what stands before and behind the levels: the prompt's rows, and the items that the beams name."""

    def __init__(self, recommender: Recommender, stages: Mapping[str, Any], beams: int, k: int) -> None:
        self._recommender, self._manifest = recommender, recommender.manifest
        self._k = k
        self._catalog = recommender.catalog
        self._stages = stages
        self._beams = beams
        self._tables = SearchTables.of(recommender.catalog.trie, recommender.manifest)
        self._g = GraphWriter("main")

    def write(self, form: Form) -> Any:
        g = self._g
        self._users = g.size("history", 0)  # [1]
        history, is_known, status = self._checked_history()
        tokens, padding = self._tokens(history, is_known)
        banned, kept = self._kept(status)
        state, next_position = self._prompt(tokens, padding)
        wanted = g.scalar(g.add("Slice", g.concat("k", [self._k], axis=0), [0], [1], [0]))
        level = Level(self._tables, self._manifest, self._stages, self._beams, self._users, kept, next_position, wanted)
        depth = self._tables.depth
        self._items(form.write(g, level, state, depth), banned, status, wanted)
        inputs = [("history", INT64, ["b", "n"]), ("excluded", INT64, ["b", "x"]), ("k", INT64, ["j"])]
        outputs = [
            *(("items", INT64, ["b", "k"]), ("scores", FLOAT, ["b", "k"])),
            *(("count", INT64, ["b"]), ("exact", BOOL, ["b"]), ("status", INT64, ["b"])),
        ]
        return g.graph(
            "recommend", *([helper.make_tensor_value_info(*row) for row in side] for side in (inputs, outputs))
        )

    def _per_user(self, value: Any, *more: int) -> str:
        """A constant [1,...] once for every user."""
        return self._g.add("Expand", value, self._g.concat(self._users, list(more), axis=0) if more else self._users)

    def _checked_history(self) -> tuple[str, str, str]:
        """The history [b,n], -1 for what is none; which of it are items; and the status [b]."""
        g, items = self._g, np.int64(len(self._catalog))
        history = g.concat(self._per_user(np.array([[-1]]), 1), "history", axis=1)  # never without a column
        excluded = g.concat(self._per_user(np.array([[-1]]), 1), "excluded", axis=1)
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
        g = self._g
        count = g.scalar(g.size(values, 1))
        place = g.range(0, count)
        key = g.add("Where", is_valid, place, g.add("Sub", place, count))
        _, index = g.top(key, width)
        return g.pick(values, g.add("Slice", index, [-1], [-(2**31)], [1], [-1]))

    def _tokens(self, history: str, is_known: str) -> tuple[str, str]:
        """The prompt's tokens [b,m] behind the constant head, padded in front, and the padding [b,1]."""
        g, model, limits = self._g, self._manifest.model, self._manifest.limits
        items = self._last_ones(history, is_known, g.add("Min", g.size(history, 1), [limits.history]))
        is_item = g.add("GreaterOrEqual", items, np.int64(0))
        codes, separator = self._catalog.codes.astype(np.int64), np.array(model.prompt.separator, np.int64)
        spelled = np.concatenate((np.tile(separator, (len(codes), 1)), codes), axis=1)  # [items,q]
        rows = g.add("Gather", spelled, g.add("Max", items, np.int64(0)), axis=0)  # [b,h,q]
        is_token = g.add("And", g.add("GreaterOrEqual", rows, np.int64(0)), g.unsqueeze(is_item, 2))
        if len(separator):  # none stands before the first item
            count = g.scalar(g.size(items, 1))
            first = g.add("Sub", count, g.add("ReduceSum", g.whole(is_item), [1], keepdims=1))  # [b,1]
            is_first = g.unsqueeze(g.add("Equal", g.range(0, count), first), 2)
            is_separator = np.arange(spelled.shape[1]) < len(separator)
            is_token = g.add("And", is_token, g.add("Not", g.add("And", is_first, is_separator)))
        flat = g.concat(self._users, [-1], axis=0)
        rows = g.add("Reshape", g.add("Where", is_token, rows, np.int64(0)), flat)
        is_token = g.add("Reshape", is_token, flat)
        length = g.add("ReduceSum", g.whole(is_token), [1], keepdims=1)  # [b,1]
        longest = g.add("Max", g.add("ReduceMax", length, keepdims=0), np.int64(1))
        tokens = self._last_ones(rows, is_token, g.unsqueeze(longest, 0))
        if end := prompt_end(model):
            tokens = g.concat(tokens, self._per_user(np.array([end]), 1), axis=1)
        return tokens, g.add("Sub", longest, length)

    def _prompt(self, tokens: str, padding: str) -> tuple[State, str]:
        """The state before the first level, and the position [b,1] of the first generated token."""
        g, limits = self._g, self._manifest.limits
        decoder, masked = self._recommender.decoder, np.float32(MASKED)
        head = np.int64(limits.head)
        seen = g.add("Add", g.scalar(g.size(tokens, 1)), head)
        column, row = g.range(0, seen), g.range(head, seen)
        causal = g.add("Where", g.add("LessOrEqual", column, g.unsqueeze(row, 1)), np.float32(0), masked)  # [m,S]
        behind = g.add("Sub", column, head)
        is_padding = g.add("And", g.add("GreaterOrEqual", behind, np.int64(0)), g.add("Less", behind, padding))
        hidden_rows = g.unsqueeze(g.add("Where", is_padding, masked, np.float32(0)), 1, 2)  # [b,1,1,S]
        next_position = g.add("Sub", seen, padding)
        late: dict[str, str] = {}
        if self._manifest.sizes.stage_layers("late"):
            readout, rows = limits.readout, limits.prefix + limits.readout
            bias = np.where(np.tri(readout, rows, rows - readout, dtype=bool), np.float32(0), masked)[None, None]
            late = {
                "late_positions": g.add("Add", next_position, np.arange(-readout, 0)),
                "late_bias": self._per_user(bias, 1, 1, 1),
                "late_cache": self._head_cache(decoder.late_head),
            }
        root, no_score = self._per_user(np.array([[0]]), 1), self._per_user(np.array([[DEAD]], np.float32), 1)
        return {
            "tokens": tokens,
            "positions": g.add("Max", g.add("Sub", row, padding), np.int64(0)),
            "bias": g.add("Min", causal, hidden_rows),
            "cache": self._head_cache(decoder.early_head),
            **late,
            "row_node": root,
            "row_score": self._per_user(np.zeros((1, 1), np.float32), 1),
            "node": root,
            "score": no_score,
            "left": root,
            "dropped": no_score,
            "broken": root,
        }, next_position

    def _head_cache(self, past: Any) -> str:
        """A stage's keys and values of the constant start [s,1,2l,g,e] for every user."""
        g = self._g
        return g.add("Expand", np.asarray(past), g.concat([1], self._users, [1, 1, 1], axis=0))

    def _kept(self, status: str) -> tuple[str, str]:
        """Which items are banned [b,items+1], and how many of the sorted items' first j are not [b,items+1]."""
        g, items = self._g, len(self._catalog)
        in_range = g.add(
            "And", g.add("GreaterOrEqual", "excluded", np.int64(0)), g.add("Less", "excluded", np.int64(items))
        )
        index = g.add("Where", in_range, "excluded", np.int64(items))  # a place behind the last item takes the others
        index = g.concat(index, self._per_user(np.array([[items]]), 1), axis=1)
        banned = self._per_user(np.zeros((1, 1), np.int64), items + 1)
        ones = g.add("Expand", np.array([[1]]), g.add("Shape", index))
        banned = g.add("ScatterElements", banned, index, ones, axis=1)
        unanswered = g.unsqueeze(g.whole(g.add("Not", g.add("Equal", status, np.int64(ANSWERED)))), 1)
        banned = g.add("Max", banned, unanswered)  # who gets no answer is done at once
        kept = g.add("Sub", np.int64(1), g.add("Gather", banned, self._tables.sorted_items, axis=1))
        kept = g.add("CumSum", kept, np.int64(1))
        return banned, g.concat(self._per_user(np.array([[0]]), 1), kept, axis=1)

    def _items(self, state: State, banned: str, status: str, wanted: str) -> None:
        """Writes the outputs: the items that the beams name, best first."""
        g, tables = self._g, self._tables
        node, score = state["node"], state["score"]
        offset = np.arange(tables.most_items_of_a_leaf)
        flat = g.concat(self._users, [-1], axis=0)
        start = g.unsqueeze(g.add("Gather", tables.first_item, node, axis=0), 2)
        is_item = g.add("Less", offset, g.unsqueeze(g.add("Gather", tables.items_of, node, axis=0), 2))
        last = np.int64(len(self._catalog) - 1)
        items = g.add("Gather", tables.sorted_items, g.add("Min", g.add("Add", start, offset), last), axis=0)
        is_broken = g.add("Greater", g.add("Squeeze", state["broken"], [1]), np.int64(0))
        status = g.add("Where", is_broken, np.int64(NO_NUMBER), status)
        is_answered = g.add("Equal", status, np.int64(ANSWERED))
        is_alive = g.add("And", g.add("Greater", score, np.float32(DEAD / 2)), g.unsqueeze(is_answered, 1))
        is_item = g.add("And", is_item, g.unsqueeze(is_alive, 2))
        items, is_item = g.add("Reshape", items, flat), g.add("Reshape", is_item, flat)
        is_item = g.add("And", is_item, g.add("Equal", g.pick(banned, items), np.int64(0)))
        scores = g.add("Reshape", g.add("Expand", g.unsqueeze(score, 2), [1, 1, len(offset)]), flat)
        count = g.scalar(g.size(items, 1))
        place = g.range(0, count)
        key = g.add("Where", is_item, g.add("Neg", place), g.add("Sub", np.int64(-(2**30)), place))
        _, chosen = g.top(key, g.unsqueeze(g.add("Min", count, g.add("Max", wanted, np.int64(0))), 0))
        is_item = g.pick(is_item, chosen)
        found = g.add("ReduceSum", g.whole(is_item), [1], keepdims=0)
        scores = g.pick(scores, chosen)
        worst = g.add("ReduceMin", g.add("Where", is_item, scores, np.float32(DEAD)), [1], keepdims=0)
        # With fewer than k items the worst is DEAD, and so is the best dropped where nothing was dropped.
        dropped = g.add("Squeeze", state["dropped"], [1])
        nothing = g.add("Less", dropped, np.float32(DEAD / 2))
        outputs: dict[str, tuple[Any, ...]] = {
            "items": ("Where", is_item, g.pick(items, chosen), np.int64(-1)),
            "scores": ("Where", is_item, scores, np.float32(-np.inf)),
            "count": ("Identity", found),
            "exact": ("And", is_answered, g.add("Or", nothing, g.add("Less", dropped, worst))),
            "status": ("Identity", status),
        }
        for name, (operator, *inputs) in outputs.items():
            read = [value if isinstance(value, str) else g.constant(value) for value in inputs]
            g.nodes.append(helper.make_node(operator, read, [name], name=f"main/{name}"))


def _loop(g: GraphWriter, level: Level, state: State, depth: int) -> State:
    """One body that runs once a level and ends early where nobody's list can change any more."""
    body = GraphWriter("level", g)
    index, condition = "level/index", "level/condition"
    goes_on, after = level.write(body, index, {name: f"level/{name}" for name in state})
    value = helper.make_tensor_value_info
    inputs = [value(index, INT64, []), value(condition, BOOL, [])]
    outputs = [value(goes_on, BOOL, [])]
    for name, (kind, shape) in level.shapes(state).items():
        inputs.append(value(f"level/{name}", kind, shape))
        later = [f"{size} after" if isinstance(size, str) and size != "b" else size for size in shape]
        outputs.append(value(after[name], kind, later))
    graph = body.graph("level", inputs, outputs)
    ends = g.add_many("Loop", len(state), np.int64(depth), np.bool_(True), *state.values(), body=graph)
    return dict(zip(state, ends, strict=True))


def _unrolled(g: GraphWriter, level: Level, state: State, depth: int) -> State:
    """The levels one after the other, for builders that refuse state that grows in a loop."""
    for index in range(depth):
        scope = GraphWriter(f"level{index}", g)
        _, state = level.write(scope, g.constant(np.int64(index)), state)
        g.nodes += scope.nodes
        g.initializers.update(scope.initializers)
    return state


FORMS: Mapping[str, Form] = {
    "loop": Form("a loop over the levels, each weight once: CPUs, phones, browsers", _loop),
    "unrolled": Form("the levels one after the other: TensorRT", _unrolled),
}
