"""Makes an exported stage graph small: constant shapes, shared constants, no copies, no dead nodes, named MatMuls.

The exporter writes the target of a reshape as integer arithmetic on `Shape` nodes. Where shape inference knows the
target, it becomes one constant:

    a fixed size    that size
    0               the same-numbered axis of the input, copied
    -1              whatever is left, once at most

`earn.model.stage` is written so that this holds for all of its reshapes; any other stays as it is.

A MatMul with a weight gets the name of its linear layer in the stage, layers counted from 0 (`layers.1.down_proj`).
The item head is `head`, the embedding's lookup `embedding`. The weight of each is called `<name>.weight`. Calibration
finds the weights by these names.

Weights may be in external data: only the references to them are moved.

Once they are loaded, the projections of a layer that read the same activations are joined into one MatMul: q, k and v,
or k and v alone. `earn.model.stage` concatenates their outputs, and concatenating their weights gives the same numbers,
because a MatMul computes each column for itself. One MatMul of 1,152 columns is faster than three of 896, 128 and 128.
Gate and up projections stay apart: joined they gain nothing, and their halves would have to be copied out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from earn.errors import EarnError

LAYER_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# The exporter's own names, such as /mlp/down_proj_1/MatMul: the number is the layer's, and layer 0 goes without.
_LAYER_MATMUL = re.compile(rf"/(?:mlp/)?({'|'.join(LAYER_LINEARS)})(?:_(\d+))?/(?:MatMul|Gemm)")
_HEAD = re.compile(r"/head/(?:MatMul|Gemm)")
REMEDY = "Check the versions of torch and transformers against constraints.txt."

Shape = Sequence[int | str]  # a size that is not fixed is its symbol, or "" where it has none
Constants = Mapping[str, TensorProto]


def simplify(graph: ModelProto) -> ModelProto:
    """The same computation as a smaller graph; the one that is given stays as it is.

    Raises:
        EarnError: the name of a MatMul with a weight does not tell its linear layer.
    """
    simplified = shape_inference.infer_shapes(graph, data_prop=True)  # a copy
    body = simplified.graph
    _fix_reshapes(body)
    _see_through_identities(body)
    _share_constants(body)
    _name_matmuls(body)
    drop_dead(body)
    del body.value_info[:]
    return simplified


def _fix_reshapes(graph: GraphProto) -> None:
    """Gives every reshape a constant target where one can say it."""
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}
    for node in [node for node in graph.node if node.op_type == "Reshape"]:
        if not {node.input[0], node.output[0]} <= shapes.keys():
            continue
        target = reshape_target(shapes[node.input[0]], shapes[node.output[0]])
        if target is not None:
            value = numpy_helper.from_array(np.array(target, np.int64))
            node.input[1] = f"{node.output[0]}_target"
            del node.attribute[:]  # allowzero: here 0 copies an axis
            # It stands behind its reader only until it becomes an initializer.
            graph.node.append(helper.make_node("Constant", [], [node.input[1]], value=value))


def _shape(value: ValueInfoProto) -> Shape:
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes]


def reshape_target(before: Shape, after: Shape) -> list[int] | None:
    """What reshapes `before` to `after`: fixed sizes, 0 for a copied axis and at most one -1; None if that cannot."""
    target = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            target.append(size)
        else:
            target.append(0 if size and axis < len(before) and before[axis] == size else -1)
    return None if 0 in after or target.count(-1) > 1 else target


def _see_through_identities(graph: GraphProto) -> None:
    """Lets nodes read what an Identity copies: the exporter gives equal parameters one value and the others a copy."""
    source: dict[str, str] = {}
    for node in graph.node:  # in the order in which they run, so chains are followed
        node.input[:] = [source.get(name, name) for name in node.input]
        if node.op_type == "Identity":
            source[node.output[0]] = node.input[0]


def _share_constants(graph: GraphProto) -> None:
    """Makes the values of Constant nodes initializers, one for all that are equal."""
    shared: dict[bytes, str] = {}  # the value -> the initializer's name
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.ClearField("name")
            value = tensor.SerializeToString(deterministic=True)
            if value not in shared:
                shared[value] = tensor.name = f"constant_{len(shared)}"
                graph.initializer.append(tensor)
            renamed[node.output[0]] = shared[value]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _name_matmuls(graph: GraphProto) -> None:
    """Names the MatMuls that have a weight, these weights, and the embedding's lookup."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] == "embedding.weight":
            node.name = "embedding"
        elif node.op_type in ("MatMul", "Gemm") and node.input[1] in weights:
            node.name = _linear_name(node.name)
            own = f"{node.name}.weight"
            if node.input[1] == own:
                continue
            if own in weights:
                raise EarnError(f"The exported graph has more than one linear layer {node.name}. {REMEDY}")
            weights[own] = graph.initializer.add()  # a copy: the exporter shares equal weights
            weights[own].CopyFrom(weights[node.input[1]])
            weights[own].name = node.input[1] = own


def _linear_name(exported: str) -> str:
    """The name of a linear layer, from the name that the exporter gave its MatMul."""
    if match := _LAYER_MATMUL.fullmatch(exported):
        return f"layers.{match[2] or 0}.{match[1]}"
    if _HEAD.fullmatch(exported):
        return "head"
    raise EarnError(f"The exported graph has a MatMul {exported!r}: neither one of a layer nor the head. {REMEDY}")


def fuse_projections(graph: ModelProto) -> None:
    """Changes a simplified stage graph, whose weights are loaded, in place."""
    body = graph.graph
    makers = {output: node for node in body.node for output in node.output}
    constants = {tensor.name: tensor for tensor in body.initializer}
    for index in reversed(range(len(body.node))):
        node = body.node[index]
        if node.op_type != "Concat" or helper.get_node_attr_value(node, "axis") != -1:
            continue
        projections = [_projection(makers.get(name), makers, constants) for name in node.input]
        if any(projection is None for projection in projections):
            continue
        matmuls, biases = zip(*(projection for projection in projections if projection), strict=True)
        if len({matmul.input[0] for matmul in matmuls}) > 1 or len({bias is None for bias in biases}) > 1:
            continue
        name, output = _joined_name([matmul.name for matmul in matmuls]), node.output[0]
        body.initializer.append(_joined([constants[matmul.input[1]] for matmul in matmuls], f"{name}.weight"))
        new = [helper.make_node("MatMul", [matmuls[0].input[0], f"{name}.weight"], [output], name)]
        if biases[0] is not None:
            body.initializer.append(_joined([constants[bias] for bias in biases], f"{name}.bias"))
            new[0].output[0] = f"{name}.output"
            new.append(helper.make_node("Add", [new[0].output[0], f"{name}.bias"], [output], f"{name}.biased"))
        del body.node[index]
        for offset, added in enumerate(new):
            body.node.insert(index + offset, added)
    drop_dead(body)


def check_fused(graph: ModelProto) -> None:
    """Raises EarnError where keys or values still have a MatMul of their own: calibration would not know it."""
    for node in graph.graph.node:
        if node.name.endswith((".k_proj", ".v_proj")):
            raise EarnError(f"The exported graph keeps {node.name} apart from its neighbours. {REMEDY}")


def _projection(
    node: NodeProto | None, makers: Mapping[str, NodeProto], constants: Constants
) -> tuple[NodeProto, str | None] | None:
    """The MatMul with a weight that a node is, and the name of the bias that it may add; None if it is neither."""
    bias = None
    if node is not None and node.op_type == "Add":
        biases = [name for name in node.input if name in constants]
        others = [name for name in node.input if name not in constants]
        if len(biases) != 1:
            return None
        node, bias = makers.get(others[0]), biases[0]
    if node is None or node.op_type != "MatMul" or node.input[1] not in constants:
        return None
    is_one_per_column = bias is None or list(constants[bias].dims) == list(constants[node.input[1]].dims[1:])
    return (node, bias) if is_one_per_column else None


def _joined_name(names: Sequence[str]) -> str:
    """layers.0.q_proj, layers.0.k_proj, layers.0.v_proj -> layers.0.qkv_proj."""
    layer, _, _ = names[0].rpartition(".")
    return f"{layer}.{''.join(name.rpartition('.')[2].removesuffix('_proj') for name in names)}_proj"


def _joined(parts: Sequence[TensorProto], name: str) -> TensorProto:
    return numpy_helper.from_array(np.concatenate([numpy_helper.to_array(part) for part in parts], axis=-1), name)


def drop_dead(graph: GraphProto) -> None:
    """Drops the nodes and initializers that no output needs; nodes stand in the order in which they run."""
    needed = {output.name for output in graph.output}
    for index in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[index].output):
            del graph.node[index]
        else:
            needed.update(graph.node[index].input)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
