"""The folder OUT/run of a training that goes on: what is trained there, its resumable checkpoints, the time it took."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.config import EarnConfig, to_json
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
