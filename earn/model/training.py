"""Trains a model with packed registers through Hugging Face's Trainer; the best checkpoint by validation NDCG@10 stays.

With adapters (`earn.model.lora`) a resumable checkpoint holds the trained parameters alone, and OUT the merged weights.

`accelerate launch` and `torchrun` scale it, as they scale any Trainer. While it runs, resumable checkpoints stand in
OUT/run; at the end OUT itself is the checkpoint, with training.json saying how it came to be.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earn.config import SET, EarnConfig, to_json
from earn.data.windows import Window, Windows
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.manifest import SET_FIELDS
from earn.model.checkpoint_files import WEIGHT_FILES
from earn.model.earn_model import EarnModel
from earn.model.families import sizes_of
from earn.model.lora import add_adapters, holds_bfloat16, merge_adapters
from earn.model.packing import pack
from earn.model.set_model import SetModel
from earn.model.transformers_versions import warmup
from earn.settings import TrainSettings

RUN_FOLDER = "run"
REMOVED = ("label_smoothing", "average")  # settings that older versions had; 0 meant that they were not used
PLAN_FILE = "plan.json"  # in the run folder: marks it as ours, and says what is being trained
CLOCK_FILE = "clock.json"  # in the run folder: the seconds it took so far
TRAINING_FILE = "training.json"
BEST_BY = "ndcg@10"
MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"  # of the environment

TITLE = "only the one called {title}, which is chosen again"  # fits the default template, and is no identifier
TIMED_STEPS = (2, 10)  # the first ones are slower; after the second number it is said how long all will take
SAVE_SECONDS = 600.0  # between two checkpoints within an epoch
TITLE_TOKENS = 48  # longer ones are cut


class _Redraw(TrainerCallback):
    """Redraws the windows at the start of every epoch, in every process."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._windows.redraw(math.floor((state.epoch or 0) + 1e-3))  # resumed within an epoch, it is a fraction


class _SaveBetween(TrainerCallback):
    """Writes a resumable checkpoint every SAVE_SECONDS, for epochs may take hours.

    Several processes would have to agree on the moment; they save after each epoch alone.
    """

    def __init__(self) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size == 1 and time.monotonic() - self._saved >= SAVE_SECONDS:
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()


class _Clock(TrainerCallback):
    """Counts a training's seconds over all its interruptions, in the run folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = float(read_json(path)["seconds"]) if path.is_file() else 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._started

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            write_json(self._path, {"seconds": self.seconds})


class _Report(TrainerCallback):
    """Tells the steps done, soon how long all will take, and one line per epoch: loss, validation figure, time left."""

    def __init__(self, progress: Callable[[int, int], None] | None, say: Callable[[str], None] | None) -> None:
        self._progress, self._say = progress, say
        self._started, self._first_step, self._timed_from = time.monotonic(), 0, 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        done = state.global_step - self._first_step
        if done == TIMED_STEPS[0]:
            self._timed_from = time.monotonic()
        elif done == TIMED_STEPS[1] and self._say:
            per_step = (time.monotonic() - self._timed_from) / (TIMED_STEPS[1] - TIMED_STEPS[0])
            left, epochs = state.max_steps - state.global_step, round(args.num_train_epochs)
            self._say(
                f"about {_duration(per_step * left)} for {left:,} steps of {per_step:.2g} s, beside the validation "
                f"after each of {epochs} epochs"
            )
        if self._progress:
            self._progress(state.global_step, state.max_steps)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **values: Any) -> None:
        if not self._say or not state.is_world_process_zero:
            return
        loss = next((log["loss"] for log in reversed(state.log_history) if "loss" in log), math.nan)
        per_step = (time.monotonic() - self._started) / max(1, state.global_step - self._first_step)
        left = per_step * (state.max_steps - state.global_step)
        self._say(
            f"epoch {round(state.epoch or 0)} of {round(args.num_train_epochs)}: loss {loss:.3f}, validation "
            f"{BEST_BY.upper()} {values['metrics'][f'eval_{BEST_BY}']:.4f}, {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    """Minutes and seconds, with hours before them if there are any: 2:05, 1:02:05."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


class EarnTrainer(Trainer):
    """Trainer whose evaluation is the constrained search's NDCG@10."""

    def __init__(
        self,
        model: EarnModel,
        windows: Windows,
        validate: Callable[[EarnModel], float],
        arguments: TrainingArguments,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=windows,
            eval_dataset=windows,  # Trainer wants one; it is never read, for `validate` brings its own users
            data_collator=partial(pack, config=model.earn, dense=model.is_dense),
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # it prints dictionaries
        self._earn = model
        self._validate = validate
        self._is_lean = not all(parameter.requires_grad for parameter in model.parameters())
        if self._is_lean and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise EarnError("Adapters are not trained in shards (FSDP, DeepSpeed). Use torchrun, or set lora to 0.")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes a resumable checkpoint's weights, under the name that Trainer reads: the trained ones, if not all."""
        if not self._is_lean:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            trained = {name: weight.detach() for name, weight in self._earn.named_parameters() if weight.requires_grad}
            save_file(trained, folder / WEIGHT_FILES[0])

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """The schedule of learning rates; a warm-up begins with rate 0, so a single step gets none."""
        if num_training_steps < 2:
            for name in warmup(0):
                setattr(self.args, name, 0)
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(load_result._replace(missing_keys=[]) if self._is_lean else load_result)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validates the model as it stands; every process does the same, so that all agree on the best."""
        self._earn.eval()
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=holds_bfloat16(self._earn)):
            metrics = {f"eval_{BEST_BY}": self._validate(self._earn)}
        self._earn.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@contextmanager
def _mixed_precision_kept() -> Iterator[None]:
    """Leaves the process's mixed precision as it was: Trainer sets it for all that is trained after it, too."""
    before = os.environ.get(MIXED_PRECISION)
    try:
        yield
    finally:
        os.environ.pop(MIXED_PRECISION, None)
        if before is not None:
            os.environ[MIXED_PRECISION] = before


@_mixed_precision_kept()
def train(
    model: EarnModel,
    sequences: Sequence[NDArray[np.int64]],
    out: str | Path,
    validate: Callable[[EarnModel], float],
    settings: TrainSettings | None = None,
    data: str = "",
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains the model in place and writes the best state to `out`.

    Args:
        sequences: training items of each user in time order, as indices of the model's catalog.
        validate: the number to select by, NDCG@10 on validation users.
        data: where the data came from, for the record.
        resume: go on from the last checkpoint in OUT/run after an interruption.
        progress: called after every step with the number of steps done and that of all.
        say: called after every epoch with a line about it.

    Returns:
        What training.json says.

    Raises:
        EarnError: nothing to train on, nothing to resume or another training than the one to be resumed, or `out`
            is not empty.
    """
    settings = settings or TrainSettings()
    if settings.lora and model.earn.method == SET:
        raise EarnError(
            "Adapters are not trained where all codes are named at once. Set lora to 0 (leave --lora away)."
        )
    out = Path(out)
    arguments = _arguments(out, settings)
    titles = title_windows(model) if settings.titles else []
    windows = Windows(sequences, model.identifiers, model.earn.max_history + 1, settings.seed, titles)
    if arguments.process_index == 0:
        _claim(out, _plan(model, sequences, settings), resume)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = settings.dropout
        layer.hidden_dropout = settings.hidden_dropout
        layer.is_recomputed = settings.gradient_checkpointing
    model.input_dropout = settings.input_dropout
    if isinstance(model, SetModel):
        model.sample_negatives(settings.negatives, sequences)
    if settings.lora:
        add_adapters(model, settings)
    clock = _Clock(out / RUN_FOLDER / CLOCK_FILE)
    callbacks = [_Redraw(windows), clock, _Report(progress, say), _SaveBetween()]
    trainer = EarnTrainer(model, windows, validate, arguments, callbacks)
    result = trainer.train(resume_from_checkpoint=_last_checkpoint(out) if resume else None)
    record = {
        "data": data,
        "settings": to_json(settings),
        BEST_BY: trainer.state.best_metric or 0.0,
        "by_epoch": [log[f"eval_{BEST_BY}"] for log in trainer.state.log_history if f"eval_{BEST_BY}" in log],
        "steps": result.global_step,
        "seconds": round(clock.seconds, 1),
    }
    model.eval()
    if settings.lora:
        merge_adapters(model)
    trainer.accelerator.wait_for_everyone()  # others may still be reading the best checkpoint
    if trainer.is_world_process_zero():
        model.save_pretrained(out)
        write_json(out / TRAINING_FILE, record)
        shutil.rmtree(out / RUN_FOLDER)
    model.float()
    return record


def title_windows(model: EarnModel) -> list[Window]:
    """For each item with a title: the title in words where a history stands, the item's identifier to be named.

    It ties identifiers to what the backbone knows of the words (what LC-Rec, arXiv 2311.09049, calls the explicit
    alignment of index and language; one of its tasks).

    Raises:
        EarnError: the model has no tokenizer, or the catalog no titles.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise EarnError("The backbone has no tokenizer, so it cannot read titles. Set titles to False in the settings.")
    texts = [TITLE.format(title=title) if title else "" for title in model.catalog.titles]
    if not any(texts):
        raise EarnError("The data has no titles to be learned. Give items.tsv, or set titles to False in the settings.")
    return [
        [tuple(tokenizer.encode(text, add_special_tokens=False)[:TITLE_TOKENS]), identifier]
        for text, identifier in zip(texts, model.identifiers, strict=True)
        if text
    ]


def trained_on(checkpoint: Path) -> str:
    """The data that a checkpoint was trained on, "" where that is not recorded."""
    path = checkpoint / TRAINING_FILE
    return str(read_json(path).get("data", "")) if path.is_file() else ""


def _plan(model: EarnModel, sequences: Sequence[NDArray[np.int64]], settings: TrainSettings) -> dict[str, Any]:
    """What must be equal for a training to be resumed: data, identifiers, settings, split, prompt and backbone.

    Checkpoints of a training with adapters lack the weights of the layers; there they must be equal, too.
    """
    weights = (weight.detach().cpu().numpy() for weight in model.model.layers.parameters()) if settings.lora else ()
    backbone = sizes_of(model.config, model.earn.early_layers, len(model.lm_head.weight), len(model.lm_head.weight))
    return {
        **to_json(settings),
        "data": _digest(*sequences),
        "identifiers": _digest(model.catalog.codes),
        "weights": _digest(*weights),
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
        since = {name: getattr(EarnConfig, name) for name in SET_FIELDS}
        before = {**to_json(TrainSettings()), "weights": _digest(), **since, **read_json(path)}  # older ones lack some
        if removed := [name for name in REMOVED if before.get(name)]:
            raise EarnError(
                f"{out}: the interrupted training has {removed[0]} {before[removed[0]]}, which was removed. Start it "
                f"anew in another folder, or resume it with the version of earn-edge that started it."
            )
        if different := [name for name in plan if before.get(name) != plan[name]]:
            name = different[0]
            raise EarnError(
                f"{out}: the interrupted training had another {name}: {str(before.get(name))[:60]}, now it is "
                f"{str(plan[name])[:60]}. Resume with the data and options that it was started with."
            )
        return
    if path.is_file():
        raise EarnError(f"{out}: an interrupted training stands here. Pass --resume to go on, or remove {run}.")
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()  # of a start that was ended before it could say what it trains
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EarnError(f"{out}: exists and is not empty. Choose another folder, or remove it first.")
    run.mkdir(parents=True)
    write_json(path, plan)


def _last_checkpoint(out: Path) -> str | None:
    """The newest checkpoint in OUT/run that was written to its end; None if the training was stopped before."""
    states = (out / RUN_FOLDER).glob("checkpoint-*/trainer_state.json")  # written last
    folders = sorted((path.parent for path in states), key=lambda folder: int(folder.name.partition("-")[2]))
    return str(folders[-1]) if folders else None


def _arguments(out: Path, settings: TrainSettings) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(out / RUN_FOLDER),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=settings.weight_decay,
        bf16=settings.bf16 or settings.dtype == "bfloat16",
        seed=settings.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,  # the best one stays too
        load_best_model_at_end=True,
        metric_for_best_model=BEST_BY,
        greater_is_better=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,  # every parameter has a part in every loss
        use_cpu=not torch.accelerator.is_available(),  # else bf16 is refused on a CPU
        **warmup(settings.warmup),
    )
    # Trainer would wrap a model in DataParallel, which splits `keep` and `predict` as if they had a batch axis.
    # Several GPUs are for torchrun, with one process each.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
