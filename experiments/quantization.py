"""What each choice of the calibration keeps: overlap with the float bundle, one row a choice, all else the same.

    python -m experiments.quantization runs/movies-bundle ml-100k --exclude-history
    python -m experiments.quantization runs/beauty-bundle data/Beauty --users 1000

Every row is calibrated and judged as `earn calibrate` does it, without its ladder of finer and finer tries. Prints a
table of means over the held-out users with standard errors, and the size of the graphs beside the float ones, then one
line of JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from earn.calibration.calibrate import CalibrationSettings, calibrate
from earn.calibration.equalize import ALPHA
from earn.calibration.refine import LEVELS
from earn.calibration.samples import draw_samples
from earn.calibration.variants import MixedPrecision
from earn.console import note, show, show_json, table
from earn.data.dataset import load_dataset

SAMPLES = 128
COLUMNS = ("choice", "overlap 20", "+-", "overlap 10", "NDCG@10", "fp32", "size")


@dataclass(frozen=True)
class Row:
    """One choice."""

    label: str
    precision: str = "int8"
    engine: str | None = None
    samples: int = SAMPLES
    alpha: float | None = ALPHA
    fine: tuple[str, ...] = ()


ROWS = (
    Row("int8"),
    Row("int8, not equalized", alpha=None),
    *(Row(f"int8, exponent {alpha}", alpha=alpha) for alpha in (0.5, 0.6, 0.8, 0.9)),
    *(Row(f"int8, {samples} samples", samples=samples) for samples in (32, 64, 256)),
    Row("int8, form for TensorRT", engine="tensorrt"),
    Row("int8-dynamic", "int8-dynamic"),
    Row("int8-dynamic, not equalized", "int8-dynamic", alpha=None),
    Row("int8-weights", "int8-weights"),
    Row("int4", "int4"),
    Row("int8-int4", "int8-int4"),
    Row("fp16", "fp16"),
    Row("int8, down_proj refined", fine=("down_proj",)),
    Row("int8, down_proj and head refined", fine=LEVELS[0]),
    Row("int8, all refined", fine=LEVELS[1]),
)


def main() -> None:
    """Calibrates every row and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("--users", type=int, default=700, help="who judge (default: %(default)s)")
    parser.add_argument("--exclude-history", action="store_true")
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data)
    runs: dict[str, list[float]] = {}
    for row in ROWS:
        histories, held_out = draw_samples(dataset, row.samples, arguments.users, 0, arguments.exclude_history)
        settings = CalibrationSettings(
            engine=row.engine,
            alpha=row.alpha,
            least_overlap=0,
            explain=False,
            compare=False,
            mixed=MixedPrecision(refined_kinds=row.fine),
            requests=0,
        )
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "bundle"
            found = calibrate(arguments.bundle, out, histories, held_out, row.precision, settings)
        verdict = found.chosen.verdict
        figures = (
            verdict.beam_set_overlap,
            verdict.overlaps.std() / np.sqrt(verdict.users),
            verdict.top10_overlap,
            verdict.ndcg.after,
            verdict.ndcg.before,
            found.chosen.graph_bytes / found.float_bytes,
        )
        runs[row.label] = [round(float(figure), 4) for figure in figures]
        note(f"{row.label}: overlap {verdict.beam_set_overlap:.4f}")
    show(table(COLUMNS, [[label, *(f"{figure:.4f}" for figure in figures)] for label, figures in runs.items()]))
    show_json([dict(zip(COLUMNS, (label, *figures), strict=True)) for label, figures in runs.items()])


if __name__ == "__main__":
    main()
