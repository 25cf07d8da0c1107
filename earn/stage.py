"""A stage: a run of decoder layers as one function of tokens or hidden states, positions, bias, cache and kept rows.

    (hidden[b,m,d], position_ids[b,m], attention_bias[b,1,m,s+m], past_key_values l x ([b,g,s,e], [b,g,s,e]), keep[r])
        -> (hidden[b,r,d], new_key_values l x ([b,g,m,e], [b,g,m,e]))

Training, the reference search and the exported graphs all run this one function; only bias, cache and kept rows differ.
In the last layer every row gives keys and values, but queries, output projection and MLP run for the kept rows alone:
nothing above would read the others.

The layers are Hugging Face's own decoder layers (Llama, Qwen2, Qwen3), whose submodules are called here one by one.

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
        for number, (layer, past) in enumerate(zip(self.layers, past_key_values, strict=True)):
            hidden, key_value = run_layer(
                layer, hidden, rotation, attention_bias, past, keep if number == last else None
            )
            new_key_values.append(key_value)
        return hidden, new_key_values


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
    """One decoder layer: hidden [b,m,d] -> hidden [b,m,d] ([b,r,d] of kept rows), new keys and values [b,g,m,e]."""
    attention = cast(nn.Module, layer.self_attn)
    normed = layer.input_layernorm(hidden)  # type: ignore[operator]
    key = _heads(attention, "k", normed)  # [b,m,g,e]
    value = _heads(attention, "v", normed)
    key = rotate(key, *rotation).transpose(1, 2)  # [b,g,m,e]
    value = value.transpose(1, 2)
    if keep is not None:
        hidden, normed = hidden.index_select(1, keep), normed.index_select(1, keep)
        rotation = (rotation[0].index_select(1, keep), rotation[1].index_select(1, keep))
        attention_bias = attention_bias.index_select(2, keep)
    query = rotate(_heads(attention, "q", normed), *rotation)  # [b,r,h,e]
    keys = torch.cat((past[0], key), dim=2)  # [b,g,s+m,e]
    values = torch.cat((past[1], value), dim=2)
    dropout = attention.attention_dropout if layer.training else 0.0
    mixed = attend(query * cast(float, attention.scaling), keys, values, attention_bias, cast(float, dropout))
    hidden = hidden + attention.o_proj(mixed)  # type: ignore[operator]
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # type: ignore[operator]
    return hidden, (key, value)


def attend(query: Tensor, keys: Tensor, values: Tensor, attention_bias: Tensor, dropout: float) -> Tensor:
    """Softmax attention: query [b,r,h,e] (scaled), keys and values [b,g,S,e], bias [b,1,r,S] -> [b,r,h*e].

    The n heads that share keys and values are laid into the rows of one product, so keys are never repeated.
    """
    b, r, h, e = query.shape
    g = keys.shape[1]
    n = h // g
    rows = query.view(b, r, g, n, e).permute(0, 2, 3, 1, 4).reshape(b, g, n * r, e)
    scores = (rows @ keys.transpose(2, 3)).view(b, g, n, r, -1) + attention_bias.unsqueeze(2)
    shares = torch.softmax(scores, dim=-1)
    if dropout:
        shares = functional.dropout(shares, dropout)
    mixed = shares.view(b, g, n * r, -1) @ values  # [b,g,n*r,e]
    return mixed.view(b, g, n, r, e).permute(0, 3, 1, 2, 4).reshape(b, r, h * e)


def rotary_rotation(rotary: nn.Module, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary position embedding, each [b,m,1,e], from the backbone's own frequencies."""
    frequencies = cast(Tensor, rotary.inv_freq)  # [e/2]
    angles = position_ids.unsqueeze(-1).to(frequencies.dtype) * frequencies  # [b,m,e/2]
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)
    scaling = cast(float, rotary.attention_scaling)
    return angles.cos() * scaling, angles.sin() * scaling


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + e/2) of a head [b,m,h,e] by its position's angle."""
    half = heads.shape[-1] // 2
    turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
    return heads * cos + turned * sin


def empty_past(layers: int, hidden: Tensor, key_value_heads: int, head_size: int) -> list[tuple[Tensor, Tensor]]:
    """A cache that holds nothing, for the users of `hidden` [b,...] and on its device: l x ([b,g,0,e], [b,g,0,e])."""
    return [(hidden.new_zeros(hidden.shape[0], key_value_heads, 0, head_size),) * 2 for _ in range(layers)]


def _heads(attention: nn.Module, which: str, normed: Tensor) -> Tensor:
    """The query, key or value heads of the rows: [b,m,d] -> [b,m,heads,e], normalised where the family does so."""
    heads = getattr(attention, f"{which}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)  # Qwen3 has q_norm and k_norm
    return cast(Tensor, heads if norm is None else norm(heads))


def _named(new_key_values: KeyValues) -> dict[str, Tensor]:
    flat = [tensor for key_value in new_key_values for tensor in key_value]
    return dict(zip(new_key_value_names(len(new_key_values)), flat, strict=True))
