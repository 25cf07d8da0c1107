"""The rows of the report, from what a calibration found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from earn.calibration.calibrate import Calibration, CalibrationSettings, Candidate
from earn.calibration.gate import HeldOut
from earn.calibration.linear_layers import HEAD, LinearLayer
from earn.calibration.precisions import RANGE_METHOD
from earn.report.calibration import write_report
from earn.report.calibration_rows import AttemptRow, LengthRow, PrecisionRow, RangeRow, Report, SensitivityRow

LENGTHS = 5  # parts of the users, by length of their histories

# What products that read one tensor are called together.
_TOGETHER = {
    frozenset({"qkv_proj"}): "qkv",
    frozenset({"kv_proj"}): "kv",
    frozenset({"q_proj"}): "q",
    frozenset({"gate_proj", "up_proj"}): "gate_up",
}


def report_of(
    found: Calibration, held_out: HeldOut, settings: CalibrationSettings, source: str, out: str, data: str
) -> Report:
    """The report of a calibration; `source`, `out` and `data` are what to call them on the page."""
    chosen = found.chosen
    return Report(
        source=source,
        out=out,
        precision=chosen.precision.name,
        engine=chosen.form.engine,
        method=RANGE_METHOD,
        data=data,
        passed=chosen.verdict.passed,
        forced=settings.force,
        samples=found.samples,
        users=chosen.verdict.users,
        seed=settings.seed,
        gate=chosen.verdict.as_json(),
        ranges=tuple(_ranges(found)) if chosen.precision.method == "static" else (),
        sensitivity=tuple(
            SensitivityRow(unit, error, unit in chosen.mixed.float_layers) for unit, error in chosen.sensitivity.items()
        ),
        overlap_by_length=tuple(_by_length(chosen, held_out)),
        precisions=(_float_row(found), *(_row(found, candidate) for candidate in found.candidates)),
        attempts=tuple(
            AttemptRow(
                attempt.mixed.refined_kinds,
                attempt.mixed.float_layers,
                attempt.verdict.beam_set_overlap,
                attempt.verdict.passed,
            )
            for attempt in chosen.attempts
        ),
    )


def report_calibration(
    found: Calibration, held_out: HeldOut, settings: CalibrationSettings, source: Path, out: Path, data: str, page: Path
) -> Path:
    """Writes the page of a calibration of the bundle `source` to `out`; returns its path.

    Where no bundle is written the page's name says so: one that stands there keeps its own.
    """
    if found.manifest is None:
        page = page.with_name(f"{page.stem}-failed{page.suffix}")
    write_report(report_of(found, held_out, settings, source.resolve().name, out.resolve().name, data), page)
    return page


def _ranges(found: Calibration) -> Iterator[RangeRow]:
    """One row for every tensor that goes into products."""
    for stage, products in found.linear_layers.items():
        readers: dict[str, list[LinearLayer]] = {}
        for product in products:
            readers.setdefault(product.activation, []).append(product)
        for tensor, reading in readers.items():
            before, (lowest, highest) = found.before[stage][tensor], found.after[stage][tensor].whole
            yield RangeRow(
                stage,
                reading[0].layer,
                _called(reading),
                lowest,
                highest,
                float(before.lowest.min()),
                float(before.highest.max()),
            )


def _called(reading: Sequence[LinearLayer]) -> str:
    kinds = frozenset(product.kind for product in reading)
    return HEAD if HEAD in kinds else _TOGETHER.get(kinds, "+".join(sorted(kinds)))


def _by_length(chosen: Candidate, held_out: HeldOut) -> Iterator[LengthRow]:
    """The overlap of users with short to long histories, about as many in each part."""
    lengths = np.array([len(history) for history in held_out.histories])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)[1:], method="higher"))
    part = np.searchsorted(edges, lengths)
    for number in range(len(edges)):
        inside = part == number
        overlaps = chosen.verdict.overlaps[inside]
        yield LengthRow(
            int(lengths[inside].min()),
            int(lengths[inside].max()),
            int(inside.sum()),
            float(overlaps.mean()),
            float(np.quantile(overlaps, 0.1)),
        )


def _float_row(found: Calibration) -> PrecisionRow:
    before = found.chosen.verdict.ndcg.before
    return PrecisionRow("fp32", found.float_bytes, 1.0, found.float_milliseconds, 1.0, before, True, False)


def _row(found: Calibration, candidate: Candidate) -> PrecisionRow:
    verdict = candidate.verdict
    return PrecisionRow(
        candidate.precision.name,
        candidate.graph_bytes,
        candidate.graph_bytes / found.float_bytes,
        candidate.milliseconds,
        verdict.beam_set_overlap,
        verdict.ndcg.after,
        verdict.passed,
        candidate is found.chosen,
    )
