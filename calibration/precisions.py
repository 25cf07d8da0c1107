"""The table of precisions that a bundle can be written in, and of the form that each engine wants.

Quantized are the weights of the products: projections, MLP and item head, which hold nearly all bytes and all of the
time. Norms, softmax, rotary position embedding and the sums between layers stay float: they are cheap, and small errors
there reach everything above. Keys and values go in and out of a stage in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from earn.errors import EarnError


@dataclass(frozen=True)
class Precision:
    """One row of the table."""

    name: str  # one of earn.manifest.PRECISIONS
    method: str  # one of METHODS
    engines: tuple[str, ...]  # engines that it is written for, the usual one first
    weight_bits: int = 8
    per_channel: bool = True  # a scale for every output column of a weight, instead of one for all

    @property
    def equalizes(self) -> bool:
        """Whether activations are rounded, so that their outliers are better moved into the weights."""
        return self.method in ("static", "dynamic")


METHODS = ("none", "half", "dynamic", "static", "blocks")

PRECISIONS: Mapping[str, Precision] = {
    row.name: row
    for row in (
        Precision("fp32", "none", ("cpu", "tensorrt")),  # as exported
        Precision("fp16", "half", ("tensorrt",)),  # for GPUs; norms and softmax in fp32
        Precision("int8-dynamic", "dynamic", ("cpu",)),  # activations are rounded by each call's own range
        Precision("int8", "static", ("cpu", "tensorrt")),  # activations too, in ranges fixed by calibration
        Precision("int4", "blocks", ("cpu", "tensorrt"), weight_bits=4),  # weights alone, a scale for every block
    )
}


@dataclass(frozen=True)
class Form:
    """How one engine wants a quantized graph."""

    engine: str
    signed_activations: bool  # int8 around 0, instead of uint8 between least and largest value
    block_operator: bool  # 4-bit blocks as ONNX Runtime's MatMulNBits, instead of DequantizeLinear of blocks
    int8_embedding: bool  # the lookup of int8 rows needs Gather and Cast on int8


FORMS: Mapping[str, Form] = {
    # ONNX Runtime fuses uint8 activations with int8 weights to integer products. Of signed ones it leaves part in float
    # and dequantizes their weights in every call, which is slower than fp32.
    "cpu": Form("cpu", signed_activations=False, block_operator=True, int8_embedding=True),
    # TensorRT takes zero points of 0 only, and no operator outside the standard ONNX domain.
    "tensorrt": Form("tensorrt", signed_activations=True, block_operator=False, int8_embedding=False),
}

FASTEST = "fastest"  # in place of a precision: the faster of AUTOMATIC that passes the gate
AUTOMATIC = ("int8", "int8-dynamic")


def find_precisions(name: str, engine: str | None) -> list[Precision]:
    """The rows that a name stands for: one, or for "fastest" those of AUTOMATIC that the engine takes.

    Raises:
        EarnError: there is none, or nothing is to be done for it.
    """
    rows = {row.name: row for row in PRECISIONS.values() if row.method != "none"}
    if name == FASTEST:
        engine = engine if engine in FORMS else None  # an unknown one is refused with its form
        return [rows[each] for each in AUTOMATIC if engine is None or engine in rows[each].engines]
    if name not in rows:
        raise EarnError(f"There is no precision {name!r} to calibrate to. Take one of: {', '.join((FASTEST, *rows))}.")
    return [rows[name]]


def find_form(precision: Precision, engine: str | None) -> Form:
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
