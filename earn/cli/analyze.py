"""`earn analyze`: where a checkpoint's layers look, what a cut above layer k would cost, and which k that suggests."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from earn.cli.arguments import Subparsers, add_report, add_shared, command, option, positive
from earn.console import note, progress, show, show_json, table
from earn.data.dataset import ANALYSIS_USERS

if TYPE_CHECKING:
    from earn.data.dataset import Dataset
    from earn.model.attention_figures import Analysis
    from earn.model.earn_model import EarnModel


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "analyze",
        run,
        "show where each layer of a checkpoint looks, and suggest a k",
        "Measures the attention of the rows that predict on validation users' prompts, layer by layer: sparsity, head "
        "sink, tail sink, history, generated tokens. Cuts the layers above each k off the history, with the weights as "
        "they are, and says what that costs. A dense checkpoint can suggest any k, an EARN checkpoint only one below "
        "its own.",
        """
        earn analyze DENSE-CKPT ml-100k --report analysis.html
        earn analyze CKPT LC-Rec/Beauty --users 10000 --json
        """,
    )
    add_shared(parser, "checkpoint", "data")
    option(parser, "--users N", "a sample of validation users", positive, ANALYSIS_USERS)
    add_report(parser)
    add_shared(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Analyzes, prints the figures and writes the page."""
    from earn.report.page import check_place

    if args.report:
        check_place(args.report)
    import torch

    from earn.data.dataset import load_dataset
    from earn.model.attention import analyze
    from earn.model.earn_model import EarnModel

    model = EarnModel.from_pretrained(args.checkpoint)
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    dataset = load_dataset(args.data)
    dataset.check_items(model.catalog, args.checkpoint)
    analysis = analyze(model, dataset.questions(model.catalog, args.users), progress("analyze"))
    (note if args.json else show)(_text(analysis))
    if args.report:
        from earn.report.attention import analysis_page

        settings = _settings(args.checkpoint, dataset, model)
        analysis_page(analysis, args.checkpoint.resolve().name, settings).write(args.report)
        note(f"Report: {args.report}")
    if args.json:
        show_json({"checkpoint": str(args.checkpoint), "data": dataset.source, **analysis.as_json()})
    return 0


def _settings(folder: Path, dataset: Dataset, model: EarnModel) -> list[tuple[str, str]]:
    config, earn = model.config, model.earn
    registers = f"{len(earn.prefix_ids)} before and {len(earn.suffix_ids)} behind the prompt"
    return [
        ("checkpoint", str(folder)),
        ("data", f"{dataset.source}, {len(dataset.split.valid):,} validation users"),
        ("backbone", f"{config.model_type}, {config.num_hidden_layers} layers, {config.num_attention_heads} heads"),
        ("registers", registers if earn.prefix_ids or earn.suffix_ids else "none"),
        ("items of a prompt", f"the newest {earn.max_history} at the most"),
    ]


def _text(analysis: Analysis) -> str:
    from earn.model.attention_figures import suggestions_text
    from earn.report.attention import figures_table

    figures = figures_table(analysis)
    return "\n".join((table(figures.header, figures.rows), *suggestions_text(analysis)))
