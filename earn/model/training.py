"""Trains a model with packed registers through Hugging Face's Trainer; the best checkpoint by validation NDCG@10 stays.

With adapters (`earn.model.lora`) a resumable checkpoint holds the trained parameters alone, and OUT the merged weights.

`accelerate launch` and `torchrun` scale it, as they scale any Trainer. While it runs, resumable checkpoints stand in
OUT/run; at the end OUT itself is the checkpoint, with training.json saying how it came to be.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from earn.config import SET, to_json
from earn.data.windows import Window, Windows
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.model import sharding
from earn.model.checkpoint_files import WEIGHT_FILES
from earn.model.earn_model import EarnModel
from earn.model.lora import add_adapters, holds_bfloat16, merge_adapters
from earn.model.packing import pack
from earn.model.set_model import SetModel
from earn.model.training_run import BEST_BY, RUN_FOLDER, Redraw, Report, SaveBetween, claim, last_checkpoint, plan_of
from earn.model.transformers_versions import warmup
from earn.settings import TrainSettings

TRAINING_FILE = "training.json"
MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"  # of the environment

TITLE = "only the one called {title}, which is chosen again"  # fits the default template, and is no identifier
TITLE_TOKENS = 48  # longer ones are cut


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
        self.is_sharded = sharding.prepare(model, self.accelerator)
        self._is_lean = not self.is_sharded and not all(parameter.requires_grad for parameter in model.parameters())
        if self.is_deepspeed_enabled:
            raise EarnError("DeepSpeed is not supported. Use torchrun, or FSDP: accelerate launch --use_fsdp.")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes a resumable checkpoint's weights, under the name that Trainer reads: the trained ones, if not all."""
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)  # all processes look for it next, and shards are written later
        if not self._is_lean:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
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
        """Validates the model as it stands, in every process; the first one's figure counts for all."""
        self._earn.eval()
        is_mixed = holds_bfloat16(self._earn)
        with self._whole_weights(), torch.autocast(self.args.device.type, torch.bfloat16, enabled=is_mixed):
            score = self._validate(self._earn)
        self._earn.train()
        metrics = {f"eval_{BEST_BY}": broadcast_object_list([score])[0]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _whole_weights(self) -> AbstractContextManager[None]:
        if not self.is_sharded:
            return nullcontext()
        return sharding.gathered(self._earn, self.accelerator.state.fsdp_plugin.reshard_after_forward)


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

    After a training in shards (earn.model.sharding) `out` alone holds the model: the one that was given cannot compute.

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
        claim(out, {**plan_of(model, sequences, settings), "processes": arguments.world_size}, resume)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = settings.dropout
        layer.hidden_dropout = settings.hidden_dropout
        layer.is_recomputed = settings.gradient_checkpointing
    model.input_dropout = settings.input_dropout
    if isinstance(model, SetModel):
        model.sample_negatives(settings.negatives, sequences)
    if settings.lora:
        add_adapters(model, settings)
    saves = SaveBetween(out)
    callbacks = [Redraw(windows), Report(progress, say), saves]
    trainer = EarnTrainer(model, windows, validate, arguments, callbacks)
    result = trainer.train(resume_from_checkpoint=last_checkpoint(out) if resume else None)
    record = {
        "data": data,
        "settings": to_json(settings),
        BEST_BY: trainer.state.best_metric or 0.0,
        "by_epoch": [log[f"eval_{BEST_BY}"] for log in trainer.state.log_history if f"eval_{BEST_BY}" in log],
        "steps": result.global_step,
        "seconds": round(saves.seconds, 1),
    }
    model.eval()
    if trainer.is_sharded:
        sharding.gather_for_good(model, trainer.is_world_process_zero())
    trainer.accelerator.wait_for_everyone()  # others may still be reading the best checkpoint
    if settings.lora and (trainer.is_world_process_zero() or not trainer.is_sharded):
        merge_adapters(model)
    if trainer.is_world_process_zero():
        model.save_pretrained(out)
        write_json(out / TRAINING_FILE, record)
        shutil.rmtree(out / RUN_FOLDER)
    if not trainer.is_sharded:
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
