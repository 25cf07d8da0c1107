"""Writes ONNX graphs by hand: nodes in the order in which they run, arrays as initializers, each stored once.

    writer = GraphWriter("main")
    total = writer.add("Add", "history", np.int64(1))     # a name and an array in, a name out

A scope with an `outer` one is the body of a loop. Its large constants stand in the outer graph, where they are read and
prepared once and not in every iteration; small ones stay in the body, where shape inference sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

Value = Any  # the name of a tensor, or a number or array that becomes an initializer

INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
SMALL = 64  # elements: constants of so few stay in a loop's body
LAST = 2**31 - 1  # an end of a slice that lies beyond every tensor


class GraphWriter:
    """A graph that is being written."""

    def __init__(self, name: str, outer: GraphWriter | None = None) -> None:
        self.name = name
        self.outer = outer
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, operator: str, *inputs: Value, **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        return self.add_many(operator, 1, *inputs, **attributes)[0]

    def add_many(self, operator: str, outputs: int, *inputs: Value, **attributes: Any) -> list[str]:
        """Appends a node with several outputs."""
        node = f"{self.name}/{operator}_{len(self.nodes)}"
        names = [node] if outputs == 1 else [f"{node}.{index}" for index in range(outputs)]
        read = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, read, names, name=node, **attributes))
        return names

    def constant(self, value: Any) -> str:
        """An initializer; whole numbers become int64."""
        array: NDArray[Any] = np.asarray(value)
        return self._stored(array.astype(np.int64) if array.dtype.kind in "iu" else array)

    def indices(self, values: NDArray[np.int64], is_packed: bool) -> str:
        """Whole numbers from 0 on as int32; packed, an initializer holds them in as few bytes as they need."""
        most, kinds = values.max(initial=0), (np.uint8, np.uint16, np.int32) if is_packed else (np.int32,)
        kind = next(kind for kind in kinds if most <= np.iinfo(kind).max)
        return self.add("Cast", self._stored(values.astype(kind)), to=TensorProto.INT32)

    def _stored(self, array: NDArray[Any]) -> str:
        """The name of an initializer that holds the array as it is."""
        if self.outer is not None and array.size > SMALL:
            return self.outer._stored(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"{self.name}/constant_{len(self._constants)}"
            self.initializers[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def output(self, name: str, tensor: str) -> None:
        """Gives a tensor the name of an output of the graph."""
        self.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"{self.name}/{name}"))

    def size(self, tensor: str, axis: int) -> str:
        """The size [1] of an axis."""
        return self.add("Shape", tensor, start=axis, end=axis + 1)

    def scalar(self, tensor: str) -> str:
        """A tensor [1] as []."""
        return self.add("Squeeze", tensor, [0])

    def range(self, start: Value, stop: Value) -> str:
        """The whole numbers from start to stop, both []; a constant where both are known."""
        if not isinstance(start, str) and not isinstance(stop, str):
            return self.constant(np.arange(start, stop))
        return self.add("Range", np.int64(start) if isinstance(start, int) else start, stop, np.int64(1))

    def unsqueeze(self, tensor: str, *axes: int) -> str:
        """The tensor with axes of size 1 at these places."""
        return self.add("Unsqueeze", tensor, list(axes))

    def whole(self, tensor: str) -> str:
        """The tensor as int64."""
        return self.add("Cast", tensor, to=INT64)

    def concat(self, *parts: Value, axis: int) -> str:
        """The parts side by side."""
        return self.add("Concat", *parts, axis=axis)

    def pick(self, values: str, index: str) -> str:
        """values[b, index[b,m]], of two tensors with an axis of users in front."""
        return self.add("GatherElements", values, index, axis=1)

    def top(self, values: str, count: Value) -> list[str]:
        """The `count` [1] largest values [b,count], largest first and of equals the first, and where they stand."""
        return self.add_many("TopK", 2, values, count, axis=1, largest=1, sorted=1)

    def embed(self, prefix: str, graph: GraphProto, feeds: Mapping[str, str]) -> list[str]:
        """Appends another graph's nodes, its inputs replaced by `feeds`; returns the names of its outputs.

        Its large initializers stand in the outermost scope under names that do not depend on this scope, so a graph
        that is embedded again shares them.
        """
        names = dict(feeds)
        home = self
        while home.outer is not None:
            home = home.outer
        for tensor in graph.initializer:
            is_small = int(np.prod(tensor.dims)) <= SMALL
            owner = self if is_small else home
            names[tensor.name] = f"{owner.name}/{prefix}/{tensor.name}"
            if names[tensor.name] not in owner.initializers:
                copy = TensorProto()
                copy.CopyFrom(tensor)
                copy.name = names[tensor.name]
                owner.initializers[copy.name] = copy
        inner = f"{self.name}/{prefix}/"
        for node in graph.node:
            copied = NodeProto()
            copied.CopyFrom(node)
            copied.name = inner + node.name
            del copied.input[:], copied.output[:]
            copied.input.extend(names.get(name, inner + name) if name else "" for name in node.input)
            copied.output.extend(inner + name for name in node.output)
            self.nodes.append(copied)
        return [inner + output.name for output in graph.output]

    def graph(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> GraphProto:
        """What was written, with these inputs and outputs."""
        made: GraphProto = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        return made
