"""The pictures of a profile's report, each drawn into an empty figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from earn.profiling.rows import PREFILLS, SEARCH, STEP, TOTAL, BundleProfile, Case, Limit, ProfileResult, label
from earn.report.page import COLOURS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FADING = (1.0, 0.68, 0.46, 0.32)  # of the decode steps, the first one strongest
LINES = (("main", "-"), ("mark", "--"), ("good", "-."), ("bad", ":"), ("muted", "-"))  # of the bundles, in turn
MOST_SHADES = 2  # bundles in one picture: more shades would cover each other
READABLE = 0.055  # of the axis: parts as wide as this have room for their figure


def draw_parts(sides: Sequence[BundleProfile], figure: Figure) -> None:
    """What the median request is made of: one bar for each bundle and width of the search."""
    bars = [(side, case) for side in sides for case in side.longest]
    axes = figure.subplots()
    names = dict.fromkeys(name for _, case in bars for name in case.stages if name not in (SEARCH, TOTAL))
    widest = max(sum(_typical(case, name) for name in (*names, SEARCH)) for _, case in bars)
    starts = [0.0] * len(bars)
    for name in (*names, SEARCH):
        values = [_typical(case, name) for _, case in bars]
        colour, opacity = _paint(name)
        axes.barh(
            range(len(bars)), values, 0.62, starts, color=colour, alpha=opacity, edgecolor=COLOURS["paper"],
            linewidth=1, label=label(name),
        )  # fmt: skip
        for place, value in enumerate(values):
            if value > READABLE * widest:
                ink = COLOURS["paper" if opacity > 0.6 else "ink"]
                axes.text(starts[place] + value / 2, place, milliseconds(value), color=ink, ha="center", va="center")
            starts[place] += value
    for place, end in enumerate(starts):
        axes.text(end + 0.01 * widest, place, f"{milliseconds(end)} ms", weight="bold", va="center")
    axes.set_yticks(range(len(bars)), [_bar_name(side, case, sides) for side, case in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.13 * widest)
    axes.set_xlabel("milliseconds")
    axes.grid(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(names) + 1, handlelength=1.2)


def draw_lengths(sides: Sequence[BundleProfile], figure: Figure) -> None:
    """The median, and what nine of ten requests stay below, by length of the prompt; a panel for each width."""
    widths = list(dict.fromkeys(case.beams for case in sides[0].cases))
    panels = figure.subplots(1, len(widths), squeeze=False, sharey=True)[0]
    for axes, width in zip(panels, widths, strict=True):
        for place, side in enumerate(sides):
            found = sorted((case for case in side.cases if case.beams == width), key=lambda case: case.tokens)
            tokens, p50 = [case.tokens for case in found], [case.total.ms.p50 for case in found]
            name, line = LINES[place % len(LINES)]
            if len(sides) <= MOST_SHADES:
                p90 = [case.total.ms.p90 for case in found]
                axes.fill_between(tokens, p50, p90, color=COLOURS[name], alpha=0.13, linewidth=0)
            axes.plot(tokens, p50, line, color=COLOURS[name], linewidth=1.8, label=side.name)
            for case in found:
                filling = COLOURS["paper" if case.noisy else name]
                axes.plot(case.tokens, case.total.ms.p50, "o", color=COLOURS[name], markerfacecolor=filling)
        axes.set_title(f"{width} beams" if len(widths) > 1 else "")
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylim(0)
    panels[0].set_ylabel("milliseconds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(sides), handlelength=2.5)


def draw_roofline(profile: ProfileResult, figure: Figure) -> None:
    """Operations per second against operations per byte, below the machine's two limits; a panel for each bundle."""
    from matplotlib.ticker import LogLocator

    sides, bandwidth = profile.bundles, profile.memory_bandwidth or 0.0
    columns = min(2, len(sides))
    rows = -(-len(sides) // columns)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten().tolist()
    found = [limits_of(side.main) for side in sides]
    intensities = [limit.intensity for limits in found for _, limit, _ in limits]
    peaks = [max(side.product_rates.values()) for side in sides]
    low = min([*intensities, *(peak / bandwidth for peak in peaks)]) / 2
    high = 2 * max([*intensities, *(peak / bandwidth for peak in peaks)])
    for axes, side, limits, peak in zip(panels, sides, found, peaks, strict=False):
        ridge = peak / bandwidth
        axes.plot([low, ridge, high], [low * bandwidth / 1e9, peak / 1e9, peak / 1e9], color=COLOURS["ink"], lw=1.3)
        for name, limit, attained in limits:
            _draw_point(axes, name, limit, attained)
        limits_text = f"{figures(bandwidth / 1e9)} GB/s of memory, {figures(peak / 1e9)} GOP/s of products"
        axes.set_title(f"{side.name}: {limits_text}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.tick_params(labelbottom=True)  # there may be no panel below
        axes.grid(True, axis="both")
        axes.set_xlabel("operations per byte")
    for axes in panels[len(sides) :]:
        axes.remove()
    least = min(attained for limits in found for _, _, attained in limits)
    panels[0].set_ylim(least / 3e9, 3 * max(peaks) / 1e9)
    panels[0].set_ylabel("GOP/s")
    figure.legend(*_handles(panels[: len(sides)]), loc="outside upper left", ncols=8, handlelength=1.2)


def draw_callers(sides: Sequence[BundleProfile], figure: Figure) -> None:
    """Requests per second by the number of callers."""
    axes = figure.subplots()
    width = 0.8 / len(sides)
    for place, side in enumerate(sides):
        middles = [number + (place - (len(sides) - 1) / 2) * width for number in range(len(side.callers))]
        rates = [row.per_second for row in side.callers]
        spread = [
            [row.per_second - row.least for row in side.callers],
            [row.most - row.per_second for row in side.callers],
        ]
        bars = axes.bar(
            middles, rates, 0.9 * width, color=COLOURS[LINES[place % len(LINES)][0]], label=side.name,
            yerr=spread, error_kw={"ecolor": COLOURS["muted"], "elinewidth": 1, "capsize": 3},
        )  # fmt: skip
        axes.bar_label(bars, [figures(rate) for rate in rates], padding=3)
    axes.set_xticks(range(len(sides[0].callers)), [_callers(row.callers) for row in sides[0].callers])
    axes.set_ylabel("requests per second")
    axes.margins(y=0.15)
    if len(sides) > 1:
        figure.legend(loc="outside upper left", ncols=len(sides), handlelength=1.2)


def limits_of(case: Case) -> list[tuple[str, Limit, float]]:
    """The stages whose limits are known, with the operations per second that each attains in the median."""
    return [
        (name, stage.limit, 1000 * stage.limit.operations / stage.ms.p50)
        for name, stage in case.stages.items()
        if stage.limit is not None
    ]


def milliseconds(value: float) -> str:
    """A time in three digits or so."""
    if value < 1:
        return f"{value:#.2g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figures(value: float) -> str:
    """A number in three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _typical(case: Case, name: str) -> float:
    return case.stages[name].typical_ms if name in case.stages else 0.0


def _paint(name: str) -> tuple[str, float]:
    """Colour and opacity of a part."""
    if name.startswith(STEP):
        return COLOURS["mark"], FADING[min(int(name.removeprefix(STEP)), len(FADING)) - 1]
    if name == SEARCH:
        return COLOURS["muted"], 0.55
    return COLOURS["main"], 1.0 if name == PREFILLS["early"] else 0.5


def _bar_name(side: BundleProfile, case: Case, sides: Sequence[BundleProfile]) -> str:
    return side.name if len(sides[0].longest) == 1 else f"{side.name}\n{case.beams} beams"


def _draw_point(axes: Axes, name: str, limit: Limit, attained: float) -> None:
    """A stage, and a pale line up to what the machine allows it."""
    colour, opacity = _paint(name)
    allowed = 1000 * limit.operations / limit.least_ms
    axes.plot([limit.intensity] * 2, [attained / 1e9, allowed / 1e9], color=COLOURS["pale"], lw=3, zorder=1.5)
    form = "^" if name.startswith(STEP) else "o" if name == PREFILLS["early"] else "s"
    axes.plot(
        limit.intensity, attained / 1e9, form, color=colour, alpha=opacity, markersize=7, label=label(name), ls="none"
    )


def _handles(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """The legend of several panels, every name once."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return list(found.values()), list(found)


def _callers(count: int) -> str:
    return "1 caller" if count == 1 else f"{count} callers"
