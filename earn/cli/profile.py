"""`earn profile`: where a request's time goes, how it grows with the history, how near it is to the limit."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import (
    DATA_HELP,
    Subparsers,
    above_zero,
    add_report,
    add_shared,
    bundle_place,
    command,
    natural,
    option,
    positive,
)
from earn.cli.engine import add_engine, chosen_engine
from earn.console import Steps, note, show, show_json, table
from earn.errors import EarnError
from earn.places import bundle_at, place_name

if TYPE_CHECKING:
    from earn.data.dataset import Dataset
    from earn.manifest import Manifest
    from earn.profiling.profiler import Subject
    from earn.profiling.rows import ProfileResult, ProfileSettings

# In place of the settings' own.
QUICK: dict[str, Any] = {"seconds": 2.0, "requests": 20, "loads": 1, "window": 0.3}


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "profile",
        run,
        "measure latency by stage, memory, throughput, and the machine's limits",
        "Times requests to a bundle on this machine and their parts: prefills, decode steps, search. Measures "
        "loading, memory, several callers at once, and, with the package onnx, what the machine allows. Goes on until "
        "the median is known to 5 %, or its time is up; then it says so. Several bundles take turns.",
        """
        earn profile BUNDLE --report profile.html
        earn profile BUNDLE --against DENSE-BUNDLE BUNDLE-INT8 --report profile.html
        earn profile BUNDLE --data ml-100k --histories 5,20 --beams 10,20 --threads 2 --json
        """,
    )
    add_shared(parser, "place")
    option(parser, "--against OTHER", "bundles to measure in turn with it", bundle_place, nargs="+")
    add_report(parser)
    add_shared(parser, "json")
    requests = parser.add_argument_group("requests")
    lengths = "lengths in items (default: the longest that the bundles read, half and a quarter of it)"
    option(requests, "--histories N,N,...", lengths, numbers)
    option(requests, "--data DATA", f"whose users' histories are asked (default: random items); {DATA_HELP}")
    widths = "widths of the search (default: 20, or the most they take)"
    option(requests, "--beams N,N,...", widths, numbers)
    option(requests, "-k", "items of an answer", positive, 10)
    option(requests, "--seed N", "of the histories", natural, 0)
    measurement = parser.add_argument_group("measurement")
    add_engine(measurement)
    add_shared(measurement, "threads")
    option(measurement, "--callers N,N,...", "how many ask at once, for the requests per second", numbers, "1,2,4")
    seconds = "most time for one bundle, one length and one width (default: 10, quick: 2)"
    option(measurement, "--seconds S", seconds, above_zero)
    option(measurement, "--quick", "fewer requests and loads, the longest history alone", bool)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 with commas between them, each once."""
    return tuple(dict.fromkeys(positive(part.strip()) for part in text.split(",")))


def run(args: argparse.Namespace) -> int:
    """Measures and reports."""
    from earn.report.page import check_place

    places = [args.bundle, *(args.against or ())]
    if args.report:
        check_place(args.report, *(place for place in places if isinstance(place, Path)))
    with ExitStack() as stack:
        names = bundle_names(places)
        folders = [stack.enter_context(bundle_at(place)) for place in places]
        return _measure(args, dict(zip(names, folders, strict=True)))


def _measure(args: argparse.Namespace, folders: Mapping[str, Path]) -> int:
    """Measures the bundles in these folders, by name, and reports."""
    from earn.data.dataset import load_dataset
    from earn.manifest import Manifest
    from earn.profiling.profiler import load_subjects, parts, profile
    from earn.report.profile import profile_page

    manifests = [Manifest.load(folder, verify=False) for folder in folders.values()]
    dataset = None if args.data is None else load_dataset(args.data)
    args.engine = chosen_engine(args.engine, next(iter(folders.values())))
    settings = _settings(args, manifests, dataset)
    steps = Steps(1 + parts(settings))
    steps("Load " + ", ".join(map(str, folders)))
    subjects = load_subjects(folders, settings)
    result = profile(subjects, _histories(settings, subjects, dataset), settings, steps)
    (note if args.json else show)(_text(result))
    if args.report:
        profile_page(result).write(args.report)
        note(f"Report: {args.report}")
    if args.json:
        show_json(result.as_json())
    return 0


def bundle_names(places: Sequence[str | Path]) -> list[str]:
    """A name for each bundle, after its place; a name that stands there already gets a number."""
    names: list[str] = []
    for name in map(place_name, places):
        taken = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({taken + 1})" if taken else name)
    return names


def _settings(args: argparse.Namespace, manifests: Sequence[Manifest], dataset: Dataset | None) -> ProfileSettings:
    from earn.profiling.rows import ProfileSettings

    longest = min(manifest.limits.history for manifest in manifests)
    if dataset is not None:
        longest = min(longest, max(len(example.history) for example in dataset.examples()))
    usual = (longest,) if args.quick else sorted({max(1, longest // part) for part in (4, 2, 1)})
    origin = f"random items of the catalog, seed {args.seed}: a trained model searches otherwise with real ones"
    settings = ProfileSettings(
        lengths=tuple(sorted(args.histories or usual)),
        beams=args.beams or (min(20, *(manifest.limits.beams for manifest in manifests)),),
        k=args.k,
        callers=args.callers,
        engine=args.engine,
        threads=args.threads,
        histories=origin if dataset is None else f"of users of {dataset.source}, seed {args.seed}",
        seed=args.seed,
    )
    changes = {**(QUICK if args.quick else {}), **({} if args.seconds is None else {"seconds": args.seconds})}
    return replace(settings, **changes)


def _histories(
    settings: ProfileSettings, subjects: Sequence[Subject], dataset: Dataset | None
) -> Mapping[int, Sequence[Sequence[str]]]:
    """Histories of every length: random ones, or the newest items of users who have as many.

    Raises:
        EarnError: no user has, or a bundle has other items.
    """
    from earn.profiling.profiler import HISTORIES, random_histories

    if dataset is None:
        return random_histories([subject.recommender.catalog for subject in subjects], settings.lengths, settings.seed)
    from earn.data.dataset import sample

    for subject in subjects:
        dataset.check_items(subject.recommender.catalog, subject.folder)
    chosen = {}
    for length in settings.lengths:
        histories = [row[-length:] for row in dataset.histories(dataset.examples()) if len(row) >= length]
        if not histories:
            raise EarnError(f"{dataset.source}: no user has a history of {length} items. Ask for shorter --histories.")
        chosen[length] = sample(histories, HISTORIES, settings.seed)
    return chosen


def _text(result: ProfileResult) -> str:
    from earn.report.profile import callers_table, cases_table, memory_table, part_tables

    bundles = result.bundles
    tables = (cases_table(bundles), *part_tables(bundles), callers_table(bundles), memory_table(bundles))
    return "\n\n".join((*(table(each.header, each.rows) for each in tables), _machine(result)))


def _machine(result: ProfileResult) -> str:
    machine, settings = result.machine, result.settings
    threads = "its own choice" if settings.threads is None else f"{settings.threads}"
    lines = [
        f"{machine.cpu}, {machine.physical_cores} cores, governor {machine.governor or 'not known'}, {machine.system}; "
        f"engine {settings.engine}, threads of a call: {threads}",
        f"Histories: {settings.histories}.",
    ]
    if result.memory_bandwidth is not None:
        peaks = {bundle.name: max(bundle.matmul_rates.values()) / 1e9 for bundle in result.bundles}
        rates = ", ".join(f"{peak:.0f} GOP/s of matmuls for {name}" for name, peak in peaks.items())
        lines.append(f"Limits: {result.memory_bandwidth / 1e9:.1f} GB/s of memory, {rates}.")
    lines += [*([result.note] if result.note else []), *result.warnings]
    if result.noisy:
        lines.append("Let the machine do nothing else, or give more --seconds.")
    return "\n".join(lines)
