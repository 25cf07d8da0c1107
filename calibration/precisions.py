"""The table of precisions that a bundle can be written in, and of the form that each engine wants.

Quantized are the weights of the linear layers: projections, MLP and item head. They hold nearly all bytes and take all
of the time. Norms, softmax, rotary position embedding and the sums between layers stay float: they are cheap, and small
errors there reach everything above. Keys and values go in and out of a stage in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from earn.errors import EarnError
from earn.manifest import stage_precision

RANGE_METHOD = "minmax"  # how ranges are chosen, as manifests record it; older ones may say percentile or entropy


@dataclass(frozen=True)
class Precision:
    """One row of the table."""

    name: str  # one of earn.manifest.PRECISIONS
    method: Literal["none", "half", "dynamic", "static", "weights", "blocks"]  # how weights and activations are rounded
    engines: tuple[str, ...]  # engines that it is written for, the usual one first
    weight_bits: int = 8
    per_channel: bool = True  # a scale for every output column of a weight, instead of one for all
    experimental: str = ""  # why it is; empty: it is not

    @property
    def equalizes(self) -> bool:
        """Whether activations are rounded, so that their outliers are better moved into the weights."""
        return self.method in ("static", "dynamic")

    @property
    def rounds_embedding(self) -> bool:
        """Whether the token embedding is int8 too, where the engine's form has it so."""
        return self.method not in ("none", "half")

    def of_stage(self, stage: str) -> Precision:
        """The row of a stage's graph: this one, but where the stages differ."""
        return PRECISIONS[stage_precision(self.name, stage)]

    @property
    def label(self) -> str:
        """The name for help and tables, which says if the precision is experimental."""
        return f"{self.name} (experimental)" if self.experimental else self.name


PRECISIONS: Mapping[str, Precision] = {
    row.name: row
    for row in (
        Precision("fp32", "none", ("cpu", "tensorrt")),  # as exported
        Precision("fp16", "half", ("tensorrt",)),  # for GPUs; norms and softmax in fp32
        Precision("int8-dynamic", "dynamic", ("cpu",)),  # activations are rounded by each call's own range
        Precision("int8", "static", ("cpu", "tensorrt")),  # activations too, in ranges fixed by calibration
        Precision("int8-weights", "weights", ("cpu",)),  # stored in int8, computed in fp32: the same lists everywhere
        Precision(  # weights alone, a scale for every block
            "int4",
            "blocks",
            ("cpu", "tensorrt"),
            weight_bits=4,
            experimental="of two small models the gate passed one, and SmolLM2-135M, each with layers in float",
        ),
        Precision(
            "int8-int4", "static", ("cpu",)
        ),  # the early stage as int8, the late one, which waits for weights, int4
    )
}
QUANTIZED = tuple(name for name, row in PRECISIONS.items() if row.method != "none")  # what a bundle can become


@dataclass(frozen=True)
class GraphForm:
    """How one engine wants a quantized graph."""

    engine: str
    signed_activations: bool  # int8 around 0, instead of uint8 between least and largest value
    block_operator: bool  # 4-bit blocks as ONNX Runtime's MatMulNBits, instead of DequantizeLinear of blocks
    int8_embedding: bool  # the lookup of int8 rows needs Gather and Cast on int8

    @property
    def runs_on_cpu(self) -> bool:
        """Whether such a graph can be timed here."""
        return self.engine != "tensorrt"


FORMS: Mapping[str, GraphForm] = {
    # ONNX Runtime fuses uint8 activations with int8 weights to integer matmuls. Of signed ones it leaves part in float
    # and dequantizes their weights in every call, which is slower than fp32.
    "cpu": GraphForm("cpu", signed_activations=False, block_operator=True, int8_embedding=True),
    # TensorRT takes zero points of 0 only, and no operator outside the standard ONNX domain.
    "tensorrt": GraphForm("tensorrt", signed_activations=True, block_operator=False, int8_embedding=False),
}

FASTEST = "fastest"  # in place of a precision: the faster of AUTOMATIC that passes the gate
AUTOMATIC = ("int8", "int8-dynamic")
PORTABLE = "int8-weights"  # of the quantized precisions the one that gives the same lists on every processor


def find_precisions(name: str, engine: str | None) -> list[Precision]:
    """The rows that a name stands for: one, or for "fastest" those of AUTOMATIC that the engine takes.

    Raises:
        EarnError: there is none, or nothing is to be done for it.
    """
    if name == FASTEST:
        rows = [PRECISIONS[each] for each in AUTOMATIC]
        return [row for row in rows if engine in row.engines] or rows  # find_form refuses an unknown engine, or none
    if name not in QUANTIZED:
        names = ", ".join((FASTEST, *QUANTIZED))
        raise EarnError(f"There is no precision {name!r} to calibrate to. Take one of: {names}.")
    return [PRECISIONS[name]]


def find_form(precision: Precision, engine: str | None) -> GraphForm:
    """The form of a precision for an engine; its usual one if None.

    Raises:
        EarnError: the precision is not written for the engine.
    """
    engine = engine or precision.engines[0]
    if engine not in precision.engines:
        raise EarnError(
            f"{precision.name} is not written for the engine {engine!r}, only for {', '.join(precision.engines)}."
        )
    return FORMS[engine]
