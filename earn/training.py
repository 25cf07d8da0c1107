"""Trains a model with packed registers through Hugging Face's Trainer; the best checkpoint by validation NDCG@10 stays.

`accelerate launch` and `torchrun` scale it, as they scale any Trainer. While it runs, resumable checkpoints stand in
OUT/run; at the end OUT itself is the checkpoint, with training.json saying how it came to be.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from earn.config import to_json
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.model import EarnModel
from earn.packing import pack
from earn.settings import TrainSettings

RUN_FOLDER = "run"
TRAINING_FILE = "training.json"
BEST_BY = "ndcg@10"

Window = list[tuple[int, ...]]  # identifiers in token ids


class Windows(Dataset[Window]):
    """Windows of at most `size` consecutive items; each epoch draws their ends anew, so that every context is seen."""

    def __init__(
        self,
        sequences: Sequence[NDArray[np.int64]],
        identifiers: Sequence[tuple[int, ...]],
        size: int,
        seed: int,
    ):
        self._sequences = [sequence for sequence in sequences if len(sequence) > 1]
        if not self._sequences:
            raise EarnError("No user has two training items, so there is nothing to train on. Give more interactions.")
        self._identifiers = identifiers
        self._size = size
        self._seed = seed
        # Consecutive windows share one item: the last target of one is the first context of the next.
        self._places = [
            (user, number)
            for user, sequence in enumerate(self._sequences)
            for number in range(-(-(len(sequence) - 1) // (size - 1)))
        ]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draws the windows' ends of an epoch."""
        generator = np.random.default_rng((self._seed, epoch))
        self._jitter = generator.integers(0, self._size - 1, len(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Window:
        user, number = self._places[place]
        sequence = self._sequences[user]
        end = len(sequence)
        if end > self._size:
            end = max(end - number * (self._size - 1) - int(self._jitter[place]), 2)
        return [self._identifiers[item] for item in sequence[max(0, end - self._size) : end]]


class EarnTrainer(Trainer):
    """Trainer whose evaluation is the constrained search's NDCG@10."""

    def __init__(
        self,
        model: EarnModel,
        windows: Windows,
        validate: Callable[[EarnModel], float],
        arguments: TrainingArguments,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=windows,
            eval_dataset=windows,  # Trainer wants one; it is never read, for `validate` brings its own users
            data_collator=partial(pack, config=model.earn),
        )
        self._earn = model
        self._validate = validate

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validates the model as it stands; every process does the same, so that all agree on the best."""
        self._earn.eval()
        metrics = {f"eval_{BEST_BY}": self._validate(self._earn)}
        self._earn.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train(
    model: EarnModel,
    sequences: Sequence[NDArray[np.int64]],
    out: str | Path,
    validate: Callable[[EarnModel], float],
    settings: TrainSettings | None = None,
    data: str = "",
    resume: bool = False,
) -> dict[str, Any]:
    """Trains the model in place and writes the best state to `out`.

    Args:
        sequences: training items of each user in time order, as indices of the model's catalog.
        validate: the number to select by, NDCG@10 on validation users.
        data: where the data came from, for the record.
        resume: go on from the last checkpoint in OUT/run after an interruption.

    Returns:
        What training.json says.

    Raises:
        EarnError: nothing to train on, nothing to resume, or an unfinished run stands in `out`.
    """
    settings = settings or TrainSettings()
    out = Path(out)
    checkpoint = _last_checkpoint(out, resume)
    model.config.attention_dropout = settings.dropout
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = settings.dropout
    token_ids = model.earn.token_ids
    identifiers = [tuple(token_ids[code] for code in row if code >= 0) for row in model.catalog.codes.tolist()]
    windows = Windows(sequences, identifiers, model.earn.max_history + 1, settings.seed)
    trainer = EarnTrainer(model, windows, validate, _arguments(out, settings))
    started = time.monotonic()
    result = trainer.train(resume_from_checkpoint=checkpoint)
    record = {
        "data": data,
        "settings": to_json(settings),
        BEST_BY: trainer.state.best_metric,
        "steps": result.global_step,
        "seconds": round(time.monotonic() - started, 1),
    }
    model.eval()
    trainer.accelerator.wait_for_everyone()  # others may still be reading the best checkpoint
    if trainer.is_world_process_zero():
        model.save_pretrained(out)
        write_json(out / TRAINING_FILE, record)
        shutil.rmtree(out / RUN_FOLDER)
    return record


def trained_on(checkpoint: Path) -> str:
    """The data that a checkpoint was trained on, "" where that is not recorded."""
    path = checkpoint / TRAINING_FILE
    return str(read_json(path).get("data", "")) if path.is_file() else ""


def _last_checkpoint(out: Path, resume: bool) -> str | None:
    run = out / RUN_FOLDER
    last: str | None = get_last_checkpoint(str(run)) if run.is_dir() else None
    if resume and last is None:
        raise EarnError(f"{out}: there is no interrupted training to resume. Start it without --resume.")
    if last is not None and not resume:
        raise EarnError(f"{out}: an interrupted training stands here. Pass --resume to go on, or remove {run}.")
    return last


def _arguments(out: Path, settings: TrainSettings) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(out / RUN_FOLDER),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_ratio=settings.warmup,
        weight_decay=settings.weight_decay,
        bf16=settings.bf16,
        seed=settings.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=BEST_BY,
        greater_is_better=True,
        remove_unused_columns=False,
        report_to=[],
        dataloader_pin_memory=False,
    )
