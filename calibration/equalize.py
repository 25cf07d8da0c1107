"""Moves outliers of activations into weights, whose columns have a scale each. The function stays the same.

One range must hold all channels of an activation, so a channel with values a hundred times the others' leaves those two
or three steps of the 256. Where the channel comes out of a weight or a norm, that one is divided by s, and the row of
the product's weight that reads the channel is multiplied by s:

    s = max|x| ** alpha / max|w| ** (1 - alpha)        SmoothQuant (Xiao et al., ICML 2023), equation 4

    down_proj reads silu(gate) * up         up_proj's columns are divided
    q, k, v; gate, up; the head read a norm     its vector is divided
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from earn.calibration.collect import ChannelRange
from earn.calibration.linear_layers import Product, products

ALPHA = 0.7  # chosen by beam-set overlap on two data sets, see docs/calibration.md
LEAST = 1e-5  # of what the formula divides by

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Channel:
    """One tensor whose channels can be scaled: what makes them, and which products read them."""

    source: str  # initializer whose last axis makes the channels
    readers: tuple[Product, ...]


def equalize(graph: onnx.ModelProto, seen: Mapping[str, ChannelRange], alpha: float = ALPHA) -> None:
    """Changes the weights of a stage graph in place.

    Args:
        graph: with its weights loaded.
        seen: what went into the products, by tensor.
        alpha: how much of an outlier goes over, 0 to 1.
    """
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    for channel in channels(graph):
        readers = [numpy_helper.to_array(weights[reader.weight]) for reader in channel.readers]
        activation = np.max([seen[reader.activation].magnitude for reader in channel.readers], axis=0)
        scale = _scale(activation, readers, alpha)
        source = numpy_helper.to_array(weights[channel.source])
        _replace(weights[channel.source], source / scale)
        for reader, weight in zip(channel.readers, readers, strict=True):
            _replace(weights[reader.weight], weight * scale[:, None])


def channels(graph: onnx.ModelProto) -> list[Channel]:
    """The tensors of a stage graph whose channels can be scaled, because nothing else would notice."""
    found = products(graph)
    uses = Counter(name for node in graph.graph.node for name in node.input)
    return [
        channel
        for channel in (*_gated(graph, found), *_normed(graph, found))
        if uses[channel.source] == 1 and all(uses[reader.weight] == 1 for reader in channel.readers)
    ]


def _gated(graph: onnx.ModelProto, found: Sequence[Product]) -> Iterator[Channel]:
    """What down_proj reads: the product of silu(gate) and up."""
    made_by = _makers(graph)
    by_output = {product.output: product for product in found}
    for product in found:
        node = made_by.get(product.activation)
        if product.kind != "down_proj" or node is None or node.op_type != "Mul":
            continue
        for factor in (by_output[name] for name in node.input if name in by_output):
            if factor.kind == "up_proj":  # without a bias between, which would have to be divided too
                yield Channel(factor.weight, (product,))


def _normed(graph: onnx.ModelProto, found: Sequence[Product]) -> Iterator[Channel]:
    """What the others read: a norm's product with its vector, as it is or the kept rows of it."""
    made_by = _makers(graph)
    constants = {tensor.name: len(tensor.dims) for tensor in graph.graph.initializer}
    readers: dict[str, list[Product]] = {}
    for product in found:
        node = made_by.get(product.activation)
        while node is not None and node.op_type == "Gather":
            node = made_by.get(node.input[0])
        if node is not None and node.op_type == "Mul":
            readers.setdefault(node.output[0], []).append(product)
    for tensor, reading in readers.items():
        vectors = [name for name in made_by[tensor].input if constants.get(name) == 1]
        if vectors and _is_read_by_products_alone(graph, tensor, reading):
            yield Channel(vectors[0], tuple(reading))


def _makers(graph: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in graph.graph.node for output in node.output}


def _is_read_by_products_alone(graph: onnx.ModelProto, tensor: str, reading: Sequence[Product]) -> bool:
    """Whether nothing but these products, and what picks rows for them, would notice the scale."""
    names = {product.name for product in reading}
    tensors = {tensor, *(product.activation for product in reading)}
    return all(
        node.name in names or (node.op_type == "Gather" and node.output[0] in tensors)
        for node in graph.graph.node
        if tensors.intersection(node.input)
    )


def _scale(activation: Floats, readers: Sequence[Floats], alpha: float) -> Floats:
    """What each channel is divided by."""
    weight = np.max([np.abs(rows).max(axis=1) for rows in readers], axis=0)
    scale: Floats = np.maximum(activation, LEAST) ** alpha / np.maximum(weight, LEAST) ** (1 - alpha)
    return scale


def _replace(tensor: onnx.TensorProto, values: Floats) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
