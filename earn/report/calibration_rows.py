"""What the report of a calibration holds: plain figures, written as JSON as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RangeRow:
    """The values that went into one product."""

    stage: str  # early or late
    layer: int | None  # within the stage; None: the item head
    product: str  # such as qkv, o_proj, gate_up, down_proj, head
    lowest: float
    highest: float
    lowest_before: float  # before outliers were moved from activations into weights
    highest_before: float

    @property
    def unit(self) -> str:
        """The layer's name, such as early.0, or the head's."""
        return self.product if self.layer is None else f"{self.stage}.{self.layer}"

    @property
    def change(self) -> float:
        """The width of the range, 1 being the width before."""
        before = self.highest_before - self.lowest_before
        return (self.highest - self.lowest) / before if before else 1.0


@dataclass(frozen=True)
class SensitivityRow:
    """What quantizing one layer alone costs."""

    name: str  # such as early.0, late.5, head
    error: float  # relative, of its stage's outputs
    is_float: bool  # left in float


@dataclass(frozen=True)
class LengthRow:
    """The overlap of the beam set for users with histories of like length."""

    least: int  # items
    most: int
    users: int
    mean: float
    tenth_percentile: float

    @property
    def span(self) -> str:
        """The lengths, in a sentence."""
        return str(self.least) if self.least == self.most else f"{self.least}–{self.most}"


@dataclass(frozen=True)
class PrecisionRow:
    """A precision that was tried."""

    name: str
    size_bytes: int
    size_ratio: float  # to the float bundle
    p50_ms: float | None  # median of a request; None: not measured
    beam_set_overlap: float  # with the float bundle
    ndcg_at_10: float
    passed: bool
    chosen: bool


@dataclass(frozen=True)
class AttemptRow:
    """One try to pass the gate."""

    fine_products: tuple[str, ...]  # kinds of products that read finer activations
    float_layers: tuple[str, ...]
    beam_set_overlap: float
    passed: bool


@dataclass(frozen=True)
class Report:
    """All that a calibration found."""

    source: str
    out: str
    precision: str
    engine: str
    method: str  # how ranges were chosen
    data: str
    passed: bool
    forced: bool  # a bundle that fails is written all the same
    samples: int  # histories to calibrate with
    users: int  # held out, who judge
    seed: int
    gate: Mapping[str, Any]  # as in the manifest: measures, and the least value of some under "limits"
    ranges: tuple[RangeRow, ...] = ()
    sensitivity: tuple[SensitivityRow, ...] = ()
    overlap_by_length: tuple[LengthRow, ...] = ()
    precisions: tuple[PrecisionRow, ...] = ()
    attempts: tuple[AttemptRow, ...] = ()

    @property
    def limit(self) -> float | None:
        """The least overlap of the beam set that passes."""
        limit: float | None = self.gate.get("limits", {}).get("beam_set_overlap")
        return limit

    @property
    def float_layers(self) -> tuple[str, ...]:
        """What was left in float."""
        return self.attempts[-1].float_layers if self.attempts else ()
