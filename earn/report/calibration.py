"""The report of a calibration: what was measured, as JSON for programs and as a page with pictures for people.

The page says only what the figures hold; what was not measured it calls so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from earn.errors import EarnError
from earn.files import write_json
from earn.report.calibration_pictures import draw_lengths, draw_precisions, draw_ranges, draw_sensitivity
from earn.report.calibration_rows import RangeRow, Report
from earn.report.page import Banner, Page, Picture, Section, Table, check_place

Parts = list[str | Table | Picture]
FLOAT = "fp32"  # what the others are compared with


def write_report(report: Report, path: Path) -> None:
    """Writes the page to `path` and the figures beside it, with the ending .json.

    Raises:
        EarnError: a library for the page is missing.
    """
    calibration_page(report).write(path)
    write_json(path.with_suffix(".json"), asdict(report))


def check_page(path: Path, *bundles: Path) -> None:
    """Refuses a place for the page, or for the figures beside it, where something would be harmed.

    Raises:
        EarnError: no page can be written there (see `check_place`), or over figures that are not a report's.
    """
    check_place(path, *bundles)
    figures = path.with_suffix(".json")
    if figures.exists() and not path.exists():
        raise EarnError(f"{figures}: stands where the report's figures go. Choose another name for the page.")


def calibration_page(report: Report) -> Page:
    """The page, without writing it."""
    written = "It was written all the same, because this was asked for." if report.forced else "No bundle was written."
    return Page(
        title=f"Calibration to {report.precision}",
        summary=_summary(report),
        banner=Banner("The gate is passed." if report.passed else f"The gate is not passed. {written}", report.passed),
        tiles=_tiles(report),
        sections=(
            Section("The gate", _gate(report)),
            Section("Overlap by length of the history", _lengths(report)),
            Section("Precisions compared", _precisions(report)),
            Section("Sensitivity of the layers", _sensitivity(report)),
            Section("Ranges of the activations", _ranges(report)),
            Section("How this was measured", (_settings(report),)),
        ),
    )


_MEASURES = {
    "beam_set_overlap": "Overlap of the beam set",
    "top10_overlap": "Overlap of the best 10",
    "recall@10": "Recall@10",
    "ndcg@10": "NDCG@10",
}


def _summary(report: Report) -> str:
    overlap, limit = report.gate.get("beam_set_overlap"), report.limit
    text = f"The bundle was calibrated to {report.precision} for the engine {report.engine}."
    if overlap is not None:
        text += (
            f" Of the items that the float bundle recommends to a user, this one recommends {overlap:.2%}, "
            f"averaged over {report.users:,} held-out users"
        )
        text += "." if limit is None else f"; at least {limit:.2%} is required."
    if not report.passed:
        reasons = _reasons(report.gate)
        text += f" It fails because {' and '.join(reasons)}." if reasons else " The figures do not tell why it fails."
    return text


def _reasons(gate: Mapping[str, Any]) -> list[str]:
    """Why the gate stays shut, as far as its figures tell."""
    reasons = [
        f"the {_MEASURES.get(key, key).lower()}, {gate[key]:.4f}, is below {least:g}"
        for key, least in gate.get("limits", {}).items()
        if isinstance(gate.get(key), int | float) and gate[key] < least
    ]
    if _loses(gate.get("ndcg@10")):
        reasons.append("the loss of NDCG@10 is significant: all of the interval of its change is below 0")
    return reasons


def _loses(measure: Any) -> bool:
    """Whether a measure's loss is significant."""
    return isinstance(measure, Mapping) and "interval" in measure and measure["interval"][1] < 0


def _tiles(report: Report) -> list[tuple[str, str]]:
    gate, tiles = report.gate, []
    if "beam_set_overlap" in gate:
        tiles.append((f"{gate['beam_set_overlap']:.2%}", "of the recommended items stay"))
    for row in report.precisions:
        if row.chosen:
            tiles.append((f"{row.size_ratio:.1%}", f"of the float bundle's size: {_size(row.size_bytes)}"))
            tiles += [(f"{row.p50_ms:.1f} ms", "median of a request")] if row.p50_ms is not None else []
    if "ndcg@10" in gate:
        change = gate["ndcg@10"]["after"] - gate["ndcg@10"]["before"]
        tiles.append((_signed(change), "change of NDCG@10"))
    return tiles


def _gate(report: Report) -> Parts:
    rows = [_measure(report.gate, key, label) for key, label in _MEASURES.items() if key in report.gate]
    parts: Parts = [
        "The gate asks whether held-out users get the same recommendations. The items must overlap, and NDCG@10 may "
        "not fall significantly: its loss is significant where the whole interval of its change is below 0.",
        Table(("Measure", "Result", "Before", "After", "Change", "Required"), rows, text_columns=2),
    ]
    if len(report.attempts) > 1:
        parts.append(
            f"The gate was tried {len(report.attempts)} times, each less coarse: first activations are rounded more "
            "finely before some products, or before all, then the most sensitive layers stay in float. "
            f"The last try {'passed' if report.attempts[-1].passed else 'failed'}."
        )
    if len(report.attempts) > 1:
        parts.append(
            Table(
                ("Refined products", "Layers in float", "Result", "Overlap"),
                [
                    (
                        ", ".join(row.fine_products) or "none",
                        ", ".join(row.float_layers) or "none",
                        _result(row.passed),
                        f"{row.beam_set_overlap:.4f}",
                    )
                    for row in report.attempts
                ],
                text_columns=3,
            )
        )
    return parts


def _measure(gate: Mapping[str, Any], key: str, label: str) -> Sequence[str]:
    """A row of the gate's table."""
    value, least = gate[key], gate.get("limits", {}).get(key)
    if not isinstance(value, Mapping):
        result = "" if least is None else _met(value >= least)
        return label, result, "", f"{value:.4f}", "", "" if least is None else f"at least {least:g}"
    figures = f"{value['before']:.4f}", f"{value['after']:.4f}", _signed(value["after"] - value["before"])
    if "interval" not in value:
        return label, "", *figures, ""
    interval = " to ".join(map(_signed, value["interval"]))
    return label, _met(not _loses(value)), *figures[:2], f"{figures[2]} ({interval})", "no significant loss"


def _lengths(report: Report) -> Parts:
    rows = report.overlap_by_length
    if not rows:
        return ["The overlap was not measured by length."]
    worst = min(rows, key=lambda row: row.mean)
    return [
        f"The mean overlap is lowest, {worst.mean:.2%}, for histories of {worst.span} items; "
        f"a tenth of these {worst.users:,} users have {worst.tenth_percentile:.2%} or less.",
        Picture(
            "Overlap of the beam set with the float bundle's, by number of items in the history: the mean of the "
            "users, and what a tenth of them do not exceed."
            + ("" if report.limit is None else " The dashed line is required of the mean of all users."),
            partial(draw_lengths, rows, report.limit),
        ),
    ]


def _precisions(report: Report) -> Parts:
    rows = report.precisions
    if not rows:
        return ["No precisions were compared."]
    table = Table(
        ("Precision", "Result", "Size", "Of float", "Median request", "Overlap", "NDCG@10"),
        [
            (
                row.name + ((" (chosen)" if row.passed else " (last tried)") if row.chosen else ""),
                _result(row.passed),
                _size(row.size_bytes),
                f"{row.size_ratio:.1%}",
                "not measured" if row.p50_ms is None else f"{row.p50_ms:.1f} ms",
                f"{row.beam_set_overlap:.4f}",
                f"{row.ndcg_at_10:.4f}",
            )
            for row in rows
        ],
        text_columns=2,
        marked=[number for number, row in enumerate(rows) if row.chosen],
    )
    if len(rows) == 1:
        return [f"Only {rows[0].name} was tried.", table]
    tried = [row for row in rows if row.name != FLOAT]
    passing = [row.name for row in tried if row.passed]
    return [
        f"{len(passing)} of {len(tried)} passed" + (f": {', '.join(passing)}." if passing else "."),
        Picture(
            "Graphs on disk, median of a request, and overlap of the beam set with the float bundle's. Dark: the "
            "chosen precision." + ("" if report.limit is None else " The dashed line is what the gate requires."),
            partial(draw_precisions, rows, report.limit),
            height=0.9 + 0.32 * len(rows),
        ),
        table,
    ]


def _sensitivity(report: Report) -> Parts:
    rows = sorted(report.sensitivity, key=lambda row: -row.error)
    if not rows:
        return ["The sensitivity of the layers was not measured."]
    floats = [row.name for row in rows if row.is_float]
    return [
        f"The most sensitive is {rows[0].name}: with it alone quantized, the outputs of its stage change by "
        f"{rows[0].error:.2%}. Left in float: {', '.join(floats) or 'none'}.",
        Picture(
            "Relative error of a stage's outputs with one of its layers quantized. Hollow: left in float.",
            partial(draw_sensitivity, report.sensitivity),
        ),
    ]


def _ranges(report: Report) -> Parts:
    rows = report.ranges
    if not rows:
        return ["No ranges were measured."]
    widest = max(rows, key=lambda row: row.highest - row.lowest)
    least = min(rows, key=lambda row: row.change)
    narrower, wider = sum(row.change < 0.99 for row in rows), sum(row.change > 1.01 for row in rows)
    text = (
        f"The widest range goes into {_product(widest)}: {_plain(widest.lowest)} to {_plain(widest.highest)}. "
        f"Of {len(rows)} ranges, {narrower} are narrower and {wider} are wider than before outliers were moved from "
        "activations into weights, by more than 1%."
    )
    if narrower:
        text += (
            f" The one into {_product(least)} shrank most: it was {_plain(least.lowest_before)} to "
            f"{_plain(least.highest_before)} and is {_plain(least.lowest)} to {_plain(least.highest)}."
        )
    return [
        text,
        Picture(
            "Ranges of what goes into each product, layer by layer. Pale: before outliers were moved; dark: after. "
            f"Ranges after were chosen by {report.method}. Where outliers are far, the axis is logarithmic.",
            partial(draw_ranges, rows),
            height=5.0,
        ),
    ]


def _settings(report: Report) -> Table:
    labels = {"samples": "histories to calibrate with", "users": "held-out users", "method": "choice of ranges"}
    names = ("source", "out", "data", "precision", "engine", "method", "samples", "users", "seed")
    return Table(("Setting", "Value"), [(labels.get(name, name), str(getattr(report, name))) for name in names], 2)


def _product(row: RangeRow) -> str:
    return row.product if row.layer is None else f"{row.product} of {row.unit}"


def _result(passed: bool) -> str:
    return "✓\u00a0passes" if passed else "✕\u00a0fails"


def _met(is_met: bool) -> str:
    return "✓\u00a0met" if is_met else "✕\u00a0not\u00a0met"


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")
