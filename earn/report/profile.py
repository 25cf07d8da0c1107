"""The report of a profile as a page: where the time goes, how it grows, and what the machine would allow.

The page says only what the figures hold; what was not measured it calls so.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from earn.profiling.rows import BundleProfile, Case, ProfileResult, label
from earn.report.page import Banner, Page, Picture, Section, Table, check_installed, check_place
from earn.report.profile_pictures import (
    MOST_SHADES,
    draw_callers,
    draw_lengths,
    draw_parts,
    draw_roofline,
    figures,
    limits_of,
    milliseconds,
)

Parts = list[str | Table | Picture]
MIB = 1 << 20


def check_page(path: Path, *bundles: Path) -> None:
    """Refuses a place where no page can be written, before hours are spent on measuring.

    Raises:
        EarnError: not an .html file, in one of the bundles, a folder that cannot be written to, or a missing library.
    """
    check_installed()
    check_place(path, *bundles)


def profile_page(profile: ProfileResult) -> Page:
    """The page, without writing it."""
    names = [side.name for side in profile.bundles]
    return Page(
        title=f"Profile of {names[0]}" + (f" beside {', '.join(names[1:])}" if names[1:] else ""),
        summary=_summary(profile),
        banner=_banner(profile),
        tiles=_tiles(profile),
        sections=(
            Section("Where the time goes", _parts(profile)),
            Section("Latency by length of the history", _lengths(profile)),
            Section("What the machine allows", _limits(profile)),
            Section("Callers at once", _callers(profile)),
            Section("Load and memory", _memory(profile)),
            Section("How this was measured", _settings(profile)),
        ),
    )


def noisy_cases(profile: ProfileResult) -> list[str]:
    """The cases whose median is not known well."""
    return [
        f"{side.name}, {case.items} items, {case.beams} beams"
        for side in profile.bundles
        for case in side.cases
        if case.noisy
    ]


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
    case = first.main
    text = (
        f"With a history of {case.items} items ({case.tokens} tokens) and {case.beams} beams, half of the requests to "
        f"{first.name} are answered within {milliseconds(case.total.ms.p50)} ms, 99 of 100 within "
        f"{milliseconds(case.total.ms.p99)} ms"
    )
    for side in others:
        ratio = side.main.total.ms.p50 / case.total.ms.p50
        text += f"; {side.name} takes {ratio:.2f} times as long"
    return text + "."


def _tiles(profile: ProfileResult) -> list[tuple[str, str]]:
    first = profile.bundles[0]
    case, best = first.main, max(first.callers, key=lambda row: row.per_second)
    tiles = [(f"{milliseconds(case.total.ms.p50)} ms", f"median of a request, {case.items} items")]
    if case.share is not None:
        tiles.append((f"{case.share:.0%}", "of the machine's limit is reached"))
    tiles.append((figures(best.per_second), f"requests per second, {best.callers} at once"))
    if first.loading.peak_bytes is not None:
        tiles.append((f"{first.loading.peak_bytes / MIB:,.0f} MiB", "most memory of the process"))
    return tiles


def _parts(profile: ProfileResult) -> Parts:
    parts: Parts = []
    largest = max(
        ((name, stage) for name, stage in profile.bundles[0].main.stages.items() if name != "total"),
        key=lambda pair: pair[1].typical_ms,
    )
    share = largest[1].typical_ms / profile.bundles[0].main.total.typical_ms
    parts.append(f"The largest part of a request to {profile.bundles[0].name} is {label(largest[0])}: {share:.0%}.")
    bars = sum(len(side.longest) for side in profile.bundles)
    parts.append(
        Picture(
            "The parts of a request with the longest history: their means over the fifth of the requests around the "
            "median one, so that they add up. Search is all but the calls of the two stages: beam search and Python.",
            partial(draw_parts, profile.bundles),
            height=1.1 + 0.5 * bars,
        )
    )
    for side in profile.bundles:
        for case in side.longest:
            parts.append(_stages(side, case))
    return parts


def _stages(side: BundleProfile, case: Case) -> Table:
    """Percentiles of every part."""
    rows = [
        (
            label(name) + ("" if stage.taken == 1 else f" (in {stage.taken:.0%} of the requests)"),
            *map(milliseconds, (stage.ms.p50, stage.ms.p90, stage.ms.p99)),
        )
        for name, stage in case.stages.items()
    ]
    header = (f"{side.name}, {case.items} items, {case.beams} beams", "p50 ms", "p90 ms", "p99 ms")
    return Table(header, rows, marked=[len(rows) - 1])


def _lengths(profile: ProfileResult) -> Parts:
    rows = [
        (
            side.name + (" (noisy)" if case.noisy else ""),
            f"{case.items}",
            f"{case.tokens}",
            f"{case.beams}",
            f"{case.requests:,}",
            *map(milliseconds, (case.total.ms.p50, case.total.ms.p90, case.total.ms.p99)),
            _interval(case),
            f"{case.cache_bytes / MIB:,.2f} MiB",
        )
        for side in profile.bundles
        for case in side.cases
    ]
    header = ("Bundle", "Items", "Tokens", "Beams", "Requests", "p50 ms", "p90 ms", "p99 ms", "p50 within", "Cache")
    marked = [
        number for number, case in enumerate(case for side in profile.bundles for case in side.cases) if case.noisy
    ]
    cases = Table(header, rows, marked=marked)
    if len(profile.settings.lengths) == 1:
        return ["One length alone was measured.", cases]
    caption = "The median of a request by the length of its prompt."
    if len(profile.bundles) <= MOST_SHADES:
        caption += " Nine of ten requests stay below the shade's upper edge."
    if marked:
        caption += " Hollow points are noisy."
    return [Picture(caption, partial(draw_lengths, profile.bundles), height=3.4), cases]


def _interval(case: Case) -> str:
    return "–".join(map(milliseconds, case.interval_ms)) if case.interval_ms else "too few"


def _limits(profile: ProfileResult) -> Parts:
    if profile.memory_bandwidth is None:
        return [profile.note]
    parts: Parts = [
        "No program is faster here than products alone in this precision, with as many rows and weights of the same "
        f"shapes, nor than memory is read: {profile.memory_bandwidth / 1e9:.1f} GB/s. Both were measured in this run. "
        "What a stage does besides (norms, softmax, rounding, calls of many small operators) keeps it below. Weights "
        "that fit into the processor's caches are read faster than memory.",
        Picture(
            "Each stage of the median request with the longest history, below the machine's two limits: memory "
            "(slanted) and products of the most rows (flat). A pale line ends at the stage's own limit, with its rows.",
            partial(draw_roofline, profile),
            height=0.6 + 3.2 * ((len(profile.bundles) + 1) // 2),
        ),
    ]
    for side in profile.bundles:
        header = (side.name, "Rows", "MOP", "MiB", "Products GOP/s", "Reached GOP/s", "Least ms", "p50 ms", "Of limit")
        rows = [
            (
                label(name),
                f"{limit.rows}",
                figures(limit.operations / 1e6),
                f"{limit.bytes / MIB:,.2f}",
                figures(limit.product_rate / 1e9),
                figures(reached / 1e9),
                milliseconds(limit.least_ms),
                milliseconds(side.main.stages[name].ms.p50),
                f"{limit.share:.0%}",
            )
            for name, limit, reached in limits_of(side.main)
        ]
        parts.append(Table(header, rows))
    return parts


def _callers(profile: ProfileResult) -> Parts:
    return [
        Picture(
            "Requests per second of threads that share one recommender and ask again as soon as they are answered, "
            "with the longest history. Lines: least and most of three windows.",
            partial(draw_callers, profile.bundles),
        )
    ]


def _memory(profile: ProfileResult) -> Parts:
    header = ("Bundle", "Precision", "Files", "Load p50", "Load p90", "First request", "Packages", "Loaded", "Peak")
    rows = [
        (
            side.name,
            side.precision,
            f"{side.bundle_bytes / MIB:,.1f} MiB",
            f"{milliseconds(side.loading.ms.p50)} ms",
            f"{milliseconds(side.loading.ms.p90)} ms",
            f"{milliseconds(side.loading.first_request_ms)} ms",
            _memory_size(side.loading.imported_bytes),
            _memory_size(side.loading.loaded_bytes),
            _memory_size(side.loading.peak_bytes),
        )
        for side in profile.bundles
    ]
    return [
        f"Loads of each bundle: {profile.settings.loads}, each in a process that does nothing else; the files were "
        "read before. Memory is the most that the process held: with the packages imported, with the bundle loaded, "
        "and after requests with the longest history and the widest search.",
        Table(header, rows, text_columns=2),
    ]


def _memory_size(count: int | None) -> str:
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
        *((f"bundle {side.name}", f"{side.folder}: {_model(side)}") for side in profile.bundles),
    ]
    return [
        "The bundles took turns in one process, with the same histories. A case went on until the 95 % interval of its "
        f"median ended within {settings.tolerance:.0%} on either side, for {settings.requests} requests at the least, "
        f"or until {settings.seconds:g} seconds for each bundle had passed; then it is noisy.",
        Table(("Setting", "Value"), rows, text_columns=2),
    ]


def _model(side: BundleProfile) -> str:
    split = "dense" if side.early_layers == side.layers else f"{side.early_layers} of them early"
    return f"{side.precision}, {side.layers} layers, {split}, {side.weight_bytes / MIB:,.1f} MiB of weights"
