"""Whether items that training never saw reach those who chose them, from their titles and metadata alone.

    python -m experiments.new_items                  # ml-100k, a tenth of the items held out, about five minutes
    python -m experiments.new_items --epochs 1 --users 50   # a check that everything runs

Held-out items are taken out of the catalog, of all histories and of what identifiers are made of; a small model of
`--method set` is trained on the rest. Then they are added by their words. Everybody who chose one is asked, with
the known items before it as history; the last one of each counts.

    whole_catalog   Recall among all items, known and new
    new_alone       Recall among the new ones, the known ones excluded: does a user get the right ones?
    chance          of lists drawn at random
    beams           cannot name new items before another training and export: 0

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.console import note, show, show_json, table
from earn.data.dataset import Dataset, load_dataset, sample
from earn.data.formats import Interactions
from earn.data.splits import split_of
from earn.errors import EarnError
from earn.export.stages import torch_recommender
from earn.export.validation import search_validation
from earn.metrics import Example
from earn.model.methods import build_model
from earn.model.training import train
from earn.new_items import NewItems
from earn.runtime.recommender import Recommender
from earn.settings import TrainSettings, let_waiting_threads_sleep

CUTOFFS = (10, 20)
BACKBONE, SIZES = "tiny-llama", {"num_hidden_layers": 2}


def main() -> None:
    """Trains, asks and prints."""
    let_waiting_threads_sleep()
    try:
        run(parse())
    except EarnError as error:
        sys.exit(str(error))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k", help="whose items (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.1, help="of the items held out (default: %(default)s)")
    parser.add_argument("--digits", default="16", help="16, or 16+items, ... (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--users", type=int, default=100_000, help="at most so many are asked")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """The whole measurement."""
    whole = load_dataset(arguments.data).interactions
    items = len(whole.item_ids)
    generator = np.random.default_rng(arguments.seed)
    is_new = np.zeros(items, bool)
    is_new[generator.permutation(items)[: round(arguments.share * items)]] = True
    known = without(whole, is_new)
    data = Dataset(arguments.data, known, split_of(known))
    note(f"{items - is_new.sum()} known items, {is_new.sum()} new ones")
    catalog = data.catalog(arguments.seed, digits=arguments.digits)
    model = build_model("set", BACKBONE, catalog, 1, sizes=SIZES, seed=arguments.seed)
    settings = TrainSettings(arguments.epochs, 32, 4e-3, hidden_dropout=0.1, validation_users=300, seed=arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        train(model, data.split.train, Path(name) / "model", search_validation(data, True, 300), settings, say=note)
    model.eval()
    chosen = np.flatnonzero(is_new)
    fields = ([values[item] for item in chosen] for values in (whole.item_ids, whole.titles, whole.metadata))
    recommender = torch_recommender(model).with_new_items(NewItems(*fields))
    asked = sample(questions(whole, is_new), arguments.users)
    figures = {
        "whole_catalog": recall(recommender, whole, asked, ()),
        "new_alone": recall(recommender, whole, asked, known.item_ids),
    }
    chance = {"whole_catalog": items - is_new.sum(), "new_alone": 0}  # known items that compete
    rows = [
        (
            name,
            *(f"{value:.4f}" for value in values),
            *(f"{cutoff / (is_new.sum() + chance[name]):.4f}" for cutoff in CUTOFFS),
        )
        for name, values in figures.items()
    ]
    show(table(["", *(f"Recall@{cutoff}" for cutoff in CUTOFFS), *(f"chance@{cutoff}" for cutoff in CUTOFFS)], rows))
    about = {"data": arguments.data, "digits": arguments.digits, "known": int(items - is_new.sum())}
    show_json({**figures, **about, "new": int(is_new.sum()), "users": len(asked), "cutoffs": CUTOFFS})


def without(whole: Interactions, is_new: NDArray[np.bool_]) -> Interactions:
    """The interactions without those items; users with fewer than three left go too."""
    index = np.cumsum(~is_new) - 1
    kept = np.flatnonzero(~is_new)
    sequences = {
        user: index[items[~is_new[items]]] for user, items in zip(whole.user_ids, whole.sequences, strict=True)
    }
    left = {user: items for user, items in sequences.items() if len(items) > 2}

    def of(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(values[item] for item in kept)

    return replace(
        whole,
        item_ids=of(whole.item_ids),
        titles=of(whole.titles),
        metadata=of(whole.metadata),
        user_ids=tuple(left),
        sequences=tuple(left.values()),
        catalog=None,
        held_out=None,
        ties=None,
    )


def questions(whole: Interactions, is_new: NDArray[np.bool_]) -> list[Example]:
    """Of every user the newest new item that known ones come before, with these."""
    found = []
    for user, items in zip(whole.user_ids, whole.sequences, strict=True):
        known = ~is_new[items]
        places = [place for place in np.flatnonzero(~known) if known[:place].any()]
        if places:
            found.append(Example(user, items[: places[-1]][known[: places[-1]]], int(items[places[-1]])))
    return found


def recall(
    recommender: Recommender, whole: Interactions, asked: Sequence[Example], excluded: tuple[str, ...]
) -> list[float]:
    """Recall at CUTOFFS among the items that are not excluded, histories left out."""
    hits = np.zeros(len(CUTOFFS))
    for example in asked:
        history = [whole.item_ids[item] for item in example.history]
        got = recommender.recommend(history, max(CUTOFFS), exclude=excluded, exclude_history=True)
        ids = [item.item_id for item in got]
        hits += [whole.item_ids[example.target] in ids[:cutoff] for cutoff in CUTOFFS]
    return [round(float(value), 4) for value in hits / len(asked)]


if __name__ == "__main__":
    main()
