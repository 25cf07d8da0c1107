"""One level of the search inside the one graph: a pass of both stages, the children of its rows, the best of them.

What a level reads and leaves behind is a `State`, names of tensors by what they are:

    tokens, cache, late_...      the next pass, see `Request.prompt`
    row_node, row_score [b,r]    trie node and score of the rows whose children are wanted (the last r of the pass);
                                 the score is DEAD where a row is there to fill the batch
    node, score, left [b,w]      the beams: trie node, score where the beam is finished (else DEAD), items below it
    dropped [b,1]                best score that was ever dropped
    broken [b,1]                 1 where a score was no number
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from earn.config import MASKED, SCORING_RULES
from earn.errors import EarnError
from earn.export.graph_writer import BOOL, FLOAT, INT64, LAST, GraphWriter, Value
from earn.export.one_graph_request import DEAD, Answer, Request, State, piece_lengths, read_in_pieces, run_stages
from earn.manifest import Manifest
from earn.trie import ItemTrie

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SearchTables:
    """The trie of a catalog as the arrays that a level reads; c nodes."""

    depth: int
    child_start: Ints  # [c]
    children: Ints  # [c] how many
    most_children: Ints  # [depth] of a node of that level
    token: Ints  # [c] 0 at the root
    finishes: Ints  # [c] the only leaf below a node, else the node itself
    sorted_items: Ints  # [items] in the order of their identifiers: those below a node are neighbours
    first_item: Ints  # [c] where a node's items start among them
    below: Ints  # [c] how many they are
    items_of: Ints  # [c] items that a leaf names
    may_stand: NDArray[np.bool_]  # [depth,v] tokens that may stand at a level
    open_nodes: Ints  # [depth+1] nodes of a level that a beam goes on from

    @classmethod
    def of(cls, trie: ItemTrie, manifest: Manifest) -> SearchTables:
        """The tables of a bundle's trie."""
        children, nodes = np.diff(trie.child_start).astype(np.int64), np.arange(len(trie))
        levels, leaf, below = trie.level(nodes), trie.determined(nodes), trie.below.astype(np.int64)
        is_open = children > 0
        if SCORING_RULES[manifest.scoring].finishes_determined:
            is_open &= leaf < 0
        may_stand = np.zeros((trie.depth, manifest.sizes.logits), bool)
        for level, tokens in enumerate(trie.level_tokens):
            may_stand[level, tokens] = True
        return cls(
            depth=trie.depth,
            child_start=trie.child_start[:-1].astype(np.int64),
            children=children,
            most_children=np.array([children[levels == level].max() for level in range(trie.depth)]),
            token=np.maximum(trie.token, 0).astype(np.int64),
            finishes=np.where(leaf >= 0, leaf, nodes),
            sorted_items=trie.sorted_items.astype(np.int64),
            first_item=trie.item_start.astype(np.int64),
            below=below,
            items_of=np.where(children == 0, below, 0),
            may_stand=may_stand,
            open_nodes=np.bincount(levels[is_open], minlength=trie.depth + 1),
        )

    @property
    def most_items_of_a_leaf(self) -> int:
        """Items that share one identifier, at the most."""
        return int(self.items_of.max())


@dataclass(frozen=True)
class Level:
    """Writes one level; what all levels share stands here. Tensors of the outer graph are named."""

    request: Request
    tables: SearchTables
    kept: str  # [b,items+1] how many of the first j sorted items are not excluded
    next_position: str  # [b,1] of the first generated token

    def shapes(self, state: State) -> dict[str, tuple[int, list[int | str]]]:
        """Type and shape of the state's tensors."""
        sizes = self.request.manifest.sizes

        def cache(stage: str, rows: str) -> tuple[int, list[int | str]]:
            return FLOAT, [rows, "b", 2 * sizes.stage_layers(stage), sizes.key_value_heads, sizes.head_size]

        rows = {
            "tokens": (INT64, ["b", "m"]),
            "positions": (INT64, ["b", "m"]),
            "bias": (FLOAT, ["b", 1, "m", "s+m"]),
            "cache": cache("early", "s"),
            "late_positions": (INT64, ["b", "late m"]),
            "late_bias": (FLOAT, ["b", 1, "late m", "late s+m"]),
            "late_cache": cache("late", "late s"),
            "row_node": (INT64, ["b", "r"]),
            "row_score": (FLOAT, ["b", "r"]),
            "node": (INT64, ["b", "w"]),
            "score": (FLOAT, ["b", "w"]),
            "left": (INT64, ["b", "w"]),
            "dropped": (FLOAT, ["b", 1]),
            "broken": (INT64, ["b", 1]),
        }
        return {name: rows[name] for name in state}  # type: ignore[misc]

    def write(self, s: GraphWriter, index: Value, state: State) -> tuple[str, State]:
        """Writes the level `index` []; returns whether another one is needed [] and the state after it.

        The index is a tensor's name in a loop. Where it is a number, the level reads as many rows as there can be open
        beams, so that its shapes do not depend on scores.
        """
        rows = s.scalar(s.size(state["row_node"], 1))
        logits, caches = run_stages(s, self.request.stages, state, rows)
        child, total, left, broken = self._children(s, index, state, logits)
        beams, row_of = self._best(s, index, state, child, total, left)
        is_open = self._is_open(s, beams)
        beams["broken"] = s.add("Max", state["broken"], broken)
        return self._next(s, index, state, beams, row_of, is_open, caches)

    def _children(self, s: GraphWriter, index: Value, state: State, logits: str) -> tuple[str, str, str, str]:
        """All children of the rows, F per row: their nodes, scores and items left below, each [b,r*F]; broken [b,1]."""
        tables, dead = self.tables, np.float32(DEAD)
        offset = s.range(0, _at(s, tables.most_children, index))
        start = s.unsqueeze(s.add("Gather", tables.child_start, state["row_node"], axis=0), 2)
        count = s.unsqueeze(s.add("Gather", tables.children, state["row_node"], axis=0), 2)
        is_child = s.add("Less", offset, count)
        child = s.add("Min", s.add("Add", start, offset), np.int64(len(tables.token) - 1))
        token = s.add("Gather", tables.token, child, axis=0)
        total = s.add("Add", s.unsqueeze(state["row_score"], 2), self._scores(s, index, logits, token, is_child))
        flat = s.concat(self.request.users, [-1], axis=0)
        child = s.add("Reshape", child, flat)
        first = s.add("Gather", tables.first_item, child, axis=0)
        end = s.add("Add", first, s.add("Gather", tables.below, child, axis=0))
        left = s.add("Sub", s.pick(self.kept, end), s.pick(self.kept, first))
        may_be = s.add("And", s.add("Reshape", is_child, flat), s.add("Greater", left, np.int64(0)))
        total = s.add("Reshape", total, flat)
        broken = s.add("ReduceMax", s.whole(s.add("IsNaN", total)), [1], keepdims=1)
        total = s.add("Where", may_be, total, dead)
        if SCORING_RULES[self.request.manifest.scoring].finishes_determined:
            child = s.add("Gather", tables.finishes, child, axis=0)
        return child, total, left, broken

    def _scores(self, s: GraphWriter, index: Value, logits: str, token: str, is_child: str) -> str:
        """Log-probabilities [b,r,F] of the children, normalised as the bundle's rule says."""
        over, dead = SCORING_RULES[self.request.manifest.scoring].over, np.float32(DEAD)
        if over == "children":
            own = s.add("Where", is_child, s.add("GatherElements", logits, token, axis=2), dead)
            return s.add("LogSoftmax", own, axis=2)
        if over == "level":
            logits = s.add("Where", _at(s, self.tables.may_stand, index), logits, dead)
        elif over != "vocabulary":
            raise EarnError(f"The one graph cannot normalise over {over!r}. Write its nodes here.")
        return s.add("GatherElements", s.add("LogSoftmax", logits, axis=2), token, axis=2)

    def _best(self, s: GraphWriter, index: Value, state: State, child: str, total: str, left: str) -> tuple[State, str]:
        """The best of the finished beams and the children, and the row [b,w] that each child came from."""
        one = s.concat(self.request.users, [1], axis=0)
        nothing = s.add("Expand", np.array([[0]]), one)  # a dead candidate, so that one is always dropped
        scores = s.concat(state["score"], total, s.add("Expand", np.array([[DEAD]], np.float32), one), axis=1)
        nodes, lefts = (s.concat(*parts, nothing, axis=1) for parts in ((state["node"], child), (state["left"], left)))
        score, place = s.top(scores, s.add("Min", s.size(scores, 1), [self.request.width + 1]))
        dropped = s.add("Slice", score, [-1], [LAST], [1])
        score, place = (s.add("Slice", tensor, [0], [-1], [1]) for tensor in (score, place))
        beams = {"node": s.pick(nodes, place), "left": s.pick(lefts, place), "score": score}
        beams["dropped"] = s.add("Max", state["dropped"], dropped)
        finished = s.scalar(s.size(state["node"], 1))
        after = s.add("Max", s.add("Sub", place, finished), np.int64(0))
        row = s.add("Div", after, _at(s, self.tables.most_children, index))
        return beams, s.add("Min", row, s.add("Sub", s.size(state["row_node"], 1), np.int64(1)))

    def _is_open(self, s: GraphWriter, beams: State) -> str:
        """Which beams go on [b,w]: no leaf, alive, and their user's best k items can still change."""
        has_children = s.add("Greater", s.add("Gather", self.tables.children, beams["node"], axis=0), np.int64(0))
        is_open = s.add("And", has_children, s.add("Greater", beams["score"], np.float32(DEAD / 2)))
        leads = s.add("Equal", s.add("CumSum", s.whole(is_open), np.int64(1)), np.int64(0))
        named = s.add("ReduceSum", s.add("Where", leads, beams["left"], np.int64(0)), [1], keepdims=1)
        return s.add("And", is_open, s.add("Less", named, self.request.wanted))

    def _next(
        self, s: GraphWriter, index: Value, state: State, beams: State, row_of: str, is_open: str, caches: State
    ) -> tuple[str, State]:
        """The rows of the next pass: the open beams, those of users with fewer filled up with dead ones."""
        most = s.add("ReduceMax", s.add("ReduceSum", s.whole(is_open), [1], keepdims=0), keepdims=0)  # []
        if isinstance(index, str):
            rows = s.unsqueeze(s.add("Max", most, np.int64(1)), 0)  # [1]
        else:
            rows = s.constant(np.clip(self.tables.open_nodes[[index + 1]], 1, self.request.width))
        order = s.range(0, s.scalar(s.size(beams["node"], 1)))
        key = s.add("Where", is_open, s.add("Neg", order), s.add("Sub", np.int64(-(2**30)), order))
        _, chosen = s.top(key, rows)  # [b,r]
        row_node = s.pick(beams["node"], chosen)
        shape = s.concat(self.request.users, rows, axis=0)
        numbers = s.range(0, s.scalar(rows))
        own = s.add("Equal", numbers, s.unsqueeze(numbers, 1))
        own = s.add("Where", own, np.float32(0), np.float32(MASKED))  # [r,r]: each row sees itself
        own = s.add("Expand", own, s.concat(self.request.users, rows, rows, axis=0))
        parent = s.unsqueeze(s.pick(row_of, chosen), 2)  # [b,r,1]
        parents = s.add("Neg", s.size(state["row_node"], 1))

        def deeper(bias: str) -> str:
            """What each row sees: what its parent's row sees, and itself."""
            above = s.add("Slice", s.add("Squeeze", bias, [1]), parents, [LAST], [1])  # [b,r,S]
            above = s.add("GatherND", above, parent, batch_dims=1)
            return s.unsqueeze(s.concat(above, own, axis=2), 1)

        positions = s.add("Expand", s.add("Add", self.next_position, index), shape)
        after = {
            "tokens": s.add("Gather", self.tables.token, row_node, axis=0),
            "positions": positions,
            "bias": deeper(state["bias"]),
            **caches,
            "row_node": row_node,
            "row_score": s.add("Where", s.pick(is_open, chosen), s.pick(beams["score"], chosen), np.float32(DEAD)),
            "node": beams["node"],
            "left": beams["left"],
            "score": s.add("Where", is_open, np.float32(DEAD), beams["score"]),
            "dropped": beams["dropped"],
            "broken": beams["broken"],
        }
        if "late_cache" in state:
            after |= {"late_positions": s.add("Identity", positions), "late_bias": deeper(state["late_bias"])}
        return s.add("Greater", most, np.int64(0)), {name: after[name] for name in state}


def beam_search(request: Request, levels: Callable[[GraphWriter, Level, State, int], State], in_pieces: bool) -> Answer:
    """The best items by beam search.

    Args:
        levels: writes so many levels after a state and returns the state behind them.
        in_pieces: whether the early stage reads long prompts piece by piece, which takes a loop.
    """
    tables = SearchTables.of(request.catalog.trie, request.manifest)
    g = request.g
    prompt, next_position = request.prompt()
    limits = request.manifest.limits
    lengths = piece_lengths(limits.prompt - limits.head)
    if in_pieces and lengths is not None:
        prompt = read_in_pieces(g, request.stages["early"], prompt, lengths)
    kept = g.add("Sub", np.int64(1), g.add("Gather", request.banned, tables.sorted_items, axis=1))
    kept = g.concat(request.per_user(np.array([[0]]), 1), g.add("CumSum", kept, np.int64(1)), axis=1)
    level = Level(request, tables, kept, next_position)
    root, no_score = request.per_user(np.array([[0]]), 1), request.per_user(np.array([[DEAD]], np.float32), 1)
    state = prompt | {
        "row_node": root,
        "row_score": request.per_user(np.zeros((1, 1), np.float32), 1),
        "node": root,
        "score": no_score,
        "left": root,
        "dropped": no_score,
        "broken": root,
    }
    return _items(request, tables, levels(g, level, state, tables.depth))


def _items(request: Request, tables: SearchTables, state: State) -> Answer:
    """The items that the beams name, best first."""
    g, node, score = request.g, state["node"], state["score"]
    offset = np.arange(tables.most_items_of_a_leaf)
    flat = g.concat(request.users, [-1], axis=0)
    start = g.unsqueeze(g.add("Gather", tables.first_item, node, axis=0), 2)
    is_item = g.add("Less", offset, g.unsqueeze(g.add("Gather", tables.items_of, node, axis=0), 2))
    last = np.int64(len(request.catalog) - 1)
    items = g.add("Gather", tables.sorted_items, g.add("Min", g.add("Add", start, offset), last), axis=0)
    status, is_answered = request.final_status(g.add("Greater", g.add("Squeeze", state["broken"], [1]), np.int64(0)))
    is_alive = g.add("And", g.add("Greater", score, np.float32(DEAD / 2)), g.unsqueeze(is_answered, 1))
    is_item = g.add("And", is_item, g.unsqueeze(is_alive, 2))
    items, is_item = g.add("Reshape", items, flat), g.add("Reshape", is_item, flat)
    is_item = g.add("And", is_item, g.add("Equal", g.pick(request.banned, items), np.int64(0)))
    scores = g.add("Reshape", g.add("Expand", g.unsqueeze(score, 2), [1, 1, len(offset)]), flat)
    place = g.range(0, g.scalar(g.size(items, 1)))
    key = g.add("Where", is_item, g.add("Neg", place), g.add("Sub", np.int64(-(2**30)), place))
    _, chosen, is_wanted = request.best(key)
    is_item = g.pick(is_item, chosen)
    scores = g.pick(scores, chosen)
    listed = g.add("Where", is_wanted, g.add("Where", is_item, scores, np.float32(DEAD)), np.float32(0))
    worst = g.add("ReduceMin", listed, [1], keepdims=0)
    is_item = g.add("And", is_item, is_wanted)
    # With fewer than k items the worst is DEAD, and so is the best dropped where nothing was dropped.
    dropped = g.add("Squeeze", state["dropped"], [1])
    nothing = g.add("Less", dropped, np.float32(DEAD / 2))
    exact = g.add("And", is_answered, g.add("Or", nothing, g.add("Less", dropped, worst)))
    return Answer(g.pick(items, chosen), scores, is_item, exact, status)


def _at(s: GraphWriter, table: NDArray[Any], index: Value) -> Value:
    """The table's entry at `index` []: a tensor in a loop, else a constant."""
    return s.add("Gather", s.constant(table), index, axis=0) if isinstance(index, str) else table[index]


def loop(g: GraphWriter, level: Level, state: State, depth: int) -> State:
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


def unrolled(g: GraphWriter, level: Level, state: State, depth: int) -> State:
    """The levels one after the other, for builders that refuse state that grows in a loop; all shapes are known."""
    for index in range(depth):
        scope = GraphWriter(f"level{index}", g)
        _, state = level.write(scope, index, state)
        g.nodes += scope.nodes
        g.initializers.update(scope.initializers)
    return state
