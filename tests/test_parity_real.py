"""On real histories, the bundle recommends what the reference search recommends: same items, same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle, islice, product
from pathlib import Path

import pytest

from earn.catalog import Catalog
from earn.data import load_interactions, split_of
from earn.data.identifiers import build_catalog
from earn.export.bundle import export_bundle
from earn.model.earn_model import EarnModel
from earn.model.reference import reference_search
from earn.runtime.lists import Recommendation
from earn.runtime.recommender import Recommender
from tests.support import FAMILIES, RULES, Agreement, closest_call, small_model, sweep

HISTORIES = 120
FEW = 30  # histories of the default run, which are among them; of every length
LONGEST = 25  # items, five more than the models read
BATCH = 8
K = 10
WIDE = 16  # beams, more than K
PAIRED = list(islice(zip(cycle(FAMILIES), cycle(RULES), strict=False), max(len(FAMILIES), len(RULES))))
# The slow run asks all users of one combination, and the few of every other.
EVERY = [(*case, HISTORIES if case == PAIRED[0] else FEW) for case in product(FAMILIES, RULES)]
CASES = sweep([(*case, FEW) for case in PAIRED], EVERY)
Ranking = list[tuple[str, float]]


@dataclass(frozen=True)
class Real:
    """Real users over a real catalog, and the oracle's answers, computed once."""

    catalog: Catalog
    histories: tuple[tuple[int, ...], ...]  # item indices; of every length up to LONGEST
    model: Callable[[str], EarnModel]
    oracle: Callable[[str, str, int], Ranking]  # backbone, rule, number of the history
    folder: Path

    def ids(self, items: Sequence[int]) -> list[str]:
        return [self.catalog.item_ids[item] for item in items]

    def recommender(self, backbone: str, rule: str) -> Recommender:
        folder = self.folder / backbone / rule
        if not folder.exists():
            check = [self.ids(history) for history in self.histories[:2]]
            export_bundle(self.model(backbone), folder, check, rule, max_batch=BATCH, max_beams=WIDE)
        return Recommender.load(folder, threads=1)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    interactions = load_interactions("ml-100k")
    split = split_of(interactions)
    catalog = build_catalog(interactions, split.train)
    users = split.test[:: len(split.test) // HISTORIES][:HISTORIES]
    lengths = [1 + 7 * number % LONGEST for number in range(HISTORIES)]
    histories = tuple(tuple(user.history[-length:].tolist()) for user, length in zip(users, lengths, strict=True))

    @cache
    def model(backbone: str) -> EarnModel:
        return small_model(backbone, catalog, early_layers=2)

    @cache
    def oracle(backbone: str, rule: str, number: int) -> Ranking:
        found = reference_search(model(backbone), histories[number], K, K, rule)
        return [(catalog.item_ids[item], score) for item, score in found]

    return Real(catalog, histories, model, oracle, tmp_path_factory.mktemp("real"))


def ranking(items: Sequence[Recommendation]) -> Ranking:
    return [(item.item_id, item.score) for item in items]


@pytest.mark.parametrize(("backbone", "rule", "users"), CASES)
def test_the_bundle_recommends_what_the_reference_search_does(real: Real, backbone: str, rule: str, users: int) -> None:
    def closest(number: int) -> float:
        return closest_call(real.model(backbone), real.histories[number], K, rule)

    recommender, agreement = real.recommender(backbone, rule), Agreement()
    histories = [real.ids(history) for history in real.histories[:users]]
    wanted = [real.oracle(backbone, rule, number) for number in range(users)]
    for number, (history, want) in enumerate(zip(histories, wanted, strict=True)):
        found = ranking(recommender.recommend(history, K, K))
        agreement.add(f"history {number}, batch 1", want, found, partial(closest, number))
    for start in range(0, users, BATCH):
        batch = recommender.recommend_batch(histories[start : start + BATCH], K, K)
        for number, items in enumerate(batch, start):
            agreement.add(f"history {number}, batch {BATCH}", wanted[number], ranking(items), partial(closest, number))
    assert agreement.lists == 2 * users
    assert len({tuple(item for item, _ in want) for want in wanted}) > 0.9 * users  # lists tell users apart
    agreement.check()


@pytest.mark.parametrize(("backbone", "rule", "users"), CASES)
def test_with_exclusions_the_bundle_still_recommends_what_the_reference_search_does(
    real: Real, backbone: str, rule: str, users: int
) -> None:
    recommender, agreement = real.recommender(backbone, rule), Agreement()
    numbers = range(0, users, max(5, users // 30))
    histories = [real.ids(real.histories[number]) for number in numbers]
    # The best items themselves, of which every third user is left alone.
    best = [[item for item, _ in real.oracle(backbone, rule, number)[: number % 3 * 2]] for number in numbers]
    excluded = [
        {*real.histories[number], *(real.catalog.index[item] for item in items)}
        for number, items in zip(numbers, best, strict=True)
    ]
    wanted = [
        reference_search(real.model(backbone), real.histories[number], K, WIDE, rule, items)
        for number, items in zip(numbers, excluded, strict=True)
    ]

    def closest(place: int) -> float:
        return closest_call(real.model(backbone), real.histories[numbers[place]], WIDE, rule, excluded[place])

    for batch in (1, BATCH):
        for start in range(0, len(numbers), batch):
            chosen = slice(start, start + batch)
            got = recommender.recommend_batch(histories[chosen], K, WIDE, best[chosen], exclude_history=True)
            for place, ranked in enumerate(got, start):
                assert not excluded[place] & {real.catalog.index[item.item_id] for item in ranked}
                want = [(real.catalog.item_ids[item], score) for item, score in wanted[place]]
                agreement.add(
                    f"history {numbers[place]}, batch {batch}", want, ranking(ranked), partial(closest, place)
                )
    assert agreement.lists == 2 * len(numbers)
    agreement.check()
