"""What a training does between its steps: it redraws windows, saves, counts its time and reports progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from earn.data.windows import Windows
from earn.files import read_json, write_json

BEST_BY = "ndcg@10"  # the validation figure that epochs are selected by
TIMED_STEPS = (2, 10)  # the first ones are slower; after the second number it is said how long all will take
SAVE_SECONDS = 600.0  # between two checkpoints within an epoch


class Redraw(TrainerCallback):
    """Redraws the windows at the start of every epoch, in every process."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draws the windows of this epoch."""
        self._windows.redraw(math.floor((state.epoch or 0) + 1e-3))  # resumed within an epoch, it is a fraction


class SaveBetween(TrainerCallback):
    """Writes a resumable checkpoint every SAVE_SECONDS, for epochs may take hours; the first process has the clock.

    Beside the checkpoints stands how many seconds the training took, over all its interruptions.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = float(read_json(path)["seconds"]) if path.is_file() else 0.0
        self._started = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._started

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Asks for a checkpoint if the last one is old."""
        is_due = time.monotonic() - self._saved >= SAVE_SECONDS
        if args.world_size > 1:  # a GPU is not waited for where nobody else has to agree
            agreed = torch.tensor([int(is_due)], device=args.device)
            torch.distributed.broadcast(agreed, 0)
            is_due = bool(agreed.item())
        if is_due:
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Notes when a checkpoint was written, and writes the seconds so far."""
        self._saved = time.monotonic()
        if state.is_world_process_zero:
            write_json(self._path, {"seconds": self.seconds})


class Report(TrainerCallback):
    """Tells the steps done, soon how long all will take, and one line per epoch: loss, validation figure, time left."""

    def __init__(self, progress: Callable[[int, int], None] | None, say: Callable[[str], None] | None) -> None:
        self._progress, self._say = progress, say
        self._started, self._first_step, self._timed_from = time.monotonic(), 0, 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Notes when and at which step this run starts."""
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Reports the step, and once how long all will take."""
        if not state.is_world_process_zero:
            return
        done = state.global_step - self._first_step
        if done == TIMED_STEPS[0]:
            self._timed_from = time.monotonic()
        elif done == TIMED_STEPS[1] and self._say:
            per_step = (time.monotonic() - self._timed_from) / (TIMED_STEPS[1] - TIMED_STEPS[0])
            left = state.max_steps - state.global_step
            self._say(
                f"about {_duration(per_step * left)} for {left:,} steps of {per_step:.2g} s, beside the validation "
                f"after each of {args.num_train_epochs:g} epochs"
            )
        if self._progress:
            self._progress(state.global_step, state.max_steps)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **values: Any) -> None:
        """Reports an epoch."""
        if not self._say or not state.is_world_process_zero:
            return
        loss = next((log["loss"] for log in reversed(state.log_history) if "loss" in log), math.nan)
        per_step = (time.monotonic() - self._started) / max(1, state.global_step - self._first_step)
        left = per_step * (state.max_steps - state.global_step)
        done = min(round(state.epoch or 0, 2), args.num_train_epochs)  # a part of an epoch ends with a whole step
        self._say(
            f"epoch {done:g} of {args.num_train_epochs:g}: loss {loss:.3f}, validation "
            f"{BEST_BY.upper()} {values['metrics'][f'eval_{BEST_BY}']:.4f}, {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    """Minutes and seconds, with hours before them if there are any: 2:05, 1:02:05."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
