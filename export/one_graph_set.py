"""All codes at once inside the one graph: one pass of the stages, every item's score, the best of them. No loop.

An item's score is the sum of its digits' log-probabilities in float32, digit after digit, as in
`earn.runtime.set_scores`.
"""

from __future__ import annotations

import numpy as np

from earn.digits import Digits
from earn.export.one_graph_request import DEAD, Answer, Request, run_stages


def score_all(request: Request) -> Answer:
    """The best of all items."""
    g, banned = request.g, request.banned
    logits, _ = run_stages(g, request.stages, request.prompt()[0], np.int64(1))
    scores = _scores(request, g.add("Squeeze", logits, [1]), Digits.of(request.catalog))
    is_number = g.add("Greater", scores, np.float32(DEAD / 2))  # which nothing is that is no number
    numbers = g.add("ReduceMin", g.whole(is_number), [1], keepdims=0)
    status, is_answered = request.final_status(g.add("Equal", numbers, np.int64(0)))
    is_allowed = g.add("Equal", g.add("Slice", banned, [0], [len(request.catalog)], [1]), np.int64(0))
    is_allowed = g.add("And", is_allowed, g.unsqueeze(is_answered, 1))
    scores = g.add("Where", is_allowed, scores, np.float32(DEAD))
    best, items, is_wanted = request.best(scores)
    is_item = g.add("And", g.add("Greater", best, np.float32(DEAD / 2)), is_wanted)
    return Answer(items, best, is_item, is_answered, status)


def _scores(request: Request, logits: str, digits: Digits) -> str:
    """All items' scores [b,items] from the logits [b,v] of all digits.

    A graph of fixed shapes holds the digits as int32: TensorRT knows no small whole numbers.
    """
    g, total = request.g, ""
    for code, start, size, weight in zip(digits.codes.T, digits.starts, digits.sizes, digits.weights, strict=True):
        own = g.add("LogSoftmax", g.add("Slice", logits, [start], [start + size], [1]), axis=1)
        weighted = own if weight == 1 else g.add("Mul", own, np.float32(weight))
        score = g.add("Gather", weighted, g.indices(code - start, is_packed=not request.is_fixed), axis=1)
        total = g.add("Add", total, score) if total else score
    return total
