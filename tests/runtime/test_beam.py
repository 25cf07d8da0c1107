from __future__ import annotations

from math import log

import numpy as np
import pytest
from numpy.typing import NDArray

from earn.config import SCORING_RULES
from earn.runtime.beam import (
    Beams,
    best,
    child_scores,
    children,
    log_sum_exp,
    rank_in_group,
    root_beams,
    step,
)
from earn.runtime.item_filters import Exclusions
from earn.trie import ItemTrie
from tests.support import (
    RULES,
)

# Identifiers 0-2, 0-3, 1-2 and 4: tokens 0, 1, 4 may come first, 2 and 3 second.
# Nodes: 0 root; 1, 2, 3 the tokens 0, 1, 4; 4 = 0-2, 5 = 0-3, 6 = 1-2.
TRIE = ItemTrie.build(np.array([[0, 2], [0, 3], [1, 2], [4, -1]], np.int32))
WEIGHTS = np.array([[1, 2, 3, 4, 5, 6]])  # exp(logits) of six tokens, of which no item holds the last
LOGITS = np.log(WEIGHTS).astype(np.float32)
OPEN = np.array([True])
ALL = Exclusions.of(TRIE, [])  # nobody excludes anything


def take(
    beams: Beams,
    is_open: NDArray[np.bool_],
    logits: NDArray[np.float32],
    scoring: str,
    width: int,
    exclusions: Exclusions = ALL,
) -> Beams:
    """A step of the search by the logits of the open beams."""
    trie = exclusions.trie
    rule = SCORING_RULES[scoring]
    scores = child_scores(beams.node[is_open], logits, trie, rule)
    return step(beams, is_open, scores, trie, rule, width, exclusions)


def first_step(scoring: str, width: int = 9, excluded: tuple[int, ...] = ()) -> Beams:
    return take(root_beams(1), OPEN, LOGITS, scoring, width, Exclusions.of(TRIE, [excluded]))


@pytest.mark.parametrize("rule", RULES)
def test_the_first_token_is_scored_over_what_the_rule_says(rule: str) -> None:
    total = {"trie": 1 + 2 + 5, "level": 1 + 2 + 5, "vocab": 1 + 2 + 3 + 4 + 5 + 6}[rule]
    beams = first_step(rule)
    assert beams.score == pytest.approx([log(5 / total), log(2 / total), log(1 / total)])
    assert beams.parent.tolist() == [0, 0, 0]
    # Under "trie" the prefix 1 leads to 1-2 alone, so that its beam is there already.
    assert beams.node.tolist() == [3, 6 if rule == "trie" else 2, 1]


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        # (node, score) of: 4 (finished), 1-2, 0-3, 0-2
        ("trie", [(3, 5 / 8), (6, 2 / 8), (5, 1 / 8 * 2 / 3), (4, 1 / 8 * 1 / 3)]),
        ("level", [(3, 5 / 8), (6, 2 / 8 * 4 / 7), (5, 1 / 8 * 2 / 3), (4, 1 / 8 * 1 / 3)]),
        ("vocab", [(3, 5 / 21), (6, 2 / 21 * 4 / 9), (5, 1 / 21 * 2 / 5), (4, 1 / 21 * 1 / 5)]),
    ],
)
def test_the_second_token_by_hand(rule: str, want: list[tuple[int, float]]) -> None:
    beams = first_step(rule)
    is_open = ~TRIE.is_leaf(beams.node)
    # exp(logits) after 1 (where it is still open), then after 0, of tokens 0, 1, 2, 3, 4, 5.
    weights = {1: [1, 0.5, 4, 3, 0.25, 0.25], 0: [1, 0.5, 1, 2, 0.25, 0.25]}
    logits = np.log([weights[int(TRIE.token[node])] for node in beams.node[is_open]]).astype(np.float32)
    beams = take(beams, is_open, logits, rule, 9)
    assert beams.node.tolist() == [node for node, _ in want]
    assert beams.score == pytest.approx([log(score) for _, score in want])


def test_only_the_best_beams_stay_and_know_their_parents() -> None:
    beams = Beams(np.array([0, 0]), np.array([1, 2]), np.array([log(0.6), log(0.4)]), np.array([0, 0]))
    logits = np.log([[9, 9, 1, 1], [9, 9, 1, 1]]).astype(np.float32)
    after = take(beams, np.array([True, True]), logits, "trie", 2)
    assert after.node.tolist() == [6, 4]  # 1-2 with 0.4, then 0-2 with 0.3, the first among equals
    assert after.parent.tolist() == [1, 0]
    assert after.score == pytest.approx([log(0.4), log(0.3)])


@pytest.mark.parametrize("rule", RULES)
def test_nodes_without_an_item_left_are_not_entered_and_keep_their_share(rule: str) -> None:
    everything, left = first_step(rule), first_step(rule, excluded=(3, 2))  # the items 4 and 1-2
    assert left.node.tolist() == [1]
    assert left.score == everything.score[everything.node == 1]
    assert len(first_step(rule, excluded=(0, 1, 2, 3)).node) == 0


def test_every_user_has_exclusions_of_its_own() -> None:
    exclusions = Exclusions.of(TRIE, [[3], [], [0, 1]])
    logits = np.repeat(LOGITS, 3, 0)
    beams = take(root_beams(3), np.array([True] * 3), logits, "level", 9, exclusions)
    assert beams.user.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert beams.node.tolist() == [2, 1, 3, 2, 1, 3, 2]


def test_scores_of_children_stand_in_the_order_of_children() -> None:
    logits = np.log([[1, 1, 4, 3, 1, 1], [1, 1, 1, 2, 1, 1]]).astype(np.float32)
    nodes = np.array([2, 1])
    assert child_scores(nodes, logits, TRIE, SCORING_RULES["trie"]) == pytest.approx([0, log(1 / 3), log(2 / 3)])
    assert child_scores(nodes, logits, TRIE, SCORING_RULES["level"]) == pytest.approx(
        [log(4 / 7), log(1 / 3), log(2 / 3)]
    )
    assert child_scores(nodes, logits, TRIE, SCORING_RULES["vocab"]) == pytest.approx(
        [log(4 / 11), log(1 / 7), log(2 / 7)]
    )


def test_closed_beams_compete_with_their_score_and_stay_first_among_equals() -> None:
    beams = Beams(np.array([0, 0]), np.array([1, 3]), np.array([log(0.8), log(0.4)]), np.array([0, 0]))
    logits = np.log([[9, 9, 1, 1]]).astype(np.float32)
    after = take(beams, np.array([True, False]), logits, "trie", 2)
    assert after.node.tolist() == [3, 4]  # all three have 0.4
    assert after.parent.tolist() == [1, 0]


def test_users_do_not_compete() -> None:
    logits = np.concatenate((LOGITS, LOGITS[:, ::-1]))
    beams = take(root_beams(2), np.array([True, True]), logits, "level", 2)
    assert beams.user.tolist() == [0, 0, 1, 1]
    assert beams.node.tolist() == [3, 2, 1, 2]
    assert beams.score == pytest.approx([log(5 / 8), log(2 / 8), log(6 / 13), log(5 / 13)])


def test_the_best_are_kept_per_user_in_order() -> None:
    user, node = np.array([1, 0, 1, 0, 1]), np.array([10, 11, 12, 13, 14])
    beams = best(user, node, np.array([-3.0, -1.0, -1.0, -2.0, -1.0]), np.arange(5), 2)
    assert beams.user.tolist() == [0, 0, 1, 1]
    assert beams.node.tolist() == [11, 13, 12, 14]
    assert beams.parent.tolist() == [1, 3, 2, 4]


def test_small_steps_by_hand() -> None:
    huge = np.array([[1000.0, 1000.0], [-1000.0, -1000.0]])
    assert log_sum_exp(huge) == pytest.approx([1000 + log(2), -1000 + log(2)])
    assert rank_in_group(np.array([0, 0, 2, 2, 2, 5])).tolist() == [0, 1, 0, 1, 2, 0]
    place, child = children(TRIE, np.array([3, 1, 0]))
    assert place.tolist() == [1, 1, 2, 2, 2]
    assert child.tolist() == [4, 5, 1, 2, 3]
    assert len(children(TRIE, np.array([], np.int64))[0]) == 0


def test_an_only_child_costs_exactly_nothing() -> None:
    beams = Beams(np.array([0]), np.array([2]), np.array([-0.1234567890123]), np.array([0]))
    logits = np.array([[0.1, 0.2, -77.7, 0.4, 0.5, 0.6]], np.float32)
    assert take(beams, OPEN, logits, "trie", 1).score[0] == -0.1234567890123
