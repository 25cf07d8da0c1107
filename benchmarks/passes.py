"""Rows and passes of the search on a trained model's own beams, and the quality of the three scoring rules.

    python benchmarks/passes.py runs/movies ml-100k
    python benchmarks/passes.py runs/beauty data/Beauty --users 1000

A pass reads all weights, however few its rows, so passes count more than rows. Every rule answers the same test users
without lookahead and with it (see earn.runtime.search), which gives the same lists. Prints a table of means per request
(rows of each pass, all rows, passes, milliseconds, Recall@10, NDCG@10), then one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earn.catalog import CATALOG_FILE, Catalog
from earn.config import SCORING_RULES
from earn.console import note, show, show_json, table
from earn.data.dataset import load_dataset
from earn.export.bundle import export_bundle
from earn.manifest import Manifest
from earn.metrics import ndcg, recall, target_rank
from earn.model.earn_model import EarnModel
from earn.profiling.profiler import TimedEngine
from earn.runtime.engine import load_engine
from earn.runtime.recommender import Recommender

ITEMS, BEAMS = 10, 20
LOOKAHEADS: Mapping[str, int | None] = {"off": 0, "on": None}
COLUMNS = {  # of the table: the key of a figure, and how it is written
    "rows of each pass": ("pass_rows", "{}"),
    "all": ("rows", "{:.1f}"),
    "passes": ("passes", "{:.2f}"),
    "ms": ("milliseconds", "{:.2f}"),
    "R@10": ("recall", "{:.4f}"),
    "N@10": ("ndcg", "{:.4f}"),
}


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
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for rule in SCORING_RULES:
            bundle = Path(folder) / rule
            manifest = export_bundle(model, bundle, histories[:8], rule)
            gc.collect()
            for label, lookahead in LOOKAHEADS.items():
                figures = measure(bundle, manifest, lookahead, histories, targets)
                runs.append({"rule": rule, "lookahead": label, **figures})
                note(f"{rule}, lookahead {label}: {figures['passes']:.2f} passes")
    cells = [[it["rule"], it["lookahead"], *(form.format(it[key]) for key, form in COLUMNS.values())] for it in runs]
    show(f"{len(examples)} users, {BEAMS} beams, k = {ITEMS}\n{table(('rule', 'lookahead', *COLUMNS), cells)}")
    show_json({"users": len(examples), "beams": BEAMS, "runs": runs})


def measure(
    bundle: Path, manifest: Manifest, lookahead: int | None, histories: Sequence[Sequence[str]], targets: Sequence[str]
) -> dict[str, Any]:
    """The figures of one row of the table."""
    engine = TimedEngine(load_engine("cpu", bundle, manifest))
    recommender = Recommender(engine, manifest, Catalog.load(bundle / CATALOG_FILE), lookahead)
    rows = np.zeros((len(histories), recommender.catalog.depth))
    ranks = []
    started = time.perf_counter()
    for user, (history, target) in enumerate(zip(histories, targets, strict=True)):
        engine.calls.clear()
        items = recommender.recommend(history, ITEMS, BEAMS)
        passes = [call.rows for call in engine.calls if call.stage == "late"][1:]  # behind the prefill
        rows[user, : len(passes)] = passes
        ranks.append(target_rank([item.item_id for item in items], target))
    return {
        "pass_rows": rows.mean(axis=0)[:-1].round(1).tolist(),
        "rows": rows.sum(axis=1).mean(),
        "passes": (rows > 0).sum(axis=1).mean(),
        "milliseconds": 1000 * (time.perf_counter() - started) / len(histories),
        "recall": recall(np.array(ranks), ITEMS).mean(),
        "ndcg": ndcg(np.array(ranks), ITEMS).mean(),
    }


if __name__ == "__main__":
    main()
