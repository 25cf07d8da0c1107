"""`earn data`: what a data set holds."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from earn.cli.arguments import add_data, add_json, command
from earn.console import pairs, show, show_json

if TYPE_CHECKING:
    from earn.cli.arguments import Subparsers
    from earn.data.dataset import Dataset


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "data",
        run,
        "show what a data set holds",
        "Reads a data set and shows its users, items, history lengths, identifiers and split. "
        "Items without identifiers get them by residual k-means.",
        """
        earn data ml-100k
        earn data LC-Rec/Instruments --json
        """,
    )
    add_data(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Describes the data set."""
    from earn.data.dataset import load_dataset

    facts = describe(load_dataset(args.data))
    show_json(facts) if args.json else show(_text(facts))
    return 0


def describe(dataset: Dataset) -> dict[str, Any]:
    """The figures of a data set."""
    interactions, split, catalog = dataset.interactions, dataset.split, dataset.catalog()
    lengths = [len(sequence) for sequence in interactions.sequences]
    names = Counter(catalog.identifiers)
    return {
        "name": interactions.name,
        "users": len(interactions.user_ids),
        "items": len(interactions.item_ids),
        "interactions": sum(lengths),
        "history": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
        "identifiers": {
            "from": "data" if interactions.catalog is not None else "built",
            "depth": catalog.depth,
            "distinct": len(names),
            "shared": sum(count > 1 for count in names.values()),
        },
        "split": {
            "from": "leave-one-out" if interactions.held_out is None else "data",
            "train": len(split.train),
            "valid": len(split.valid),
            "test": len(split.test),
        },
    }


def _text(facts: dict[str, Any]) -> str:
    history, identifiers, split = facts["history"], facts["identifiers"], facts["split"]
    origins = {"data": "brought by the data", "built": "built by residual k-means"}
    rows = [
        ("data", facts["name"]),
        *((name, f"{facts[name]:,}") for name in ("users", "items", "interactions")),
        ("items per user", f"{history['min']} to {history['max']}, median {history['median']:g}"),
        ("identifiers", f"{origins[identifiers['from']]}, up to {identifiers['depth']} tokens"),
        ("", f"{identifiers['distinct']:,} distinct, {identifiers['shared']:,} name several items"),
        ("split", origins.get(split["from"], split["from"])),
        ("", f"{split['train']:,} training users, {split['valid']:,} valid, {split['test']:,} test"),
    ]
    return pairs(rows)
