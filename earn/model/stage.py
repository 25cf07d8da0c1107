"""A stage: a run of decoder layers as one function of tokens or hidden states, positions, bias, cache and kept rows.

    (hidden[b,m,d], position_ids[b,m], attention_bias[b,1,m,s+m], past_key_values l x ([s,b,g,e], [s,b,g,e]), keep[r])
        -> (hidden[b,r,d], new_key_values l x ([m,b,g,e], [m,b,g,e]))

Training, the reference search and the exported graphs all run this one function; only bias, cache and kept rows differ.
In the last layer every row gives keys and values, but queries, output projection and MLP run for the kept rows alone:
nothing above would read the others.

Keys and values have their rows in front, so that a runtime which keeps room for more finds the next rows of all users
in one piece of memory. An exported stage takes and gives those of all its layers as one tensor [rows,b,2l,g,e].

The layers are Hugging Face's own decoder layers, whose submodules are called here one by one; what a family does beyond
Llama's layer stands in its row (`earn.model.families`).

Every reshape leaves at most one axis (-1) that is neither a fixed size nor the same-numbered axis of its input, so that
the export writes it as a constant and no graph computes shapes while it serves (see earn.export.simplify).

Shapes: b users, m new tokens, s cached tokens, S = s + m, l layers of the stage, h heads, g key-value heads,
kv_groups = h/g heads that share keys and values, d hidden, e head size, r kept rows, v rows of the item head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from earn.config import MASKED
from earn.model.families import Family, family_of, setting, turned_size
from earn.model.joined import name_parts

KeyValues = Sequence[tuple[Tensor, Tensor]]  # keys and values per layer, each [s,b,g,e]
Rotation = tuple[Tensor, Tensor] | None  # cosines and sines, each [b,m,1,e]; None: heads are not turned


class Stage(nn.Module):
    """Decoder layers and their rotary position embedding, shared with the backbone they were taken from."""

    def __init__(self, layers: Iterable[nn.Module], rotary: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.rotary = rotary
        for layer in self.layers:
            if layer_family(layer).has_joined_projections:
                name_parts(layer)

    def run(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        attention_bias: Tensor,
        past_key_values: KeyValues | None,
        keep: Tensor,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The stage's one computation; shapes stand at the head of this module. None: nothing is cached.

        Without layers it only picks the kept rows.
        """
        if not self.layers:
            return hidden.index_select(1, keep), []
        rotations: dict[str | None, Rotation] = {}  # by type of layer
        new_key_values = []
        last = len(self.layers) - 1
        bias = self._bias_per_query_head(attention_bias)
        kept_bias = self._bias_per_query_head(attention_bias.index_select(2, keep))
        for index, layer in enumerate(self.layers):
            past = past_key_values[index] if past_key_values else None
            own_bias, own_keep = (kept_bias, keep) if index == last else (bias, None)
            kind = rotary_kind(layer)
            if kind not in rotations:
                rotations[kind] = rotary_rotation(self.rotary, position_ids, kind)
            compute = layer if getattr(layer, "computes_in_forward", False) else partial(run_layer, layer)
            inputs = (hidden, rotations[kind], own_bias, past, own_keep)
            if layer.training and getattr(layer, "is_recomputed", False):  # which a training may have set
                hidden, key_value = checkpoint(compute, *inputs, use_reentrant=False)
            else:
                hidden, key_value = compute(*inputs)
            new_key_values.append(key_value)
        return hidden, new_key_values

    def first_shares(self, hidden: Tensor, position_ids: Tensor, attention_bias: Tensor, rows: Tensor) -> Tensor:
        """Attention probabilities [b,h,r,m] of these rows in the stage's first layer, nothing being cached."""
        attention = cast(nn.Module, self.layers[0].self_attn)
        rotation = rotary_rotation(self.rotary, position_ids, rotary_kind(self.layers[0]))
        _, query, key, _ = layer_heads(self.layers[0], hidden, rotation, rows)
        bias = self._bias_per_query_head(attention_bias.index_select(2, rows))
        kv_groups, scaling = _kv_groups(attention), cast(float, attention.scaling)
        shares = attention_shares(query, key.transpose(0, 1), bias, kv_groups, scaling)  # [b,g,kv_groups*r,m]
        return shares.reshape(len(hidden), -1, len(rows), hidden.shape[1])

    def _bias_per_query_head(self, attention_bias: Tensor) -> Tensor:
        """The bias [b,1,r,S] once for each query head of a key-value head: [b,1,kv_groups*r,S]."""
        return torch.cat((attention_bias,) * _kv_groups(cast(nn.Module, self.layers[0].self_attn)), dim=2)


class EarlyStage(Stage):
    """Layers 1..k with the token embedding in front."""

    def __init__(
        self, layers: Iterable[nn.Module], rotary: nn.Module, embedding: nn.Module, multiplier: float = 1.0
    ) -> None:
        super().__init__(layers, rotary)
        self.embedding = embedding
        self.multiplier = multiplier

    def embed(self, input_ids: Tensor) -> Tensor:
        """The hidden states [b,m,d] of token ids [b,m] before the first layer."""
        return scaled(self.embedding(input_ids), self.multiplier)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_bias: Tensor,
        past_key_values: Tensor,
        keep: Tensor,
    ) -> dict[str, Tensor]:
        """Token ids [b,m] and cache [s,b,2l,g,e] in; hidden states of the kept rows [b,r,d] and new rows of it out."""
        past = _by_layer(past_key_values, len(self.layers))
        hidden, new = self.run(self.embed(input_ids), position_ids, attention_bias, past, keep)
        return {"hidden": hidden, "new_key_values": _in_one(new)}


class LateStage(Stage):
    """Layers k+1..N with the final norm and the item head behind them."""

    def __init__(
        self, layers: Iterable[nn.Module], rotary: nn.Module, norm: nn.Module, head: nn.Module, divisor: float = 1.0
    ) -> None:
        super().__init__(layers, rotary)
        self.norm = norm
        self.head = head
        self.divisor = divisor

    def read_off(self, hidden: Tensor) -> Tensor:
        """The logits [b,r,v] of hidden states [b,r,d] after the last layer."""
        return scaled(self.head(self.norm(hidden)), 1 / self.divisor)

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        attention_bias: Tensor,
        past_key_values: Tensor,
        keep: Tensor,
    ) -> dict[str, Tensor]:
        """Hidden states [b,m,d] and cache [s,b,2l,g,e] in; logits of the kept rows [b,r,v] and new rows of it out."""
        past = _by_layer(past_key_values, len(self.layers))
        hidden, new = self.run(hidden, position_ids, attention_bias, past, keep)
        return {"logits": self.read_off(hidden), "new_key_values": _in_one(new)}


class DenseHead(LateStage):
    """The late stage of a dense model (k = N): no layers, so nothing but the kept rows to choose."""

    def forward(self, hidden: Tensor, keep: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Hidden states [b,m,d] in, logits of the kept rows [b,r,v] out."""
        return {"logits": self.read_off(hidden.index_select(1, keep))}


def causal_bias(rows: int) -> Tensor:
    """The bias [1,1,m,m] under which each row sees itself and those before it."""
    return torch.full((rows, rows), MASKED).triu(1)[None, None]


def run_layer(
    layer: nn.Module,
    hidden: Tensor,
    rotation: Rotation,
    attention_bias: Tensor,
    past: tuple[Tensor, Tensor] | None,
    keep: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One decoder layer: hidden [b,m,d] -> hidden [b,m,d] ([b,r,d] of kept rows), new keys and values [m,b,g,e].

    The bias [b,1,kv_groups*r,S] is that of the rows that go on.
    """
    attention = cast(nn.Module, layer.self_attn)
    hidden, query, key, value = layer_heads(layer, hidden, rotation, keep)
    key, value = key.transpose(0, 1), value.transpose(0, 1)  # [m,b,g,e]
    keys, values = (key, value) if past is None else (torch.cat((past[0], key)), torch.cat((past[1], value)))
    dropout = attention.attention_dropout if layer.training else 0.0
    scaling, kv_groups = cast(float, attention.scaling), _kv_groups(attention)
    mixed = attend(query, keys, values, attention_bias, kv_groups, scaling, cast(float, dropout))
    family, config = layer_family(layer), cast(PretrainedConfig, attention.config)
    multiplier = setting(config, family.residual_multiplier)
    added = cast(nn.Module, attention.o_proj)(mixed)
    if family.has_output_norms:
        added = cast(nn.Module, layer.post_attention_layernorm)(added)
    hidden = hidden + _dropped(scaled(added, multiplier), layer)
    before_mlp = layer.pre_feedforward_layernorm if family.has_output_norms else layer.post_attention_layernorm
    added = _gated(cast(nn.Module, layer.mlp), cast(nn.Module, before_mlp)(hidden))
    if family.has_output_norms:
        added = cast(nn.Module, layer.post_feedforward_layernorm)(added)
    return hidden + _dropped(scaled(added, multiplier), layer), (key, value)


def compute_in_forward(layer: nn.Module) -> None:
    """Makes `run_layer` the layer's own `forward`, so that hooks on it see the stages' computation.

    The plain Hugging Face model that shares the layer no longer computes.
    """

    def forward(layer: nn.Module, *inputs: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, (key, value) = run_layer(layer, *inputs)
        return hidden, (key.detach(), value.detach())  # nothing is learned through a cache

    layer.forward = MethodType(forward, layer)
    layer.computes_in_forward = True  # type: ignore[assignment]


def _gated(mlp: nn.Module, normed: Tensor) -> Tensor:
    """What the MLP makes of normed rows [b,m,d]."""
    act, gate, up, down = (cast(nn.Module, getattr(mlp, it)) for it in ("act_fn", "gate_proj", "up_proj", "down_proj"))
    return cast(Tensor, down(act(gate(normed)) * up(normed)))


def layer_family(layer: nn.Module) -> Family:
    """The row of the family that a layer is of."""
    return family_of(cast(PretrainedConfig, cast(nn.Module, layer.self_attn).config))


def scaled(values: Tensor, factor: float) -> Tensor:
    """The values times the factor; the values themselves where it is 1, so that no graph multiplies by it."""
    return values if factor == 1.0 else values * factor


def _dropped(added: Tensor, layer: nn.Module) -> Tensor:
    """What is added to the hidden states, with the dropout that a training may have set on the layer."""
    share = cast(float, getattr(layer, "hidden_dropout", 0.0))
    return functional.dropout(added, share) if share and layer.training else added


def layer_heads(
    layer: nn.Module, hidden: Tensor, rotation: Rotation, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a layer works on: input [b,r,d] and query [b,r,h,e] of the kept rows, key and value of all [b,m,g,e]."""
    attention = cast(nn.Module, layer.self_attn)
    normed = layer.input_layernorm(hidden)  # type: ignore[operator]
    if keep is None:
        query, key, value = projected(attention, normed, "qkv", rotation)
        return hidden, query, key, value
    key, value = projected(attention, normed, "kv", rotation)
    hidden, normed = hidden.index_select(1, keep), normed.index_select(1, keep)
    kept_rotation = rotation and (rotation[0].index_select(1, keep), rotation[1].index_select(1, keep))
    (query,) = projected(attention, normed, "q", kept_rotation)
    return hidden, query, key, value


def projected(attention: nn.Module, normed: Tensor, which: str, rotation: Rotation) -> tuple[Tensor, ...]:
    """Query, key and value heads of the rows [b,m,d], those that `which` names ("qkv", "kv", "q"): each [b,m,heads,e].

    Queries and keys are normalised where the family does so (Qwen3) and turned by their positions, all at once. The
    projections stand side by side, so that the export can make one linear layer of them.
    """
    e, config = cast(int, attention.head_dim), cast(PretrainedConfig, attention.config)
    half = turned_size(config) // 2
    layers = [cast(nn.Linear, getattr(attention, f"{name}_proj")) for name in which]
    heads = [layer.out_features // e for layer in layers]
    b, m, _ = normed.shape
    side_by_side = [layer(normed) for layer in layers]
    rows = side_by_side[0] if len(which) == 1 else torch.cat(side_by_side, dim=-1)
    rows = rows.view(b, m, sum(heads), e)
    turned = len(which.removesuffix("v"))  # how many of them know their position
    if family_of(config).has_head_norms:
        parts = list(rows.split(heads, dim=2))
        for index, name in enumerate(which[:turned]):
            parts[index] = getattr(attention, f"{name}_norm")(parts[index])
        rows = parts[0] if len(which) == 1 else torch.cat(parts, dim=2)
    if which == "q":
        return (rotate(rows, rotation, half, e),)
    rows, value = rows.split([sum(heads[:turned]), heads[-1]], dim=2)
    return (*rotate(rows, rotation, half, e).split(heads[:turned], dim=2), value)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, attention_bias: Tensor, kv_groups: int, scaling: float, dropout: float
) -> Tensor:
    """Softmax attention: query [b,r,h,e], keys and values [S,b,g,e], bias [b,1,kv_groups*r,S] -> [b,r,h*e].

    Keys and values are read where they lie: engines fold their permutations into the matmuls.
    """
    b, r, _, e = query.shape
    g = keys.shape[2]
    shares = attention_shares(query, keys, attention_bias, kv_groups, scaling)
    if dropout:
        shares = functional.dropout(shares, dropout)
    mixed = (shares @ values.permute(1, 2, 0, 3)).view(b, g, kv_groups, r, e)
    return mixed.permute(0, 3, 1, 2, 4).reshape(b, r, -1)


def attention_shares(query: Tensor, keys: Tensor, attention_bias: Tensor, kv_groups: int, scaling: float) -> Tensor:
    """Attention probabilities [b,g,kv_groups*r,S] of query [b,r,h,e], keys [S,b,g,e] and bias [b,1,kv_groups*r,S].

    The heads that share keys and values become rows of one matmul, so that keys are never repeated; the bias comes with
    its rows already repeated.
    """
    b, r, _, e = query.shape
    g = keys.shape[2]
    rows = query.view(b, r, g, kv_groups, e).permute(0, 2, 3, 1, 4).reshape(b, g, -1, e)  # [b,g,kv_groups*r,e]
    return torch.softmax((rows * scaling) @ keys.permute(1, 2, 3, 0) + attention_bias, dim=-1)


def rotary_kind(layer: nn.Module) -> str | None:
    """The type of layer by which rotary embeddings differ, "" where all share one; None of a layer that has none."""
    attention = cast(nn.Module, layer.self_attn)
    if not getattr(attention, "use_rope", True):
        return None
    config = cast(PretrainedConfig, attention.config)
    return str(config.layer_types[attention.layer_idx]) if layer_family(layer).has_rotary_by_layer_type else ""


def rotary_rotation(rotary: nn.Module, position_ids: Tensor, kind: str | None = "") -> Rotation:
    """Cosines and signed sines of the rotary position embedding, each [b,m,1,e], from the backbone's own frequencies.

    The sines of a head's first half are negative: the first of a pair (i, i + e/2) loses what the second gains.
    """
    if kind is None:
        return None
    prefix = f"{kind}_" if kind else ""
    frequencies = cast(Tensor, getattr(rotary, f"{prefix}inv_freq"))  # [e/2]
    angles = (position_ids.unsqueeze(-1).to(frequencies.dtype) * frequencies).unsqueeze(2)  # [b,m,1,e/2]
    scaling = cast(float, getattr(rotary, f"{prefix}attention_scaling"))
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(heads: Tensor, rotation: Rotation, half: int, size: int) -> Tensor:
    """Turns each pair (i, i + half) of a head [b,m,heads,e] by its position's angle, and leaves what lies behind them.

    Args:
        half: how many pairs there are.
        size: e, as a number: a trace would compute it.
    """
    if rotation is None:
        return heads
    if size > 2 * half:
        turned, rest = heads.split([2 * half, size - 2 * half], dim=-1)
        return torch.cat((rotate(turned, rotation, half, 2 * half), rest), dim=-1)
    cos, sin = rotation
    first, second = heads.split(half, dim=-1)
    return heads * cos + torch.cat((second, first), dim=-1) * sin


def _kv_groups(attention: nn.Module) -> int:
    """How many query heads share one head of keys and values."""
    return cast(int, attention.num_key_value_groups)


def _by_layer(cache: Tensor, layers: int) -> KeyValues:
    """Keys and values per layer, each [s,b,g,e], of a cache [s,b,2l,g,e]."""
    return [(cache[:, :, 2 * layer], cache[:, :, 2 * layer + 1]) for layer in range(layers)]


def _in_one(new_key_values: KeyValues) -> Tensor:
    """New rows of the cache [m,b,2l,g,e] from keys and values per layer, each [m,b,g,e]."""
    parts = [tensor for key_value in new_key_values for tensor in key_value]
    m, b, g, e = parts[0].shape
    return torch.cat(parts, dim=2).view(m, b, len(parts), g, e)
