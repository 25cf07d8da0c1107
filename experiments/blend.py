"""A bundle's lists blended with item-kNN: is the whole better than its parts, and for rare items too?

    python -m experiments.blend BUNDLE DATA          # for example set-bundle amazon-beauty-letter

    p(j)      what the bundle gives item j: exp(score) of its best MOST items, 0 beyond them
    s(j)      the score of item-kNN (experiments.rivals); q(j) = s(j) / sum(s)
    mixture   (1 - w) p + w q, over the items of both
    sum       log p + w s, over the bundle's items alone

Of each blend the weight w is chosen by the NDCG@10 of validation users, and the test users are asked once. Lists leave
the history out. Works for beams and for all codes at once. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.console import note, progress, show, show_json, table
from earn.data.dataset import Dataset, load_dataset, sample
from earn.errors import EarnError
from earn.metrics import Example, bootstrap_interval, ndcg
from earn.runtime.recommender import Recommender
from experiments.afterwards import RARE
from experiments.rivals import DECAYS, Scores, item_cosines, knn_scores, target_ranks
from experiments.runs import MEASURES

MOST = 64  # items of the bundle's list, or as many as it gives
VALIDATION_USERS = 5000
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)

Floats = NDArray[np.float32]
Blend = Callable[[Floats, Floats, float], Floats]  # p and s [users,items], w -> what is ranked [users,items]


def mixture(model: Floats, neighbours: Floats, weight: float) -> Floats:
    """(1 - w) p + w q; of weights above 1 that of 1."""
    share = min(weight, 1.0)
    total = np.maximum(neighbours.sum(1, keepdims=True), 1e-9)
    scores: Floats = (1 - share) * model + share * neighbours / total
    return scores


def added(model: Floats, neighbours: Floats, weight: float) -> Floats:
    """log p + w s; -inf where p is 0."""
    with np.errstate(divide="ignore"):
        scores: Floats = np.log(model) + np.float32(weight) * neighbours
    return scores


BLENDS: Mapping[str, Blend] = {"mixture": mixture, "sum": added}


def blended(model: Scores, neighbours: Scores, blend: Blend, weight: float) -> Scores:
    """The scores of a blend; both parts leave out what the history holds."""

    def scores(users: Sequence[Example]) -> Floats:
        own, near = model(users), neighbours(users)
        for row, example in zip(near, users, strict=True):
            row[example.history] = 0
        return blend(own, near, weight)

    return scores


def listed(recommender: Recommender, dataset: Dataset, users: Sequence[Example]) -> Scores:
    """What a bundle gives each item (`p` above); all these users are asked now, and later by their place."""
    most, item_ids = min(MOST, recommender.manifest.limits.beams), dataset.interactions.item_ids
    place = {item_id: index for index, item_id in enumerate(item_ids)}
    batch, shown = recommender.manifest.limits.batch, progress("users")
    lists: dict[str, tuple[list[int], list[float]]] = {}
    for start in range(0, len(users), batch):
        chosen = users[start : start + batch]
        found = recommender.recommend_batch(dataset.histories(chosen), most, most, exclude_history=True)
        for user, items in zip(chosen, found, strict=True):
            lists[user.user] = [place[item.item_id] for item in items], [np.exp(item.score) for item in items]
        shown(min(start + batch, len(users)), len(users))

    def scores(users: Sequence[Example]) -> Floats:
        rows = np.zeros((len(users), len(item_ids)), np.float32)
        for row, user in zip(rows, users, strict=True):
            items, given = lists[user.user]
            row[items] = given
        return rows

    return scores


def chosen_weight(of_weight: Callable[[float], Scores], judges: Sequence[Example]) -> tuple[float, float]:
    """The weight with the highest NDCG@10 of these users, and that NDCG@10; of equals the smallest."""
    by_weight = {weight: float(ndcg(target_ranks(of_weight(weight), judges), 10).mean()) for weight in WEIGHTS}
    note(f"NDCG@10 of validation users by weight: {by_weight}")
    return max(by_weight.items(), key=lambda pair: pair[1])


def figures(scores: Scores, users: Sequence[Example], is_rare: NDArray[np.bool_]) -> dict[str, Any]:
    """Means of MEASURES over all users and over those whose item is rare, and the intervals of the former."""
    ranks = target_ranks(scores, users)
    found: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        each = measure(ranks, 10)
        found[name] = float(each.mean())
        found[f"{name} interval"] = bootstrap_interval(each)
        found[f"{name} rare"] = float(each[is_rare].mean())
    return found


def run(bundle: Path, data: str) -> dict[str, Any]:
    """Chooses and asks; the figures by the name of what was asked."""
    dataset, recommender = load_dataset(data), Recommender.load(bundle, threads=1)
    dataset.check_items(recommender.catalog, bundle)
    cosines = item_cosines(dataset.split.train, len(dataset.interactions.item_ids))
    counts = np.bincount(np.concatenate(dataset.split.train), minlength=cosines.shape[0])
    judges, users = sample(dataset.examples("valid"), VALIDATION_USERS), dataset.examples()
    is_rare = counts[[example.target for example in users]] < RARE
    decays = {decay: float(ndcg(target_ranks(knn_scores(cosines, decay), judges), 10).mean()) for decay in DECAYS}
    neighbours = knn_scores(cosines, max(decays, key=lambda decay: decays[decay]))
    of_judges, of_users = (listed(recommender, dataset, examples) for examples in (judges, users))
    found = {name: figures(scores, users, is_rare) for name, scores in (("bundle", of_users), ("item-knn", neighbours))}
    for name, blend in BLENDS.items():
        weight, best = chosen_weight(partial(blended, of_judges, neighbours, blend), judges)
        found[name] = {"weight": weight, "valid_ndcg@10": best}
        found[name] |= figures(blended(of_users, neighbours, blend, weight), users, is_rare)
    return {"users": len(users), "rare": int(is_rare.sum()), **found}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what the blends give."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments.blend", description=__doc__, formatter_class=raw)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    args = parser.parse_args(argv)
    try:
        found = run(args.bundle, args.data)
    except EarnError as error:
        sys.exit(f"{parser.prog}: {error}")
    columns = [f"{name}{users}" for users in ("", " rare") for name in MEASURES]
    rows = [
        (name, str(row.get("weight", "")), *(f"{row[column]:.4f}" for column in columns))
        for name, row in found.items()
        if isinstance(row, dict)
    ]
    show(table(("", "weight", *columns), rows))
    show_json(found)


if __name__ == "__main__":
    main()
