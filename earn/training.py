"""Trains a model with packed registers through Hugging Face's Trainer; the best checkpoint by validation NDCG@10 stays.

`accelerate launch` and `torchrun` scale it, as they scale any Trainer. While it runs, resumable checkpoints stand in
OUT/run; at the end OUT itself is the checkpoint, with training.json saying how it came to be.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earn.backbones import sizes_of
from earn.config import to_json
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.model import EarnModel
from earn.packing import pack
from earn.settings import TrainSettings

RUN_FOLDER = "run"
PLAN_FILE = "plan.json"  # in the run folder: marks it as ours, and says what is being trained
TRAINING_FILE = "training.json"
BEST_BY = "ndcg@10"

Window = list[tuple[int, ...]]  # identifiers in token ids


class Windows(Dataset[Window]):
    """Windows of at most `size` consecutive items that between them hold every item with its predecessor.

    The first window of a user ends with the newest item. How far the others overlap is drawn anew for every epoch, so
    that items are seen after histories of many lengths.
    """

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
        lengths = np.array([len(sequence) for sequence in self._sequences])
        step = size - 1  # neighbours share an item: what the newer window starts with, the older one predicts last
        counts = -(-(lengths - 1) // step)
        self._user = np.repeat(np.arange(len(lengths)), counts)
        self._number = np.arange(len(self._user)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._latest = lengths[self._user] - self._number * step  # ends without any overlap
        self._slack = (counts * step - (lengths - 1))[self._user]  # how much all windows of a user may overlap
        self.redraw(0)

    def redraw(self, epoch: int) -> None:
        """Draws the overlaps of an epoch."""
        generator = np.random.default_rng((self._seed, epoch))
        shift = generator.integers(0, self._slack + 1)
        shift[self._number == 0] = 0
        shift = shift[np.lexsort((shift, self._user))]  # growing from window to window, so that no gap opens
        self._end = self._latest + shift

    def __len__(self) -> int:
        return len(self._user)

    def __getitem__(self, place: int) -> Window:
        end = int(self._end[place])
        items = self._sequences[self._user[place]][max(0, end - self._size) : end]
        return [self._identifiers[item] for item in items]


class _Redraw(TrainerCallback):
    """Redraws the windows at the start of every epoch, in every process."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._windows.redraw(round(state.epoch or 0))


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
            data_collator=partial(pack, config=model.earn, dense=model.is_dense),
            callbacks=[_Redraw(windows)],
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
        EarnError: nothing to train on, nothing to resume or another training than the one to be resumed, or `out`
            is not empty.
    """
    settings = settings or TrainSettings()
    out = Path(out)
    arguments = _arguments(out, settings)
    windows = Windows(sequences, model.identifiers, model.earn.max_history + 1, settings.seed)
    if arguments.process_index == 0:
        _claim(out, _plan(model, sequences, settings), resume)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = settings.dropout
    trainer = EarnTrainer(model, windows, validate, arguments)
    started = time.monotonic()
    result = trainer.train(resume_from_checkpoint=_last_checkpoint(out) if resume else None)
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


def _plan(model: EarnModel, sequences: Sequence[NDArray[np.int64]], settings: TrainSettings) -> dict[str, Any]:
    """What must be equal for a training to be resumed: data, identifiers, settings, split, prompt and backbone."""
    backbone = sizes_of(model.config, model.earn.early_layers, len(model.lm_head.weight), len(model.lm_head.weight))
    return {
        "data": _digest(*sequences),
        "identifiers": _digest(model.catalog.codes),
        **to_json(settings),
        **to_json(backbone),
        **{name: json.loads(json.dumps(value)) for name, value in to_json(model.earn).items()},
    }


def _digest(*arrays: NDArray[Any]) -> str:
    """A short name of the arrays' contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _claim(out: Path, plan: dict[str, Any], resume: bool) -> None:
    """Makes OUT/run this training's, or checks that the one to be resumed is this one."""
    run = out / RUN_FOLDER
    path = run / PLAN_FILE
    if resume:
        if not path.is_file():
            raise EarnError(f"{out}: there is no interrupted training to resume. Start it without --resume.")
        before = read_json(path)
        if different := [name for name in plan if before.get(name) != plan[name]]:
            name = different[0]
            raise EarnError(
                f"{out}: the interrupted training had another {name}: {str(before.get(name))[:60]}, now it is "
                f"{str(plan[name])[:60]}. Resume with the data and options that it was started with."
            )
        return
    if path.is_file():
        raise EarnError(f"{out}: an interrupted training stands here. Pass --resume to go on, or remove {run}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EarnError(f"{out}: exists and is not empty. Choose another folder, or remove it first.")
    run.mkdir(parents=True)
    write_json(path, plan)


def _last_checkpoint(out: Path) -> str | None:
    """The newest checkpoint that was written to its end; None if the training was stopped before the first."""
    states = (out / RUN_FOLDER).glob("checkpoint-*/trainer_state.json")  # written last
    newest = max(states, key=lambda path: int(path.parent.name.partition("-")[2]), default=None)
    return str(newest.parent) if newest else None


def _arguments(out: Path, settings: TrainSettings) -> TrainingArguments:
    arguments = TrainingArguments(
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
        ddp_find_unused_parameters=False,  # every parameter has a part in every loss
        use_cpu=not torch.accelerator.is_available(),  # else bf16 is refused on a CPU
    )
    # Trainer would wrap a model in DataParallel, which splits `keep` and `predict` as if they had a batch axis.
    # Several GPUs are for torchrun, with one process each.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
