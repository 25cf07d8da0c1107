"""Counts the operations and bytes of a stage call, and measures how much of both this machine can do in a second.

    operations   2 for every multiply-add: products with weights, and attention
    bytes        weights read once in the bundle's precision, cached keys and values read, new ones written
    least time   the larger of operations / product rate and bytes / memory bandwidth

after S. Williams, A. Waterman, D. Patterson: Roofline, Communications of the ACM 52(4), 2009. Norms, softmax, rotary
position embedding, hidden states and the bias are left out: they are small beside these.

The product rate is measured with the bundle's own weight shapes and as many rows as a call has, through ONNX Runtime,
in graphs of products alone: what a stage does besides keeps it below this limit. Both limits are the best of several
tries. The package onnx, which writes these graphs, is imported when a rate is measured.

Shapes: b users, m new tokens, s cached tokens, r kept rows, d hidden, h heads, g key-value heads, e head size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.profiling.machine import last_cache_bytes, physical_cores
from earn.runtime.onnx_engine import session_options
from earn.specs import Sizes

if TYPE_CHECKING:
    import onnx

BLOCK = 32  # weights of int4 that share a scale
WEIGHT_BYTES: Mapping[str, float] = {  # of one weight, by precision
    "fp32": 4,
    "fp16": 2,
    "int8-dynamic": 1,
    "int8": 1,
    "int4": 0.5 + 4 / BLOCK,  # a scale in fp32 for each block
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

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes


@dataclass(frozen=True)
class Product:
    """A product of rows with a weight [inner,outer]."""

    unit: str  # its layer, such as "early.0", or "head": as a calibrated manifest names what stays in float
    inner: int
    outer: int
    of_kept: bool  # runs for the kept rows alone

    @property
    def weights(self) -> int:
        """Numbers in the weight."""
        return self.inner * self.outer


def stage_products(sizes: Sizes, stage: str) -> Iterator[Product]:
    """The products of a stage. Of its last layer all rows give keys and values, and kept ones alone go on."""
    layers, hidden, query = sizes.stage_layers(stage), sizes.hidden, sizes.heads * sizes.head_size
    for layer in range(layers):
        unit, is_last = f"{stage}.{layer}", layer == layers - 1
        yield Product(unit, hidden, query, is_last)
        yield Product(unit, hidden, 2 * sizes.key_value_heads * sizes.head_size, False)
        yield Product(unit, query, hidden, is_last)
        for inner, outer in MLP:
            yield Product(unit, getattr(sizes, inner), getattr(sizes, outer), is_last)
    if stage == "late":
        yield Product("head", hidden, sizes.logits, True)


MLP = (("hidden", "intermediate"), ("hidden", "intermediate"), ("intermediate", "hidden"))  # gate, up, down


def layer_shapes(sizes: Sizes) -> list[tuple[int, int]]:
    """The weights [inner,outer] of one layer as graphs have them, those of queries, keys and values side by side."""
    query = sizes.heads * sizes.head_size
    joined = query + 2 * sizes.key_value_heads * sizes.head_size
    mlp = [(getattr(sizes, inner), getattr(sizes, outer)) for inner, outer in MLP]
    return [(sizes.hidden, joined), (query, sizes.hidden), *mlp]


def stage_work(manifest: Manifest, stage: str, rows: int, cached: int, kept: int, batch: int = 1) -> Work:
    """The work of one call of the stage "early" or "late".

    Args:
        rows: m, the new tokens of each user.
        cached: s, rows of the cache that goes in.
        kept: r, rows that go on.
        batch: b.
    """
    sizes, layers = manifest.sizes, manifest.sizes.stage_layers(stage)
    products = list(stage_products(sizes, stage))
    multiplied = sum((kept if product.of_kept else rows) * product.weights for product in products)
    if layers:
        queries = (layers - 1) * rows + kept
        # Each query is multiplied with every key, and its shares with every value.
        multiplied += 2 * queries * (cached + rows) * sizes.heads * sizes.head_size
    cache = layers * 2 * sizes.key_value_heads * sizes.head_size * CACHE_BYTES * (cached + rows)
    weights = sum(product.weights * _weight_bytes(manifest, product.unit) for product in products)
    return Work(2 * batch * multiplied, round(weights) + batch * cache)


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of all weights that are multiplied with: what a decode step reads."""
    return sum(stage_work(manifest, stage, 0, 0, 0).bytes for stage in ("early", "late"))


def _weight_bytes(manifest: Manifest, unit: str) -> float:
    """Bytes of one weight of a layer or the head; calibration may have left it in float."""
    floats = (manifest.calibration or {}).get("float_layers", ())
    return WEIGHT_BYTES["fp32" if unit in floats else manifest.precision]


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


def product_rate(manifest: Manifest, rows: int, threads: int | None = None) -> float:
    """Operations per second of products of so many rows with the weights of a layer, in the bundle's precision.

    Raises:
        EarnError: onnx is missing.
    """
    return ProductBench(manifest, threads).rate(rows)


class ProductBench:
    """A graph of a model's products alone, and how fast ONNX Runtime's CPU runs it.

    It has the products of several layers, each with weights of its own: in a large model the caches hold nothing of a
    layer when its turn comes again. A model that is smaller has all its layers here.

    Raises:
        EarnError: onnx is missing.
    """

    def __init__(self, manifest: Manifest, threads: int | None = None) -> None:
        check_onnx()
        import onnxruntime

        self._form = FORMS[manifest.precision]
        self._shapes = layer_shapes(manifest.sizes) * _layers(manifest)
        options = session_options(threads, spinning=False, arena=False)
        graph = _graph(self._form, self._shapes).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def rate(self, rows: int) -> float:
        """Operations per second of products of so many rows."""
        binding, buffers = self._session.io_binding(), []
        for inner in {inner for inner, _ in self._shapes}:
            values = np.ones((1, rows, inner), self._form.inputs)
            binding.bind_input(f"x{inner}", "cpu", 0, values.dtype, values.shape, values.ctypes.data)
            buffers.append(values)
        # All results go to one place: nothing reads them, and results that were kept would push weights from the cache.
        result = np.empty(rows * max(outer for _, outer in self._shapes), self._form.outputs)
        for number, (_, outer) in enumerate(self._shapes):
            binding.bind_output(f"y{number}", "cpu", 0, result.dtype, (1, rows, outer), result.ctypes.data)
        operations = 2 * rows * sum(inner * outer for inner, outer in self._shapes)
        return operations / fastest(lambda: self._session.run_with_iobinding(binding))


def check_onnx() -> None:
    """Raises EarnError where the package is missing that writes the graphs of products."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise EarnError("The product rate needs onnx. Install it: pip install 'earn-edge[profile]'") from error


def fastest(run: Callable[[], object], least: int = 3, seconds: float = SECONDS) -> float:
    """The seconds of the fastest of several runs, after one that is not counted."""
    run()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def _layers(manifest: Manifest) -> int:
    """Layers whose weights no cache holds, or all of them."""
    cold = max(COLD_BYTES, 4 * (last_cache_bytes() or 0))
    layer = sum(inner * outer for inner, outer in layer_shapes(manifest.sizes))
    needed = math.ceil(cold / (layer * WEIGHT_BYTES[manifest.precision]))
    return min(manifest.sizes.layers, needed)


@dataclass(frozen=True)
class Form:
    """How a precision's products look in a graph."""

    inputs: type[Any]  # numpy's type of the rows
    outputs: type[Any]
    weight: Callable[[str, int, int, Generator], list[onnx.TensorProto]]  # name, inner, outer -> initializers
    nodes: Callable[[str, str, str, int, int], list[onnx.NodeProto]]  # x, w, y, inner, outer -> nodes


def _graph(form: Form, shapes: list[tuple[int, int]]) -> onnx.ModelProto:
    """x<inner> [1,rows,inner] -> y<number> [1,rows,outer] for every shape.

    Weights are drawn: ONNX Runtime keeps equal ones once, which would then stay in the caches.
    """
    from onnx import helper

    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for number, (inner, outer) in enumerate(shapes):
        nodes += form.nodes(f"x{inner}", f"w{number}", f"y{number}", inner, outer)
        weights += form.weight(f"w{number}", inner, outer, generator)
    types = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (form.inputs, form.outputs)]
    inputs = [
        helper.make_tensor_value_info(f"x{inner}", types[0], [1, "m", inner])
        for inner in dict.fromkeys(inner for inner, _ in shapes)
    ]
    outputs = [
        helper.make_tensor_value_info(f"y{number}", types[1], [1, "m", outer])
        for number, (_, outer) in enumerate(shapes)
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "products", inputs, outputs, weights), opset_imports=opsets, ir_version=8
    )


def _float_form(kind: type[Any]) -> Form:
    def weight(name: str, inner: int, outer: int, generator: Generator) -> list[onnx.TensorProto]:
        return [_tensor(name, generator.random((inner, outer), np.float32).astype(kind))]

    def nodes(x: str, w: str, y: str, inner: int, outer: int) -> list[onnx.NodeProto]:
        return [_node("MatMul", [x, w], y)]

    return Form(kind, kind, weight, nodes)


def _int8_weight(name: str, inner: int, outer: int, generator: Generator) -> list[onnx.TensorProto]:
    return [
        _tensor(name, generator.integers(-127, 128, (inner, outer), np.int8)),
        _tensor(f"{name}.scales", np.full(outer, 0.01, np.float32)),  # one per column
        _tensor(f"{name}.zeros", np.zeros(outer, np.int8)),
        _tensor(f"{name}.scale", np.array(0.02, np.float32)),  # of the rows
        _tensor(f"{name}.zero", np.array(120, np.uint8)),
    ]


def _int8_nodes(x: str, w: str, y: str, inner: int, outer: int) -> list[onnx.NodeProto]:
    """Which ONNX Runtime fuses to one integer product."""
    return [
        _node("DequantizeLinear", [x, f"{w}.scale", f"{w}.zero"], f"{w}.x"),
        _node("DequantizeLinear", [w, f"{w}.scales", f"{w}.zeros"], f"{w}.float", axis=1),
        _node("MatMul", [f"{w}.x", f"{w}.float"], y),
    ]


def _int4_weight(name: str, inner: int, outer: int, generator: Generator) -> list[onnx.TensorProto]:
    blocks = math.ceil(inner / BLOCK)
    return [
        _tensor(name, generator.integers(0, 256, (outer, blocks, BLOCK // 2), np.uint8)),
        _tensor(f"{name}.scales", np.full(outer * blocks, 0.01, np.float32)),
    ]


def _int4_nodes(x: str, w: str, y: str, inner: int, outer: int) -> list[onnx.NodeProto]:
    settings = {"K": inner, "N": outer, "bits": 4, "block_size": BLOCK}
    return [_node("MatMulNBits", [x, w, f"{w}.scales"], y, domain="com.microsoft", **settings)]


def _tensor(name: str, values: NDArray[Any]) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(values, name)


def _node(operator: str, inputs: list[str], output: str, **settings: Any) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(operator, inputs, [output], **settings)


_INT8 = Form(np.uint8, np.float32, _int8_weight, _int8_nodes)
FORMS: Mapping[str, Form] = {
    "fp32": _float_form(np.float32),
    "fp16": _float_form(np.float16),
    "int8-dynamic": _INT8,  # the same product once the rows are rounded
    "int8": _INT8,
    "int4": Form(np.float32, np.float32, _int4_weight, _int4_nodes),
}
