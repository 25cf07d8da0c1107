"""The report of a profile as a page: where the time goes, how it grows, and what the machine would allow.

The page says only what the figures hold; what was not measured it calls so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from earn.profiling.rows import PREFILLS, SEARCH, STEP, TOTAL, BundleProfile, Case, Limit, ProfileResult, label
from earn.report.page import Banner, Page, Parts, Picture, Section, Table, check_installed, check_place
from earn.report.plots import COLOURS, ink_on, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIB = 1 << 20
FADING = (1.0, 0.68, 0.46, 0.32)  # of the decode steps, the first one strongest
LINES = (("main", "-"), ("mark", "--"), ("good", "-."), ("bad", ":"), ("muted", "-"))  # of the bundles, in turn
MOST_SHADES = 2  # bundles in one picture: more shades would cover each other
READABLE = 0.055  # of the axis: parts as wide as this have room for their figure


def check_page(path: Path, *bundles: Path) -> None:
    """Refuses a place where no page can be written, before hours are spent on measuring.

    Raises:
        EarnError: not an .html file, in one of the bundles, a folder that cannot be written to, or a missing library.
    """
    check_installed()
    check_place(path, *bundles)


def profile_page(profile: ProfileResult) -> Page:
    """The page, without writing it."""
    names = [bundle.name for bundle in profile.bundles]
    return Page(
        title=f"Profile of {names[0]}" + (f" beside {', '.join(names[1:])}" if names[1:] else ""),
        summary=_summary(profile),
        banner=_banner(profile),
        tiles=_tiles(profile.bundles[0]),
        sections=(
            Section("Where the time goes", _parts(profile.bundles)),
            Section("Latency by length of the history", _lengths(profile)),
            Section("What the machine allows", _limits(profile)),
            Section("Callers at once", _callers(profile.bundles)),
            Section("Load and memory", _memory(profile)),
            Section("How this was measured", _settings(profile)),
        ),
    )


def noisy_cases(profile: ProfileResult) -> list[str]:
    """The cases whose median is not known well."""
    cases = [(bundle.name, case) for bundle in profile.bundles for case in bundle.cases if case.noisy]
    return [f"{name}, {case.items} items, {case.beams} beams" for name, case in cases]


def milliseconds(value: float) -> str:
    """A time in three digits or so."""
    if value < 1:
        return f"{value:#.2g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figures(value: float) -> str:
    """A number in three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _banner(profile: ProfileResult) -> Banner | None:
    """Figures that cannot be relied on say so first."""
    reasons = []
    if noisy := noisy_cases(profile):
        which = "; ".join(noisy) if len(noisy) <= 3 else f"{len(noisy)} cases"
        reasons.append(f"Noisy: the median is not known to {profile.settings.tolerance:.0%} ({which}).")
    if profile.disturbed:
        reasons.append(f"Disturbed: other processes kept {profile.others_busy:.1f} processors busy meanwhile.")
    return Banner(" ".join(reasons), False) if reasons else None


def _summary(profile: ProfileResult) -> str:
    first, *others = profile.bundles
    case, ms = first.main, first.main.total.ms
    times = [f"; {other.name} takes {other.main.total.ms.p50 / ms.p50:.2f} times as long" for other in others]
    return (
        f"With a history of {case.items} items ({case.tokens} tokens) and {case.beams} beams, half of the requests to "
        f"{first.name} are answered within {milliseconds(ms.p50)} ms, 99 of 100 within {milliseconds(ms.p99)} ms"
        f"{''.join(times)}."
    )


def _tiles(bundle: BundleProfile) -> list[tuple[str, str]]:
    case, best, peak = bundle.main, max(bundle.callers, key=lambda row: row.per_second), bundle.loading.peak_bytes
    return [
        (f"{milliseconds(case.total.ms.p50)} ms", f"median of a request, {case.items} items"),
        *([] if case.share is None else [(f"{case.share:.0%}", "of the machine's limit is reached")]),
        (figures(best.per_second), f"requests per second, {best.callers} at once"),
        *([] if peak is None else [(_mib(peak), "most memory of the process")]),
    ]


def _parts(bundles: Sequence[BundleProfile]) -> Parts:
    main = bundles[0].main
    largest = max((name for name in main.stages if name != TOTAL), key=lambda name: _typical(main, name))
    share = _typical(main, largest) / _typical(main, TOTAL)
    cases = [(bundle, case) for bundle in bundles for case in bundle.longest]
    return [
        f"The largest part of a request to {bundles[0].name} is {label(largest)}: {share:.0%}.",
        Picture(
            "The parts of a request with the longest history: their means over the fifth of the requests around the "
            "median one, so that they add up. Search is all but the calls of the two stages: beam search and Python.",
            partial(_draw_parts, bundles),
            height=1.1 + 0.5 * len(cases),
        ),
        *(_percentiles(bundle, case) for bundle, case in cases),
    ]


def _percentiles(bundle: BundleProfile, case: Case) -> Table:
    """Percentiles of every part of a request."""
    rows = [
        (
            label(name) + ("" if part.taken == 1 else f" (in {part.taken:.0%} of the requests)"),
            *map(milliseconds, (part.ms.p50, part.ms.p90, part.ms.p99)),
        )
        for name, part in case.stages.items()
    ]
    header = (f"{bundle.name}, {case.items} items, {case.beams} beams", "p50 ms", "p90 ms", "p99 ms")
    return Table(header, rows, marked=[len(rows) - 1])


def _draw_parts(bundles: Sequence[BundleProfile], figure: Figure) -> None:
    """What the median request is made of: one bar for each bundle and width of the search."""
    bars = [(bundle, case) for bundle in bundles for case in bundle.longest]
    axes = figure.subplots()
    names = dict.fromkeys(name for _, case in bars for name in case.stages if name not in (SEARCH, TOTAL))
    widest = max(sum(_typical(case, name) for name in (*names, SEARCH)) for _, case in bars)
    ends = [0.0] * len(bars)
    for name in (*names, SEARCH):
        values = [_typical(case, name) for _, case in bars]
        colour, opacity = _paint(name)
        axes.barh(range(len(bars)), values, 0.62, ends, color=colour, alpha=opacity, edgecolor=COLOURS["paper"],
                  linewidth=1, label=label(name))  # fmt: skip
        for index, value in enumerate(values):
            if value > READABLE * widest:
                middle, text = (ends[index] + value / 2, index), milliseconds(value)
                axes.text(*middle, text, color=ink_on(opacity), ha="center", va="center")
            ends[index] += value
    for index, end in enumerate(ends):
        axes.text(end + 0.01 * widest, index, f"{milliseconds(end)} ms", weight="bold", va="center")
    widths = "" if len(bundles[0].longest) == 1 else "\n{} beams"
    axes.set_yticks(range(len(bars)), [bundle.name + widths.format(case.beams) for bundle, case in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.13 * widest)
    axes.set_xlabel("milliseconds")
    axes.grid(False)
    legend(figure)


def _typical(case: Case, name: str) -> float:
    return case.stages[name].typical_ms if name in case.stages else 0.0


def _paint(name: str) -> tuple[str, float]:
    """Colour and opacity of a part."""
    if name.startswith(STEP):
        return COLOURS["mark"], FADING[min(int(name.removeprefix(STEP)), len(FADING)) - 1]
    if name == SEARCH:
        return COLOURS["muted"], 0.55
    return COLOURS["main"], 1.0 if name == PREFILLS["early"] else 0.5


def _lengths(profile: ProfileResult) -> Parts:
    cases = [(bundle, case) for bundle in profile.bundles for case in bundle.cases]
    rows = [
        (
            bundle.name + (" (noisy)" if case.noisy else ""),
            *map(str, (case.items, case.tokens, case.beams)),
            f"{case.requests:,}",
            *map(milliseconds, (case.total.ms.p50, case.total.ms.p90, case.total.ms.p99)),
            "–".join(map(milliseconds, case.interval_ms)) if case.interval_ms else "too few",
            f"{case.cache_bytes / MIB:,.2f} MiB",
        )
        for bundle, case in cases
    ]
    header = ("Bundle", "Items", "Tokens", "Beams", "Requests", "p50 ms", "p90 ms", "p99 ms", "p50 within", "Cache")
    table = Table(header, rows, marked=[index for index, (_, case) in enumerate(cases) if case.noisy])
    if len(profile.settings.lengths) == 1:
        return ["One length alone was measured.", table]
    caption = "The median of a request by the length of its prompt."
    if len(profile.bundles) <= MOST_SHADES:
        caption += " Nine of ten requests stay below the shade's upper edge."
    if table.marked:
        caption += " Hollow points are noisy."
    return [Picture(caption, partial(_draw_lengths, profile.bundles), height=3.4), table]


def _draw_lengths(bundles: Sequence[BundleProfile], figure: Figure) -> None:
    """The median, and what nine of ten requests stay below, by length of the prompt; a panel for each width."""
    widths = list(dict.fromkeys(case.beams for case in bundles[0].cases))
    panels = figure.subplots(1, len(widths), squeeze=False, sharey=True)[0]
    for axes, width in zip(panels, widths, strict=True):
        for index, bundle in enumerate(bundles):
            cases = sorted((case for case in bundle.cases if case.beams == width), key=lambda case: case.tokens)
            tokens, p50 = [case.tokens for case in cases], [case.total.ms.p50 for case in cases]
            name, line = LINES[index % len(LINES)]
            if len(bundles) <= MOST_SHADES:
                p90 = [case.total.ms.p90 for case in cases]
                axes.fill_between(tokens, p50, p90, color=COLOURS[name], alpha=0.13, linewidth=0)
            axes.plot(tokens, p50, line, color=COLOURS[name], label=bundle.name)
            for case in cases:
                filling = COLOURS["paper" if case.noisy else name]
                axes.plot(case.tokens, case.total.ms.p50, "o", color=COLOURS[name], markerfacecolor=filling)
        axes.set_title(f"{width} beams" if len(widths) > 1 else "")
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylim(0)
    panels[0].set_ylabel("milliseconds")
    legend(figure)


def _limits(profile: ProfileResult) -> Parts:
    if profile.memory_bandwidth is None:
        return [profile.note]
    header = ("Rows", "MOP", "MiB", "Products GOP/s", "Reached GOP/s", "Least ms", "p50 ms", "Of limit")
    tables = [
        Table(
            (bundle.name, *header),
            [
                (
                    label(name),
                    f"{limit.rows}",
                    figures(limit.operations / 1e6),
                    f"{limit.bytes / MIB:,.2f}",
                    figures(limit.product_rate / 1e9),
                    figures(reached / 1e9),
                    milliseconds(limit.least_ms),
                    milliseconds(bundle.main.stages[name].ms.p50),
                    f"{limit.share:.0%}",
                )
                for name, limit, reached in _limits_of(bundle.main)
            ],
        )
        for bundle in profile.bundles
    ]
    return [
        "No program is faster here than matrix products alone in this precision, with as many rows and weights of the "
        f"same shapes, nor than memory is read: {profile.memory_bandwidth / 1e9:.1f} GB/s. Both were measured in this "
        "run. What a stage does besides (norms, softmax, rounding, calls of many small operators) keeps it below. "
        "Weights that fit into the processor's caches are read faster than memory.",
        Picture(
            "Each stage of the median request with the longest history, below the machine's two limits: memory "
            "(slanted) and products of the most rows (flat). A pale line ends at the stage's own limit, with its rows.",
            partial(_draw_roofline, profile.bundles, profile.memory_bandwidth),
            height=0.6 + 3.2 * ((len(profile.bundles) + 1) // 2),
        ),
        *tables,
    ]


def _limits_of(case: Case) -> list[tuple[str, Limit, float]]:
    """The stages whose limits are known, with the operations per second that each attains in the median."""
    known = [(name, part.limit, part.ms.p50) for name, part in case.stages.items()]
    return [(name, limit, 1000 * limit.operations / p50) for name, limit, p50 in known if limit is not None]


def _draw_roofline(bundles: Sequence[BundleProfile], bandwidth: float, figure: Figure) -> None:
    """Operations per second against operations per byte, below the machine's two limits; a panel for each bundle."""
    from matplotlib.ticker import LogLocator

    columns = min(2, len(bundles))
    panels = figure.subplots(-(-len(bundles) // columns), columns, squeeze=False, sharex=True, sharey=True).flatten()
    stages = [_limits_of(bundle.main) for bundle in bundles]
    peaks = [max(bundle.product_rates.values()) for bundle in bundles]
    intensities = [limit.intensity for rows in stages for _, limit, _ in rows] + [peak / bandwidth for peak in peaks]
    low, high = min(intensities) / 2, 2 * max(intensities)
    for axes, bundle, rows, peak in zip(panels, bundles, stages, peaks, strict=False):
        roof = [low * bandwidth / 1e9, peak / 1e9, peak / 1e9]
        axes.plot([low, peak / bandwidth, high], roof, color=COLOURS["ink"], linewidth=1.3)
        for name, limit, attained in rows:
            allowed = 1000 * limit.operations / limit.least_ms
            axes.plot([limit.intensity] * 2, [attained / 1e9, allowed / 1e9], color=COLOURS["pale"], lw=3, zorder=1.5)
            marker = "^" if name.startswith(STEP) else "o" if name == PREFILLS["early"] else "s"
            colour, opacity = _paint(name)
            axes.plot(limit.intensity, attained / 1e9, marker, color=colour, alpha=opacity, markersize=7,
                      label=label(name))  # fmt: skip
        limits = f"{figures(bandwidth / 1e9)} GB/s of memory, {figures(peak / 1e9)} GOP/s of products"
        axes.set(title=f"{bundle.name}: {limits}", xlabel="operations per byte", xlim=(low, high))
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.tick_params(labelbottom=True)  # there may be no panel below
        axes.grid(True, axis="both")
    for axes in panels[len(bundles) :]:
        axes.remove()
    least = min(attained for rows in stages for _, _, attained in rows)
    panels[0].set(ylim=(least / 3e9, 3 * max(peaks) / 1e9), ylabel="GOP/s")
    legend(figure)


def _callers(bundles: Sequence[BundleProfile]) -> Parts:
    caption = (
        "Requests per second of threads that share one recommender and ask again as soon as they are answered, "
        "with the longest history. Lines: least and most of three windows."
    )
    return [Picture(caption, partial(_draw_callers, bundles))]


def _draw_callers(bundles: Sequence[BundleProfile], figure: Figure) -> None:
    """Requests per second by the number of callers."""
    axes = figure.subplots()
    width = 0.8 / len(bundles)
    for index, bundle in enumerate(bundles):
        rows = bundle.callers
        middles = [number + (index - (len(bundles) - 1) / 2) * width for number in range(len(rows))]
        rates = [row.per_second for row in rows]
        spread = [[row.per_second - row.least for row in rows], [row.most - row.per_second for row in rows]]
        colour = COLOURS[LINES[index % len(LINES)][0]]
        bars = axes.bar(middles, rates, 0.9 * width, color=colour, label=bundle.name)
        axes.errorbar(middles, rates, spread, fmt="none", ecolor=COLOURS["muted"], elinewidth=1)
        axes.bar_label(bars, [figures(rate) for rate in rates], padding=3)
    counts = [row.callers for row in bundles[0].callers]
    axes.set_xticks(range(len(counts)), [f"{count} caller{'s' * (count > 1)}" for count in counts])
    axes.set_ylabel("requests per second")
    axes.margins(y=0.15)
    if len(bundles) > 1:
        legend(figure)


def _memory(profile: ProfileResult) -> Parts:
    header = ("Bundle", "Precision", "Files", "Load p50", "Load p90", "First request", "Packages", "Loaded", "Peak")
    rows = [
        (
            bundle.name,
            bundle.precision,
            f"{bundle.bundle_bytes / MIB:,.1f} MiB",
            *(f"{milliseconds(ms)} ms" for ms in (loading.ms.p50, loading.ms.p90, loading.first_request_ms)),
            *map(_mib, (loading.imported_bytes, loading.loaded_bytes, loading.peak_bytes)),
        )
        for bundle, loading in ((bundle, bundle.loading) for bundle in profile.bundles)
    ]
    return [
        f"Loads of each bundle: {profile.settings.loads}, each in a process that does nothing else; the files were "
        "read before. Memory is the most that the process held: with the packages imported, with the bundle loaded, "
        "and after requests with the longest history and the widest search.",
        Table(header, rows, text_columns=2),
    ]


def _mib(count: int | None) -> str:
    return "not known" if count is None else f"{count / MIB:,.0f} MiB"


def _settings(profile: ProfileResult) -> Parts:
    settings, machine = profile.settings, profile.machine
    threads = "the physical cores" if settings.threads is None else f"{settings.threads}"
    rows = [
        ("processor", machine.cpu),
        ("cores", f"{machine.physical_cores} physical, {machine.logical_cores} logical"),
        ("governor of the clock", machine.governor or "not known"),
        ("load before", "not known" if machine.load_average is None else f"{machine.load_average:.2f} processes"),
        ("taken by others", "not known" if profile.others_busy is None else f"{profile.others_busy:.2f} processors"),
        ("system", machine.system),
        ("versions", ", ".join(f"{name} {number}" for name, number in machine.versions.items())),
        ("engine", settings.engine),
        ("threads of a call", threads),
        ("histories", settings.histories),
        ("items of an answer", f"{settings.k}, or as many as there are beams"),
        *((f"bundle {bundle.name}", f"{bundle.folder}: {_model(bundle)}") for bundle in profile.bundles),
    ]
    return [
        "The bundles took turns in one process, with the same histories. A case went on until the 95 % interval of its "
        f"median ended within {settings.tolerance:.0%} on either side, for {settings.requests} requests at the least, "
        f"or until {settings.seconds:g} seconds for each bundle had passed; then it is noisy.",
        Table(("Setting", "Value"), rows, text_columns=2),
    ]


def _model(bundle: BundleProfile) -> str:
    split = "dense" if bundle.early_layers == bundle.layers else f"{bundle.early_layers} of them early"
    return f"{bundle.precision}, {bundle.layers} layers, {split}, {bundle.weight_bytes / MIB:,.1f} MiB of weights"
