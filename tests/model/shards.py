"""What each of several processes does in test_several_processes.py, under torchrun: OUT, then the trainings by name.

accelerate shards on accelerators alone; here it is told that a CPU is one, so that gloo does what NCCL would do.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from earn.export.stages import torch_recommender
from earn.model import training_run
from earn.model.earn_model import EarnModel
from earn.model.sharding import WANTED
from earn.model.training import train
from earn.settings import TrainSettings
from tests.model.trainings import pretrained, sequences

PROCESSES = 2
WHOLE = TrainSettings(epochs=2, batch_size=12, learning_rate=3e-3, dropout=0.0)
LORA = TrainSettings(epochs=1, batch_size=12, learning_rate=3e-3, dropout=0.0, lora=4)
KILLED_AT = 5  # of 6 steps


def validate(model: EarnModel) -> float:
    """A figure that grows with training: the target's score less that of the best item."""
    found = torch_recommender(model).recommend_batch([[0, 1, 2], [3, 4, 5, 6]], 12)
    scores = [{item.item_id: item.score for item in items} for items in found]
    return sum(of[target] - max(of.values()) for of, target in zip(scores, ("3", "7"), strict=True))


def _shard_on_cpu() -> None:
    right = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **settings: Any) -> None:
        right(self, *args, fsdp_plugin=fsdp_plugin, **settings)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


def _kill(done: int, _: int) -> None:
    if done == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)


def main(out: Path, names: list[str]) -> None:
    """Trains what is named into folders of these names."""
    torch.set_num_threads(1)
    _shard_on_cpu()
    for name in names:
        if name == "replicas":  # the same weights in every process, without shards
            AcceleratorState._reset_state()
            os.environ[WANTED] = "false"
        training_run.SAVE_SECONDS = 0.0 if name == "cut" else 600.0
        is_resumed = (out / name).exists()
        settings = LORA if name == "lora" else WHOLE
        progress = _kill if name == "cut" and not is_resumed else None
        train(
            pretrained(), sequences(), out / name, validate, settings, resume=is_resumed, progress=progress, say=print
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
