"""The report of a calibration: what was measured, as JSON for programs and as a page with pictures for people.

The page says only what the figures hold; what was not measured it calls so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from earn.calibration.calibrate import Calibration, CalibrationSettings
from earn.calibration.gate import HeldOut, Verdict
from earn.calibration.linear_layers import LinearLayer
from earn.calibration.precisions import RANGE_METHOD
from earn.console import size
from earn.errors import EarnError
from earn.files import write_json
from earn.report.page import Page, Parts, Picture, Table, check_place, settings_table
from earn.report.plots import COLOURS, name_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]  # figures by name, see `figures_of`

LENGTHS = 5  # parts of the users, by length of their histories
FAR = 20  # times the median magnitude: an outlier that would hide the others on an even axis
SETTINGS = {"samples": "histories to calibrate with", "users": "held-out users", "method": "choice of ranges"}


def report_calibration(
    found: Calibration, held_out: HeldOut, settings: CalibrationSettings, source: Path, out: Path, data: str, page: Path
) -> Path:
    """Writes the page of a calibration of the bundle `source` to `out`, and its figures as JSON; returns its path.

    Where no bundle is written the page's name says so: one that stands there keeps its own.

    Raises:
        EarnError: a library for the page is missing.
    """
    if found.manifest is None:
        page = page.with_name(f"{page.stem}-failed{page.suffix}")
    figures = figures_of(found, held_out, settings, source.resolve().name, out.resolve().name, data)
    calibration_page(figures).write(page)
    write_json(page.with_suffix(".json"), figures)
    return page


def check_page(path: Path, *bundles: Path) -> None:
    """Refuses a place for the page, or for the figures beside it, where something would be harmed.

    Raises:
        EarnError: no page can be written there (see `check_place`), or over figures that are not a report's.
    """
    check_place(path, *bundles)
    figures = path.with_suffix(".json")
    if figures.exists() and not path.exists():
        raise EarnError(f"{figures}: stands where the report's figures go. Choose another name for the page.")


def figures_of(
    found: Calibration, held_out: HeldOut, settings: CalibrationSettings, source: str, out: str, data: str
) -> dict[str, Any]:
    """All figures, without those of single users, as plain values: the JSON beside the page, and what the page shows.

    `source`, `out` and `data` are what to call them on the page.
    """
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
        "ranges": list(_range_figures(found)) if chosen.precision.method == "static" else [],
        "sensitivity": [
            {"name": name, "error": error, "is_float": name in chosen.mixed.float_layers}
            for name, error in chosen.sensitivity.items()
        ],
        "overlap_by_length": list(_length_figures(verdict, held_out)),
        "precisions": list(_precision_figures(found)),
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


def _precision_figures(found: Calibration) -> Iterator[dict[str, Any]]:
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


def _range_figures(found: Calibration) -> Iterator[dict[str, Any]]:
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


def _length_figures(verdict: Verdict, held_out: HeldOut) -> Iterator[dict[str, Any]]:
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


def calibration_page(figures: Row) -> Page:
    """The page of `figures_of` a calibration, without writing it."""
    written = "It was written all the same, because this was asked for."
    failed = f"The gate fails. {written if figures['forced'] else 'No bundle was written.'}"
    names = ("source", "out", "data", "precision", "engine", "method", "samples", "users", "seed")
    settings = settings_table([(SETTINGS.get(name, name), str(figures[name])) for name in names])
    return Page(
        title=f"Calibration to {figures['precision']}",
        summary=_summary(figures),
        banner="The gate passes." if figures["passed"] else failed,
        is_good=figures["passed"],
        tiles=_tiles(figures),
        sections={
            "The gate": [*_gate(figures["gate"]), *_attempts(figures["attempts"])],
            "Overlap by length of the history": [_lengths(figures["overlap_by_length"])],
            "Precisions compared": [_precisions(figures["precisions"])],
            "Sensitivity of the layers": _sensitivity(figures["sensitivity"]),
            "Ranges of the activations": _ranges(figures["ranges"]),
            "How this was measured": [settings],
        },
    )


def _summary(figures: Row) -> str:
    gate = figures["gate"]
    failed = "" if figures["passed"] else f" It fails because {' and '.join(figures['reasons'])}."
    return (
        f"The bundle was calibrated to {figures['precision']} for the engine {figures['engine']}. Of the items that "
        f"the float bundle recommends to a user, this one recommends {gate['beam_set_overlap']:.2%}, averaged over "
        f"{figures['users']:,} held-out users; at least {gate['limits']['beam_set_overlap']:.2%} is required.{failed}"
    )


def _tiles(figures: Row) -> list[tuple[str, str]]:
    row = next(row for row in figures["precisions"] if row["chosen"])
    return [
        (f"{row['beam_set_overlap']:.2%}", "of the recommended items stay"),
        (f"{row['size_ratio']:.1%}", f"of the float bundle's size: {size(row['size_bytes'])}"),
        *([] if row["p50_ms"] is None else [(f"{row['p50_ms']:.1f} ms", "median of a request")]),
        (_change(figures["gate"]["ndcg@10"]), "change of NDCG@10"),
    ]


def _gate(gate: Row) -> Parts:
    limit = gate["limits"]["beam_set_overlap"]
    recall, ndcg = (
        (f"{row['before']:.4f}", f"{row['after']:.4f}", _change(row)) for row in (gate["recall@10"], gate["ndcg@10"])
    )
    interval = gate["ndcg@10"]["interval"]
    change = f"{ndcg[2]} ({' to '.join(map(_signed, interval))})"
    is_near = _result(gate["beam_set_overlap"] >= limit)
    rows = [
        ("Overlap of the beam set", is_near, "", f"{gate['beam_set_overlap']:.4f}", "", f"at least {limit:g}"),
        ("Overlap of the best 10", "", "", f"{gate['top10_overlap']:.4f}", "", ""),
        ("Recall@10", "", *recall, ""),
        ("NDCG@10", _result(interval[1] >= 0), *ndcg[:2], change, "no significant loss"),
    ]
    return [
        "The gate asks whether held-out users get the same recommendations. The items must overlap, and NDCG@10 may "
        "not fall significantly: its loss is significant where the whole interval of its change is below 0.",
        Table(("Measure", "Result", "Before", "After", "Change", "Required"), rows, text_columns=2),
    ]


def _attempts(attempts: Sequence[Row]) -> Parts:
    if len(attempts) == 1:
        return []
    rows = [
        (
            ", ".join(attempt["refined_kinds"]) or "none",
            ", ".join(attempt["float_layers"]) or "none",
            _result(attempt["passed"]),
            f"{attempt['beam_set_overlap']:.4f}",
        )
        for attempt in attempts
    ]
    return [
        f"The gate was tried {len(attempts)} times, each less coarse: first activations are rounded more finely before "
        "some linear layers, or before all, then the most sensitive layers stay in float.",
        Table(("Refined linear layers", "Layers in float", "Result", "Overlap"), rows, text_columns=3),
    ]


def _lengths(rows: Sequence[Row]) -> Table:
    spans = [" to ".join(dict.fromkeys((f"{row['least']}", f"{row['most']}"))) for row in rows]
    return Table(
        ("Items in the history", "Users", "Mean overlap", "10th percentile"),
        [
            (span, f"{row['users']:,}", f"{row['mean']:.4f}", f"{row['tenth_percentile']:.4f}")
            for span, row in zip(spans, rows, strict=True)
        ],
    )


def _precisions(rows: Sequence[Row]) -> Table:
    table = [
        (
            row["name"] + (" (chosen)" if row["chosen"] else ""),
            _result(row["passed"]),
            size(row["size_bytes"]),
            f"{row['size_ratio']:.1%}",
            "not measured" if row["p50_ms"] is None else f"{row['p50_ms']:.1f} ms",
            f"{row['beam_set_overlap']:.4f}",
            f"{row['ndcg_at_10']:.4f}",
        )
        for row in rows
    ]
    header = ("Precision", "Result", "Size", "Of float", "Median request", "Overlap", "NDCG@10")
    marked = [index for index, row in enumerate(rows) if row["chosen"]]
    return Table(header, table, text_columns=2, marked=marked)


def _sensitivity(rows: Sequence[Row]) -> Parts:
    if not rows:
        return ["The sensitivity of the layers was not measured."]
    worst = max(rows, key=lambda row: row["error"])
    return [
        f"The most sensitive is {worst['name']}: with it alone quantized, the outputs of its stage change by "
        f"{worst['error']:.2%}.",
        Picture(
            "Relative error of a stage's outputs with one of its layers quantized. Pale: left in float.",
            partial(_draw_sensitivity, rows),
        ),
    ]


def _draw_sensitivity(rows: Sequence[Row], figure: Figure) -> None:
    """The error of every layer."""
    axes = figure.subplots()
    colours = [COLOURS["pale" if row["is_float"] else "main"] for row in rows]
    axes.bar(range(len(rows)), [row["error"] for row in rows], 0.65, color=colours)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.2%}")
    name_columns(axes, [row["name"] for row in rows], room=15)


def _ranges(rows: Sequence[Row]) -> Parts:
    if not rows:
        return ["No ranges were measured."]
    before, after = (max(rows, key=lambda row: _width(row, suffix)) for suffix in ("_before", ""))
    text = (
        f"The widest range goes into {_range(after)}. Before outliers were moved from activations into weights it went "
        f"into {_range(before, '_before')}."
    )
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    caption = (
        "Least and largest value that goes into each linear layer. Pale: before outliers were moved; dark: after. "
        "Where outliers are far, the axis is logarithmic."
    )
    return [text, Picture(caption, partial(_draw_ranges, kinds), height=0.4 + 2.1 * ((len(kinds) + 1) // 2))]


def _draw_ranges(kinds: Mapping[str, Sequence[Row]], figure: Figure) -> None:
    """A panel for every kind of linear layer."""
    panels = figure.subplots((len(kinds) + 1) // 2, 2, squeeze=False).flatten()
    for axes, (kind, rows) in zip(panels, kinds.items(), strict=False):
        axes.set_title(f"into {kind}")
        for suffix, width, colour in (("_before", 0.8, "pale"), ("", 0.45, "main")):
            lowest = [row[f"lowest{suffix}"] for row in rows]
            axes.bar(range(len(rows)), [_width(row, suffix) for row in rows], width, lowest, color=COLOURS[colour])
        _stretch(axes, rows)
        name_columns(axes, [row["layer"] for row in rows], room=7)
    for axes in panels[len(kinds) :]:
        axes.remove()


def _stretch(axes: Axes, rows: Sequence[Row]) -> None:
    """Makes the axis logarithmic beyond the usual magnitude where outliers are far."""
    usual = median(max(abs(row["lowest"]), abs(row["highest"])) for row in rows)
    largest = max(max(abs(row["lowest_before"]), abs(row["highest_before"])) for row in rows)
    if usual and largest > FAR * usual:
        axes.set_yscale("symlog", linthresh=usual)
        axes.yaxis.set_major_formatter("{x:g}")


def _width(row: Row, suffix: str = "") -> float:
    return float(row[f"highest{suffix}"] - row[f"lowest{suffix}"])


def _range(row: Row, suffix: str = "") -> str:
    return f"{row['kind']} ({row['layer']}): {row[f'lowest{suffix}']:.4g} to {row[f'highest{suffix}']:.4g}"


def _result(passed: bool) -> str:
    return "✓\u00a0passes" if passed else "✕\u00a0fails"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _change(row: Row) -> str:
    return _signed(row["after"] - row["before"])
