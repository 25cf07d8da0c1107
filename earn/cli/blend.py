"""`earn blend`: gives a bundle what is like each item, to blend its lists with."""

from __future__ import annotations

import argparse

from earn.bundle_edit import set_neighbours
from earn.cli.arguments import DATA_HELP, Subparsers, add_shared, command, option, positive
from earn.console import note, progress, show, show_json, table
from earn.errors import EarnError


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "blend",
        run,
        "blend lists with what is like the history",
        "Finds, from training histories and titles, what is like each item, and writes it into the bundle as "
        "neighbours.npz, with the weight that ranks best for validation users. From then on the bundle's lists are a "
        "blend. Where the model alone ranks as well, nothing is written. Calibrating a blended bundle keeps the blend.",
        """
        earn blend BUNDLE ml-100k --exclude-history
        earn blend BUNDLE --remove
        """,
    )
    add_shared(parser, "bundle")
    option(parser, "data DATA", f"what the model was trained on: {DATA_HELP}", nargs="?")
    option(parser, "--users N", "validation users who choose the weight", positive, 2000)
    add_shared(parser, "exclude_history")
    option(parser, "--remove", "take the neighbours away again", bool)
    add_shared(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Writes the neighbours, or takes them away."""
    if args.remove != (args.data is None):
        raise EarnError("Give the data that the model was trained on, or --remove: one of the two.")
    if args.remove:
        set_neighbours(args.bundle, None)
        note(f"{args.bundle}: lists are the model's alone")
        return 0
    from earn.data.dataset import load_dataset
    from earn.export.blend import choose_blend
    from earn.runtime.recommender import Recommender

    recommender, dataset = Recommender.load(args.bundle), load_dataset(args.data)
    dataset.check_items(recommender.catalog, args.bundle)
    users = dataset.examples("valid", args.users)
    found = choose_blend(recommender, dataset, users, args.exclude_history, progress)
    weights = {weight: ndcg for (decay, weight), ndcg in found.by_setting.items() if decay == found.neighbours.decay}
    rows = [("0, the model alone", f"{found.model:.4f}"), *((f"{w:g}", f"{ndcg:.4f}") for w, ndcg in weights.items())]
    (note if args.json else show)(table(("weight", f"NDCG@10 of {len(users)} validation users"), rows))
    chosen = {"weight": found.neighbours.weight, "decay": found.neighbours.decay}
    if args.json:
        show_json({**chosen, "users": len(users), "model": found.model, "blend": found.best})
    if not found.neighbours.weight:
        note(f"{args.bundle}: the model alone ranks best, so nothing was written")
        return 0
    manifest = set_neighbours(args.bundle, found.neighbours)
    note(
        f"{args.bundle}: blended with weight {chosen['weight']:g} and decay {chosen['decay']:g}; "
        f"{manifest.bundle_bytes / 2**20:.1f} MiB"
    )
    return 0
