"""One level of the search inside the one graph: a pass of both stages, the children of its rows, the best of them.

What a level reads and leaves behind is a `State`, names of tensors by what they are:

    tokens, positions [b,m]      rows of the pass            cache [s,b,2l,g,e]   rows before them, early stage
    bias [b,1,m,s+m]             what each row sees          late_...             likewise of the late stage's layers
    row_node, row_score [b,r]    trie node and score of the rows whose children are wanted (the last r of the pass);
                                 the score is DEAD where a row is there to fill the batch
    node, score, left [b,w]      the beams: trie node, score where the beam is finished (else DEAD), items below it
    dropped [b,1]                best score that was ever dropped
    broken [b,1]                 1 where a score was no number
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.config import MASKED, SCORING_RULES
from earn.export.graph_writer import FLOAT, INT64, LAST, GraphWriter
from earn.manifest import Manifest
from earn.specs import PAST
from earn.trie import ItemTrie

State = dict[str, str]
Ints = NDArray[np.int64]

DEAD = -1e30  # the score of what must not be chosen


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

    @classmethod
    def of(cls, trie: ItemTrie, manifest: Manifest) -> SearchTables:
        """The tables of a bundle's trie."""
        children, nodes = np.diff(trie.child_start).astype(np.int64), np.arange(len(trie))
        levels, leaf, below = trie.level(nodes), trie.determined(nodes), trie.below.astype(np.int64)
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
        )

    @property
    def most_items_of_a_leaf(self) -> int:
        """Items that share one identifier, at the most."""
        return int(self.items_of.max())


@dataclass(frozen=True)
class Level:
    """Writes one level; what all levels share stands here. Tensors of the outer graph are named."""

    tables: SearchTables
    manifest: Manifest
    stages: Mapping[str, Any]  # the bundle's graphs
    width: int  # beams per user
    users: str  # [1]
    kept: str  # [b,items+1] how many of the first j sorted items are not excluded
    next_position: str  # [b,1] of the first generated token
    k: str  # [] items wanted

    @property
    def _has_late(self) -> bool:
        return self.manifest.sizes.stage_layers("late") > 0

    def shapes(self, state: State) -> dict[str, tuple[int, list[int | str]]]:
        """Type and shape of the state's tensors."""
        sizes = self.manifest.sizes

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

    def write(self, s: GraphWriter, index: str, state: State) -> tuple[str, State]:
        """Writes the level `index` []; returns whether another one is needed [] and the state after it."""
        logits, caches = self._pass(s, state)
        child, total, left, broken = self._children(s, index, state, logits)
        beams, row_of = self._best(s, index, state, child, total, left)
        is_open = self._is_open(s, beams)
        beams["broken"] = s.add("Max", state["broken"], broken)
        return self._next(s, index, state, beams, row_of, is_open, caches)

    def _pass(self, s: GraphWriter, state: State) -> tuple[str, State]:
        """Both stages over the rows: the logits [b,r,v] of the last r, and the caches with the new rows."""
        rows = s.scalar(s.size(state["row_node"], 1))
        new = s.scalar(s.size(state["tokens"], 1))
        onward = s.scalar(s.size(state["late_positions"], 1)) if self._has_late else rows
        feeds = {
            "input_ids": state["tokens"],
            "position_ids": state["positions"],
            "attention_bias": state["bias"],
            PAST: state["cache"],
            "keep": s.range(s.add("Sub", new, onward), new),
        }
        hidden, added = s.embed("early", self.stages["early"], feeds)
        caches = {"cache": s.concat(state["cache"], added, axis=0)}
        feeds = {"hidden": hidden, "keep": s.range(s.add("Sub", onward, rows), onward)}
        if not self._has_late:
            return s.embed("late", self.stages["late"], feeds)[0], caches
        feeds |= {"position_ids": state["late_positions"], "attention_bias": state["late_bias"]}
        logits, added = s.embed("late", self.stages["late"], {**feeds, PAST: state["late_cache"]})
        return logits, {**caches, "late_cache": s.concat(state["late_cache"], added, axis=0)}

    def _children(self, s: GraphWriter, index: str, state: State, logits: str) -> tuple[str, str, str, str]:
        """All children of the rows, F per row: their nodes, scores and items left below, each [b,r*F]; broken [b,1]."""
        tables, dead = self.tables, np.float32(DEAD)
        offset = s.range(0, s.add("Gather", s.constant(tables.most_children), index, axis=0))
        start = s.unsqueeze(s.add("Gather", tables.child_start, state["row_node"], axis=0), 2)
        count = s.unsqueeze(s.add("Gather", tables.children, state["row_node"], axis=0), 2)
        is_child = s.add("Less", offset, count)
        child = s.add("Min", s.add("Add", start, offset), np.int64(len(tables.token) - 1))
        token = s.add("Gather", tables.token, child, axis=0)
        total = s.add("Add", s.unsqueeze(state["row_score"], 2), self._scores(s, index, logits, token, is_child))
        flat = s.concat(self.users, [-1], axis=0)
        child = s.add("Reshape", child, flat)
        first = s.add("Gather", tables.first_item, child, axis=0)
        end = s.add("Add", first, s.add("Gather", tables.below, child, axis=0))
        left = s.add("Sub", s.pick(self.kept, end), s.pick(self.kept, first))
        may_be = s.add("And", s.add("Reshape", is_child, flat), s.add("Greater", left, np.int64(0)))
        total = s.add("Reshape", total, flat)
        broken = s.add("ReduceMax", s.whole(s.add("IsNaN", total)), [1], keepdims=1)
        total = s.add("Where", may_be, total, dead)
        if SCORING_RULES[self.manifest.scoring].finishes_determined:
            child = s.add("Gather", tables.finishes, child, axis=0)
        return child, total, left, broken

    def _scores(self, s: GraphWriter, index: str, logits: str, token: str, is_child: str) -> str:
        """Log-probabilities [b,r,F] of the children, normalised as the bundle's rule says."""
        over, dead = SCORING_RULES[self.manifest.scoring].over, np.float32(DEAD)
        if over == "children":
            own = s.add("Where", is_child, s.add("GatherElements", logits, token, axis=2), dead)
            return s.add("LogSoftmax", own, axis=2)
        if over == "level":
            logits = s.add("Where", s.add("Gather", self.tables.may_stand, index, axis=0), logits, dead)
        return s.add("GatherElements", s.add("LogSoftmax", logits, axis=2), token, axis=2)

    def _best(self, s: GraphWriter, index: str, state: State, child: str, total: str, left: str) -> tuple[State, str]:
        """The best of the finished beams and the children, and the row [b,w] that each child came from."""
        one = s.concat(self.users, [1], axis=0)
        nothing = s.add("Expand", np.array([[0]]), one)  # a dead candidate, so that one is always dropped
        scores = s.concat(state["score"], total, s.add("Expand", np.array([[DEAD]], np.float32), one), axis=1)
        nodes, lefts = (s.concat(*parts, nothing, axis=1) for parts in ((state["node"], child), (state["left"], left)))
        score, place = s.top(scores, s.add("Min", s.size(scores, 1), [self.width + 1]))
        dropped = s.add("Slice", score, [-1], [LAST], [1])
        score, place = (s.add("Slice", tensor, [0], [-1], [1]) for tensor in (score, place))
        beams = {"node": s.pick(nodes, place), "left": s.pick(lefts, place), "score": score}
        beams["dropped"] = s.add("Max", state["dropped"], dropped)
        finished = s.scalar(s.size(state["node"], 1))
        fan = s.add("Gather", s.constant(self.tables.most_children), index, axis=0)
        row = s.add("Div", s.add("Max", s.add("Sub", place, finished), np.int64(0)), fan)
        return beams, s.add("Min", row, s.add("Sub", s.size(state["row_node"], 1), np.int64(1)))

    def _is_open(self, s: GraphWriter, beams: State) -> str:
        """Which beams go on [b,w]: no leaf, alive, and their user's best k items can still change."""
        has_children = s.add("Greater", s.add("Gather", self.tables.children, beams["node"], axis=0), np.int64(0))
        is_open = s.add("And", has_children, s.add("Greater", beams["score"], np.float32(DEAD / 2)))
        leads = s.add("Equal", s.add("CumSum", s.whole(is_open), np.int64(1)), np.int64(0))
        named = s.add("ReduceSum", s.add("Where", leads, beams["left"], np.int64(0)), [1], keepdims=1)
        return s.add("And", is_open, s.add("Less", named, self.k))

    def _next(
        self, s: GraphWriter, index: str, state: State, beams: State, row_of: str, is_open: str, caches: State
    ) -> tuple[str, State]:
        """The rows of the next pass: the open beams, those of users with fewer filled up with dead ones."""
        most = s.add("ReduceMax", s.add("ReduceSum", s.whole(is_open), [1], keepdims=0), keepdims=0)  # []
        rows = s.unsqueeze(s.add("Max", most, np.int64(1)), 0)  # [1]
        order = s.range(0, s.scalar(s.size(beams["node"], 1)))
        key = s.add("Where", is_open, s.add("Neg", order), s.add("Sub", np.int64(-(2**30)), order))
        _, chosen = s.top(key, rows)  # [b,r]
        row_node = s.pick(beams["node"], chosen)
        shape = s.concat(self.users, rows, axis=0)
        numbers = s.range(0, s.scalar(rows))
        own = s.add("Equal", numbers, s.unsqueeze(numbers, 1))
        own = s.add("Where", own, np.float32(0), np.float32(MASKED))  # [r,r]: each row sees itself
        own = s.add("Expand", own, s.concat(self.users, rows, rows, axis=0))
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
        if self._has_late:
            after |= {"late_positions": s.add("Identity", positions), "late_bias": deeper(state["late_bias"])}
        return s.add("Greater", most, np.int64(0)), {name: after[name] for name in state}
