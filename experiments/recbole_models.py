"""RecBole's own SASRec and GRU4Rec, on the same splits, users and rules as the other rivals.

    python3 -m venv .recbole && .recbole/bin/pip install torch==2.13.0
    .recbole/bin/pip install recbole==1.2.1 "setuptools<81" numpy==1.26.4 "scipy<1.13" "pandas<2.3"
    .recbole/bin/python -m experiments recbole

RecBole needs an environment of its own, for it does not run with newer versions of these. It reads its benchmark files:
`x.train.inter` has a row for every item but a user's first one, with the newest items before it; `x.valid.inter` and
`x.test.inter` a row per user. Models and training have RecBole's defaults with cross entropy over all items; the epoch
is chosen by the validation users' NDCG@10.

RecBole's evaluation of sequential models lets the history into the lists: FullSortEvalDataLoader masks it for the other
models alone. Here its trainer leaves it out, and test users are asked through `experiments.rivals.target_ranks`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from earn.console import note
from earn.data.dataset import Dataset, sample
from earn.errors import EarnError
from earn.metrics import Example

if TYPE_CHECKING:
    from experiments.rivals import Measured, RivalSettings

NAME = "data"  # of the benchmark files
HEADER = "user_id:token\titem_id:token\titem_id_list:token_seq"
PARTS = ("train", "valid", "test")


def measure_recbole(
    kind: str, dataset: Dataset, users: Sequence[Example], settings: RivalSettings, folder: Path
) -> Measured:
    """Trains a model of RecBole and asks the test users with its best weights.

    Raises:
        EarnError: RecBole is not installed.
    """
    from experiments.rivals import Measured

    if find_spec("recbole") is None:
        raise EarnError(
            "RecBole is not installed. experiments/recbole_models.py says how to make an environment for it."
        )
    judges = sample(dataset.examples("valid"), settings.validation_users)
    write_benchmark(folder / NAME, dataset.split.train, judges, users, settings.max_history)
    model, items, best, seconds = _train(kind, dataset, judges, settings, folder)

    def scores(users: Sequence[Example]) -> NDArray[np.float32]:
        return _scores(model, items, users, settings.max_history)

    return Measured(scores, best, sum(weight.numel() for weight in model.parameters()), seconds)


def write_benchmark(
    folder: Path,
    sequences: Sequence[NDArray[np.int64]],
    valid: Sequence[Example],
    test: Sequence[Example],
    most: int,
) -> None:
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
    parts = {"train": targets, "valid": _named("valid", valid), "test": _named("test", test)}
    for part, examples in parts.items():
        with (folder / f"{NAME}.{part}.inter").open("w", encoding="utf-8") as file:
            file.write(HEADER + "\n")
            for it in examples:
                file.write(f"{it.user}\t{it.target}\t{' '.join(map(str, it.history[-most:].tolist()))}\n")


def _named(part: str, examples: Sequence[Example]) -> list[Example]:
    return [Example(f"{part}{index}", it.history, it.target) for index, it in enumerate(examples)]


def _train(
    kind: str, dataset: Dataset, judges: Sequence[Example], settings: RivalSettings, folder: Path
) -> tuple[Any, NDArray[np.int64], float, float]:
    """The model with its best weights, its id of each of our items (0: it never saw it), NDCG@10 and seconds."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    config = Config(model=kind, dataset=NAME, config_dict=_options(settings, folder))
    init_seed(settings.seed, True)
    own = create_dataset(config)
    parts = data_preparation(config, own)
    tokens = own.field2token_id["item_id"]
    names = range(len(dataset.interactions.item_ids))
    items = np.array([tokens.get(str(item), 0) for item in names], np.int64)
    histories = {own.field2token_id["user_id"][f"valid{user}"]: it.history for user, it in enumerate(judges)}

    class LeavesHistoryOut(Trainer):  # type: ignore[misc]
        def _full_sort_batch_eval(self, batched_data: Any) -> Any:
            interaction, scores, users, targets = super()._full_sort_batch_eval(batched_data)
            for row, user in enumerate(interaction["user_id"].tolist()):
                scores[row, items[histories[user]]] = -torch.inf
            return interaction, scores, users, targets

    model = get_model(kind)(config, parts[0].dataset)
    trainer, began = LeavesHistoryOut(config, model), time.monotonic()
    best, _ = trainer.fit(parts[0], parts[1], callback_fn=_note_epoch)
    seconds = time.monotonic() - began
    model.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    return model.eval(), items, float(best), seconds


def _note_epoch(epoch: int, ndcg: float) -> None:
    note(f"epoch {epoch + 1}: NDCG@10 of validation users {ndcg:.4f}")


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


@torch.no_grad()
def _scores(
    model: Any, items: NDArray[np.int64], users: Sequence[Example], most: int
) -> NDArray[np.float32]:  # [users,items]
    from recbole.data.interaction import Interaction

    newest = [items[example.history[-most:]] for example in users]
    rows = np.stack([np.pad(history, (0, most - len(history))) for history in newest])
    lengths = torch.tensor([len(history) for history in newest])
    asked = Interaction({"item_id_list": torch.from_numpy(rows), "item_length": lengths})
    scores: NDArray[np.float32] = model.full_sort_predict(asked.to(model.device)).cpu().numpy()
    return np.where(items > 0, scores[:, items], -np.inf).astype(np.float32)
