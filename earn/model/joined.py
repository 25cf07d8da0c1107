"""Projections that a family holds in one linear layer, read as the layers that the stages know (Phi-3's qkv, gate_up).

The rows of `qkv_proj` are those of q_proj, k_proj and v_proj one below the other, those of `gate_up_proj` gate_proj's
and up_proj's. Each part shares the weight with the whole, so that Hugging Face's own forward pass, a training and a
saved checkpoint see one layer, and the stages, an exported graph and its calibration see the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn import functional


class Part(nn.Module):
    """Some rows of a linear layer without bias, as a layer of their own that holds no weight itself."""

    def __init__(self, whole: nn.Linear, start: int, out_features: int) -> None:
        super().__init__()
        self._whole = (whole,)  # in a tuple it is no submodule: a checkpoint names the weight once
        self._start = start
        self.out_features = out_features

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        (whole,) = self._whole
        return functional.linear(hidden, whole.weight[self._start : self._start + self.out_features])


def name_parts(layer: nn.Module) -> None:
    """Gives a decoder layer's joined projections their parts, under the names that other families' layers have."""
    attention, mlp = cast(nn.Module, layer.self_attn), cast(nn.Module, layer.mlp)
    key_value = cast(int, attention.num_key_value_heads) * cast(int, attention.head_dim)
    query = cast(nn.Linear, attention.qkv_proj).out_features - 2 * key_value
    half = cast(nn.Linear, mlp.gate_up_proj).out_features // 2
    _add_parts(attention, "qkv_proj", {"q_proj": query, "k_proj": key_value, "v_proj": key_value})
    _add_parts(mlp, "gate_up_proj", {"gate_proj": half, "up_proj": half})
    mlp.act_fn = mlp.activation_fn


def _add_parts(owner: nn.Module, whole: str, sizes: Mapping[str, int]) -> None:
    start = 0
    for name, size in sizes.items():
        owner.add_module(name, Part(cast(nn.Linear, getattr(owner, whole)), start, size))
        start += size
