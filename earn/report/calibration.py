"""The report of a calibration: what was measured, as JSON for programs and as a page with pictures for people.

The page says only what the figures hold; what was not measured it calls so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from earn.calibration.calibrate import Calibration, CalibrationSettings, Candidate
from earn.calibration.gate import HeldOut, Verdict
from earn.calibration.precisions import RANGE_METHOD
from earn.errors import EarnError
from earn.files import write_json
from earn.report.calibration_figures import LengthRow, PrecisionRow, RangeRow, Report, report_of
from earn.report.page import Banner, Page, Parts, Picture, Section, Table, check_place
from earn.report.plots import COLOURS, legend, limit_line, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 20  # times the median magnitude: an outlier that would hide the others on an even axis


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


def write_report(report: Report, path: Path) -> None:
    """Writes the page to `path` and the figures beside it, with the ending .json.

    Raises:
        EarnError: a library for the page is missing.
    """
    calibration_page(report).write(path)
    write_json(path.with_suffix(".json"), report.as_json())


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
    verdict = report.found.chosen.verdict
    written = "It was written all the same, because this was asked for."
    failed = f"The gate is not passed. {written if report.settings.force else 'No bundle was written.'}"
    return Page(
        title=f"Calibration to {report.found.chosen.precision.name}",
        summary=_summary(report),
        banner=Banner("The gate is passed." if verdict.passed else failed, verdict.passed),
        tiles=_tiles(report),
        sections=(
            Section("The gate", _gate(report.found.chosen)),
            Section("Overlap by length of the history", _lengths(report.lengths, verdict.least_overlap)),
            Section("Precisions compared", _precisions(report.precisions, verdict)),
            Section("Sensitivity of the layers", _sensitivity(report.found.chosen)),
            Section("Ranges of the activations", _ranges(report.ranges, RANGE_METHOD)),
            Section("How this was measured", [_settings(report)]),
        ),
    )


def _summary(report: Report) -> str:
    chosen, verdict = report.found.chosen, report.found.chosen.verdict
    failed = "" if verdict.passed else f" It fails because {' and '.join(verdict.reasons)}."
    return (
        f"The bundle was calibrated to {chosen.precision.name} for the engine {chosen.form.engine}. Of the items that "
        f"the float bundle recommends to a user, this one recommends {verdict.beam_set_overlap:.2%}, averaged over "
        f"{verdict.users:,} held-out users; at least {verdict.least_overlap:.2%} is required.{failed}"
    )


def _tiles(report: Report) -> list[tuple[str, str]]:
    row, ndcg = next(row for row in report.precisions if row.chosen), report.found.chosen.verdict.ndcg
    return [
        (f"{row.beam_set_overlap:.2%}", "of the recommended items stay"),
        (f"{row.size_ratio:.1%}", f"of the float bundle's size: {_size(row.size_bytes)}"),
        *([] if row.p50_ms is None else [(f"{row.p50_ms:.1f} ms", "median of a request")]),
        (_signed(ndcg.after - ndcg.before), "change of NDCG@10"),
    ]


def _gate(chosen: Candidate) -> Parts:
    verdict, attempts = chosen.verdict, chosen.attempts
    overlap, top10 = (("", "", f"{value:.4f}", "") for value in (verdict.beam_set_overlap, verdict.top10_overlap))
    recall, ndcg = (
        (f"{row.before:.4f}", f"{row.after:.4f}", _signed(row.after - row.before))
        for row in (verdict.recall, verdict.ndcg)
    )
    interval = " to ".join(map(_signed, verdict.interval))
    is_near, keeps = verdict.beam_set_overlap >= verdict.least_overlap, verdict.interval[1] >= 0
    rows = [
        ("Overlap of the beam set", _met(is_near), *overlap[1:], f"at least {verdict.least_overlap:g}"),
        ("Overlap of the best 10", *top10, ""),
        ("Recall@10", "", *recall, ""),
        ("NDCG@10", _met(keeps), *ndcg[:2], f"{ndcg[2]} ({interval})", "no significant loss"),
    ]
    parts: list[str | Table | Picture] = [
        "The gate asks whether held-out users get the same recommendations. The items must overlap, and NDCG@10 may "
        "not fall significantly: its loss is significant where the whole interval of its change is below 0.",
        Table(("Measure", "Result", "Before", "After", "Change", "Required"), rows, text_columns=2),
    ]
    if len(attempts) == 1:
        return parts
    tries = [
        (
            ", ".join(attempt.mixed.refined_kinds) or "none",
            ", ".join(attempt.mixed.float_layers) or "none",
            _result(attempt.verdict.passed),
            f"{attempt.verdict.beam_set_overlap:.4f}",
        )
        for attempt in attempts
    ]
    return [
        *parts,
        f"The gate was tried {len(attempts)} times, each less coarse: first activations are rounded more finely before "
        "some linear layers, or before all, then the most sensitive layers stay in float. "
        f"The last try {'passed' if verdict.passed else 'failed'}.",
        Table(("Refined linear layers", "Layers in float", "Result", "Overlap"), tries, text_columns=3),
    ]


def _lengths(rows: Sequence[LengthRow], limit: float) -> Parts:
    worst = min(rows, key=lambda row: row.mean)
    return [
        f"The mean overlap is lowest, {worst.mean:.2%}, for histories of {worst.span} items; "
        f"a tenth of these {worst.users:,} users have {worst.tenth_percentile:.2%} or less.",
        Picture(
            "Overlap of the beam set with the float bundle's, by number of items in the history: the mean of the "
            "users, and what a tenth of them do not exceed. The dashed line is required of the mean of all users.",
            partial(_draw_lengths, rows, limit),
        ),
    ]


def _draw_lengths(rows: Sequence[LengthRow], limit: float, figure: Figure) -> None:
    """The overlap by length of the history, with what the gate requires of the mean."""
    axes, indices = figure.subplots(), range(len(rows))
    means, tenths = [row.mean for row in rows], [row.tenth_percentile for row in rows]
    axes.vlines(indices, tenths, means, color=COLOURS["pale"], linewidth=5)
    axes.plot(indices, means, "o", color=COLOURS["main"], markersize=7, label="mean")
    axes.plot(indices, tenths, "_", color=COLOURS["muted"], markersize=11, markeredgewidth=2, label="10th percentile")
    limit_line(axes, limit, "required mean")
    axes.set_xticks(indices, [f"{row.span} items\n{row.users:,} users" for row in rows])
    axes.set_xlim(-0.6, len(rows) - 0.4)
    percent(axes.yaxis)
    legend(figure)


def _precisions(rows: Sequence[PrecisionRow], verdict: Verdict) -> Parts:
    notes = {True: " (chosen)" if verdict.passed else " (last tried)", False: ""}
    table = [
        (
            row.name + notes[row.chosen],
            _result(row.passed),
            _size(row.size_bytes),
            f"{row.size_ratio:.1%}",
            "not measured" if row.p50_ms is None else f"{row.p50_ms:.1f} ms",
            f"{row.beam_set_overlap:.4f}",
            f"{row.ndcg_at_10:.4f}",
        )
        for row in rows
    ]
    passing = [row.name for row in rows[1:] if row.passed]
    return [
        f"{len(passing)} of {len(rows) - 1} passed" + (f": {', '.join(passing)}." if passing else "."),
        Picture(
            "Graphs on disk, median of a request, and overlap of the beam set with the float bundle's. Dark: the "
            "chosen precision. The dashed line is what the gate requires.",
            partial(_draw_precisions, rows, verdict.least_overlap),
            height=0.9 + 0.32 * len(rows),
        ),
        Table(
            ("Precision", "Result", "Size", "Of float", "Median request", "Overlap", "NDCG@10"),
            table,
            text_columns=2,
            marked=[index for index, row in enumerate(rows) if row.chosen],
        ),
    ]


def _draw_precisions(rows: Sequence[PrecisionRow], limit: float, figure: Figure) -> None:
    """Size, latency and overlap of every precision."""
    size, time, overlap = figure.subplots(1, 3, sharey=True)
    colours = [COLOURS["main" if row.chosen else "pale"] for row in rows]
    indices = range(len(rows))
    sizes: list[float | None] = [row.size_bytes / 2**20 for row in rows]
    for axes, title, values in ((size, "Size, MiB", sizes), (time, "Median request, ms", [row.p50_ms for row in rows])):
        bars = axes.barh(indices, [value or 0.0 for value in values], 0.6, color=colours)
        axes.bar_label(bars, ["not measured" if value is None else f"{value:,.1f}" for value in values], padding=4)
        axes.set_title(title)
        axes.set_xlim(0, 1.3 * max([value for value in values if value] or [1.0]))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
    overlap.set_title("Overlap")
    overlaps = [row.beam_set_overlap for row in rows]
    overlap.scatter(overlaps, indices, s=45, color=colours, edgecolors=COLOURS["main"], zorder=3)
    overlap.locator_params("x", nbins=5)
    percent(overlap.xaxis)
    overlap.axvline(limit, color=COLOURS["mark"], linestyle="--", linewidth=1.2)
    size.set_yticks(indices, [row.name + ("" if row.passed else " (fails)") for row in rows])
    size.invert_yaxis()


def _sensitivity(chosen: Candidate) -> Parts:
    errors, floats = chosen.sensitivity, chosen.mixed.float_layers
    if not errors:
        return ["The sensitivity of the layers was not measured."]
    worst = max(errors, key=lambda name: errors[name])
    return [
        f"The most sensitive is {worst}: with it alone quantized, the outputs of its stage change by "
        f"{errors[worst]:.2%}. Left in float: {', '.join(floats) or 'none'}.",
        Picture(
            "Relative error of a stage's outputs with one of its layers quantized. Hollow: left in float.",
            partial(_draw_sensitivity, errors, floats),
        ),
    ]


def _draw_sensitivity(errors: Mapping[str, float], floats: Collection[str], figure: Figure) -> None:
    """The error of every layer."""
    axes = figure.subplots()
    colours = ["none" if name in floats else COLOURS["main"] for name in errors]
    axes.bar(range(len(errors)), list(errors.values()), 0.65, color=colours, edgecolor=COLOURS["main"], linewidth=1.2)
    percent(axes.yaxis)
    _name_layers(axes, list(errors), room=40)


def _ranges(rows: Sequence[RangeRow], method: str) -> Parts:
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
            "Ranges of what goes into each linear layer. Pale: before outliers were moved; dark: after. "
            f"Ranges after were chosen by {method}. Where outliers are far, the axis is logarithmic.",
            partial(_draw_ranges, rows),
            height=5.0,
        ),
    ]


def _draw_ranges(rows: Sequence[RangeRow], figure: Figure) -> None:
    """A panel for every linear layer that several layers have, and a narrow one for the others."""
    kinds: dict[str, list[RangeRow]] = {}
    for row in rows:
        kinds.setdefault(row.product, []).append(row)
    panels = {f"into {kind}": found for kind, found in kinds.items() if len(found) > 1}
    others = [found[0] for found in kinds.values() if len(found) == 1]
    names, aside = [*panels, *[""] * (len(panels) % 2)], ["others"] if others else []
    mosaic: list[Any] = [[*names[at : at + 2], *aside] for at in range(0, len(names), 2)] or [aside]
    most = max(map(len, panels.values()), default=0)
    ratios = [*[most, most][: len(names)], *[max(most / 4, len(others)) for _ in aside]]
    axes = figure.subplot_mosaic(mosaic, width_ratios=ratios, empty_sentinel="")
    for name, found in panels.items():
        axes[name].set_title(name)
        _draw_panel(axes[name], found, [row.unit for row in found])
    if others:
        axes["others"].set_title("into " + (others[0].product if len(others) == 1 else "others"))
        _draw_panel(axes["others"], others, [row.product if len(others) > 1 else "" for row in others])


def _draw_panel(axes: Axes, rows: Sequence[RangeRow], names: Sequence[str]) -> None:
    indices = range(len(rows))
    before, after = [row.lowest_before for row in rows], [row.lowest for row in rows]
    axes.bar(indices, [row.highest_before - row.lowest_before for row in rows], 0.8, before, color=COLOURS["pale"])
    axes.bar(indices, [row.highest - row.lowest for row in rows], 0.45, after, color=COLOURS["main"])
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.7)
    usual = median(max(abs(row.lowest), abs(row.highest)) for row in rows)
    largest = max(max(abs(row.lowest_before), abs(row.highest_before)) for row in rows)
    if usual and largest > FAR * usual:
        powers = [10.0**power for power in range(math.ceil(math.log10(usual)), math.floor(math.log10(largest)) + 1)]
        axes.set_yscale("symlog", linthresh=usual)
        axes.set_yticks([-power for power in powers] + [0.0] + powers)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    _name_layers(axes, names, room=16)


def _name_layers(axes: Axes, names: Sequence[str], room: int) -> None:
    """Numbers below the bars, as many as there is room for, and the stages' names below the numbers."""
    step = 1 + (len(names) - 1) // room
    numbers = [name.rpartition(".")[2] if "." in name else "" for name in names]
    axes.set_xticks(range(len(names)), ["" if text.isdigit() and int(text) % step else text for text in numbers])
    axes.set_xlim(-0.7, len(names) - 0.3)
    start = 0
    for stage, group in groupby(names, lambda name: name.partition(".")[0]):
        end = start + len(list(group))
        middle = ((start + end - 1) / 2, 0)
        axes.annotate(stage, middle, (0, -15), axes.get_xaxis_transform(), "offset points", ha="center", va="top")
        if start:
            axes.axvline(start - 0.5, color=COLOURS["muted"], linewidth=0.7, linestyle=":")
        start = end


def _settings(report: Report) -> Table:
    labels = {"samples": "histories to calibrate with", "users": "held-out users", "method": "choice of ranges"}
    names = ("source", "out", "data", "precision", "engine", "method", "samples", "users", "seed")
    figures = report.as_json()
    return Table(("Setting", "Value"), [(labels.get(name, name), str(figures[name])) for name in names], 2)


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
