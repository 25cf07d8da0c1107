"""Moves outliers of activations into weights, whose columns have a scale each. The function stays the same.

One range must hold all channels of an activation. A channel with values a hundred times the others' leaves those two or
three of the 256 steps. The initializer that makes the channel is divided by s, and the row of each weight that reads it
is multiplied by s:

    s = max|x| ** alpha / max|w| ** (1 - alpha)        SmoothQuant (Xiao et al., ICML 2023), equation 4

    down_proj reads silu(gate) * up                  up_proj's columns are divided
    q, k, v; gate, up; and the head read a norm      its vector is divided
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from earn.calibration.collect import StageRanges
from earn.calibration.linear_layers import LinearLayer, linear_layers, producers

ALPHA = 0.7  # chosen by beam-set overlap on two data sets, see docs/calibration.md
EPSILON = 1e-5  # the least magnitude that goes into the formula

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class SmoothingPair:
    """What makes a tensor's channels, and what reads them: both can be scaled together."""

    source: str  # initializer whose last axis makes the channels
    readers: tuple[LinearLayer, ...]


def equalize(graph: onnx.ModelProto, ranges: StageRanges, alpha: float = ALPHA) -> onnx.ModelProto:
    """The graph, whose weights are changed in place.

    Args:
        graph: of a stage, with its weights loaded.
        ranges: of what goes into the linear layers.
        alpha: how much of an outlier is moved, 0 to 1.
    """
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    for pair in smoothing_pairs(graph):
        readers = [numpy_helper.to_array(weights[reader.weight]) for reader in pair.readers]
        activation = np.max([ranges[reader.activation].magnitude for reader in pair.readers], axis=0)
        scale = _scale(activation, readers, alpha)
        _replace(weights[pair.source], numpy_helper.to_array(weights[pair.source]) / scale)
        for reader, weight in zip(pair.readers, readers, strict=True):
            _replace(weights[reader.weight], weight * scale[:, None])
    return graph


def smoothing_pairs(graph: onnx.ModelProto) -> list[SmoothingPair]:
    """The pairs of a stage graph that can be scaled because nothing else reads what changes."""
    linears, made_by = linear_layers(graph), producers(graph)
    uses = Counter(name for node in graph.graph.node for name in node.input)
    return [
        pair
        for pair in (*_gated(linears, made_by), *_normed(graph, linears, made_by))
        if uses[pair.source] == 1 and all(uses[reader.weight] == 1 for reader in pair.readers)
    ]


def _gated(linears: Sequence[LinearLayer], made_by: dict[str, onnx.NodeProto]) -> Iterator[SmoothingPair]:
    """What down_proj reads: silu(gate) times up."""
    by_output = {linear.output: linear for linear in linears}
    for linear in linears:
        node = made_by.get(linear.activation)
        if linear.kind == "down_proj" and node is not None and node.op_type == "Mul":
            factors = [by_output[name] for name in node.input if name in by_output]
            # An up_proj with a bias is no factor: its bias would have to be divided too.
            yield from (SmoothingPair(factor.weight, (linear,)) for factor in factors if factor.kind == "up_proj")


def _normed(
    graph: onnx.ModelProto, linears: Sequence[LinearLayer], made_by: dict[str, onnx.NodeProto]
) -> Iterator[SmoothingPair]:
    """What the others read: a norm times its vector, either all rows or those that a Gather keeps."""
    dimensions = {tensor.name: len(tensor.dims) for tensor in graph.graph.initializer}
    readers: dict[str, list[LinearLayer]] = {}  # by the norm's output
    for linear in linears:
        node = made_by.get(linear.activation)
        while node is not None and node.op_type == "Gather":
            node = made_by.get(node.input[0])
        if node is not None and node.op_type == "Mul":
            readers.setdefault(node.output[0], []).append(linear)
    for tensor, reading in readers.items():
        vectors = [name for name in made_by[tensor].input if dimensions.get(name) == 1]
        if vectors and _is_read_only_by(reading, graph, tensor):
            yield SmoothingPair(vectors[0], tuple(reading))


def _is_read_only_by(reading: Sequence[LinearLayer], graph: onnx.ModelProto, tensor: str) -> bool:
    """Whether only these linear layers read the tensor, directly or through the Gather that picks their rows."""
    names = {linear.name for linear in reading}
    tensors = {tensor, *(linear.activation for linear in reading)}
    return all(
        node.name in names or (node.op_type == "Gather" and node.output[0] in tensors)
        for node in graph.graph.node
        if tensors.intersection(node.input)
    )


def _scale(activation: Floats, readers: Sequence[Floats], alpha: float) -> Floats:
    """What each channel is divided by [channels]."""
    weight = np.max([np.abs(rows).max(axis=1) for rows in readers], axis=0)
    scale: Floats = np.maximum(activation, EPSILON) ** alpha / np.maximum(weight, EPSILON) ** (1 - alpha)
    return scale


def _replace(tensor: onnx.TensorProto, values: Floats) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
