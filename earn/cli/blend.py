"""`earn blend`: gives a bundle what is like each item, to blend its lists with."""

from __future__ import annotations

import argparse

from earn.bundle_edit import check_blends, remove_neighbours, set_neighbours
from earn.cli.arguments import DATA_HELP, Subparsers, add_shared, command, option, positive
from earn.console import note, progress, show, show_json, table
from earn.errors import EarnError
from earn.manifest import NEIGHBOURS_FILE, ONE_GRAPH_FILE, Manifest


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "blend",
        run,
        "blend lists with what is like the history",
        "Finds, from training histories and titles, what is like each item, and writes it into the bundle as "
        "neighbours.npz, with the weight that ranks best for validation users. From then on the bundle's lists are a "
        "blend. Where the model alone ranks as well, there are none. Calibrating a blended bundle keeps the blend.",
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
    before = Manifest.load(args.bundle, verify=False)
    if args.remove:
        _say(args, before, remove_neighbours(args.bundle), {"weight": 0.0})
        return 0
    from earn.data.dataset import load_dataset
    from earn.export.blend import choose_blend
    from earn.runtime.recommender import Recommender

    recommender = Recommender.load(args.bundle)
    check_blends(before, recommender.catalog, str(args.bundle))
    dataset = load_dataset(args.data)
    dataset.check_items(recommender.catalog, args.bundle)
    users = dataset.examples("valid", args.users)
    found = choose_blend(recommender, dataset, users, args.exclude_history, progress)
    weight, decay = found.neighbours.weight, found.neighbours.decay
    tried = {w: ndcg for (d, w), ndcg in found.by_setting.items() if d == decay and w}
    rows = [("0, the model alone", f"{found.model:.4f}"), *((f"{w:g}", f"{ndcg:.4f}") for w, ndcg in tried.items())]
    (note if args.json else show)(table(("weight", f"NDCG@10 of {len(users)} validation users"), rows))
    if weight:
        after = set_neighbours(args.bundle, found.neighbours, recommender.catalog)
    else:
        note(f"{args.bundle}: the model alone ranks best")
        after = remove_neighbours(args.bundle)
    figures = {"users": len(users), "model": found.model, "blend": found.best}
    _say(args, before, after, {"weight": weight, "decay": decay, **figures})
    return 0


def _say(args: argparse.Namespace, before: Manifest, after: Manifest, found: dict[str, float]) -> None:
    """What became of the bundle."""
    if NEIGHBOURS_FILE in after.files:
        note(
            f"{args.bundle}: blended with weight {found['weight']:g} and decay {found['decay']:g}; "
            f"{after.bundle_bytes / 2**20:.1f} MiB"
        )
    else:
        note(f"{args.bundle}: lists are the model's alone")
    if ONE_GRAPH_FILE in before.files and ONE_GRAPH_FILE not in after.files:
        note(f"{ONE_GRAPH_FILE} was left out, since its lists are others now")
    if args.json:
        show_json(found)
