"""`earn profile`: where a request's time goes, how it grows with the history, how near it is to the limit."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from earn.cli.arguments import DATA_HELP, above_zero, bundle_folder, command, natural, positive
from earn.cli.engine import add_engine, chosen_engine
from earn.console import Steps, note, show, show_json, size, table
from earn.errors import EarnError

if TYPE_CHECKING:
    from earn.cli.arguments import Subparsers
    from earn.data.dataset import Dataset
    from earn.manifest import Manifest
    from earn.profiling.profiler import Subject
    from earn.profiling.rows import BundleProfile, ProfileResult, ProfileSettings

QUICK = {"seconds": 2.0, "requests": 20, "loads": 1, "window": 0.3}  # in place of the settings' own


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
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help="folder of earn export or earn calibrate")
    parser.add_argument(
        "--against",
        metavar="OTHER",
        type=bundle_folder,
        nargs="+",
        default=[],
        help="bundles to measure in turn with it",
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write a page with pictures, an .html file")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON; tables go to stderr")
    _add_requests(parser.add_argument_group("requests"))
    _add_measurement(parser.add_argument_group("measurement"))


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--histories",
        type=numbers,
        metavar="N,N,...",
        help="lengths in items (default: the longest that the bundles read, half and a quarter of it)",
    )
    group.add_argument(
        "--data", metavar="DATA", help=f"whose users' histories are asked (default: random items); {DATA_HELP}"
    )
    group.add_argument(
        "--beams", type=numbers, metavar="N,N,...", help="widths of the search (default: 20, or the most they take)"
    )
    group.add_argument("-k", type=positive, default=10, help="items of an answer (default: %(default)s)")
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of the histories (default: 0)")


def _add_measurement(group: argparse._ArgumentGroup) -> None:
    add_engine(group)
    group.add_argument(
        "--threads", type=positive, metavar="N", help="threads of a request (default: the physical cores)"
    )
    group.add_argument(
        "--callers",
        type=numbers,
        default=(1, 2, 4),
        metavar="N,N,...",
        help="how many ask at once, for the requests per second (default: 1,2,4)",
    )
    group.add_argument(
        "--seconds",
        type=above_zero,
        metavar="S",
        help="most time for one bundle, one length and one width (default: 10, quick: 2)",
    )
    group.add_argument("--quick", action="store_true", help="fewer requests and loads, the longest history alone")


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 with commas between them, each once."""
    return tuple(dict.fromkeys(positive(part.strip()) for part in text.split(",")))


def run(args: argparse.Namespace) -> int:
    """Measures and reports."""
    from earn.manifest import Manifest
    from earn.profiling.profiler import load_subjects, parts, profile
    from earn.report.profile import check_page, profile_page

    folders = [args.bundle, *args.against]
    if args.report:
        check_page(args.report, *folders)
    manifests = [Manifest.load(folder, verify=False) for folder in folders]
    dataset = _dataset(args)
    args.engine = chosen_engine(args.engine, args.bundle)
    settings = _settings(args, manifests, dataset)
    steps = Steps(1 + parts(settings))
    steps("Load " + ", ".join(map(str, folders)))
    subjects = load_subjects(dict(zip(bundle_names(folders), folders, strict=True)), settings)
    result = profile(subjects, _histories(settings, subjects, dataset), settings, steps)
    (note if args.json else show)(_text(result))
    if args.report:
        profile_page(result).write(args.report)
        note(f"Report: {args.report}")
    if args.json:
        show_json(result.as_json())
    return 0


def bundle_names(folders: Sequence[Path]) -> list[str]:
    """A name for each bundle, after its folder; a name that stands there already gets a number."""
    names: list[str] = []
    for folder in folders:
        name = folder.resolve().name
        taken = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({taken + 1})" if taken else name)
    return names


def _dataset(args: argparse.Namespace) -> Dataset | None:
    if args.data is None:
        return None
    from earn.data.dataset import load_dataset

    return load_dataset(args.data)


def _settings(args: argparse.Namespace, manifests: Sequence[Manifest], dataset: Dataset | None) -> ProfileSettings:
    from earn.profiling.rows import ProfileSettings

    longest = min(manifest.limits.history for manifest in manifests)
    if dataset is not None:
        longest = min(longest, max(len(example.history) for example in dataset.examples()))
    usual = (longest,) if args.quick else sorted({max(1, longest // part) for part in (4, 2, 1)})
    values = {
        "lengths": tuple(sorted(args.histories or usual)),
        "beams": args.beams or (min(20, *(manifest.limits.beams for manifest in manifests)),),
        "k": args.k,
        "callers": args.callers,
        "engine": args.engine,
        "threads": args.threads,
        "histories": f"random items of the catalog, seed {args.seed}: a trained model searches otherwise with real ones"
        if dataset is None
        else f"of users of {dataset.source}, seed {args.seed}",
        "seed": args.seed,
        **(QUICK if args.quick else {}),
    }
    return ProfileSettings(**values | ({} if args.seconds is None else {"seconds": args.seconds}))


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
    parts = [_cases(result), *(_stages(bundle) for bundle in result.bundles), _bundles(result), _machine(result)]
    return "\n\n".join(parts)


def _cases(result: ProfileResult) -> str:
    """All cases; a noisy one says so."""
    rows = [
        (
            bundle.name,
            f"{case.items}",
            f"{case.tokens}",
            f"{case.beams}",
            f"{case.requests}",
            *(f"{value:.2f}" for value in (case.total.ms.p50, case.total.ms.p90, case.total.ms.p99)),
            "-" if case.share is None else f"{case.share:.0%}",
            size(case.cache_bytes),
            "noisy" if case.noisy else "",
        )
        for bundle in result.bundles
        for case in bundle.cases
    ]
    header = ("bundle", "items", "tokens", "beams", "requests", "p50 ms", "p90 ms", "p99 ms", "of limit", "cache", "")
    return table(header, rows)


def _stages(bundle: BundleProfile) -> str:
    """The parts of requests with the longest history."""
    from earn.profiling.rows import label

    case = bundle.main
    rows = [
        (
            label(name),
            *(f"{value:.2f}" for value in (stage.ms.p50, stage.ms.p90, stage.ms.p99)),
            "-" if stage.limit is None else f"{stage.limit.share:.0%}",
            f"{stage.taken:.0%}",
        )
        for name, stage in case.stages.items()
    ]
    header = (f"{bundle.name}, {case.items} items", "p50 ms", "p90 ms", "p99 ms", "of limit", "of requests")
    return table(header, rows)


def _bundles(result: ProfileResult) -> str:
    """What each bundle takes, and how many it serves."""
    callers = [row.callers for row in result.bundles[0].callers]
    rows = [
        (
            bundle.name,
            bundle.precision,
            size(bundle.bundle_bytes),
            f"{bundle.loading.ms.p50:.0f}",
            f"{bundle.loading.ms.p99:.0f}",
            "-" if bundle.loading.peak_bytes is None else size(bundle.loading.peak_bytes),
            *(f"{row.per_second:.1f}" for row in bundle.callers),
        )
        for bundle in result.bundles
    ]
    header = ("bundle", "precision", "files", "load p50 ms", "p99 ms", "peak memory")
    return table((*header, *(f"{count} at once, 1/s" for count in callers)), rows)


def _machine(result: ProfileResult) -> str:
    machine, settings = result.machine, result.settings
    threads = "its own choice" if settings.threads is None else f"{settings.threads}"
    lines = [
        f"{machine.cpu}, {machine.physical_cores} cores, governor {machine.governor or 'not known'}, {machine.system}; "
        f"engine {settings.engine}, threads of a call: {threads}",
        f"Histories: {settings.histories}.",
    ]
    if result.memory_bandwidth is not None:
        rates = [
            f"{max(bundle.product_rates.values()) / 1e9:.0f} GOP/s of products for {bundle.name}"
            for bundle in result.bundles
        ]
        lines.append(f"Limits: {result.memory_bandwidth / 1e9:.1f} GB/s of memory, {', '.join(rates)}.")
    if result.note:
        lines.append(result.note)
    if result.disturbed:
        lines.append(f"Disturbed: other processes kept {result.others_busy:.1f} processors busy meanwhile.")
    if result.noisy:
        lines.append(
            f"Noisy: a median is not known to {settings.tolerance:.0%}. Let the machine do nothing else, or give more "
            "--seconds."
        )
    return "\n".join(lines)
