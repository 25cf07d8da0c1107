"""The report of a profile as a page: where the time goes, how it grows, and what the machine would allow.

The page says only what the figures hold; what was not measured it calls so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from earn.console import size
from earn.profiling.rows import PREFILLS, SEARCH, STEP, TOTAL, BundleProfile, Case, ProfileResult, RequestPart, label
from earn.report.page import Page, Parts, Picture, Table, settings_table, three_digits
from earn.report.plots import cell, legend, line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FADING = (1.0, 0.68, 0.46, 0.32)  # of the decode steps, the first one strongest
READABLE = 0.055  # of the axis: parts as wide as this have room for their figure
TIMES = ("p50 ms", "p90 ms", "p99 ms")
LIMITS = ("Rows", "MOP", "MiB", "GOP/s", "Reached", "Least ms", "Of limit")


def profile_page(profile: ProfileResult) -> Page:
    """The page, without writing it."""
    names = [bundle.name for bundle in profile.bundles]
    return Page(
        title=f"Profile of {names[0]}" + (f" beside {', '.join(names[1:])}" if names[1:] else ""),
        summary=_summary(profile),
        banner=" ".join(profile.warnings),
        tiles=_tiles(profile.bundles[0]),
        sections={
            "Where the time goes": _parts(profile),
            "Latency by length of the history": _lengths(profile),
            "Callers at once": [
                "Requests per second of threads that share one recommender and ask again as soon as they are answered, "
                "with the longest history: the median, least and most of three windows.",
                callers_table(profile.bundles),
            ],
            "Load and memory": [
                f"Loads of each bundle: {profile.settings.loads}, each in a process that does nothing else; the files "
                "were read before. Memory is the most that the process held: with the packages imported, with the "
                "bundle loaded, and after requests with the longest history and the widest search.",
                memory_table(profile.bundles),
            ],
            "How this was measured": _settings(profile),
        },
    )


def _summary(profile: ProfileResult) -> str:
    first, *others = profile.bundles
    case, ms = first.main, first.main.total.ms
    times = [f"; {other.name} takes {other.main.total.ms.p50 / ms.p50:.2f} times as long" for other in others]
    return (
        f"With a history of {case.items} items ({case.tokens} tokens) and {case.beams} beams, half of the requests to "
        f"{first.name} are answered within {three_digits(ms.p50)} ms, 99 of 100 within {three_digits(ms.p99)} ms"
        f"{''.join(times)}."
    )


def _tiles(bundle: BundleProfile) -> list[tuple[str, str]]:
    case, best, peak = bundle.main, max(bundle.callers, key=lambda row: row.per_second), bundle.loading.peak_bytes
    return [
        (f"{three_digits(case.total.ms.p50)} ms", f"median of a request, {case.items} items"),
        *([] if case.share is None else [(f"{case.share:.0%}", "of the machine's limit is reached")]),
        (three_digits(best.per_second), f"requests per second, {best.callers} at once"),
        *([] if peak is None else [(size(peak), "most memory of the process")]),
    ]


def _longest(bundles: Sequence[BundleProfile]) -> dict[str, Case]:
    """The cases with the longest histories by their names."""
    cases = [(bundle, case) for bundle in bundles for case in bundle.longest]
    return {f"{bundle.name}, {case.items} items, {case.beams} beams": case for bundle, case in cases}


def part_tables(bundles: Sequence[BundleProfile]) -> list[Table]:
    """How long each part of a request takes with the longest histories, and what the machine allows."""
    tables = []
    for title, case in _longest(bundles).items():
        rows = [
            (
                label(name) + ("" if part.taken == 1 else f", in {part.taken:.0%}"),
                *map(three_digits, (part.ms.p50, part.ms.p90, part.ms.p99)),
                *_limit_cells(part),
            )
            for name, part in case.stages.items()
        ]
        tables.append(Table((title, *TIMES, *LIMITS), rows, marked=[len(rows) - 1]))
    return tables


def _parts(profile: ProfileResult) -> Parts:
    main, cases = profile.bundles[0].main, _longest(profile.bundles)
    largest = max((name for name in main.stages if name != TOTAL), key=lambda name: main.stages[name].typical_ms)
    share = main.stages[largest].typical_ms / main.total.typical_ms
    bandwidth = (profile.memory_bandwidth or 0) / 1e9
    limits = (
        "No program is faster here than the linear layers' matmuls alone in this precision, with as many rows and "
        f"weights of the same shapes, nor than memory is read: {bandwidth:.1f} GB/s. Both were measured in this run. "
        "What a stage does besides (norms, softmax, rounding, calls of many small operators) keeps it below. Weights "
        "that fit into the caches are read faster than memory. GOP/s is the rate of these matmuls, then what "
        "the median request reached."
    )
    return [
        f"The largest part of a request to {profile.bundles[0].name} is {label(largest)}: {share:.0%}.",
        Picture(
            "The parts of a request with the longest history: their means over the fifth of the requests around the "
            "median one, so that they add up. Search is all but the calls of the two stages: beam search and Python.",
            partial(_draw_parts, cases),
            height=1.1 + 0.5 * len(cases),
        ),
        profile.note or limits,
        *part_tables(profile.bundles),
    ]


def _limit_cells(part: RequestPart) -> Sequence[str]:
    if (limit := part.limit) is None:
        return ["-"] * len(LIMITS)
    rates = (limit.matmul_rate / 1e9, limit.operations / part.ms.p50 / 1e6)
    work = (limit.operations / 1e6, limit.bytes / (1 << 20))
    return [f"{limit.rows}", *map(three_digits, (*work, *rates, limit.least_ms)), f"{limit.share:.0%}"]


def _draw_parts(cases: Mapping[str, Case], figure: Figure) -> None:
    """What the median request is made of: one bar for each case."""
    axes = figure.subplots()
    widest = max(case.total.typical_ms for case in cases.values())
    for row, case in enumerate(cases.values()):
        end = 0.0
        for name, value in ((name, part.typical_ms) for name, part in case.stages.items() if name != TOTAL):
            text = three_digits(value) if value > READABLE * widest else ""
            cell(axes, row, end, value, text, *_paint(name), label(name))
            end += value
        axes.text(end + 0.01 * widest, row, f"{three_digits(end)} ms", weight="bold", va="center")
    axes.set_yticks(range(len(cases)), [name.replace(", ", "\n", 1) for name in cases])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.13 * widest), xlabel="milliseconds")
    axes.grid(False)
    legend(figure)


def _paint(name: str) -> tuple[str, float]:
    """Colour and opacity of a part."""
    if name.startswith(STEP):
        return "mark", FADING[min(int(name.removeprefix(STEP)), len(FADING)) - 1]
    if name == SEARCH:
        return "muted", 0.55
    return "main", 1.0 if name == PREFILLS["early"] else 0.5


def cases_table(bundles: Sequence[BundleProfile]) -> Table:
    """Every case; a noisy one says so."""
    cases = [(bundle, case) for bundle in bundles for case in bundle.cases]
    rows = [
        (
            bundle.name + (" (noisy)" if case.noisy else ""),
            *map(str, (case.items, case.tokens, case.beams)),
            f"{case.requests:,}",
            *map(three_digits, (case.total.ms.p50, case.total.ms.p90, case.total.ms.p99)),
            "–".join(map(three_digits, case.interval_ms)) if case.interval_ms else "too few",
            "-" if case.share is None else f"{case.share:.0%}",
            size(case.cache_bytes),
        )
        for bundle, case in cases
    ]
    header = ("Bundle", "Items", "Tokens", "Beams", "Requests", *TIMES, "p50 within", "Of limit", "Cache")
    return Table(header, rows, marked=[index for index, (_, case) in enumerate(cases) if case.noisy])


def _lengths(profile: ProfileResult) -> Parts:
    table = cases_table(profile.bundles)
    if len(profile.settings.lengths) == 1:
        return ["One length alone was measured.", table]
    return [Picture("The median of a request by the length of its prompt.", partial(_draw_lengths, profile)), table]


def _draw_lengths(profile: ProfileResult, figure: Figure) -> None:
    """The median by length of the prompt; a panel for each width of the search."""
    widths = list(dict.fromkeys(case.beams for case in profile.bundles[0].cases))
    panels = figure.subplots(1, len(widths), squeeze=False, sharey=True)[0]
    for axes, width in zip(panels, widths, strict=True):
        for number, bundle in enumerate(profile.bundles):
            cases = sorted((case for case in bundle.cases if case.beams == width), key=lambda case: case.tokens)
            line(axes, number, [case.tokens for case in cases], [case.total.ms.p50 for case in cases], bundle.name)
        axes.set(title=f"{width} beams", xlabel="tokens of the prompt")
        axes.set_ylim(0)
    panels[0].set_ylabel("milliseconds")
    legend(figure)


def callers_table(bundles: Sequence[BundleProfile]) -> Table:
    """Requests per second by number of callers."""
    rows = [
        (bundle.name, f"{row.callers}", *map(three_digits, (row.per_second, row.least, row.most)))
        for bundle in bundles
        for row in bundle.callers
    ]
    return Table(("Bundle", "Callers", "Per second", "Least", "Most"), rows)


def memory_table(bundles: Sequence[BundleProfile]) -> Table:
    """What loading each bundle takes."""
    rows = [
        (
            bundle.name,
            bundle.precision,
            size(bundle.bundle_bytes),
            *(f"{three_digits(ms)} ms" for ms in (loading.ms.p50, loading.ms.p90, loading.first_request_ms)),
            *(
                "not known" if held is None else size(held)
                for held in (loading.imported_bytes, loading.loaded_bytes, loading.peak_bytes)
            ),
        )
        for bundle, loading in ((bundle, bundle.loading) for bundle in bundles)
    ]
    header = ("Bundle", "Precision", "Files", "Load p50", "Load p90", "First request", "Packages", "Loaded", "Peak")
    return Table(header, rows, text_columns=2)


def _settings(profile: ProfileResult) -> Parts:
    settings, machine = profile.settings, profile.machine
    rows = [
        ("processor", machine.cpu),
        ("cores", f"{machine.physical_cores} physical, {machine.logical_cores} logical"),
        ("governor of the clock", machine.governor or "not known"),
        ("load before", "not known" if machine.load_average is None else f"{machine.load_average:.2f} processes"),
        ("taken by others", "not known" if profile.others_busy is None else f"{profile.others_busy:.2f} processors"),
        ("system", machine.system),
        ("versions", ", ".join(f"{name} {number}" for name, number in machine.versions.items())),
        ("engine", settings.engine),
        ("threads of a call", "the physical cores" if settings.threads is None else f"{settings.threads}"),
        ("histories", settings.histories),
        ("items of an answer", f"{settings.k}, or as many as there are beams"),
        *(
            (
                f"bundle {bundle.name}",
                f"{bundle.folder}: {bundle.precision}, {bundle.early_layers} of {bundle.layers} layers early, "
                f"{size(bundle.weight_bytes)} of weights",
            )
            for bundle in profile.bundles
        ),
    ]
    return [
        "The bundles took turns in one process, with the same histories. A case went on until the 95 % interval of its "
        f"median ended within {settings.tolerance:.0%} on either side, for {settings.requests} requests at the least, "
        f"or until {settings.seconds:g} seconds for each bundle had passed; then it is noisy.",
        settings_table(rows),
    ]
