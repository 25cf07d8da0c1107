"""The pictures of a calibration's report, each drawn into an empty figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from earn.report.calibration_rows import LengthRow, PrecisionRow, RangeRow, SensitivityRow
from earn.report.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FAR = 20  # times the median magnitude: an outlier that would hide the others on an even axis


def draw_lengths(rows: Sequence[LengthRow], limit: float | None, figure: Figure) -> None:
    """The overlap by length of the history, with what the gate requires of the mean."""
    axes, places = figure.subplots(), range(len(rows))
    means, tenths = [row.mean for row in rows], [row.tenth_percentile for row in rows]
    axes.vlines(places, tenths, means, color=COLOURS["pale"], linewidth=5)
    axes.plot(places, means, "o", color=COLOURS["main"], markersize=7, label="mean")
    axes.plot(places, tenths, "_", color=COLOURS["muted"], markersize=11, markeredgewidth=2, label="10th percentile")
    if limit is not None:
        axes.axhline(limit, color=COLOURS["mark"], linestyle="--", linewidth=1.2, label="required mean")
    axes.set_xticks(places, [f"{row.span} items\n{row.users:,} users" for row in rows])
    axes.set_xlim(-0.6, len(rows) - 0.4)
    _percent(axes.yaxis)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)


def draw_precisions(rows: Sequence[PrecisionRow], limit: float | None, figure: Figure) -> None:
    """Size, latency and overlap of every precision."""
    size, time, overlap = figure.subplots(1, 3, sharey=True)
    colours = [COLOURS["main" if row.chosen else "pale"] for row in rows]
    places = range(len(rows))
    for axes, title, values, form in (
        (size, "Size, MiB", [row.size_bytes / 2**20 for row in rows], "{:,.1f}"),
        (time, "Median request, ms", [row.p50_ms for row in rows], "{:.1f}"),
    ):
        bars = axes.barh(places, [value or 0.0 for value in values], 0.6, color=colours)
        labels = ["not measured" if value is None else form.format(value) for value in values]
        axes.bar_label(bars, labels, padding=4)
        axes.set_title(title)
        axes.set_xlim(0, 1.3 * max([value for value in values if value] or [1.0]))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
    overlap.set_title("Overlap")
    overlaps = [row.beam_set_overlap for row in rows]
    overlap.scatter(overlaps, places, s=45, color=colours, edgecolors=COLOURS["main"], zorder=3)
    overlap.locator_params("x", nbins=5)
    _percent(overlap.xaxis)
    if limit is not None:
        overlap.axvline(limit, color=COLOURS["mark"], linestyle="--", linewidth=1.2)
    size.set_yticks(places, [row.name + ("" if row.passed else " (fails)") for row in rows])
    size.invert_yaxis()


def draw_sensitivity(rows: Sequence[SensitivityRow], figure: Figure) -> None:
    """The error of every layer."""
    axes = figure.subplots()
    colours = ["none" if row.is_float else COLOURS["main"] for row in rows]
    errors = [row.error for row in rows]
    axes.bar(range(len(rows)), errors, 0.65, color=colours, edgecolor=COLOURS["main"], linewidth=1.2)
    _percent(axes.yaxis)
    _name_layers(axes, [row.name for row in rows], room=40)


def draw_ranges(rows: Sequence[RangeRow], figure: Figure) -> None:
    """A panel for every product that several layers have, and a narrow one for the others."""
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
    places = range(len(rows))
    before, after = [row.lowest_before for row in rows], [row.lowest for row in rows]
    axes.bar(places, [row.highest_before - row.lowest_before for row in rows], 0.8, before, color=COLOURS["pale"])
    axes.bar(places, [row.highest - row.lowest for row in rows], 0.45, after, color=COLOURS["main"])
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


def _percent(axis: Axis) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1))


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
