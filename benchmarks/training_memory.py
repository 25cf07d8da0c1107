"""Peak memory of a few training steps: every weight trained, adapters alone, adapters with bfloat16 and recomputation.

    python benchmarks/training_memory.py BACKBONE [--history N] [--batch N] [--rank N]

BACKBONE is a Hugging Face folder or a GGUF file. It is written as a folder first, so that all ways load the same files;
prompts are identifiers alone. Each way runs in a process of its own, from loading to the written checkpoint: two steps
on made-up users with full histories. Prints a table and one JSON line, a row per way:

    {"way": str, "trained": parameters, "loaded_mib": float, "peak_mib": float, "step_s": float}

loaded_mib is the process's peak (ru_maxrss) before the training begins, peak_mib that at the end; step_s is the
training's seconds, evaluation and saving included, per step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earn.console import table

ITEMS, USERS = 100, 4
WAYS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "lora": {"lora": 8},
    "lora, recomputed": {"lora": 8, "gradient_checkpointing": True},
    "lora, bfloat16, recomputed": {"lora": 8, "dtype": "bfloat16", "gradient_checkpointing": True},
}


def peak_mib() -> float:
    """The most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes, or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def write_folder(backbone: str, folder: Path) -> None:
    """Writes a backbone as a Hugging Face folder, without a tokenizer: prompts are identifiers alone."""
    from earn.model.backbones import load_backbone

    load_backbone(backbone).save_pretrained(folder)


def measure(way: str, backbone: Path, history: int, batch: int, rank: int, out: Path) -> dict[str, Any]:
    """Trains one way; returns its row."""
    import numpy as np

    from earn.catalog import Catalog
    from earn.model.earn_model import EarnModel
    from earn.model.training import train
    from earn.settings import TrainSettings

    numbers = tuple(map(str, range(ITEMS)))
    identifiers = tuple((f"<a_{item // 10}>", f"<b_{item % 10}>") for item in range(ITEMS))
    model = EarnModel.from_backbone(backbone, Catalog(numbers, identifiers, numbers), max_history=history)
    options = {**WAYS[way], **({"lora": rank} if "lora" in WAYS[way] else {})}
    settings = TrainSettings(epochs=1, batch_size=batch, learning_rate=1e-4, **options)
    sequences = [np.arange(user, user + history + 1) % ITEMS for user in range(USERS)]
    loaded, trained = peak_mib(), []

    def validate(model: EarnModel) -> float:
        trained.append(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
        return 0.0

    record = train(model, sequences, out, validate, settings)
    figures = {"trained": trained[0], "loaded_mib": loaded, "peak_mib": peak_mib()}
    return {"way": way, **figures, "step_s": record["seconds"] / record["steps"]}


def main() -> None:
    """Measures every way, or within a process of its own the one that --way names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("--history", type=int, default=20, metavar="N", help="items of a window (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="windows per step (default: 2)")
    parser.add_argument("--rank", type=int, default=8, metavar="N", help="of the adapters (default: 8)")
    parser.add_argument("--way", choices=(*WAYS, "folder"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way == "folder":
        write_folder(args.backbone, args.out)
        return
    if args.way:
        print(json.dumps(measure(args.way, Path(args.backbone), args.history, args.batch, args.rank, args.out)))
        return
    sizes = ("--history", args.history, "--batch", args.batch, "--rank", args.rank)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "folder"
        _run(args.backbone, "folder", folder)
        rows = [json.loads(_run(folder, way, Path(temporary) / str(index), *sizes)) for index, way in enumerate(WAYS)]
    names = list(rows[0])
    print(table(names, [[row[name] if name == "way" else f"{row[name]:,.0f}" for name in names] for row in rows]))
    print(json.dumps(rows))


def _run(backbone: str | Path, way: str, out: Path, *sizes: object) -> str:
    command = [sys.executable, __file__, str(backbone), "--way", way, "--out", str(out), *map(str, sizes)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().rpartition("\n")[2]


if __name__ == "__main__":
    main()
