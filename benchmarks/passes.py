"""Rows and passes of the search on a trained model's own beams, and the quality of the three scoring rules.

    python benchmarks/passes.py runs/movies ml-100k
    python benchmarks/passes.py runs/beauty data/Beauty --users 1000

A pass reads all weights, however few its rows, so passes count more than rows. Every rule answers the same test users
without lookahead and with it (see earn.runtime.search), which gives the same lists. Prints means per request: rows of
each pass, all rows, passes, the time of a request, Recall@10 and NDCG@10.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from earn.catalog import CATALOG_FILE, Catalog
from earn.config import SCORING_RULES
from earn.data.dataset import load_dataset
from earn.export.bundle import export_bundle
from earn.manifest import Manifest
from earn.metrics import ndcg, recall, target_rank
from earn.model.earn_model import EarnModel
from earn.runtime.engine import Engine, load_engine
from earn.runtime.memory import Array
from earn.runtime.recommender import Recommender

ITEMS, BEAMS = 10, 20
LOOKAHEADS: Mapping[str, int | None] = {"off": 0, "on": None}


class Counter:
    """An engine that notes the rows of every pass."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.device = engine.device
        self.rows: list[int] = []

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage."""
        if stage == "late":
            self.rows.append(feeds["hidden"].shape[1])
        self._engine.run(stage, feeds, outputs)


def main() -> None:
    """Counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data")
    parser.add_argument("--users", type=int, help="a sample of the test users (default: all)")
    arguments = parser.parse_args()
    model = EarnModel.from_pretrained(arguments.checkpoint).eval()
    dataset = load_dataset(arguments.data)
    dataset.check_items(model.catalog, arguments.checkpoint)
    examples = dataset.examples("test", arguments.users)
    histories = dataset.histories(examples)
    targets = [dataset.interactions.item_ids[example.target] for example in examples]
    print(f"{len(examples)} users, {BEAMS} beams, k = {ITEMS}")
    print(f"{'rule':7}{'ahead':>6}{'rows of each pass':>26}{'all':>7}{'passes':>8}{'ms':>8}{'R@10':>8}{'N@10':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for rule in SCORING_RULES:
            bundle = Path(folder) / rule
            manifest = export_bundle(model, bundle, histories[:8], rule)
            gc.collect()
            for label, lookahead in LOOKAHEADS.items():
                print(f"{rule:7}{label:>6}{measure(bundle, manifest, lookahead, histories, targets)}", flush=True)


def measure(
    bundle: Path, manifest: Manifest, lookahead: int | None, histories: Sequence[Sequence[str]], targets: Sequence[str]
) -> str:
    """The figures of one row of the table."""
    counter = Counter(load_engine("cpu", bundle, manifest))
    recommender = Recommender(counter, manifest, Catalog.load(bundle / CATALOG_FILE), lookahead)
    rows = np.zeros((len(histories), recommender.trie.depth))
    ranks = []
    started = time.perf_counter()
    for user, (history, target) in enumerate(zip(histories, targets, strict=True)):
        counter.rows.clear()
        found = recommender.recommend(history, ITEMS, BEAMS)
        passes = counter.rows[1:]  # behind the prefill
        rows[user, : len(passes)] = passes
        ranks.append(target_rank([item.item_id for item in found], target))
    taken = 1000 * (time.perf_counter() - started) / len(histories)
    place = np.array(ranks)
    each = "  ".join(f"{mean:.1f}" for mean in rows.mean(axis=0)[:-1])
    quality = f"{recall(place, ITEMS).mean():8.4f}{ndcg(place, ITEMS).mean():8.4f}"
    return f"{each:>26}{rows.sum(axis=1).mean():7.1f}{(rows > 0).sum(axis=1).mean():8.2f}{taken:8.2f}{quality}"


if __name__ == "__main__":
    main()
