"""RecBole's own SASRec and GRU4Rec on the same splits, users and rules as the other rivals (experiments.rivals).

With RecBole's defaults and cross entropy over all items; the epoch is chosen by the validation users' NDCG@10. RecBole
needs an environment of its own, for it does not run with newer versions of these:

    python3 -m venv .recbole && .recbole/bin/pip install torch==2.13.0
    .recbole/bin/pip install recbole==1.2.1 "setuptools<81" numpy==1.26.4 "scipy<1.13" "pandas<2.3"
    .recbole/bin/python -m experiments recbole

It reads its benchmark files: `data.train.inter` has a row for every item but a user's first one, with the newest items
before it; `data.valid.inter` and `data.test.inter` a row per user. Its evaluation of sequential models lets the history
into the lists: FullSortEvalDataLoader masks it for the other models alone. Here its trainer leaves it out, and test
users are asked through `target_ranks`. What would only pad its rows is not worked out, which changes no loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from earn.console import note
from earn.data.dataset import Dataset
from earn.errors import EarnError
from earn.metrics import Example
from experiments.rivals import Measured, RivalSettings, Sequences, Users, padded

PARTS_OF_BATCH = 16  # RecBole's batches have 2048 rows
NAME, PARTS = "data", ("train", "valid", "test")  # of its benchmark files
READ = ("max_history", "epochs", "patience", "validation_users", "seed")  # of RivalSettings; else RecBole's defaults
HEADER = "user_id:token\titem_id:token\titem_id_list:token_seq"


def measure_recbole(kind: str, dataset: Dataset, settings: RivalSettings, folder: Path) -> Measured:
    """Trains a model of RecBole; the scores are those of its best weights.

    Raises:
        EarnError: RecBole is not installed.
    """
    if find_spec("recbole") is None:
        raise EarnError(f"RecBole is not installed. {__file__} says how to make an environment for it.")
    from recbole.data.interaction import Interaction

    judges, most = dataset.examples("valid", settings.validation_users), settings.max_history
    write_benchmark(folder / NAME, dataset.split.train, judges, dataset.examples(), most)
    model, items, best, seconds = _train_recbole(kind, dataset, judges, settings, folder)

    @torch.no_grad()
    def scores(users: Users) -> NDArray[np.float32]:
        rows, lengths = padded([items[example.history[-most:]] for example in users])
        asked = {"item_id_list": functional.pad(rows, (0, most - rows.shape[1])), "item_length": lengths}
        found: NDArray[np.float32] = model.full_sort_predict(Interaction(asked).to(model.device)).cpu().numpy()
        return np.where(items > 0, found[:, items], -np.inf).astype(np.float32)

    return Measured(scores, best, sum(weight.numel() for weight in model.parameters()), seconds)


def write_benchmark(folder: Path, sequences: Sequences, valid: Users, test: Users, most: int) -> None:
    """Writes RecBole's benchmark files of item indices; a history keeps its newest `most` items.

    In training, user n is the n-th sequence; validation and test users have names of their own, for their histories
    are told by their rows alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = [
        Example(f"u{user}", items[:place], int(items[place]))
        for user, items in enumerate(sequences)
        for place in range(1, len(items))
    ]
    for part, examples in zip(PARTS, (targets, valid, test), strict=True):
        with (folder / f"{NAME}.{part}.inter").open("w", encoding="utf-8") as file:
            file.write(HEADER + "\n")
            for index, it in enumerate(examples):
                user = it.user if part == "train" else f"{part}{index}"
                file.write(f"{user}\t{it.target}\t{' '.join(map(str, it.history[-most:].tolist()))}\n")


def _train_recbole(
    kind: str, dataset: Dataset, judges: Users, settings: RivalSettings, folder: Path
) -> tuple[Any, NDArray[np.int64], float, float]:
    """The model with its best weights, its id of each of our items (0: it never saw it), NDCG@10 and seconds."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    config = Config(model=kind, dataset=NAME, config_dict=_options(settings, folder))
    init_seed(settings.seed, True)
    own = create_dataset(config)
    parts = data_preparation(config, own)
    tokens = own.field2token_id["item_id"]
    items = np.array([tokens.get(str(item), 0) for item in range(len(dataset.interactions.item_ids))], np.int64)
    histories = {own.field2token_id["user_id"][f"valid{user}"]: it.history for user, it in enumerate(judges)}

    class LeavesHistoryOut(Trainer):  # type: ignore[misc]
        def _train_epoch(self, train_data: Any, epoch: int, *_: Any, show_progress: bool = False) -> Any:
            return super()._train_epoch(train_data, epoch, loss, show_progress)

        def _full_sort_batch_eval(self, batched_data: Any) -> Any:
            interaction, scores, users, targets = super()._full_sort_batch_eval(batched_data)
            for row, user in enumerate(interaction["user_id"].tolist()):
                scores[row, items[histories[user]]] = -torch.inf
            return interaction, scores, users, targets

    model = get_model(kind)(config, parts[0].dataset)
    loss = partial(loss_by_length, lambda rows: model.calculate_loss(Interaction(rows)))
    torch.autograd.set_detect_anomaly(False)  # one of RecBole's models turns it on for all, and it takes a third longer
    trainer, began = LeavesHistoryOut(config, model), time.monotonic()
    best, _ = trainer.fit(*parts[:2], callback_fn=lambda epoch, ndcg: note(f"epoch {epoch + 1}: NDCG@10 {ndcg:.4f}"))
    seconds = time.monotonic() - began
    model.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    return model.eval(), items, float(best), seconds


def loss_by_length(loss: Callable[[dict[str, Tensor]], Tensor], batch: Any) -> Tensor:
    """The mean loss of RecBole's batch by that of some rows, those of like length: what pads them is not worked out."""
    by_length, losses = batch["item_length"].argsort(), []
    for chosen in by_length.chunk(PARTS_OF_BATCH):
        rows = {name: batch[name][chosen] for name in ("item_id", "item_id_list", "item_length")}
        rows["item_id_list"] = rows["item_id_list"][:, : rows["item_length"].max()]
        losses.append(loss(rows) * len(chosen))
    return torch.stack(losses).sum() / len(by_length)


def _options(settings: RivalSettings, folder: Path) -> dict[str, Any]:
    """What differs from RecBole's defaults."""
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder),
        "benchmark_filename": list(PARTS),
        "load_col": {"inter": ["user_id", "item_id", "item_id_list"]},
        "alias_of_item_id": ["item_id_list"],
        "MAX_ITEM_LIST_LENGTH": settings.max_history,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["NDCG"],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 6,
        "epochs": settings.epochs,
        "stopping_step": settings.patience,
        "seed": settings.seed,
        "use_gpu": torch.cuda.is_available(),
    }


# By the run's method.
MEASURES: Mapping[str, Callable[[Dataset, RivalSettings, Path], Measured]] = {
    "recbole-sasrec": partial(measure_recbole, "SASRec"),
    "recbole-gru4rec": partial(measure_recbole, "GRU4Rec"),
}
