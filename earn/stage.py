"""A stage: a run of decoder layers as one function of tokens or hidden states, positions, bias, cache and kept rows.

    (hidden[b,m,d], position_ids[b,m], attention_bias[b,1,m,s+m], past_key_values l x ([b,g,s,e], [b,g,s,e]), keep[r])
        -> (hidden[b,r,d], new_key_values l x ([b,g,m,e], [b,g,m,e]))

Training, the reference search and the exported graphs all run this one function; only bias, cache and kept rows differ.
In the last layer every row gives keys and values, but queries, output projection and MLP run for the kept rows alone:
nothing above would read the others.

The layers are Hugging Face's own decoder layers (Llama, Qwen2, Qwen3), whose submodules are called here one by one.

Every reshape leaves at most one axis (-1) that is neither a fixed size nor the same-numbered axis of its input, so that
the export writes it as a constant and no graph computes shapes while it serves (see earn.export.simplify).

Shapes: b users, m new tokens, s cached tokens, l layers of the stage, h heads, g key-value heads, n = h/g heads that
share keys and values, d hidden, e head size, r kept rows, v rows of the item head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from earn.specs import new_key_value_names

KeyValues = Sequence[tuple[Tensor, Tensor]]  # keys and values per layer, each [b,g,s,e]


class Stage(nn.Module):
    """Decoder layers and their rotary position embedding, shared with the backbone they were taken from."""

    def __init__(self, layers: Iterable[nn.Module], rotary: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.rotary = rotary

    def run(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        attention_bias: Tensor,
        past_key_values: KeyValues,
        keep: Tensor,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The stage's one computation; shapes stand at the head of this module.

        Without layers it only picks the kept rows.
        """
        if not self.layers:
            return hidden.index_select(1, keep), []
        rotation = rotary_rotation(self.rotary, position_ids)  # cos and sin, each [b,m,1,e]
        new_key_values = []
        last = len(self.layers) - 1
        bias = self._shared_bias(attention_bias)
        kept_bias = self._shared_bias(attention_bias.index_select(2, keep))
        for number, (layer, past) in enumerate(zip(self.layers, past_key_values, strict=True)):
            choice = (kept_bias, past, keep) if number == last else (bias, past, None)
            hidden, key_value = run_layer(layer, hidden, rotation, *choice)
            new_key_values.append(key_value)
        return hidden, new_key_values

    def _shared_bias(self, attention_bias: Tensor) -> Tensor:
        """The bias [b,1,r,S] once for each of the n heads that share keys and values: [b,1,n*r,S]."""
        return torch.cat((attention_bias,) * _sharing(cast(nn.Module, self.layers[0].self_attn)), dim=2)


class EarlyStage(Stage):
    """Layers 1..k with the token embedding in front."""

    def __init__(self, layers: Iterable[nn.Module], rotary: nn.Module, embedding: nn.Module) -> None:
        super().__init__(layers, rotary)
        self.embedding = embedding

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_bias: Tensor,
        past_key_values: KeyValues,
        keep: Tensor,
    ) -> dict[str, Tensor]:
        """Token ids [b,m] in, hidden states of the kept rows [b,r,d] and the new keys and values out."""
        hidden, new = self.run(self.embedding(input_ids), position_ids, attention_bias, past_key_values, keep)
        return {"hidden": hidden, **_named(new)}


class LateStage(Stage):
    """Layers k+1..N with the final norm and the item head behind them."""

    def __init__(self, layers: Iterable[nn.Module], rotary: nn.Module, norm: nn.Module, head: nn.Module) -> None:
        super().__init__(layers, rotary)
        self.norm = norm
        self.head = head

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        attention_bias: Tensor,
        past_key_values: KeyValues,
        keep: Tensor,
    ) -> dict[str, Tensor]:
        """Hidden states [b,m,d] in, logits of the kept rows [b,r,v] and the new keys and values out."""
        hidden, new = self.run(hidden, position_ids, attention_bias, past_key_values, keep)
        return {"logits": self.head(self.norm(hidden)), **_named(new)}


class DenseHead(LateStage):
    """The late stage of a dense model (k = N): no layers, so nothing but the kept rows to choose."""

    def forward(self, hidden: Tensor, keep: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Hidden states [b,m,d] in, logits of the kept rows [b,r,v] out."""
        return {"logits": self.head(self.norm(hidden.index_select(1, keep)))}


def run_layer(
    layer: nn.Module,
    hidden: Tensor,
    rotation: tuple[Tensor, Tensor],
    attention_bias: Tensor,
    past: tuple[Tensor, Tensor],
    keep: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One decoder layer: hidden [b,m,d] -> hidden [b,m,d] ([b,r,d] of kept rows), new keys and values [b,g,m,e].

    The bias [b,1,n*r,S] is that of the rows that go on.
    """
    attention = cast(nn.Module, layer.self_attn)
    normed = layer.input_layernorm(hidden)  # type: ignore[operator]
    key = _heads(attention, "k", normed)  # [b,m,g,e]
    value = _heads(attention, "v", normed)
    half = cast(int, attention.head_dim) // 2  # not from a tensor's shape: an exported graph would compute it
    key = rotate(key, *rotation, half).transpose(1, 2)  # [b,g,m,e]
    value = value.transpose(1, 2)
    if keep is not None:
        hidden, normed = hidden.index_select(1, keep), normed.index_select(1, keep)
        rotation = (rotation[0].index_select(1, keep), rotation[1].index_select(1, keep))
    query = rotate(_heads(attention, "q", normed), *rotation, half)  # [b,r,h,e]
    keys = torch.cat((past[0], key), dim=2)  # [b,g,s+m,e]
    values = torch.cat((past[1], value), dim=2)
    dropout = attention.attention_dropout if layer.training else 0.0
    query = query * cast(float, attention.scaling)
    mixed = attend(query, keys, values, attention_bias, _sharing(attention), cast(float, dropout))
    hidden = hidden + attention.o_proj(mixed)  # type: ignore[operator]
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # type: ignore[operator]
    return hidden, (key, value)


def attend(query: Tensor, keys: Tensor, values: Tensor, attention_bias: Tensor, n: int, dropout: float) -> Tensor:
    """Softmax attention: query [b,r,h,e] (scaled), keys and values [b,g,S,e], bias [b,1,n*r,S] -> [b,r,h*e].

    The n heads that share keys and values are laid into the rows of one product, so keys are never repeated; the bias
    comes with its rows already repeated.
    """
    b, r, _, e = query.shape
    g = keys.shape[1]
    rows = query.view(b, r, g, n, e).permute(0, 2, 3, 1, 4).reshape(b, g, -1, e)  # [b,g,n*r,e]
    shares = torch.softmax(rows @ keys.transpose(2, 3) + attention_bias, dim=-1)  # [b,g,n*r,S]
    if dropout:
        shares = functional.dropout(shares, dropout)
    mixed = (shares @ values).view(b, g, n, r, e)
    return mixed.permute(0, 3, 1, 2, 4).reshape(b, r, -1)


def rotary_rotation(rotary: nn.Module, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary position embedding, each [b,m,1,e], from the backbone's own frequencies."""
    frequencies = cast(Tensor, rotary.inv_freq)  # [e/2]
    angles = position_ids.unsqueeze(-1).to(frequencies.dtype) * frequencies  # [b,m,e/2]
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)
    scaling = cast(float, rotary.attention_scaling)
    return angles.cos() * scaling, angles.sin() * scaling


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, half: int) -> Tensor:
    """Turns each pair (i, i + half) of a head [b,m,h,e] by its position's angle; half is e/2."""
    first, second = heads.split(half, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def empty_past(layers: int, hidden: Tensor, key_value_heads: int, head_size: int) -> list[tuple[Tensor, Tensor]]:
    """A cache that holds nothing, for the users of `hidden` [b,...] and on its device: l x ([b,g,0,e], [b,g,0,e])."""
    return [(hidden.new_zeros(hidden.shape[0], key_value_heads, 0, head_size),) * 2 for _ in range(layers)]


def _heads(attention: nn.Module, which: str, normed: Tensor) -> Tensor:
    """The query, key or value heads of the rows: [b,m,d] -> [b,m,heads,e], normalised where the family does so."""
    b, m, _ = normed.shape
    project, e = cast(nn.Linear, getattr(attention, f"{which}_proj")), cast(int, attention.head_dim)
    heads = project(normed).view(b, m, project.out_features // e, e)
    norm = getattr(attention, f"{which}_norm", None)  # Qwen3 has q_norm and k_norm
    return cast(Tensor, heads if norm is None else norm(heads))


def _sharing(attention: nn.Module) -> int:
    """How many heads share keys and values."""
    return cast(int, attention.num_key_value_groups)


def _named(new_key_values: KeyValues) -> dict[str, Tensor]:
    flat = [tensor for key_value in new_key_values for tensor in key_value]
    return dict(zip(new_key_value_names(len(new_key_values)), flat, strict=True))
