"""`earn data`: what a data set holds, and what in it is odd."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import Subparsers, add_shared, command, option
from earn.console import pairs, show, show_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earn.data.checkup import Advice

BAR = 30  # characters of the longest bar
ORIGINS = {"data": "brought by the data", "built": "built by residual k-means"}


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "data",
        run,
        "check up a data set",
        "Reads a data set and shows its users, items, history lengths, identifiers and split, with advice on what is "
        "odd.",
        """
        earn data ml-100k
        earn data ratings.csv --identifiers
        earn data LC-Rec/Instruments --json
        """,
    )
    add_shared(parser, "data")
    text = "build identifiers, as a training does, where the data brings none; they are kept for the training"
    option(parser, "--identifiers", text, bool)
    add_shared(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Checks up the data set."""
    from earn.data.checkup import advice, figures
    from earn.data.dataset import load_dataset

    dataset = load_dataset(args.data)
    facts = figures(dataset, dataset.catalog() if args.identifiers else None)
    lines = advice(facts)
    show_json({**facts, "advice": list(map(asdict, lines))}) if args.json else show(text(facts, lines))
    return 0


def text(facts: dict[str, Any], advice: Sequence[Advice]) -> str:
    """The figures and the advice for people."""
    return "\n".join([pairs(_rows(facts)), *map(advice_line, advice)])


def advice_line(line: Advice) -> str:
    """One line of advice."""
    return f"{'Serious' if line.is_serious else 'Note'}: {line.text}"


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    history, split, order = facts["history"], facts["split"], facts["order"]
    ties = "no times" if order["ties"] is None else f"{order['ties']:,} ties in time"
    return [
        ("data", facts["name"]),
        *((name, f"{facts[name]:,}") for name in ("users", "items", "interactions")),
        ("density", f"{facts['density']:.2%}"),
        ("items per user", f"{history['min']} to {history['max']}, median {history['median']:g}"),
        *_histogram(history["lengths"]),
        ("order", f"{ties}, {order['repeats']:,} repeats, {order['repeats_in_a_row']:,} of them in a row"),
        ("items", f"{facts['unseen_items']:,} never seen, {facts['untitled_items']:,} without title"),
        *_identifiers(facts["identifiers"]),
        ("split", ORIGINS.get(split["from"], split["from"])),
        ("", f"{split['train']:,} training users, {split['valid']:,} valid, {split['test']:,} test"),
    ]


def _histogram(classes: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    most = max(row["users"] for row in classes)
    rows = []
    for row in dropwhile(lambda row: not row["users"], classes):
        start, end = row["from"], row["to"]
        span = f"{start}+" if end is None else f"{start}" if start == end else f"{start}-{end}"
        bar = "#" * -(-row["users"] * BAR // most)  # rounded up: a user is seen
        rows.append(("", f"{span:>7} {bar:<{BAR}} {row['users']:,}"))
    return rows


def _identifiers(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if facts["depth"] is None:
        return [("identifiers", "none; a training builds them by residual k-means, --identifiers shows them")]
    levels = ", ".join(f"{level['codes']:,} ({level['evenness']:.0%})" for level in facts["levels"])
    return [
        ("identifiers", f"{ORIGINS[facts['from']]}, up to {facts['depth']} tokens"),
        ("", f"{facts['distinct']:,} distinct, {facts['shared']:,} name several items"),
        ("", f"codes per level (evenness): {levels}"),
    ]
