"""Counts the operations and bytes of a stage call, and measures how much of both this machine can do in a second.

    operations   2 for every multiply-add: linear layers and attention
    bytes        weights read once in the bundle's precision, cached keys and values read, new ones written
    least time   the larger of operations / matmul rate and bytes / memory bandwidth

after S. Williams, A. Waterman, D. Patterson: Roofline, Communications of the ACM 52(4), 2009. Norms, softmax, rotary
position embedding, hidden states and the bias are left out: they are small beside these.

The matmul rate is measured with the bundle's own weight shapes and as many rows as a call has, through ONNX Runtime,
in graphs of matmuls alone: what a stage does besides keeps it below this limit. Both limits are the best of several
tries. The package onnx, which writes these graphs, is imported when a rate is measured.

Shapes: b users, m new tokens, s cached tokens, r kept rows, d hidden, h heads, g key-value heads, e head size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from earn.errors import EarnError, to_install
from earn.manifest import Manifest, stage_precision
from earn.profiling.machine import last_cache_bytes, physical_cores
from earn.runtime.onnx_engine import session_options
from earn.specs import Sizes

if TYPE_CHECKING:
    import onnx

BLOCK = 32  # weights of int4 that share a scale
INT8_ACCURACY = 4  # of MatMulNBits, as calibration writes it


@dataclass(frozen=True)
class Arithmetic:
    """How the linear layers of a precision compute."""

    weight_bytes: float  # of one weight
    inputs: type[Any]  # numpy's type of the rows
    outputs: type[Any]


_INT8 = Arithmetic(1, np.uint8, np.float32)
ARITHMETIC: Mapping[str, Arithmetic] = {
    "fp32": Arithmetic(4, np.float32, np.float32),
    "fp16": Arithmetic(2, np.float16, np.float16),
    "int8-dynamic": _INT8,  # the same matmul once the rows are rounded
    "int8": _INT8,
    "int8-weights": Arithmetic(4, np.float32, np.float32),  # they are in float once the graph is loaded
    "int4": Arithmetic(0.5 + 4 / BLOCK, np.float32, np.float32),  # a scale in fp32 for each block
}
CACHE_BYTES = 4  # of one number in the cache: fp32 whatever the precision
COLD_BYTES = 64 << 20  # weights of a measurement, at least, where the model has as many
LEAST_ARRAY = 256 << 20  # bytes that are read to measure the memory
MOST_ARRAY = 1 << 30
PASSES = 5  # over that array
SECONDS = 0.25  # to measure one rate


@dataclass(frozen=True)
class Work:
    """What a call must do."""

    operations: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)


def layer_shapes(sizes: Sizes) -> list[tuple[int, int]]:
    """The weights [inner,outer] of one layer as graphs have them, those of queries, keys and values side by side."""
    hidden, query, middle = sizes.hidden, sizes.heads * sizes.head_size, sizes.intermediate
    joined = query + 2 * sizes.key_value_heads * sizes.head_size
    return [(hidden, joined), (query, hidden), (hidden, middle), (hidden, middle), (middle, hidden)]


def stage_work(manifest: Manifest, stage: str, rows: int, cached: int, kept: int, batch: int = 1) -> Work:
    """The work of one call of the stage "early" or "late".

    Args:
        rows: m, the new tokens of each user.
        cached: s, rows of the cache that goes in.
        kept: r, rows that go on.
        batch: b.
    """
    sizes, layers = manifest.sizes, manifest.sizes.stage_layers(stage)
    layer, head = _layer_weights(sizes), sizes.hidden * sizes.logits if stage == "late" else 0
    row = 2 * sizes.key_value_heads * sizes.head_size  # numbers of a cached row: keys and values
    multiplied = kept * head
    if layers:
        # Of the last layer all rows give keys and values, and kept ones alone go on.
        multiplied += (layers - 1) * rows * layer + kept * layer + (rows - kept) * sizes.hidden * row
        queries = (layers - 1) * rows + kept
        # Each query is multiplied with every key, and its shares with every value.
        multiplied += 2 * queries * (cached + rows) * sizes.heads * sizes.head_size
    weights = sum(layer * _weight_bytes(manifest, stage, f"{stage}.{index}") for index in range(layers))
    weights += head * _weight_bytes(manifest, stage, "head")
    return Work(2 * batch * multiplied, round(weights) + batch * layers * row * CACHE_BYTES * (cached + rows))


def _layer_weights(sizes: Sizes) -> int:
    return sum(inner * outer for inner, outer in layer_shapes(sizes))


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of all weights that are multiplied with: what a decode step reads."""
    return sum(stage_work(manifest, stage, 0, 0, 0).bytes for stage in ("early", "late"))


def _weight_bytes(manifest: Manifest, stage: str, layer: str) -> float:
    """Bytes of one weight of a layer or the head; calibration may have left it in float."""
    floats = (manifest.calibration or {}).get("float_layers", ())
    return ARITHMETIC["fp32" if layer in floats else stage_precision(manifest.precision, stage)].weight_bytes


def least_ms(work: Work, rate: float, bandwidth: float) -> float:
    """The milliseconds below which the machine cannot do the work.

    Args:
        rate: operations per second.
        bandwidth: bytes per second.
    """
    return 1000 * max(work.operations / rate, work.bytes / bandwidth)


def memory_bandwidth(threads: int | None = None) -> float:
    """Bytes per second that so many threads (the physical cores if None) read from memory.

    They add up the numbers of an array that is far larger than the caches, each its own part.
    """
    size = min(max(LEAST_ARRAY, 4 * (last_cache_bytes() or 0)), MOST_ARRAY)
    threads = threads or physical_cores()
    parts = np.array_split(np.ones(size // 8, np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = fastest(lambda: list(pool.map(np.sum, parts)), PASSES)
    return size / seconds


class MatmulBench:
    """A graph of a model's matmuls alone, in one stage's precision, and how fast ONNX Runtime's CPU runs it.

    It has the matmuls of several layers, each with weights of its own: in a large model the caches hold nothing of a
    layer when its turn comes again. A model that is smaller has all its layers here.

    Raises:
        EarnError: onnx is missing.
    """

    def __init__(self, manifest: Manifest, precision: str, threads: int | None = None) -> None:
        check_onnx()
        import onnxruntime

        self._arithmetic = ARITHMETIC[precision]
        self._shapes = layer_shapes(manifest.sizes) * _layers(manifest.sizes, precision)
        options = session_options(threads, spinning=False, arena=False)
        graph = _graph(precision, self._shapes).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def rate(self, rows: int) -> float:
        """Operations per second of matmuls of so many rows."""
        binding, buffers = self._session.io_binding(), []
        for inner in {inner for inner, _ in self._shapes}:
            values = np.ones((1, rows, inner), self._arithmetic.inputs)
            binding.bind_input(f"x{inner}", "cpu", 0, values.dtype, values.shape, values.ctypes.data)
            buffers.append(values)
        # All results go to one place: nothing reads them, and results that were kept would push weights from the cache.
        result = np.empty(rows * max(outer for _, outer in self._shapes), self._arithmetic.outputs)
        for index, (_, outer) in enumerate(self._shapes):
            binding.bind_output(f"y{index}", "cpu", 0, result.dtype, (1, rows, outer), result.ctypes.data)
        operations = 2 * rows * sum(inner * outer for inner, outer in self._shapes)
        return operations / fastest(lambda: self._session.run_with_iobinding(binding))


def check_onnx() -> None:
    """Raises EarnError where the package is missing that writes the graphs of matmuls."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise EarnError(f"The matmul rate needs onnx. Install it: {to_install('profile')}") from error


def fastest(run: Callable[[], object], least: int = 3, seconds: float = SECONDS) -> float:
    """The seconds of the fastest of several runs, after one that is not counted."""
    run()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def _layers(sizes: Sizes, precision: str) -> int:
    """Layers whose weights no cache holds, or all of them."""
    cold = max(COLD_BYTES, 4 * (last_cache_bytes() or 0))
    layer = _layer_weights(sizes) * ARITHMETIC[precision].weight_bytes
    return min(sizes.layers, math.ceil(cold / layer))


def _graph(precision: str, shapes: Sequence[tuple[int, int]]) -> onnx.ModelProto:
    """x<inner> [1,rows,inner] -> y<index> [1,rows,outer] for every shape.

    Weights are random: ONNX Runtime keeps equal ones once, which would stay in the caches.
    """
    from onnx import helper, numpy_helper

    arithmetic, generator = ARITHMETIC[precision], np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(values: NDArray[Any]) -> str:
        weights.append(numpy_helper.from_array(values, f"w{len(weights)}"))
        return weights[-1].name

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def tensors(dtype: type[Any], widths: Mapping[str, int]) -> list[onnx.ValueInfoProto]:
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return [helper.make_tensor_value_info(name, element, [1, "m", width]) for name, width in widths.items()]

    for index, (inner, outer) in enumerate(shapes):
        x, y = f"x{inner}", f"y{index}"
        if precision == "int4":
            blocks = math.ceil(inner / BLOCK)
            weight = constant(generator.integers(0, 256, (outer, blocks, BLOCK // 2), np.uint8))
            scales = constant(np.full(outer * blocks, 0.01, np.float32))
            sizes = {"K": inner, "N": outer, "bits": 4, "block_size": BLOCK, "accuracy_level": INT8_ACCURACY}
            node("MatMulNBits", [x, weight, scales], y, domain="com.microsoft", **sizes)
        elif arithmetic is _INT8:  # ONNX Runtime fuses it to one integer matmul; the weight has a scale per column
            scale, zero = constant(np.array(0.02, np.float32)), constant(np.array(120, np.uint8))
            weight = constant(generator.integers(-127, 128, (inner, outer), np.int8))
            scales, zeros = constant(np.full(outer, 0.01, np.float32)), constant(np.zeros(outer, np.int8))
            rows = node("DequantizeLinear", [x, scale, zero], f"{y}.x")
            columns = node("DequantizeLinear", [weight, scales, zeros], f"{y}.w", axis=1)
            node("MatMul", [rows, columns], y)
        else:
            weight = constant(generator.random((inner, outer), np.float32).astype(arithmetic.inputs))
            node("MatMul", [x, weight], y)
    inputs = tensors(arithmetic.inputs, {f"x{inner}": inner for inner, _ in shapes})
    outputs = tensors(arithmetic.outputs, {f"y{index}": outer for index, (_, outer) in enumerate(shapes)})
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "matmuls", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
