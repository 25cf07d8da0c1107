"""Whether a graph's file holds nothing but what this package writes, read before anything runs it. No onnx.

ONNX has operators that loop, grow tensors without bound or end the process, and files that name other files. So the
runtime reads the few parts of the protobuf that matter and holds them to closed lists:

    operators      those of `OPERATORS`, in the main graph; no functions, no training, no other domains
    subgraphs      one level deep, as the body of a Loop that runs a constant number of times (recommend.onnx alone)
    divisors       a Sqrt's output, or constants without a 0: ONNX Runtime dies of a whole number divided by 0
    external data  in files that the manifest lists

Field numbers are those of onnx.proto. A message's fields are read in one pass; weights are skipped, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from earn.errors import EarnError

_SHARED = (
    "Add Cast Concat Cos Div Gather Identity MatMul Mul Neg Pow ReduceMean Relu Reshape Shape Sigmoid Sin Slice "
    "Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze"
)
_QUANTIZED = "DequantizeLinear DynamicQuantizeLinear MatMulInteger QuantizeLinear"
_MICROSOFT = ("DequantizeLinear", "MatMulNBits", "QuantizeLinear")
_SEARCH = (
    "And CumSum Equal Expand GatherElements GatherND Greater GreaterOrEqual IsNaN Less LessOrEqual LogSoftmax Loop Max "
    "Min Not Or Range ReduceMax ReduceMin ReduceSum ScatterElements TopK Where"
)
_STAGE_OPERATORS = frozenset(
    [("", name) for name in f"{_SHARED} {_QUANTIZED}".split()] + [("com.microsoft", name) for name in _MICROSOFT]
)
OPERATORS: Mapping[str, Collection[tuple[str, str]]] = {  # by file: domain and name
    "early.onnx": _STAGE_OPERATORS,
    "late.onnx": _STAGE_OPERATORS,
    "recommend.onnx": _STAGE_OPERATORS | {("", name) for name in _SEARCH.split()},
}
MOST_NODES = 100_000
MOST_ROUNDS = 64  # of a loop: tokens of an identifier

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_GRAPH, _ATTRIBUTE_PLAIN = 6, {1, 2, 3, 4, 7, 8, 13, 20}  # name, number, text, numbers, type
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL = 2, 8, 9, 13
_INT64 = 7  # a TensorProto's data type


class Field(NamedTuple):
    """One field of a message."""

    number: int
    value: int  # a number, or where bytes start
    end: int  # where bytes end; -1 for a number


@dataclass
class _Graph:
    """What is noted of a graph and its subgraphs."""

    nodes: int = 0
    constants: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # of whole numbers: type and bytes
    divisors: set[str] = field(default_factory=set)
    rounds: list[str] = field(default_factory=list)  # what says how often a loop runs
    made_by: dict[str, tuple[str, str]] = field(default_factory=dict)  # operator, first input
    files: set[str] = field(default_factory=set)  # of external data


def check_graph_file(path: Path, listed: Collection[str]) -> None:
    """Reads what a graph's file holds.

    Args:
        path: the file; its name says which operators it may hold.
        listed: files beside it that it may name.

    Raises:
        EarnError: the file holds something that this package does not write.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graph = _Reader(data, OPERATORS[path.name]).model()
        _check(graph, listed)
    except (OSError, ValueError, TypeError, IndexError) as error:  # an IndexError where it ends within a number
        raise EarnError(
            f"{path}: not a graph that this earn-edge writes: {error}. Do not use this bundle; export it again."
        ) from error


def _check(graph: _Graph, listed: Collection[str]) -> None:
    """Raises ValueError for what can only be told once all was read."""
    if foreign := graph.files - set(listed):
        raise ValueError(f"its weights stand in {min(foreign)!r}, which the manifest does not list")
    for name in graph.rounds:
        kind, data = graph.constants.get(name, (0, b""))
        if kind != _INT64 or not 0 <= int.from_bytes(data, "little", signed=True) <= MOST_ROUNDS:
            raise ValueError(f"a Loop runs {name!r} times, which is not a constant of at most {MOST_ROUNDS}")
    for name in graph.divisors:
        operator, source = graph.made_by.get(name, ("", name))
        constant = graph.constants.get(source if operator in ("", "Gather") else "", (0, b""))
        values = memoryview(constant[1]).cast("q") if constant[0] == _INT64 else ()
        if operator != "Sqrt" and (not values or 0 in values):
            raise ValueError(f"the divisor {name!r} may be 0")


class _Reader:
    """Walks through the protobuf of a model."""

    def __init__(self, data: mmap.mmap, operators: Collection[tuple[str, str]]) -> None:
        self._data, self._operators = data, operators
        self._graph = _Graph()

    def model(self) -> _Graph:
        """What the model holds.

        Raises:
            ValueError, IndexError: it is damaged, or holds what it may not.
        """
        for part in self._fields(0, len(self._data)):
            if part.number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
                raise ValueError("it holds functions or a training graph")
            if part.number == _MODEL_GRAPH:
                self._read_graph(part, 0)
        if not self._graph.nodes:
            raise ValueError("it holds no nodes")
        return self._graph

    def _read_graph(self, graph: Field, depth: int) -> None:
        for part in self._within(graph):
            if part.number == _GRAPH_NODE:
                self._read_node(part, depth)
            elif part.number == _GRAPH_INITIALIZER:
                self._read_tensor(part)
            elif part.number == _GRAPH_SPARSE:
                raise ValueError("it holds sparse weights")

    def _read_node(self, node: Field, depth: int) -> None:
        inputs, outputs, attributes, domain, operator = [], [], [], "", ""
        for part in self._within(node):
            if part.number == _NODE_INPUT:
                inputs.append(self._text(part))
            elif part.number == _NODE_OUTPUT:
                outputs.append(self._text(part))
            elif part.number == _NODE_OPERATOR:
                operator = self._text(part)
            elif part.number == _NODE_DOMAIN:
                domain = self._text(part)
            elif part.number == _NODE_ATTRIBUTE:
                attributes.append(part)
        self._graph.nodes += 1
        if (domain, operator) not in self._operators or self._graph.nodes > MOST_NODES:
            raise ValueError(f"it holds the operator {operator!r} of {domain or 'ai.onnx'!r}, or {MOST_NODES} nodes")
        is_loop = operator == "Loop" and depth == 0
        for attribute in attributes:
            for part in self._within(attribute):
                if part.number == _ATTRIBUTE_GRAPH and is_loop:
                    self._read_graph(part, depth + 1)
                elif part.number not in _ATTRIBUTE_PLAIN:
                    raise ValueError(f"its {operator} has a tensor or a graph as an attribute")
        if operator == "Loop":
            self._graph.rounds.append(inputs[0] if is_loop else "")
        if operator == "Div":
            self._graph.divisors.add(inputs[1])
        self._graph.made_by.update((name, (operator, (*inputs, "")[0])) for name in outputs if name)

    def _read_tensor(self, tensor: Field) -> None:
        name, kind, raw = "", 0, None
        for part in self._within(tensor):
            if part.number == _TENSOR_NAME:
                name = self._text(part)
            elif part.number == _TENSOR_TYPE:
                kind = part.value
            elif part.number == _TENSOR_RAW:
                raw = part
            elif part.number == _TENSOR_EXTERNAL:
                entry = {field.number: self._text(field) for field in self._within(part)}
                if entry.get(1) == "location":
                    self._graph.files.add(entry.get(2, ""))
        if kind == _INT64 and raw is not None and raw.end - raw.value <= 8 * MOST_NODES:
            self._graph.constants[name] = (kind, self._data[raw.value : raw.end])

    def _text(self, part: Field) -> str:
        if part.end < 0:
            raise ValueError("its protobuf is damaged")
        return self._data[part.value : part.end].decode()

    def _within(self, message: Field) -> Iterator[Field]:
        if message.end < 0:
            raise ValueError("its protobuf is damaged")
        return self._fields(message.value, message.end)

    def _fields(self, place: int, end: int) -> Iterator[Field]:
        """The fields of the message that stands in these bytes."""
        data = self._data
        while place < end:
            key, place = self._number(place)
            number, wire = key >> 3, key & 7
            if wire == _BYTES:
                size, place = self._number(place)
                yield Field(number, place, place + size) if place + size <= end else Field(number, 0, -1)
                place += size
            elif wire == _VARINT:
                value, place = self._number(place)
                yield Field(number, value, -1)
            elif wire in (_FOUR_BYTES, _EIGHT_BYTES):
                yield Field(number, 0, -1)
                place += 4 if wire == _FOUR_BYTES else 8
            else:
                raise ValueError("its protobuf is damaged")
        if place != end or end > len(data):
            raise ValueError("its protobuf is damaged")

    def _number(self, place: int) -> tuple[int, int]:
        """The variable-length number at a place, and the place behind it."""
        byte = self._data[place]
        if byte < 0x80:
            return byte, place + 1
        value, shift = byte & 0x7F, 7
        while byte >= 0x80:
            place += 1
            byte = self._data[place]
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 70:
                raise ValueError("its protobuf is damaged")
        return value, place + 1
