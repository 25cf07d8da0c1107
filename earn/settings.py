"""How a model is trained: numbers with their defaults. No torch, so that the command line can show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The paper's are AdamW, cosine with warm-up 0.02, batch 128, learning rate 1e-3."""

    epochs: int = 20
    batch_size: int = 16  # windows per step and process
    learning_rate: float = 2e-3
    warmup: float = 0.02  # share of the steps
    weight_decay: float = 0.1
    dropout: float = 0.1  # of attention probabilities
    bf16: bool = False  # mixed precision
    seed: int = 0
