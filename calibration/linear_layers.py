"""The products of a stage graph: every MatMul with a constant weight, by layer and kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from earn.errors import EarnError

HEAD = "head"
_NAME = re.compile(r"layers\.(\d+)\.(\w+)|head")


@dataclass(frozen=True)
class Product:
    """One product of activations and a weight."""

    name: str  # of the node
    layer: int | None  # within the stage; None: the item head
    kind: str  # q_proj, ..., down_proj, head
    activation: str  # the tensor that goes in
    weight: str  # the initializer [rows, columns]
    output: str  # the tensor that comes out


def products(graph: onnx.ModelProto) -> list[Product]:
    """The products in the graph's order.

    Raises:
        EarnError: one has a name that an export does not give.
    """
    constants = {tensor.name for tensor in graph.graph.initializer}
    return [_product(node) for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def unit(stage: str, product: Product) -> str:
    """What is kept in float together: a layer such as "late.3", or "head"."""
    return HEAD if product.layer is None else f"{stage}.{product.layer}"


def watch(graph: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The graph with further float tensors among its outputs; weights are shared with the given one."""
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    known = {output.name for output in graph.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in dict.fromkeys(tensors)
        if name not in known
    )
    return watched


def activations(found: Sequence[Product]) -> list[str]:
    """The tensors that go into the products, each once."""
    return list(dict.fromkeys(product.activation for product in found))


def _product(node: onnx.NodeProto) -> Product:
    match = _NAME.fullmatch(node.name)
    if match is None:
        raise EarnError(f"The graph has a product {node.name!r}. Export the checkpoint again with this earn-edge.")
    layer, kind = match.groups()
    number = None if layer is None else int(layer)
    return Product(node.name, number, kind or HEAD, node.input[0], node.input[1], node.output[0])
