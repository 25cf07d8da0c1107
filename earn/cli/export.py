"""`earn export`: a bundle from a checkpoint, compared with torch on real histories first."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from earn.cli.arguments import DATA_HELP, Subparsers, command, option, positive
from earn.cli.compose import add_triton, write_triton
from earn.cli.engine import DEFAULTS, add_build_settings, build, build_settings, check_build, record_text
from earn.config import SCORING_RULES, check_scoring
from earn.console import Steps, note, results_kept_clean, show, size, table
from earn.errors import EarnError, to_install
from earn.manifest import ONE_GRAPH_FILE
from earn.runtime.engine_files import TENSORRT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earn.data.dataset import Dataset
    from earn.manifest import Manifest
    from earn.model.earn_model import EarnModel

CHECKED_HISTORIES = 32


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "export",
        run,
        "export a checkpoint as a bundle",
        "Writes the bundle that is deployed: two ONNX graphs, the catalog and a manifest. The graphs are "
        "compared with torch on real histories first.",
        """
        earn export CKPT --out BUNDLE
        earn export CKPT --out BUNDLE --one-graph
        earn export CKPT --out BUNDLE --data LC-Rec/Instruments --scoring vocab
        """,
    )
    option(parser, "checkpoint CKPT", "folder of earn train", Path)
    option(parser, "--out BUNDLE", "folder of the bundle", Path, required=True)
    option(parser, "--data", f"where histories for the check come from (default: the training data): {DATA_HELP}")
    option(parser, "--scoring RULE", ", ".join(SCORING_RULES), default="trie")
    option(parser, "--one-graph", f"write {ONE_GRAPH_FILE} too, as earn compose does with its defaults", bool)
    add_triton(parser)
    option(parser, "--engine NAME", f"{TENSORRT}: build engines too, on the machine that will run them")
    option(parser, "--max-batch N", "users that one pass may hold", positive)
    option(parser, "--max-beams N", "widest search that is allowed", positive)
    add_build_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Exports and lists what was written."""
    check_scoring(args.scoring)
    _check_engine(args)
    _check_installed()

    from earn.manifest import refuse_foreign_folder
    from earn.model.earn_model import EarnModel

    refuse_foreign_folder(args.out)
    has_one_graph = args.one_graph or args.triton is not None
    steps = Steps(3 + has_one_graph + bool(args.engine))
    steps(f"Load {args.checkpoint}")
    model = EarnModel.from_pretrained(args.checkpoint)
    steps("Take real histories for the check")
    dataset = _dataset(args)
    dataset.check_items(model.catalog, args.checkpoint)
    steps("Export the stages and compare them with torch")
    manifest = write(model, dataset, args.out, args.scoring, args.max_batch, args.max_beams)
    if has_one_graph:
        from earn.export.one_graph import compose_bundle

        steps("Compose the one graph")
        manifest = compose_bundle(args.out)
        write_triton(args, args.out)
    files = [(name, size(entry.bytes)) for name, entry in manifest.files.items()]
    show(table(("file", "size"), [*files, ("together", size(manifest.bundle_bytes))]))
    note(f"Largest difference from torch on real histories: {manifest.parity:.1e} of the largest value")
    if args.engine:
        steps("Build TensorRT engines")
        show(record_text(build(args, args.out)))
    note(f"Next: earn inspect {args.out}")
    return 0


def write(
    model: EarnModel,
    dataset: Dataset,
    out: Path,
    scoring: str = "trie",
    max_batch: int | None = None,
    max_beams: int | None = None,
) -> Manifest:
    """Writes a bundle that was checked with the data's first test histories."""
    from earn.export.bundle import export_bundle
    from earn.export.stages import MAX_BATCH, MAX_BEAMS

    histories: Sequence[Sequence[str]] = dataset.histories(dataset.examples()[:CHECKED_HISTORIES])
    with results_kept_clean():
        return export_bundle(model, out, histories, scoring, max_batch or MAX_BATCH, max_beams or MAX_BEAMS)


def _check_engine(args: argparse.Namespace) -> None:
    """Refuses options for engines without one, and engines that are not built."""
    if args.engine == TENSORRT:
        return check_build(args)
    if args.engine:
        raise EarnError(
            f"There is nothing to build for the engine {args.engine!r}. Take {TENSORRT!r}, or leave it out."
        )
    for name, default in asdict(DEFAULTS).items():
        if getattr(build_settings(args), name) != default:
            option = name.removesuffix("_bytes").replace("_", "-")
            raise EarnError(f"--{option} is for engines. Give --engine {TENSORRT} too, or leave it out.")


def _check_installed() -> None:
    """Reports what an export lacks before anything is loaded."""
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise EarnError(f"An export needs {error.name}. Install it: {to_install('export')}") from error


def _dataset(args: argparse.Namespace) -> Dataset:
    from earn.data.dataset import load_dataset
    from earn.model.training import trained_on

    source = args.data or trained_on(args.checkpoint)
    if not source:
        raise EarnError(
            f"{args.checkpoint}: does not say what it was trained on. Give the data with --data, for the check."
        )
    return load_dataset(source)
