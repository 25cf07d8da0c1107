"""The figures of a calibration's report as plain values: the JSON beside the page, and what the page shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from earn.calibration.calibrate import Calibration, CalibrationSettings
from earn.calibration.gate import HeldOut, Verdict
from earn.calibration.linear_layers import LinearLayer
from earn.calibration.precisions import RANGE_METHOD

LENGTHS = 5  # parts of the users, by length of their histories


def figures_of(
    found: Calibration, held_out: HeldOut, settings: CalibrationSettings, source: str, out: str, data: str
) -> dict[str, Any]:
    """All figures, without those of single users; `source`, `out` and `data` are what to call them on the page."""
    chosen, verdict = found.chosen, found.chosen.verdict
    return {
        "source": source,
        "out": out,
        "data": data,
        "precision": chosen.precision.name,
        "engine": chosen.form.engine,
        "method": RANGE_METHOD,
        "samples": found.samples,
        "users": verdict.users,
        "seed": settings.seed,
        "passed": verdict.passed,
        "reasons": verdict.reasons,
        "forced": settings.force,
        "gate": verdict.as_json(),
        # None where the precision rounds activations as they come.
        "ranges": list(_ranges(found)) if chosen.precision.method == "static" else [],
        "sensitivity": [
            {"name": name, "error": error, "is_float": name in chosen.mixed.float_layers}
            for name, error in chosen.sensitivity.items()
        ],
        "overlap_by_length": list(_by_length(verdict, held_out)),
        "precisions": list(_precisions(found)),
        "attempts": [
            {
                "refined_kinds": list(attempt.mixed.refined_kinds),
                "float_layers": list(attempt.mixed.float_layers),
                "beam_set_overlap": attempt.verdict.beam_set_overlap,
                "passed": attempt.verdict.passed,
            }
            for attempt in chosen.attempts
        ],
    }


def _precisions(found: Calibration) -> Iterator[dict[str, Any]]:
    """The float bundle, then each precision that was tried; p50_ms is None where it was not measured."""
    names = ("name", "size_bytes", "p50_ms", "beam_set_overlap", "ndcg_at_10", "passed", "chosen")
    ndcg = found.chosen.verdict.ndcg.before
    rows = [("fp32", found.float_bytes, found.float_milliseconds, 1.0, ndcg, True, False)]
    for row in found.candidates:
        verdict = row.verdict
        measured = (verdict.beam_set_overlap, verdict.ndcg.after, verdict.passed, row is found.chosen)
        rows.append((row.precision.name, row.graph_bytes, row.milliseconds, *measured))
    for values in rows:
        yield {**dict(zip(names, values, strict=True)), "size_ratio": values[1] / found.float_bytes}


def _ranges(found: Calibration) -> Iterator[dict[str, Any]]:
    """The least and largest value of every tensor that goes into linear layers, and before outliers were moved."""
    for stage, layers in found.linear_layers.items():
        readers: dict[str, list[LinearLayer]] = {}
        for layer in layers:
            readers.setdefault(layer.activation, []).append(layer)
        for tensor, reading in readers.items():
            (lowest, highest), before = found.after[stage][tensor].whole, found.before[stage][tensor].whole
            yield {
                "layer": reading[0].layer_name(stage),
                "kind": "+".join(dict.fromkeys(layer.kind for layer in reading)),
                "lowest": lowest,
                "highest": highest,
                "lowest_before": before[0],
                "highest_before": before[1],
            }


def _by_length(verdict: Verdict, held_out: HeldOut) -> Iterator[dict[str, Any]]:
    """The overlap of users with short to long histories, about as many in each part."""
    lengths = np.array([len(history) for history in held_out.histories])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)[1:], method="higher"))
    part = np.searchsorted(edges, lengths)
    for index in range(len(edges)):
        inside, overlaps = lengths[part == index], verdict.overlaps[part == index]
        yield {
            "least": int(inside.min()),  # items of the history
            "most": int(inside.max()),
            "users": len(inside),
            "mean": float(overlaps.mean()),
            "tenth_percentile": float(np.quantile(overlaps, 0.1)),
        }
