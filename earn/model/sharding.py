"""Training in shards: each process holds a part of every weight, its gradient and its optimizer state (FSDP2).

    accelerate launch --use_fsdp --fsdp_version 2 --num_processes N -m earn.cli.main train ...

A decoder layer's weights are gathered while that layer computes, by hooks on its `forward`. The stages call the layer's
submodules one by one and would pass those hooks by, so a layer that is to be sharded gets the stages' computation as
its `forward`. Validation, and the checkpoint at the end, need whole weights: all are gathered for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.model.stage import compute_in_forward

if TYPE_CHECKING:
    from accelerate import Accelerator

WANTED = "ACCELERATE_USE_FSDP"  # of the environment, set by `accelerate launch --use_fsdp`


def prepare(model: EarnModel, accelerator: Accelerator) -> bool:
    """Makes each decoder layer a unit of its own, before the model is sharded; returns whether it will be.

    Raises:
        EarnError: FSDP was asked for in its first version, or where accelerate does not shard.
    """
    if accelerator.is_fsdp2:
        layers = list(model.model.layers)
        for layer in layers:
            compute_in_forward(layer)
        model._no_split_modules = sorted({type(layer).__name__ for layer in layers})  # what accelerate shards alone
        # Embedding and head may share a table, or trained rows of it; in one unit, that of the model, both may.
        for name in ("get_input_embeddings", "get_output_embeddings"):
            setattr(model, name, lambda: None)
        # Every process has read the backbone before; loading anew from the first one would only untie what is shared.
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
        return True
    if os.environ.get(WANTED, "false").lower() != "true":
        return False
    if getattr(accelerator.state, "fsdp_plugin", None) is not None:
        raise EarnError("FSDP's first version is not supported. Give accelerate launch --fsdp_version 2.")
    raise EarnError(
        f"{WANTED} is set, and accelerate would train without shards: it shards on several GPUs alone. Leave "
        "--use_fsdp away."
    )


@contextmanager
def gathered(model: nn.Module, reshards: bool) -> Iterator[None]:
    """Has every weight whole in every process, for what does not go through the model's `forward`.

    Args:
        reshards: whether a layer's weights are let go after its computation in training.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(reshards, recurse=False)


def gather_for_good(model: nn.Module, keeps: bool) -> None:
    """Replaces each sharded parameter by the whole one, on the CPU, in the process that keeps them.

    All processes have to take part. The model is then good for being saved, not for computing.
    """
    whole: dict[int, nn.Parameter] = {}  # by the sharded one: two modules may share it
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in whole:
                tensor = cast(DTensor, parameter.detach()).full_tensor()
                tensor = tensor.cpu() if keeps else torch.empty(0)
                whole[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            module._parameters[name] = whole[id(parameter)]
