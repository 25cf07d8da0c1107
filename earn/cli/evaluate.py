"""`earn evaluate`: Recall and NDCG of a checkpoint or a bundle, by search over the whole catalog."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import PLACE_HELP, Subparsers, add_shared, command, option, positive
from earn.cli.engine import add_engine, chosen_engine
from earn.config import SCORING_RULES, check_scoring
from earn.console import note, progress, show, show_json, table
from earn.errors import EarnError
from earn.manifest import MANIFEST_FILE
from earn.metrics import CUTOFFS
from earn.places import HUB

if TYPE_CHECKING:
    from earn.runtime.recommender import Recommender

NAMES = ("Recall", "NDCG")


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "evaluate",
        run,
        "measure Recall and NDCG of a checkpoint or bundle",
        "Asks every test user for the next item, with 20 beams over the whole catalog (no sampled negatives). "
        "Items of the history may come back unless --exclude-history is given.",
        """
        earn evaluate BUNDLE ml-100k
        earn evaluate CKPT ml-100k --split valid --scoring vocab --users 500
        earn evaluate BUNDLE ml-100k --json
        """,
    )
    option(parser, "model CKPT|BUNDLE", f"folder of earn train, or {PLACE_HELP}")
    add_shared(parser, "data")
    option(parser, "--split", "whose next items are asked for", default="test", choices=("test", "valid"))
    add_shared(parser, "exclude_history")
    rules = f"{', '.join(SCORING_RULES)}; for checkpoints only (default: trie), a bundle has its own"
    option(parser, "--scoring RULE", rules)
    option(parser, "--users N", "a sample of users (default: all)", positive)
    add_engine(parser)
    add_shared(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints the figures."""
    from earn.data.dataset import load_dataset
    from earn.metrics import summarise
    from earn.runtime.evaluation import target_ranks

    recommender = load_model(args.model, args.scoring, args.engine)
    dataset = load_dataset(args.data)
    dataset.check_items(recommender.catalog, args.model)
    ranks = target_ranks(
        recommender,
        dataset.examples(args.split, args.users),
        dataset.interactions.item_ids,
        args.exclude_history,
        progress("evaluate"),
    )
    figures: dict[str, Any] = {**summarise(ranks), "users": len(ranks)}
    rows = [(f"{name}@{cutoff}", f"{figures[f'{name.lower()}@{cutoff}']:.4f}") for name in NAMES for cutoff in CUTOFFS]
    (note if args.json else show)(table(("measure", "value"), [*rows, ("users", f"{len(ranks)}")]))
    if args.json:
        show_json(figures)
    return 0


def load_model(place: str | Path, scoring: str | None = None, engine: str = "cpu") -> Recommender:
    """A recommender from a bundle, wherever it is, or from a checkpoint's folder.

    Raises:
        EarnError: neither, or a scoring rule for a bundle, or an engine for a checkpoint.
    """
    folder = Path(place)
    if str(place).startswith(HUB) or folder.is_file() or (folder / MANIFEST_FILE).is_file():
        from earn.runtime.recommender import Recommender

        if scoring is not None:
            raise EarnError(f"{place}: a bundle has its scoring rule. Leave away --scoring.")
        return Recommender.load(place, chosen_engine(engine, place))
    if not (folder / "config.json").is_file():
        raise EarnError(
            f"{folder}: neither a bundle (no {MANIFEST_FILE}) nor a checkpoint (no config.json). "
            "Give a folder that earn export or earn train wrote."
        )
    if engine not in ("cpu", "auto"):
        raise EarnError(f"{folder}: a checkpoint runs in torch, not in the engine {engine!r}. Export it first.")
    rule = check_scoring(scoring or "trie")
    import torch

    from earn.export.stages import torch_recommender
    from earn.model.earn_model import EarnModel

    model = EarnModel.from_pretrained(folder)
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    return torch_recommender(model, rule)
