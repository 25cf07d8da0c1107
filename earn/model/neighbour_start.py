"""A start for models of the method "set": before any training they recommend what is nearest to the newest items.

    token's row     the mean vector of the items that have the token, scaled to the size of other new rows
    first layer     values and their projection are the identity, so that the register reads a mean of the normed items;
                    queries and keys share a direction that turns with the position: an item of g places ago has the
                    weight exp(RECENCY cos(g PACE)) of it
    all MLPs, and the attention of the other layers, add nothing

The output is then a weighted mean of the history's vectors, and the head's cosines with it those of the items. Every
weight is free to leave its place in training, like the branches of ReZero (arXiv 2003.04887), which start at zero too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from earn.errors import EarnError
from earn.model.earn_model import EarnModel

RECENCY = 4.0
PACE = 0.2  # radians per place, about
QUIET = 0.1  # of the usual size: what positions and registers say beside the items


@torch.no_grad()
def start_as_neighbours(model: EarnModel, vectors: NDArray[np.float64]) -> None:
    """Sets an untrained model's weights as the module docstring says.

    Args:
        vectors: [items,d] by the catalog's order, d the backbone's width.

    Raises:
        EarnError: the vectors are of another shape.
    """
    table = cast(Tensor, model.model.embed_tokens.weight)
    want = (len(model.catalog), table.shape[1])
    if vectors.shape != want:
        raise EarnError(f"The vectors are {vectors.shape}, and the model has {want[0]} items of width {want[1]}.")
    rows = torch.tensor(model.earn.token_ids)
    start = _token_vectors(model.catalog.codes.astype(np.int64), vectors, len(rows))
    size = model.config.initializer_range * math.sqrt(want[1])
    for weights in {id(each): each for each in (table, cast(Tensor, model.lm_head.weight))}.values():
        weights[rows] = weights[rows] * QUIET + size * torch.from_numpy(start).to(weights)
    table[[*model.earn.prefix_ids, *model.earn.suffix_ids]] *= QUIET
    layers = cast(Sequence[nn.Module], model.model.layers)
    if not _is_plain(layers[0]):
        return
    for layer in layers:
        cast(nn.Linear, layer.mlp.down_proj).weight.zero_()  # type: ignore[union-attr]
        cast(nn.Linear, layer.self_attn.o_proj).weight.zero_()  # type: ignore[union-attr]
    _read_a_mean(cast(nn.Module, layers[0].self_attn), cast(Tensor, model.model.rotary_emb.inv_freq))


def _token_vectors(
    codes: NDArray[np.int64], vectors: NDArray[np.float64], tokens: int
) -> NDArray[np.float64]:  # [tokens,d]
    """The mean vector of the items that have each token, of length 1."""
    sums = np.zeros((tokens, vectors.shape[1]))
    for column in codes.T:
        np.add.at(sums, column, vectors)
    unit: NDArray[np.float64] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return unit


def _is_plain(layer: nn.Module) -> bool:
    """Whether values keep the width, so that they can be the items themselves."""
    parts = [getattr(layer.self_attn, f"{name}_proj", None) for name in "vo"]
    return all(isinstance(part, nn.Linear) and part.in_features == part.out_features for part in parts)


def _read_a_mean(attention: nn.Module, frequencies: Tensor) -> None:
    """Makes a layer's attention the mean of its rows, the nearest counting most where the family has biases."""
    for name in "vo":
        nn.init.eye_(cast(nn.Linear, getattr(attention, f"{name}_proj")).weight)
    e = cast(int, attention.head_dim)
    element = int((frequencies - PACE).abs().argmin())
    for name in "qk":
        projection = cast(nn.Linear, getattr(attention, f"{name}_proj"))
        projection.weight *= QUIET
        if projection.bias is not None:
            projection.bias.view(-1, e)[:, element] = math.sqrt(RECENCY * math.sqrt(e))
