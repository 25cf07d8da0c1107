"""Training with low-rank adapters (LoRA, arXiv 2106.09685): a few added parameters learn, the backbone stays as it is.

    y = W x + (2r/r) B A x        W [o,i] frozen; A [r,i] drawn, B [o,r] zero at first, both trained; r the rank

What the backbone cannot know is trained fully: the rows of identifier tokens and registers, in the embedding table and
in the head (one and the same rows where these share a table). The rows of words stay frozen.

Trained parameters are float32. Frozen ones are so too, or bfloat16: the forward pass then runs under autocast, which
computes products in bfloat16. `merge_adapters` leaves ordinary weights W + 2BA in the type that W was held in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.settings import TrainSettings

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

SCALE = 2  # by which what an adapter adds is multiplied
ADAPTER = "default"  # peft's name of the one adapter


class _TrainedRows(nn.Module):
    """A table [v,d] that is frozen but for some rows, which a parameter of their own replaces."""

    def __init__(self, table: nn.Embedding | nn.Linear, token_ids: Tensor, rows: nn.Parameter) -> None:
        """`token_ids` [t] of the trained rows, ascending; `rows` [t,d]."""
        super().__init__()
        self.table = table
        self.rows = rows
        self.register_buffer("token_ids", token_ids, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The whole table [v,d] as it stands, in a copy without gradients."""
        table, rows = self.table.weight.detach(), self.rows.detach()
        return table.index_copy(0, cast(Tensor, self.token_ids), rows.to(table.dtype))

    def merged(self) -> nn.Embedding | nn.Linear:
        """The table's own module, with the trained rows in their places."""
        with torch.no_grad():
            self.table.weight[cast(Tensor, self.token_ids)] = self.rows.to(self.table.weight.dtype)
        return self.table


class _Embedding(_TrainedRows):
    def forward(self, input_ids: Tensor) -> Tensor:
        """Rows [b,m,d] of token ids [b,m]."""
        token_ids = cast(Tensor, self.token_ids)
        words = self.table(input_ids)
        places = torch.searchsorted(token_ids, input_ids).clamp(max=len(token_ids) - 1)
        is_trained = (token_ids[places] == input_ids).unsqueeze(-1)
        scale = getattr(self.table, "embed_scale", 1.0)  # Gemma's table multiplies what it gives
        rows = functional.embedding(places, self.rows) * scale
        return torch.where(is_trained, rows.to(words.dtype), words)


class _Head(_TrainedRows):
    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [b,r,v] of hidden states [b,r,d]."""
        logits: Tensor = self.table(hidden)
        trained = functional.linear(hidden, self.rows.to(hidden.dtype)).to(logits.dtype)
        return logits.index_copy_(-1, cast(Tensor, self.token_ids), trained)


def add_adapters(model: EarnModel, settings: TrainSettings) -> None:
    """Freezes the model, in place, but for new adapters and the rows of identifiers and registers.

    Raises:
        EarnError: the rank is as large as a matrix that it should be smaller than.
        ModuleNotFoundError: peft is not installed.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = [f"{name}_proj" for name in settings.lora_targets.split(",")]
    layers = cast(nn.ModuleList, model.model.layers)
    linear = [module for name, module in layers.named_modules() if name.rpartition(".")[2] in targets]
    smallest = min(min(cast(Any, module).weight.shape) for module in linear)
    if settings.lora >= smallest:
        raise EarnError(
            f"lora is {settings.lora}, and the smallest of the layers to be adapted has {smallest} rows or columns. "
            "Take a lower rank, or 0 to train every weight."
        )
    model.requires_grad_(False)
    torch.manual_seed(settings.seed)
    config = LoraConfig(r=settings.lora, lora_alpha=SCALE * settings.lora, target_modules=targets)
    inject_adapter_in_model(config, layers)  # the layers alone: what embedding and head share is not peft's to know
    _train_rows(model)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, settings.dtype))


def merge_adapters(model: EarnModel) -> None:
    """Makes an ordinary model again of one with adapters, in place: every weight in the type that it was held in."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "lora_A"):
                setattr(parent, name, _merged(cast("LoraLayer", child)))
    model.model.embed_tokens = model.model.embed_tokens.merged()
    model.lm_head = model.lm_head.merged()
    model.requires_grad_(True)


def holds_bfloat16(model: nn.Module) -> bool:
    """Whether some weights are bfloat16, so that the model computes under autocast."""
    return any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def _train_rows(model: EarnModel) -> None:
    earn, embedding, head = model.earn, model.model.embed_tokens, model.lm_head
    ids = sorted({*earn.token_ids, *earn.prefix_ids, *earn.suffix_ids})
    token_ids = torch.tensor(ids, device=embedding.weight.device)
    rows = nn.Parameter(embedding.weight.detach()[token_ids])
    own = rows if head.weight is embedding.weight else nn.Parameter(head.weight.detach()[token_ids])
    model.model.embed_tokens = _Embedding(embedding, token_ids, rows)
    model.lm_head = _Head(head, token_ids, own)


@torch.no_grad()
def _merged(layer: LoraLayer) -> nn.Linear:
    """The linear layer that an adapter was put on, with what it learned added in float32."""
    linear = cast(nn.Linear, layer.get_base_layer())
    delta = cast(Tensor, cast(Any, layer).get_delta_weight(ADAPTER))
    linear.weight.copy_(linear.weight.float() + delta.float())
    return linear
