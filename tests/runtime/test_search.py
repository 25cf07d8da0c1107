from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from math import log
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from earn.config import SCORING_RULES
from earn.model.earn_model import EarnModel
from earn.model.reference import reference_search
from earn.runtime.decoder import Decoder, Decoding
from earn.runtime.item_filters import Exclusions
from earn.runtime.search import Search
from earn.specs import Limits, all_specs, generated_rows
from earn.trie import ItemTrie
from tests.support import (
    RULES,
    Agreement,
    CountingEngine,
    histories_of,
    largest_sizes,
    pairs,
    random_catalog,
    small_model,
    toy_catalog,
    watched_recommender,
)

LOOKAHEADS = (None, 0, 4)
WIDTHS = (1, 5, 20)
Codes = NDArray[np.int32]
Ranking = list[tuple[int, float]]
Prefix = tuple[int, ...]
Logits = Callable[[int, Prefix], NDArray[np.float32]]  # of a user, after the prefix


# --- against the reference search, with a model -----------------------------------------------------------------------

# Where one token alone may follow, levels are worth reading together; others branch, or end early.
MIXED = toy_catalog(
    [
        *(f"a{a} b c{c} d{d}" for a in range(4) for c in range(2) for d in range(2)),
        *(f"e{e} f" for e in range(3)),
        *(f"g h{h} i{i}" for h in range(5) for i in range(3)),
        "e0 f",
        "a0 b c0 d0",
        "j",
    ]
)
CATALOGS = {"mixed": MIXED, "random": random_catalog(60, codes=3)}


@dataclass
class Users:
    """A batch of users with histories and exclusions of their own, and the oracle's answers, computed once."""

    model: EarnModel
    histories: list[list[int]]
    oracle: Callable[[str, int, int, bool], list[Ranking]]  # rule, k, width, with exclusions

    @property
    def excluded(self) -> list[list[int]]:
        """Nothing, the best, what the search would otherwise go through, and nearly all."""
        items = range(len(self.model.catalog))
        best = [item for item, _ in self.oracle("level", 3, 20, False)[1]]
        return [[], best, list(items[::3]), list(items[:-4])]


@pytest.fixture(scope="module", params=CATALOGS)
def users(request: pytest.FixtureRequest) -> Users:
    model = small_model("tiny-qwen3", CATALOGS[request.param], early_layers=2, max_history=5)
    histories = histories_of(model.catalog, 4, 7, seed=3)
    assert len(set(map(len, histories))) > 1

    @cache
    def oracle(rule: str, k: int, width: int, excludes: bool) -> list[Ranking]:
        excluded = found.excluded if excludes else [[]] * len(histories)
        return [
            reference_search(model, history, k, width, rule, items)
            for history, items in zip(histories, excluded, strict=True)
        ]

    found = Users(model, histories, oracle)
    return found


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("rule", RULES)
def test_every_lookahead_equals_the_reference_search(users: Users, rule: str, lookahead: int | None) -> None:
    recommender, engine = watched_recommender(users.model, rule, max_batch=4, max_beams=20)
    recommender.lookahead, agreement = lookahead, Agreement()
    for width in WIDTHS:
        for k, excluded in ((width, None), (max(1, width // 3), users.excluded)):
            found = recommender.recommend_batch(users.histories, k, width, excluded)
            for user, want in enumerate(users.oracle(rule, k, width, excluded is not None)):
                agreement.add(f"user {user}, k {k}, width {width}", want, pairs(found[user]))
    agreement.check()
    largest_sizes(engine, all_specs(recommender.manifest.sizes, recommender.manifest.limits))


def rows_of_passes(engine: CountingEngine) -> list[int]:
    """Rows per user of every pass of generated rows: the early calls behind the prompt's."""
    early = [shapes["input_ids"][1] for stage, shapes in engine.shapes if stage == "early"]
    head = [shapes["past_key_values"][0] for stage, shapes in engine.shapes if stage == "early"].index(1)
    return early[head + 1 :]


@pytest.mark.parametrize(
    ("rule", "lookahead", "passes"),
    [
        ("trie", 0, [4, 4]),
        ("trie", 3, [4, 4]),  # four rows would go along
        ("trie", 4, [8]),
        ("trie", None, [8]),
        ("level", 3, [4, 4]),
        ("level", 4, [8]),
        ("vocab", 64, [8]),
    ],
)
def test_lookahead_spares_a_pass_where_few_tokens_can_follow(
    rule: str, lookahead: int | None, passes: list[int]
) -> None:
    """Four first tokens, behind each one second, behind that two third ones: rows are a0..a3, and b behind each."""
    model = small_model(catalog=toy_catalog([f"a{a} b c{c}" for a in range(4) for c in range(2)]), max_history=3)
    recommender, engine = watched_recommender(model, rule, max_beams=8)
    recommender.lookahead = lookahead
    engine.shapes.clear()
    found, want = pairs(recommender.recommend([1, 2], 8)), reference_search(model, [1, 2], 8, 8, rule)
    assert rows_of_passes(engine) == passes
    assert [item for item, _ in found] == [item for item, _ in want]


# --- with a table in the model's place --------------------------------------------------------------------------------


@dataclass
class Table:
    """Stands for the decoder: what it says of a row follows from the tokens that the row sees, itself the last."""

    logits: Logits
    generated: int = 0  # as the state, which it is too
    passes: list[Counter[int]] = field(default_factory=list)  # rows of each pass by user
    shapes: list[int] = field(default_factory=list)  # rows of each pass, those that nobody uses included
    rows: list[tuple[int, Prefix]] = field(default_factory=list)  # user and prefix of all rows so far
    _seen: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # user, row -> depth, token

    def step(
        self, state: Table, tokens: NDArray[np.int64], depth: NDArray[np.int64], sees: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        users, rows = tokens.shape
        assert sees.shape == (users, rows, self.generated + rows)
        for (user, slot), token in np.ndenumerate(tokens):
            if sees[user, slot].any():
                self._seen[user, self.generated + slot] = int(depth[user, slot]), int(token)
        answers: dict[tuple[int, int], NDArray[np.float32]] = {}
        for user, slot in np.argwhere(sees.any(-1)).tolist():
            seen = [int(row) for row in np.flatnonzero(sees[user, slot])]
            assert self.generated + slot in seen
            chain = sorted(self._seen[user, row] for row in seen)  # nobody's padding is seen
            assert [place for place, _ in chain] == list(range(len(chain)))
            assert chain[-1] == (depth[user, slot], tokens[user, slot])
            prefix = tuple(token for _, token in chain)
            self.rows.append((user, prefix))
            answers[user, slot] = self.logits(user, prefix)
        size = len(next(iter(answers.values())))
        found = np.full((users, rows, size), np.nan, np.float32)  # what nobody asked for must not be read
        for place, values in answers.items():
            found[place] = values
        self.passes.append(Counter(user for user, _ in answers))
        self.shapes.append(rows)
        self.generated += rows
        return found


def search(table: Table, codes: Codes, how: Mapping[str, Any], excluded: Sequence[Collection[int]]) -> list[Ranking]:
    """What the runtime finds for as many users as there are exclusions."""
    trie = ItemTrie.build(codes)
    first = np.stack([table.logits(user, ()) for user in range(len(excluded))])
    one = Search(trie, SCORING_RULES[how["scoring"]], how["width"], how["k"], how["lookahead"])
    beams = one.run(cast(Decoder, table), cast(Decoding, table), first, Exclusions.of(trie, excluded))
    ranked: list[Ranking] = [[] for _ in excluded]
    for user, node, score in zip(beams.user.tolist(), beams.node.tolist(), beams.score.tolist(), strict=True):
        ranked[user] += [(item, score) for item in trie.items(node).tolist() if item not in excluded[user]]
    return [items[: one.k] for items in ranked]


def oracle(logits: Logits, codes: Codes, how: Mapping[str, Any], excluded: Sequence[Collection[int]]) -> list[Ranking]:
    """What the reference search finds if its model says what the table says."""
    identifiers = [tuple(code for code in row if code >= 0) for row in codes.tolist()]
    model = cast(EarnModel, SimpleNamespace(identifiers=identifiers, earn=None))

    def last_logits(user: int, model: EarnModel, prompt: object, beams: Sequence[Prefix]) -> torch.Tensor:
        return torch.from_numpy(np.stack([logits(user, beam) for beam in beams])).double()

    found = []
    for user, items in enumerate(excluded):
        said = partial(last_logits, user)
        with patch("earn.model.reference.last_logits", said), patch("earn.model.reference.whole_prompt"):
            found.append(reference_search(model, [], how["k"], how["width"], how["scoring"], items))
    return found


def drawn(seed: int, size: int) -> Logits:
    """Logits drawn anew for every user and prefix."""
    return lambda user, prefix: np.random.default_rng([seed, user, *prefix]).normal(0, 3, size).astype(np.float32)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Codes, dict[str, Any], list[list[int]], int]:
    """A catalog, what is asked for, each user's exclusions, and the seed of the logits."""
    branching = draw(st.lists(st.sampled_from([1, 1, 2, 3, 5]), min_size=1, max_size=5))
    seed, items = draw(st.integers(0, 10**6)), draw(st.integers(1, 60))
    generator, depth = np.random.default_rng(seed), len(branching)
    codes = np.stack([generator.integers(0, count, items) for count in branching], axis=1)
    if draw(st.booleans()):  # the first code decides the length, so that no identifier begins another
        lengths = 1 + (codes[:, 0] + draw(st.integers(0, 4))) % depth
        codes[np.arange(depth) >= lengths[:, None]] = -1
    if draw(st.booleans()):
        codes = np.where(codes >= 0, codes + 5 * np.arange(depth), -1)  # every level has tokens of its own
    codes = codes[:, : int((codes >= 0).any(0).sum())]
    width = draw(st.sampled_from([1, 2, 3, 5, 8, 20, 64]))
    how = {
        "scoring": draw(st.sampled_from(RULES)),
        "width": width,
        "k": draw(st.integers(1, width)),
        "lookahead": draw(st.one_of(st.none(), st.integers(0, 64))),
    }
    share = st.sampled_from([0, 0, 0.2, 0.9, 1])
    excluded = [np.flatnonzero(generator.random(items) < draw(share)).tolist() for _ in range(draw(st.integers(1, 4)))]
    return codes.astype(np.int32), how, excluded, seed


Problem = tuple[Codes, dict[str, Any], list[list[int]], int]


@given(problems())
@settings(deadline=None, max_examples=60)
def test_it_finds_what_the_reference_finds_and_feeds_no_row_twice_or_in_vain(problem: Problem) -> None:
    codes, how, excluded, seed = problem
    table = Table(drawn(seed, 32))
    found = search(table, codes, how, excluded)
    for got, want in zip(found, oracle(table.logits, codes, how, excluded), strict=True):
        assert [item for item, _ in got] == [item for item, _ in want]
        assert [score for _, score in got] == pytest.approx([score for _, score in want], abs=1e-9)
    width, depth = how["width"], codes.shape[1]
    limits = Limits(batch=4, beams=width, history=1, prompt=1, head=0, prefix=0, readout=1, depth=depth)
    assert len(table.rows) == len(set(table.rows))  # no node is fed twice for one user
    assert all(rows <= limits.pass_rows for rows in table.shapes)
    assert table.generated <= generated_rows(width, depth) == limits.generated
    assert all(max(used.values()) == rows for used, rows in zip(table.passes, table.shapes, strict=True))
    identifiers = [tuple(code for code in row if code >= 0) for row in codes.tolist()]
    for user, prefix in table.rows:  # each has an item left below it, and more than one leaf under "trie"
        below = {item for item, one in enumerate(identifiers) if one[: len(prefix)] == prefix != one}
        assert below - set(excluded[user])
        assert how["scoring"] != "trie" or len({identifiers[item] for item in below}) > 1
    assert len(table.shapes) <= max(0, ItemTrie.build(codes).depth - 1)


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(problems())
def test_many_problems_are_solved_as_the_reference_solves_them(problem: Problem) -> None:
    test_it_finds_what_the_reference_finds_and_feeds_no_row_twice_or_in_vain.hypothesis.inner_test(problem)  # type: ignore[attr-defined]


@given(problems())
@settings(deadline=None, max_examples=40)
def test_lookahead_never_costs_a_pass(problem: Problem) -> None:
    codes, how, excluded, seed = problem
    passes, found = [], []
    for lookahead in (0, 4, 64, None):
        table = Table(drawn(seed, 32))
        found.append(search(table, codes, {**how, "lookahead": lookahead}, excluded))
        passes.append(len(table.shapes))
    assert all(one == found[0] for one in found)
    assert passes == sorted(passes, reverse=True)
    assert passes[-2] == passes[-1]  # no width is larger


# Items: 0 and 1 are the token 0, of which no other identifier begins; 2 to 5 are 1-2-4, 1-2-5, 1-3-4, 1-3-5.
SETTLING = np.array([[0, -1, -1], [0, -1, -1], [1, 2, 4], [1, 2, 5], [1, 3, 4], [1, 3, 5]], np.int32)
# Probabilities of the tokens 0 to 5 after a prefix: of the user whose token 0 is likely, and of the other.
LIKELY: Mapping[Prefix, list[float]] = {
    (): [0.6, 0.4, 0, 0, 0, 0],
    (1,): [0, 0, 0.7, 0.3, 0, 0],
    (1, 2): [0, 0, 0, 0, 0.9, 0.1],
    (1, 3): [0, 0, 0, 0, 0.6, 0.4],
}
UNLIKELY = {**LIKELY, (): [0.1, 0.9, 0, 0, 0, 0]}


def told(user: int, prefix: Prefix) -> NDArray[np.float32]:
    """Users 0, 2, ... like the token 0, the others do not."""
    return np.log(np.maximum(1e-30, [LIKELY, UNLIKELY][user % 2][prefix])).astype(np.float32)


def settle(k: int, *excluded: Collection[int], lookahead: int = 0) -> tuple[list[Ranking], Table]:
    table = Table(told)
    how = {"scoring": "trie", "width": 4, "k": k, "lookahead": lookahead}
    return search(table, SETTLING, how, excluded), table


@pytest.mark.parametrize(
    ("excluded", "k", "best", "fed"),
    [
        ((), 1, [0], []),  # after the first code: token 0 with 0.6, which names two items; the open beam 1 with 0.4
        ((), 2, [0, 1], []),
        ((), 3, [0, 1, 2], [(1,), (1, 2), (1, 3)]),  # third place: 1-2-4 with 0.4 * 0.7 * 0.9
        ((0,), 1, [1], []),  # one item of token 0 is left, and that is enough
        ((0,), 2, [1, 2], [(1,), (1, 2), (1, 3)]),
        ((0, 1), 1, [2], [(1,), (1, 2), (1, 3)]),
    ],
)
def test_a_user_goes_on_until_the_best_items_cannot_change(
    excluded: tuple[int, ...], k: int, best: list[int], fed: list[Prefix]
) -> None:
    (found,), table = settle(k, excluded)
    score = {0: 0.6, 1: 0.6, 2: 0.4 * 0.7 * 0.9}
    assert [item for item, _ in found] == best
    assert [score for _, score in found] == pytest.approx([log(score[item]) for item in best], abs=1e-6)
    assert [prefix for _, prefix in table.rows] == fed


@pytest.mark.parametrize("lookahead", [0, 2])
def test_settled_users_take_no_further_rows_while_others_go_on(lookahead: int) -> None:
    """The token 0 of every second user has 0.1 and stands behind the open beam 1 with 0.9: it settles nothing."""
    together, table = settle(2, (), (), (), (2,), (0,), (5,), lookahead=lookahead)
    assert {user for user, _ in table.rows} == {1, 3, 4, 5}
    assert table.shapes == ([1, 2] if lookahead == 0 else [3])
    assert together[0] == together[2] == settle(2, ())[0][0]
    assert [item for item, _ in together[1]] == [2, 4]  # 1-2-4 with 0.9 * 0.7 * 0.9, 1-3-4 with 0.9 * 0.3 * 0.6
    assert [item for item, _ in together[3]] == [4, 5]  # 1-3-5 with 0.9 * 0.3 * 0.4, token 0 with 0.1
    assert [item for item, _ in together[4]] == [1, 2]  # of token 0 one item is left: the second place is open
    assert together[5] == together[1]
