"""`earn recommend`: the next items for one history, from a bundle. Needs numpy and ONNX Runtime alone."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from earn.cli.arguments import (
    ITEM_IDS_HELP,
    Subparsers,
    add_filters,
    add_shared,
    add_unknown,
    command,
    item_ids,
    option,
    positive,
)
from earn.cli.engine import add_engine, chosen_engine
from earn.console import show, show_json, table
from earn.filters import AllOf, AnyOf, from_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earn.runtime.lists import Recommendation


WIDEST_TITLE = 100


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "recommend",
        run,
        "recommend items for one history",
        "Recommends the next items for a history of item ids, oldest first. The score is the "
        "log-probability of the item's identifier, or of a blend (earn blend).",
        """
        earn recommend BUNDLE --history 50,172,181
        earn recommend BUNDLE --history 50,172,181 -k 5 --exclude-history --json
        earn recommend BUNDLE --history @history.txt
        earn recommend BUNDLE --history 50,172 --allow genre:Comedy --block adult --block '{"items": ["9"]}'
        """,
    )
    add_shared(parser, "place")
    option(parser, "--history IDS", f"oldest first: {ITEM_IDS_HELP}", item_ids, required=True)
    option(parser, "-k", "items to recommend (default: 10, or the most that the bundle gives)", positive)
    width = "width of the search (default: 20, or the most that the bundle takes)"
    option(parser, "--beams N", width, positive)
    option(parser, "--exclude IDS", "items that may not come back, likewise", item_ids)
    add_shared(parser, "exclude_history")
    add_filters(parser)
    add_unknown(parser, "what to do with ids that the catalog lacks")
    add_engine(parser)
    add_shared(parser, "threads", "json")


def run(args: argparse.Namespace) -> int:
    """Recommends."""
    from earn.runtime.recommender import Recommender

    recommender = Recommender.load(args.bundle, chosen_engine(args.engine, args.bundle), args.threads)
    k = args.k or min(10, recommender.manifest.limits.beams)
    allow, block = AllOf(map(from_text, args.allow)), AnyOf(map(from_text, args.block))
    items = recommender.recommend(
        args.history, k, args.beams, args.exclude or (), args.exclude_history, args.unknown, allow, block
    )
    show_json([asdict(item) for item in items]) if args.json else show(items_table(items))
    return 0


def items_table(items: Sequence[Recommendation]) -> str:
    """Recommended items as a table."""
    rows = [
        (f"{rank}", item.item_id, f"{item.score:.3f}", _printable(item.title)) for rank, item in enumerate(items, 1)
    ]
    return table(("rank", "item", "score", "title"), rows)


def _printable(title: str) -> str:
    """A title that neither commands the terminal nor widens the table without end."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in title)
    return shown if len(shown) <= WIDEST_TITLE else f"{shown[: WIDEST_TITLE - 3]}..."
