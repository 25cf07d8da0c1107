"""SASRec beside bundles, as an app would run them: milliseconds of a request, and megabytes.

    python -m experiments.rival_speed DATA BUNDLE...       # for example amazon-beauty-letter set-bundle beams-bundle

SASRec (experiments.rivals) is exported to ONNX in fp32 with the sizes of its best setting on Beauty; its weights are
random, for they change no time. A request is a test user's newest items, one thread, ten items without the history.
SASRec's ten best are found by numpy. Sides take turns, and processor time is counted: others on the machine change it
little. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from earn.console import quiet, show, show_json, table
from earn.data.dataset import Dataset, load_dataset
from earn.errors import EarnError
from earn.metrics import Example
from earn.runtime.recommender import Recommender
from experiments.rivals import RivalSettings, Sasrec

ITEMS, BEAMS = 10, 20
REQUESTS, WARM_UP = 200, 5
SETTINGS = RivalSettings(width=128)
SASREC = "sasrec fp32"


class NextItem(nn.Module):
    """SASRec's scores [items] of what comes after the item in the place `last` [1] of item indices [1,L].

    What stands behind it pads the row: torch's exporter fixes L, and SASRec sees nothing that comes later.
    """

    def __init__(self, model: Sasrec) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, last: Tensor) -> Tensor:
        """The output in that place times the item embeddings."""
        return functional.linear(self.model(history)[0, last], self.model.items.weight)[0]


def feeds_of(history: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """What the graph takes of a history of item indices."""
    newest = history[-SETTINGS.max_history :]
    row = np.pad(newest, (0, SETTINGS.max_history - len(newest)))
    return {"history": row[None], "last": np.array([len(newest) - 1])}


class OnnxSasrec:
    """SASRec in ONNX Runtime, asked as a Recommender is."""

    def __init__(self, file: Path, item_ids: Sequence[str], threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._index = {item_id: index for index, item_id in enumerate(item_ids)}
        self._item_ids = item_ids

    def recommend(self, history: Sequence[str], k: int, beams: int, exclude_history: bool) -> list[str]:
        """The best items, best first; beams are none of it."""
        known = np.array([self._index[item_id] for item_id in history], np.int64)
        (scores,) = self._session.run(None, feeds_of(known))
        if exclude_history:
            scores[known] = -np.inf
        best = np.argpartition(-scores, k)[:k]
        return [self._item_ids[item] for item in best[np.argsort(-scores[best], kind="stable")]]


def export(model: Sasrec, file: Path) -> None:
    """Writes the graph for histories of the settings' length at the most.

    Raises:
        EarnError: it gives other scores than torch.
    """
    scorer = NextItem(model).eval()
    example = tuple(map(torch.from_numpy, feeds_of(np.arange(3)).values()))
    names = {"input_names": ["history", "last"], "output_names": ["scores"]}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no word for the operator that it takes
    try:
        with torch.no_grad(), quiet():
            torch.onnx.export(scorer, example, str(file), dynamo=False, **names)  # type: ignore[arg-type]
            _check(model, file)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _check(model: Sasrec, file: Path) -> None:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for items in (1, 7, SETTINGS.max_history):
        history = np.arange(items) % model.items.num_embeddings
        (got,) = session.run(None, feeds_of(history))
        difference = float(np.abs(got - model.scores([Example("", history, 0)])[0]).max())
        if difference > 1e-4:
            raise EarnError(f"SASRec's graph gives scores that differ from torch's by {difference:.2g}.")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(dataset: Dataset, bundles: Sequence[Path], requests: int = REQUESTS) -> Mapping[str, dict[str, float]]:
    """Milliseconds and megabytes by what was asked."""
    item_ids = dataset.interactions.item_ids
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "sasrec.onnx"
        export(Sasrec(len(item_ids), SETTINGS), file)
        asked: dict[str, Any] = {SASREC: OnnxSasrec(file, item_ids)}
        sizes = {SASREC: file.stat().st_size, **{str(folder): folder_bytes(folder) for folder in bundles}}
        for folder in bundles:
            asked[str(folder)] = Recommender.load(folder, threads=1)
            dataset.check_items(asked[str(folder)].catalog, folder)
        histories = dataset.histories(dataset.examples(users=requests))
        times = cpu_ms(asked, histories, requests)
    return {name: {"ms": times[name], "mb": sizes[name] / 1e6} for name in asked}


def cpu_ms(asked: Mapping[str, Any], histories: Sequence[Sequence[str]], requests: int) -> dict[str, float]:
    """The median milliseconds of processor time of a request to each; sides take turns."""
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for history in islice(cycle(histories), WARM_UP + requests):
        for name, side in asked.items():
            began = time.process_time()
            side.recommend(history, ITEMS, BEAMS, exclude_history=True)
            taken[name].append(1000 * (time.process_time() - began))
    return {name: statistics.median(values[WARM_UP:]) for name, values in taken.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments.rival_speed", description=__doc__, formatter_class=raw)
    parser.add_argument("data")
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    args = parser.parse_args(argv)
    try:
        with quiet():
            found = run(load_dataset(args.data), args.bundles)
    except EarnError as error:
        sys.exit(f"{parser.prog}: {error}")
    show(table(("", "ms", "MB"), [(name, f"{row['ms']:.2f}", f"{row['mb']:.1f}") for name, row in found.items()]))
    show_json(found)


if __name__ == "__main__":
    main()
