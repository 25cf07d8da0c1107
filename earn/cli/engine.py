"""`earn engine`: TensorRT engines of a bundle, and which engines can run it here."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from earn.cli.arguments import Subparsers, add_shared, command, command_group, option, positive
from earn.console import note, pairs, progress, show, size, table
from earn.export.engines import BuildSettings, build_engines, check_settings
from earn.manifest import Manifest
from earn.places import opened
from earn.runtime.engine import AUTO, ENGINES, ONE_GRAPHS, choose_engine, why_not
from earn.runtime.engine_files import (
    HARDWARE,
    ONE_ENGINE,
    STAGE_ENGINES,
    EngineKind,
    EngineRecord,
    check_form,
    check_one_graph,
)
from earn.runtime.tensorrt_api import this_machine

DEFAULTS = BuildSettings()


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command and its two subcommands."""
    own = command_group(
        subparsers,
        "engine",
        "build TensorRT engines; see which engines can run here",
        "A bundle runs on the CPU as it is. On NVIDIA GPUs it runs with CUDA, or with TensorRT engines that are built "
        "from it on the device.",
        """
        earn engine check BUNDLE
        earn engine build BUNDLE
        """,
    )
    build = command(
        own,
        "build",
        run_build,
        "build TensorRT engines into a bundle",
        "Builds both stages of a bundle as TensorRT engines, on the machine that will run them. Precision is the "
        "bundle's: fp32, fp16, or int8 and int4 calibrated with --engine tensorrt. Needs tensorrt 10 or 11, "
        "cuda-bindings and a GPU.",
        """
        earn engine build BUNDLE
        earn engine build BUNDLE --one-graph
        earn engine build BUNDLE --workspace 512 --hardware ampere+ --version-compatible
        """,
    )
    add_shared(build, "bundle")
    option(
        build,
        "--one-graph",
        "build one engine from recommend.onnx instead; write that with earn compose --form unrolled (fixed where all "
        "codes are named at once)",
        bool,
    )
    add_build_settings(build)
    check = command(
        own,
        "check",
        run_check,
        "show which engines can run a bundle here",
        "Asks of every engine whether it can run the bundle on this machine, and says what is missing.",
        "earn engine check BUNDLE",
    )
    add_shared(check, "bundle")


def add_build_settings(parser: argparse.ArgumentParser) -> None:
    """Declares how engines are built; for `earn export` too."""
    group = parser.add_argument_group("TensorRT engines")
    gpus = "which GPUs they run on: none (other than this model), same (architecture), ampere+"
    option(group, "--hardware GPUS", gpus, default=DEFAULTS.hardware)
    option(group, "--version-compatible", "later TensorRTs of this major version too", bool)
    option(group, "--workspace MIB", "most memory for one kernel's work (default: all there is)", positive)
    option(group, "--level N", "0 to 5: how long to look for fast kernels", int, DEFAULTS.level)


def add_engine(parser: argparse._ActionsContainer) -> None:
    """Declares which engine runs a bundle."""
    option(parser, "--engine NAME", f"what runs it: {', '.join((*ENGINES, *ONE_GRAPHS))}, or {AUTO}", default="cpu")


def chosen_engine(name: str, bundle: str | Path) -> str:
    """The engine of that name; of "auto" the one that it means here, said with the reason."""
    if name != AUTO:
        return name
    chosen, why = opened(bundle, lambda folder: choose_engine(folder, Manifest.load(folder, verify=False)))
    note(f"engine {chosen}{f' ({why})' if why else ''}")
    return chosen


def run_build(args: argparse.Namespace) -> int:
    """Builds and lists what was written."""
    manifest = Manifest.load(args.bundle, verify=False)
    kind = ONE_ENGINE if args.one_graph else STAGE_ENGINES
    if args.one_graph:
        check_one_graph(args.bundle, manifest)
    check_build(args, manifest)
    record = build(args, args.bundle, kind)
    show(record_text(record))
    note(f"Next: earn recommend {args.bundle} --engine {kind.name} --history ...")
    return 0


def check_build(args: argparse.Namespace, manifest: Manifest | None = None) -> None:
    """Fails early: before a long export, or before TensorRT reads a graph that it cannot take."""
    check_settings(build_settings(args))
    if manifest is not None:
        check_form(manifest, args.bundle)
    target = this_machine()
    note(f"TensorRT {target.tensorrt} on {target.gpu.name}, architecture {target.gpu.architecture}")


def build(args: argparse.Namespace, bundle: Path, kind: EngineKind = STAGE_ENGINES) -> EngineRecord:
    """Builds engines, with progress."""

    labelled = functools.cache(progress)  # one line of progress for each label
    return build_engines(bundle, build_settings(args), lambda what, done, total: labelled(what)(done, total), kind)


def build_settings(args: argparse.Namespace) -> BuildSettings:
    """What `add_build_settings` declares, as the builder takes it."""
    workspace = None if args.workspace is None else args.workspace << 20
    return BuildSettings(args.hardware, args.version_compatible, workspace, args.level)


def record_text(record: EngineRecord) -> str:
    """What engines are for, and how large they are."""
    return pairs(
        [
            ("engines", f"TensorRT {record.tensorrt}, {record.precision}"),
            ("built on", f"{record.gpu}, architecture {record.architecture}, CUDA {record.driver}"),
            ("for", HARDWARE[record.hardware].meaning),
            *[(name, size(entry.bytes)) for name, entry in record.files.items()],
        ]
    )


def run_check(args: argparse.Namespace) -> int:
    """Asks every engine."""
    manifest = Manifest.load(args.bundle, verify=False)
    missing = {name: why_not(name, args.bundle, manifest) for name in ENGINES}
    rows = [(name, "no" if why else "yes", why or "nothing is known to be missing") for name, why in missing.items()]
    show(table(("engine", "runs here", ""), rows))
    note(f'"auto" takes {choose_engine(args.bundle, manifest)[0]}')
    return 0
