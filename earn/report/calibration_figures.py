"""The figures of a calibration's report: those of the calibration itself, with ranges and overlaps gathered in rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from earn.calibration.calibrate import Calibration, CalibrationSettings
from earn.calibration.gate import HeldOut, Verdict
from earn.calibration.linear_layers import HEAD, LinearLayer
from earn.calibration.precisions import RANGE_METHOD

LENGTHS = 5  # parts of the users, by length of their histories
TOGETHER = {  # what linear layers that read one tensor are called together; others by their own names
    ("gate_proj", "up_proj"): "gate_up",
    ("kv_proj",): "kv",
    ("q_proj",): "q",
    ("qkv_proj",): "qkv",
}


@dataclass(frozen=True)
class RangeRow:
    """The values that went into the linear layers that read one tensor."""

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
    """A precision that was tried, or the float bundle."""

    name: str
    size_bytes: int
    size_ratio: float  # to the float bundle
    p50_ms: float | None  # median of a request; None: not measured
    beam_set_overlap: float  # with the float bundle
    ndcg_at_10: float
    passed: bool
    chosen: bool


@dataclass(frozen=True)
class Report:
    """A calibration, and what else its page and its figures show."""

    found: Calibration
    settings: CalibrationSettings
    source: str  # what the page calls the bundle, the new one, and the data
    out: str
    data: str
    lengths: tuple[LengthRow, ...]
    precisions: tuple[PrecisionRow, ...]  # the float bundle's first
    ranges: tuple[RangeRow, ...] = ()  # none where the precision rounds activations as they come

    def as_json(self) -> dict[str, Any]:
        """All figures, without those of single users."""
        chosen, verdict = self.found.chosen, self.found.chosen.verdict
        return {
            "source": self.source,
            "out": self.out,
            "data": self.data,
            "precision": chosen.precision.name,
            "engine": chosen.form.engine,
            "method": RANGE_METHOD,
            "samples": self.found.samples,
            "users": verdict.users,
            "seed": self.settings.seed,
            "passed": verdict.passed,
            "forced": self.settings.force,
            "gate": verdict.as_json(),
            "ranges": [asdict(row) for row in self.ranges],
            "sensitivity": [
                {"name": name, "error": error, "is_float": name in chosen.mixed.float_layers}
                for name, error in chosen.sensitivity.items()
            ],
            "overlap_by_length": [asdict(row) for row in self.lengths],
            "precisions": [asdict(row) for row in self.precisions],
            "attempts": [
                {
                    "fine_products": attempt.mixed.refined_kinds,
                    "float_layers": attempt.mixed.float_layers,
                    "beam_set_overlap": attempt.verdict.beam_set_overlap,
                    "passed": attempt.verdict.passed,
                }
                for attempt in chosen.attempts
            ],
        }


def report_of(
    found: Calibration, held_out: HeldOut, settings: CalibrationSettings, source: str, out: str, data: str
) -> Report:
    """The report of a calibration; `source`, `out` and `data` are what to call them on the page."""
    chosen, float_bytes = found.chosen, found.float_bytes
    ndcg = chosen.verdict.ndcg.before
    precisions = [PrecisionRow("fp32", float_bytes, 1.0, found.float_milliseconds, 1.0, ndcg, True, False)]
    for row in found.candidates:
        ratio, verdict = row.graph_bytes / float_bytes, row.verdict
        measured = (verdict.beam_set_overlap, verdict.ndcg.after, verdict.passed, row is chosen)
        precisions.append(PrecisionRow(row.precision.name, row.graph_bytes, ratio, row.milliseconds, *measured))
    ranges = tuple(_range_rows(found)) if chosen.precision.method == "static" else ()
    lengths = tuple(_by_length(chosen.verdict, held_out))
    return Report(found, settings, source, out, data, lengths, tuple(precisions), ranges)


def _range_rows(found: Calibration) -> Iterator[RangeRow]:
    """One row for every tensor that goes into linear layers."""
    for stage, layers in found.linear_layers.items():
        readers: dict[str, list[LinearLayer]] = {}
        for layer in layers:
            readers.setdefault(layer.activation, []).append(layer)
        for tensor, reading in readers.items():
            before, after = found.before[stage][tensor], found.after[stage][tensor].whole
            kinds = tuple(sorted({layer.kind for layer in reading}))
            name = HEAD if HEAD in kinds else TOGETHER.get(kinds, "+".join(kinds))
            lowest, highest = float(before.lowest.min()), float(before.highest.max())
            yield RangeRow(stage, reading[0].layer, name, *after, lowest, highest)


def _by_length(verdict: Verdict, held_out: HeldOut) -> Iterator[LengthRow]:
    """The overlap of users with short to long histories, about as many in each part."""
    lengths = np.array([len(history) for history in held_out.histories])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)[1:], method="higher"))
    part = np.searchsorted(edges, lengths)
    for index in range(len(edges)):
        inside, overlaps = lengths[part == index], verdict.overlaps[part == index]
        figures = float(overlaps.mean()), float(np.quantile(overlaps, 0.1))
        yield LengthRow(int(inside.min()), int(inside.max()), len(inside), *figures)
