"""What a filter adds to a request.

    python benchmarks/filters.py                            # 12,000 items
    python benchmarks/filters.py --items 1500000

A small model with random weights over random identifiers of 4 codes of 256, on one thread. In every round each row
answers one request, in turn, and times are those of the processor, so that other work on the machine counts less. Tags
hold random items. `first` is the request that evaluates the expression; the others find it kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import Qwen3Config, Qwen3ForCausalLM

from earn.bundle_edit import set_tags
from earn.catalog import Catalog
from earn.export.bundle import export_bundle
from earn.filters import Filter, Items, Tag
from earn.model.earn_model import EarnModel
from earn.runtime.recommender import Recommender
from earn.tags import Tags

CODES, DEPTH, WIDTH = 256, 4, 256
ROUNDS = 40
SHARES = {"half": 0.5, "tenth": 0.1, "rare": 0.001}
ROWS: dict[str, Filter | None] = {
    "no filter": None,
    'Tag("half")': Tag("half"),
    '~Tag("tenth")': ~Tag("tenth"),
    'Tag("rare")': Tag("rare"),
    'Tag("half") & ~Tag("tenth")': Tag("half") & ~Tag("tenth"),
    "100 ids": Items(list(range(100))),
}


def write(items: int, folder: Path) -> None:
    """Writes a bundle with tags."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, CODES, (items, DEPTH))
    drawn[:CODES, :] = np.arange(CODES)[:, None]  # every token stands in some identifier
    texts = [[f"<{letter}_{code}>" for code in range(CODES)] for letter in "abcd"]
    identifiers = tuple(tuple(texts[level][code] for level, code in enumerate(row)) for row in drawn.tolist())
    catalog = Catalog(tuple(map(str, range(items))), identifiers, ("",) * items)
    config = Qwen3Config(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=WIDTH // 4,
        vocab_size=64,
    )
    model = EarnModel.from_backbone(Qwen3ForCausalLM(config), catalog, early_layers=2, max_history=20)
    export_bundle(model.eval(), folder, [[str(item) for item in range(9)]])
    having = {name: np.flatnonzero(generator.random(items) < share) for name, share in SHARES.items()}
    set_tags(folder, Tags.of(having, items))


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of each row's first request, and the median of the others."""
    recommender = Recommender.load(folder, threads=1)
    histories = np.random.default_rng(1).integers(0, len(recommender.catalog), (ROUNDS + 1, 20)).tolist()
    recommender.recommend(histories[0])
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    for history in histories:
        for name, allow in ROWS.items():
            start = time.process_time()
            assert len(recommender.recommend(history, 10, allow=allow)) == 10
            times[name].append(1000 * (time.process_time() - start))
    return {name: {"first": row[0], "median": statistics.median(row[1:])} for name, row in times.items()}


def main() -> None:
    """Measures, and prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12_000, help="of the catalog (default: %(default)s)")
    items = parser.parse_args().items
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write(items, bundle)
        rows = measure(bundle)
    base = rows["no filter"]["median"]
    print(f"{'filter':<30}{'first ms':>10}{'then ms':>10}{'adds':>8}")
    for name, row in rows.items():
        print(f"{name:<30}{row['first']:>10.1f}{row['median']:>10.1f}{row['median'] / base - 1:>8.1%}")
    print(json.dumps({"items": items, **rows}))


if __name__ == "__main__":
    main()
