"""The linear layers of a stage graph: every MatMul with a constant weight, by transformer layer and kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from earn.errors import EarnError

HEAD = "head"  # the node of the item head, and its name among the layers
EMBEDDING = "embedding"  # likewise of the token embedding's lookup
_NAME = re.compile(r"layers\.(\d+)\.(\w+)|head")


@dataclass(frozen=True)
class LinearLayer:
    """One multiplication of activations by a weight."""

    name: str  # of the node
    layer: int | None  # index of the transformer layer within the stage; None: the item head
    kind: str  # q_proj, ..., down_proj, head
    activation: str  # the tensor that goes in
    weight: str  # the initializer [rows, columns]
    output: str  # the tensor that comes out

    def layer_name(self, stage: str) -> str:
        """The layer that it stays in float with: such as "late.3", or "head"."""
        return HEAD if self.layer is None else f"{stage}.{self.layer}"


def linear_layers(graph: onnx.ModelProto) -> list[LinearLayer]:
    """The linear layers in the graph's order.

    Raises:
        EarnError: one has a name that an export does not give.
    """
    constants = {tensor.name for tensor in graph.graph.initializer}
    return [_linear(node) for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def activations(linears: Sequence[LinearLayer]) -> list[str]:
    """The tensors that go into the linear layers, each once."""
    return list(dict.fromkeys(linear.activation for linear in linears))


def producers(graph: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that computes each tensor, by the tensor's name."""
    return {output: node for node in graph.graph.node for output in node.output}


def _linear(node: onnx.NodeProto) -> LinearLayer:
    match = _NAME.fullmatch(node.name)
    if match is None:
        raise EarnError(f"The graph has a MatMul {node.name!r}. Export the checkpoint again with this earn-edge.")
    layer, kind = match.groups()
    index = None if layer is None else int(layer)
    return LinearLayer(node.name, index, kind or HEAD, node.input[0], node.input[1], node.output[0])
