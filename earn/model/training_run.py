"""The folder OUT/run of a training that goes on: what is trained there, its resumable checkpoints, the time it took.

And what a training does between its steps: it redraws windows, saves, counts its time and reports progress.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState

from earn.config import EarnConfig, to_json
from earn.data.windows import Windows
from earn.errors import EarnError
from earn.files import read_json, write_json
from earn.manifest import SET_FIELDS
from earn.model.earn_model import EarnModel
from earn.model.families import sizes_of
from earn.settings import TrainSettings

RUN_FOLDER = "run"
PLAN_FILE = "plan.json"  # marks the folder as ours, and says what is being trained
CLOCK_FILE = "clock.json"  # the seconds it took so far
REMOVED = ("label_smoothing", "average")  # settings that older versions had; 0 meant that they were not used
BEST_BY = "ndcg@10"  # the validation figure that epochs are selected by
TIMED_STEPS = (2, 10)  # the first ones are slower; after the second number it is said how long all will take
SAVE_SECONDS = 600.0  # between two checkpoints within an epoch


def plan_of(model: EarnModel, sequences: Sequence[NDArray[np.int64]], settings: TrainSettings) -> dict[str, Any]:
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


def claim(out: Path, plan: dict[str, Any], resume: bool) -> None:
    """Makes OUT/run this training's, or checks that the one to be resumed is this one."""
    run = out / RUN_FOLDER
    path = run / PLAN_FILE
    if resume:
        if not path.is_file():
            raise EarnError(f"{out}: there is no interrupted training to resume. Start it without --resume.")
        since = {name: getattr(EarnConfig, name) for name in SET_FIELDS}
        new = {"weights": _digest(), "processes": plan["processes"], **since}  # which older versions did not write
        before = {**to_json(TrainSettings()), **new, **read_json(path)}
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


def last_checkpoint(out: Path) -> str | None:
    """The newest checkpoint in OUT/run that was written to its end; None if the training was stopped before."""
    states = (out / RUN_FOLDER).glob("checkpoint-*/trainer_state.json")  # written last
    folders = sorted((path.parent for path in states), key=lambda folder: int(folder.name.partition("-")[2]))
    return str(folders[-1]) if folders else None


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

    def __init__(self, out: Path) -> None:
        self._path = out / RUN_FOLDER / CLOCK_FILE
        self._before = float(read_json(self._path)["seconds"]) if self._path.is_file() else 0.0
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
