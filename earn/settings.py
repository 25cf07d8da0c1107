"""How a model is trained: numbers with their defaults, and how threads wait. No torch, so that a command can show them.

OpenMP's threads wait for each other at the end of every operation, and by default they spin while they wait. Where
another process wants a core too, the thread that is waited for does not get one, and all others burn theirs: a step of
tiny-llama on ml-100k (two threads, two cores that others use as well) took 12.8 s instead of the 0.24 s of a quiet
machine. Threads that sleep while they wait take 0.86 s there, as a single thread does, and 0.25 s on the quiet machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from earn.errors import EarnError

_RANGES: Mapping[str, tuple[float, float]] = {
    "epochs": (0.001, 1_000_000),
    "batch_size": (1, 1_000_000),
    "learning_rate": (0.0, 1.0),
    "warmup": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "dropout": (0.0, 0.99),
    "hidden_dropout": (0.0, 0.99),
    "input_dropout": (0.0, 0.99),
    "negatives": (0, 1_000_000_000),
    "lora": (0, 65_536),
    "users": (0, 1_000_000_000),
    "validation_users": (1, 1_000_000_000),
    "seed": (0, 2**32 - 1),  # numpy's
}
LORA_TARGETS = "q,k,v,o,gate,up,down"  # the linear layers of attention and MLP, without their "_proj"
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The paper's are AdamW, cosine with warm-up 0.02, batch 128, learning rate 1e-3."""

    epochs: float = 20  # passes over the data; 0.5: half of the windows, which are shuffled
    batch_size: int = 16  # windows per step and process
    learning_rate: float = 2e-3
    warmup: float = 0.02  # share of the steps
    weight_decay: float = 0.1
    dropout: float = 0.1  # of attention probabilities
    hidden_dropout: float = 0.0  # of what attention and MLP add to the hidden states
    input_dropout: float = 0.0  # of the embedded prompt
    negatives: int = 0  # values that a step draws beside its targets where a digit has more than twice as many; 0: all
    titles: bool = False  # learn items by their titles too; needs a tokenizer
    exclude_history: bool = False  # lists of the validation users, which choose an epoch, leave their histories out
    bf16: bool = False  # mixed precision
    lora: int = 0  # rank of the adapters that are trained in place of the layers' weights; 0: every weight is trained
    lora_targets: str = LORA_TARGETS  # the linear layers that get adapters, with commas between them
    gradient_checkpointing: bool = False  # compute each layer again in the backward pass, so as to keep less
    dtype: str = "float32"  # one of DTYPES: how weights that are not trained are held
    users: int = 0  # a sample of so many users, drawn with the seed; 0: all
    validation_users: int = 2000  # a sample of so many chooses the epoch; more hardly change which one it is
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:  # also true of nan
                raise EarnError(f"{name} is {value}. Take {least} to {most}.")
        if unknown := [name for name in self.lora_targets.split(",") if name not in LORA_TARGETS.split(",")]:
            raise EarnError(f"lora_targets names {unknown[0]!r}. Take some of {LORA_TARGETS}.")
        if self.dtype not in DTYPES:
            raise EarnError(f"dtype is {self.dtype!r}. Take one of {', '.join(DTYPES)}.")
        if not self.lora and self.lora_targets != LORA_TARGETS:
            raise EarnError(
                f"lora_targets is {self.lora_targets}, and lora 0: there are no adapters. Set lora to a rank."
            )
        if not self.lora and self.dtype != DTYPES[0]:
            raise EarnError(
                f"dtype is {self.dtype}, which is for weights that are not trained, and without lora all are. Set lora "
                "to a rank, or take bf16, which computes in mixed precision."
            )


# Of the method "set", where a model starts as a neighbours' mean (earn.model.neighbour_start): few and gentle steps.
SET_SETTINGS = TrainSettings(
    epochs=6,
    batch_size=128,
    learning_rate=5e-4,
    weight_decay=0.05,
    hidden_dropout=0.1,
    input_dropout=0.2,
    negatives=1024,
)


def let_waiting_threads_sleep() -> None:
    """Makes OpenMP's threads sleep while they wait, if the environment says nothing; call it before torch loads."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
