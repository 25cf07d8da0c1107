"""What a data set holds, and what in it will hurt a recommender.

`figures` counts. `advice` gives a line for each count that is odd, and marks the serious ones. The figures are a
dictionary that JSON can hold:

    name, users, items, interactions
    density           interactions / (users * items)
    history           min, median, max of items per user, and lengths: how many users have so many items
    order             ties: interactions that share their time with others of the user, exact_repeats: those that share
                      the item too, null where the source has no times; repeats: interactions with an item that the
                      user had before; repeats_in_a_row: right before
    short_users       users without a test question
    unseen_items      without any interaction; untrained_items: without one in the training part
    untitled_items    without a title
    identifiers       from: data or built; the rest is null where they are yet to be built
                      depth: the most tokens; distinct; shared: identifiers that name several items
                      items_sharing: items with such an identifier; largest: the most items on one
                      targets_sharing: the share of test questions whose answer is such an item
                      ceiling: recall and NDCG of a model that always puts the right identifier first
                      levels: per token of the identifier, codes: distinct ones, evenness: entropy of the items over
                      them / log(codes), which is 1 where all name equally many items
    split             from, train, valid, test: users in each part
    targets_untrained the share of test questions whose answer no training user chose
    targets_repeated  the share of test questions whose answer stands in the history
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.catalog import Catalog
from earn.data.dataset import Dataset
from earn.data.formats import Interactions
from earn.data.identifiers import numbers_within
from earn.data.splits import flat, item_counts
from earn.metrics import summarise

COLD = "targets_untrained"
MANY_TARGETS = 0.05  # share of the test questions from which on a fault is serious
LENGTHS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)  # where the classes of history lengths begin
OF_IDENTIFIERS = (
    "depth", "distinct", "shared", "items_sharing", "largest", "targets_sharing", "ceiling", "levels",
)  # fmt: skip
FEW_QUESTIONS = 300  # below, chance hides small differences between models


@dataclass(frozen=True)
class Advice:
    """Something odd, what follows from it, and what to do."""

    text: str
    is_serious: bool = False


def figures(dataset: Dataset, catalog: Catalog | None = None) -> dict[str, Any]:
    """The figures of a data set (module docstring).

    Args:
        dataset: read and split.
        catalog: the identifiers that a training would use; None: those of the data, if it brings some.
    """
    interactions, split = dataset.interactions, dataset.split
    lengths = np.array([len(sequence) for sequence in interactions.sequences])
    users, items = len(interactions.user_ids), len(interactions.item_ids)
    seen, trained = (item_counts(sequences, items) for sequences in (interactions.sequences, split.train))
    targets = np.array([example.target for example in split.test], np.int64)
    return {
        "name": interactions.name,
        "users": users,
        "items": items,
        "interactions": int(lengths.sum()),
        "density": float(lengths.sum() / (users * items)),
        "history": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "max": int(lengths.max()),
            "lengths": _histogram(lengths),
        },
        "order": _order(interactions),
        "short_users": users - len(split.test),
        "unseen_items": int((seen == 0).sum()),
        "untrained_items": int((trained == 0).sum()),
        "untitled_items": sum(not title for title in interactions.titles),
        "identifiers": _identifiers(interactions, catalog, targets),
        "split": {
            "from": "leave-one-out" if interactions.held_out is None else "data",
            "train": len(split.train),
            "valid": len(split.valid),
            "test": len(split.test),
        },
        COLD: _share(trained[targets] == 0),
        "targets_repeated": _share(np.array([example.target in example.history for example in split.test])),
    }


def _share(holds: NDArray[np.bool_]) -> float:
    return float(holds.mean()) if holds.size else 0.0


def _histogram(lengths: NDArray[np.int64]) -> list[dict[str, int | None]]:
    """Users per class of lengths, up to the last class that has any; the last class of all has no end."""
    ends: list[int | None] = [*(start - 1 for start in LENGTHS[1:]), None]
    counts = np.bincount(np.searchsorted(LENGTHS, lengths, side="right") - 1)
    return [{"from": start, "to": end, "users": count} for start, end, count in zip(LENGTHS, ends, counts.tolist())]  # noqa: B905


def _order(interactions: Interactions) -> dict[str, int | None]:
    users, items = flat(interactions.sequences)
    pairs = np.sort(users * len(interactions.item_ids) + items)
    ties = interactions.ties
    return {
        "ties": None if ties is None else ties.interactions,
        "exact_repeats": None if ties is None else ties.exact_repeats,
        "repeats": int((pairs[1:] == pairs[:-1]).sum()),
        "repeats_in_a_row": int(((users[1:] == users[:-1]) & (items[1:] == items[:-1])).sum()),
    }


def _identifiers(interactions: Interactions, catalog: Catalog | None, targets: NDArray[np.int64]) -> dict[str, Any]:
    own = interactions.catalog
    catalog = catalog or own
    if catalog is None:
        return {"from": "built", **dict.fromkeys(OF_IDENTIFIERS)}
    _, group, sizes = np.unique(catalog.codes, axis=0, return_inverse=True, return_counts=True)
    is_sharing = sizes[group.reshape(-1)] > 1  # [items]; numpy 2.0 gives the groups another shape
    places = numbers_within(catalog.codes, np.zeros(len(catalog), np.int64))  # lists have clones in this order
    values = (
        catalog.depth,
        len(sizes),
        int((sizes > 1).sum()),
        int(is_sharing.sum()),
        int(sizes.max()),
        _share(is_sharing[targets]),
        summarise(places[targets]),
        [_level(codes[codes >= 0]) for codes in catalog.codes.T],
    )
    return {"from": "data" if catalog is own else "built", **dict(zip(OF_IDENTIFIERS, values, strict=True))}


def _level(codes: NDArray[np.int32]) -> dict[str, float]:
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    return {"codes": len(counts), "evenness": entropy / float(np.log(len(counts))) if len(counts) > 1 else 1.0}


def advice(facts: dict[str, Any]) -> list[Advice]:
    """What is odd in these figures, the serious first."""
    found = [*_of_users(facts), *_of_order(facts), *_of_items(facts), *_of_identifiers(facts["identifiers"])]
    return sorted(found, key=lambda line: not line.is_serious)


def _of_users(facts: dict[str, Any]) -> Iterator[Advice]:
    users, questions, short = facts["users"], facts["split"]["test"], facts["short_users"]
    if short and facts["split"]["from"] == "leave-one-out":  # a split of the data's own leaves users out on purpose
        yield Advice(
            f"{short:,} of {users:,} users have fewer than 3 items: they train, but nobody asks for them. Give longer "
            "histories, or drop these users (of a table: earn import --k-core 3).",
            2 * short > users,
        )
    if not questions:
        yield Advice("No user can be asked a test question, so no model can be measured.", is_serious=True)
    elif questions < FEW_QUESTIONS:
        yield Advice(
            f"So few test questions ({questions:,}) can hardly show a small difference between models; 1,000 can."
        )


def _of_order(facts: dict[str, Any]) -> Iterator[Advice]:
    order, repeated = facts["order"], facts["targets_repeated"]
    if order["ties"]:
        yield Advice(
            f"{order['ties']:,} of {facts['interactions']:,} interactions share their time with others of the user, so "
            "the file's order decides what comes next. To draw it: earn import --ties shuffle."
        )
    if order["exact_repeats"]:
        yield Advice(
            f"{order['exact_repeats']:,} interactions are exact repeats (user, item, time): earn import --dedupe."
        )
    if repeated > MANY_TARGETS:
        yield Advice(
            f"{repeated:.0%} of the test answers stand in their own history, so lists that repeat it score well, and "
            "--exclude-history rules them out. Where repeats mean nothing, drop them: earn import --dedupe all.",
            is_serious=True,
        )


def _of_items(facts: dict[str, Any]) -> Iterator[Advice]:
    items, unseen, untitled, cold = (facts[name] for name in ("items", "unseen_items", "untitled_items", COLD))
    if unseen:
        yield Advice(
            f"{unseen:,} of {items:,} items have no interaction: nothing teaches a model to recommend them.",
            5 * unseen > items,
        )
    if cold:
        yield Advice(
            f"{cold:.1%} of the test answers are items that no training history holds, so they are hardly ever found. "
            "Give more interactions, or drop rare items (of a table: earn import --k-core 5).",
            cold > MANY_TARGETS,
        )
    if untitled:
        what = "No item has a title" if untitled == items else f"{untitled:,} of {items:,} items have no title"
        yield Advice(f"{what}. Titles help to build identifiers and to read lists (of a table: --items FILE).")


def _of_identifiers(facts: dict[str, Any]) -> Iterator[Advice]:
    if facts["shared"]:
        yield Advice(
            f"{facts['items_sharing']:,} items share {facts['shared']:,} identifiers, at most {facts['largest']:,} "
            f"one: {facts['targets_sharing']:.1%} of right lists hold such clones, and NDCG@10 is at most "
            f"{facts['ceiling']['ndcg@10']:.4f}. To tell them apart: earn train --disambiguate.",
            facts["targets_sharing"] > 0.01,
        )
    # of identifiers that were just built nothing better can be built; the last level may only tell clones apart
    levels = facts["levels"][:-1] if facts["levels"] and facts["from"] == "data" else []
    for number, level in enumerate(levels, start=1):
        if level["codes"] == 1 or level["evenness"] < 0.7:
            yield Advice(
                f"Level {number} of the identifiers uses {level['codes']:,} codes unevenly (entropy "
                f"{level['evenness']:.0%} of the most there can be), so it tells few items apart: "
                "earn train --build-identifiers.",
                is_serious=True,
            )
