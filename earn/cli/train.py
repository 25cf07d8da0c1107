"""`earn train`: a checkpoint from interaction data, selected by validation NDCG@10 of constrained search."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import (
    Subparsers,
    above_zero,
    add_shared,
    command,
    from_zero,
    natural,
    option,
    positive,
    share,
)
from earn.cli.data import advice_line
from earn.config import BEAMS, EarnConfig
from earn.console import Steps, detail, note, progress, results_kept_clean, show
from earn.errors import EarnError, refuse
from earn.files import check_writable
from earn.prompts import Template
from earn.settings import DTYPES, SET_SETTINGS, TrainSettings, let_waiting_threads_sleep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from earn.catalog import Catalog
    from earn.data.dataset import Dataset
    from earn.model.earn_model import EarnModel

METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME"}  # by type of a setting
REGISTERS = 1  # at each end of the prompt, as in the paper
MAX_HISTORY = 20
DECIDED = (  # by the dense checkpoint from which a training starts
    *("backbone", "method", "digits", "temperature", "layers", "build_identifiers", "disambiguate", "dense"),
    *("max_history", "template", "separator", "item", "chat", "system", "answer"),
)


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "train",
        run,
        "train a checkpoint",
        "Trains a backbone as an EARN recommender: the first k layers see the whole prompt, the "
        "others only the registers. The epoch with the best validation NDCG@10 is kept.",
        """
        earn train ml-100k --out CKPT
        earn train ml-100k --out TRY --users 100 --epochs 2
        earn train ml-100k --out DENSE --dense
        earn train ml-100k --out CKPT --method set --digits 16+items
        earn train LC-Rec/Instruments --backbone models/Llama-3.2-1B --bf16 --learning-rate 5e-5 --out CKPT
        earn train LC-Rec/Instruments --backbone models/Llama-3.2-1B --lora 16 --gradient-checkpointing \\
            --dtype bfloat16 --learning-rate 2e-4 --out CKPT
        earn train ml-100k --out CKPT --resume
        """,
    )
    add_shared(parser, "data")
    option(parser, "--out CKPT", "folder of the checkpoint", Path, required=True)
    option(parser, "--resume", "go on with an interrupted training in CKPT", bool)
    _add_model_options(parser.add_argument_group("model"))
    _add_settings(parser.add_argument_group("training"))


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    option(
        group,
        "--backbone NAME|PATH",
        "from scratch: tiny-llama, -qwen2, -qwen3, -mistral, -granite, -smollm3, -gemma3, -phi3; a Hugging Face "
        "folder, or a GGUF file (default: tiny-llama; with --method set tiny-qwen2)",
    )
    option(
        group,
        "--method",
        "identifiers alone, an instruction in words with titles learned beside it, or all codes at once without beams "
        "(default: lcrec where the backbone has a tokenizer, else tiger)",
        choices=("tiger", "lcrec", "set"),
    )
    digits = "how many digits an item has, a digit with a value per item, or both (default: items)"
    option(group, "--digits N|items|N+items", f"with --method set: {digits}")
    cosines = "by which cosines of outputs and digits are divided (default: 0.07)"
    option(group, "--temperature X", f"with --method set: {cosines}", above_zero)
    option(group, "--layers N", "of a backbone from scratch (default: 8; others have their own)", positive)
    option(group, "--early-layers K", "layers that see every token (default: a quarter of them)", positive)
    build = "new identifiers even where the data brings some; such data needs titles"
    option(group, "--build-identifiers", build, bool)
    option(group, "--disambiguate", "one code more where several items share an identifier", bool)
    option(group, "--dense", "the dense baseline: all layers, no registers", bool)
    start = "start from what `earn train --dense` made of the same data, with new registers, instead of a backbone"
    option(group, "--from-dense CKPT", start, Path)
    for end, where in (("prefix", "start"), ("suffix", "end")):
        text = f"registers at the prompt's {where} (default: {REGISTERS})"
        option(group, f"--{end}-registers N", text, natural)
    newest = f"items that the prompt holds; the newest are kept (default: {MAX_HISTORY})"
    option(group, "--max-history N", newest, positive)
    template = "prompt with {history} where the items stand, for backbones with a tokenizer"
    option(group, "--template TEXT", template)
    option(group, "--separator TEXT", "text between two items of the history")
    item = "text around {item}, each item's identifier (default: <|sid_begin|>{item}<|sid_end|> where the tokenizer "
    option(group, "--item TEXT", f"{item}knows these tokens)")
    option(group, "--chat", "the template is a user's message to the tokenizer's chat template", bool)
    option(group, "--system TEXT", "with --chat: the system's message")
    option(group, "--answer TEXT", "text before the item that is to be generated")


def _add_settings(group: argparse._ArgumentGroup) -> None:
    """One option per field of TrainSettings, with that field's default."""
    rows: dict[str, tuple[Callable[[str], object], str]] = {
        # field: type of its value (bool: a switch), help
        "epochs": (above_zero, "passes over the data; 0.5: half of it"),
        "batch_size": (positive, "windows per step and process"),
        "learning_rate": (above_zero, "at its peak"),
        "warmup": (share, "share of the steps in which the learning rate rises"),
        "weight_decay": (from_zero, "of AdamW"),
        "dropout": (share, "of attention probabilities"),
        "hidden_dropout": (share, "of what attention and MLP add to the hidden states"),
        "input_dropout": (share, "of the embedded prompt"),
        "negatives": (
            natural,
            "with --method set: values of a digit that a step draws beside its targets; 0: the loss is of all values",
        ),
        "exclude_history": (
            bool,
            "validation lists leave the history out: for data where nobody chooses an item twice",
        ),
        "bf16": (bool, "mixed precision"),
        "lora": (
            natural,
            "rank of low-rank adapters, which are trained in place of the layers' weights and merged into them at the "
            "end, beside the rows of identifiers and registers; 0: every weight is trained",
        ),
        "lora_targets": (str, "linear layers that get adapters"),
        "gradient_checkpointing": (bool, "less memory, more time: layers are computed again in the backward pass"),
        "dtype": (str, f"how weights that --lora does not train are held: {' or '.join(DTYPES)}"),
        "users": (natural, "a sample of so many users, for a first try; 0: all"),
        "validation_users": (positive, "a sample of so many chooses the epoch"),
        "seed": (natural, "of new weights, identifiers and order"),
    }
    for field in fields(TrainSettings):
        if field.name not in rows:  # the method says whether titles are learned
            continue
        signature, (kind, text) = f"--{field.name.replace('_', '-')}", rows[field.name]
        if kind is bool:
            option(group, signature, text, bool)
        else:
            shown = f"{text} (default: {_defaults(field.name)})"
            option(group, f"{signature} {METAVARS[type(field.default)]}", shown, kind)


def _defaults(name: str) -> str:
    """A setting's default, and that of the method "set" where it is another."""
    plain, of_set = (getattr(settings, name) for settings in (TrainSettings(), SET_SETTINGS))
    return f"{plain}" if plain == of_set else f"{plain}; with --method set {of_set}"


def run(args: argparse.Namespace) -> int:
    """Trains and writes the checkpoint."""
    let_waiting_threads_sleep()
    from earn.data.checkup import advice, figures
    from earn.data.dataset import load_dataset
    from earn.data.digits import DEFAULT_DIGITS
    from earn.model.families import TINY_BACKBONES
    from earn.model.methods import default_backbone, default_method

    dense = _read_dense(args) if args.from_dense else None
    args.backbone = str(args.from_dense or args.backbone or default_backbone(args.method))
    method = args.method or default_method(args.backbone)  # a checkpoint of the method lcrec has its tokenizer
    given = {field.name: getattr(args, field.name, None) for field in fields(TrainSettings)}
    options = {name: value for name, value in given.items() if value is not None}
    is_scratch_set = method == "set" and args.backbone in TINY_BACKBONES
    settings = replace(SET_SETTINGS if is_scratch_set else TrainSettings(), **options)
    _check(args, method)
    steps = Steps(4)
    steps(f"Read {args.data}")
    whole = load_dataset(args.data)
    dataset = whole.of_users(settings.users, settings.seed) if settings.users else whole
    dataset.examples("valid")  # refuses data without any, before it is worked on
    steps(f"Item identifiers of {len(dataset.interactions.item_ids):,} items")
    digits = (args.digits or DEFAULT_DIGITS) if method == "set" else ""
    if dense:
        _check_same_items(whole, dense, args.from_dense)
        catalog = dense.catalog
    else:
        catalog = whole.catalog(settings.seed, args.build_identifiers, args.disambiguate, digits)
    for line in () if digits else advice(figures(whole, catalog)):
        if line.is_serious:
            note(f"      {advice_line(line)}")
    steps(f"{'Dense' if args.dense else 'EARN'} model over {args.backbone}")
    vectors = _start(whole, settings.seed) if is_scratch_set else None
    model = _split(args, dense, settings.seed) if dense else _model(args, method, catalog, settings.seed, vectors)
    settings = replace(settings, titles=method == "lcrec" and any(catalog.titles))
    note(f"      {describe(model)}")
    steps(f"Train (epochs: {settings.epochs:g})")
    try:
        record = fit(model, dataset, args.out, settings, args.resume)
    except KeyboardInterrupt:
        note("\nTo go on from the last finished epoch, run the same command with --resume.")
        raise
    show(f"{args.out}: validation NDCG@10 {record['ndcg@10']:.4f}, {record['steps']} steps, {record['seconds']:.0f} s")
    note(f"Next: earn export {args.out} --out BUNDLE")
    return 0


def fit(
    model: EarnModel,
    dataset: Dataset,
    out: Path,
    settings: TrainSettings,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains on a data set's training part and selects by NDCG@10 on its validation users; returns training.json."""
    from earn.export.validation import search_validation
    from earn.model.training import train

    shown = partial(progress, is_passing=True)
    validate = search_validation(dataset, settings.exclude_history, settings.validation_users, shown)
    with results_kept_clean():
        return train(
            model, dataset.split.train, out, validate, settings, dataset.source, resume, progress("steps"), detail
        )


def describe(model: EarnModel) -> str:
    """A model's size and split in words."""
    earn = model.earn
    registers = f"{len(earn.prefix_ids)} prefix and {len(earn.suffix_ids)} suffix registers"
    return (
        f"{model.num_parameters() / 1e6:.2f} million parameters, {earn.early_layers} of "
        f"{model.config.num_hidden_layers} layers early, {registers}"
    )


def _check(args: argparse.Namespace, method: str) -> None:
    """Refuses what does not fit together, before the data is read.

    Raises:
        EarnError: some options do not, or the place of the checkpoint is taken or cannot be written.
    """
    from earn.data.digits import DigitForm
    from earn.model.training_run import RUN_FOLDER

    refuse(_problems(args, method))
    if args.digits is not None:
        DigitForm.of(args.digits)  # refuses what is no form
    if args.lora:
        import peft  # noqa: F401  (a missing package is reported before the work, not after it)
    out: Path = args.out
    is_used = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_used and not args.resume and not (out / RUN_FOLDER).is_dir():
        raise EarnError(f"{out}: exists and is not empty. Choose another folder, or remove it first.")
    check_writable(out / RUN_FOLDER)


def _problems(args: argparse.Namespace, method: str) -> Iterator[str]:
    """What does not fit together."""
    from earn.model.families import TINY_BACKBONES

    for name in ("digits", "temperature"):
        if getattr(args, name) is not None and method != "set":
            yield f"--{name} is for --method set, and the method is {method}. Leave it away, or take set."
    if args.lora and method == "set":
        yield "--lora cannot be used with --method set. Leave one of them away."
    if args.layers is not None and args.backbone not in TINY_BACKBONES:
        yield (
            f"{args.backbone} has the layers that it was trained with. Leave away --layers; --early-layers says how "
            "many of them see every token."
        )
    if args.lora and args.backbone in TINY_BACKBONES:
        yield (
            f"{args.backbone} starts from random weights, which --lora would leave as they are. Leave away --lora, or "
            "give a trained --backbone."
        )
    if args.dense and args.early_layers is not None:
        yield "--dense has all layers early. Leave away --early-layers, or --dense."
    if not args.dense and args.early_layers is None and (args.prefix_registers, args.suffix_registers) == (0, 0):
        yield "Without registers all layers are early by default. Pass --dense, or --early-layers as well."
    for end in ("prefix", "suffix"):
        if args.dense and getattr(args, f"{end}_registers") is not None:
            yield f"--dense has no registers. Leave away --{end}-registers, or --dense."


def _read_dense(args: argparse.Namespace) -> EarnModel:
    """The trained dense model that a training starts from.

    Raises:
        EarnError: it is none, or there are options that it has decided.
    """
    from earn.model.earn_model import EarnModel

    refuse(
        f"--{name.replace('_', '-')} was decided by the checkpoint of --from-dense. Leave one of them away."
        for name in DECIDED
        if getattr(args, name) not in (None, False)
    )
    dense = EarnModel.from_pretrained(args.from_dense)
    if not dense.is_dense or dense.method != BEAMS:
        raise EarnError(f"{args.from_dense}: no dense model that names items by beams. Train one: earn train --dense")
    return dense


def _check_same_items(data: Dataset, dense: EarnModel, checkpoint: Path) -> None:
    """Refuses data whose items are not those of the checkpoint, in the same order: windows hold their indices."""
    data.check_items(dense.catalog, checkpoint)
    if list(data.interactions.item_ids) != list(dense.catalog.item_ids):
        raise EarnError(f"{checkpoint}: its catalog has more items than {data.source}. Give the data of its training.")


def _registers(args: argparse.Namespace) -> tuple[int, int]:
    """How many stand before and behind the prompt."""
    prefix, suffix = args.prefix_registers, args.suffix_registers
    return REGISTERS if prefix is None else prefix, REGISTERS if suffix is None else suffix


def _split(args: argparse.Namespace, dense: EarnModel, seed: int) -> EarnModel:
    """The dense model's weights, split and with new registers."""
    from earn.model.earn_model import EarnModel, default_early_layers

    registers = _registers(args)
    layers = args.early_layers or default_early_layers(dense.config.num_hidden_layers, sum(registers) > 0)
    return EarnModel.from_dense(dense, layers, *registers, seed)


def _start(data: Dataset, seed: int) -> NDArray[np.float64]:
    """The items' vectors from which a model of all codes at once starts."""
    from earn.data.neighbours import neighbour_vectors
    from earn.model.methods import SET_SIZES

    return neighbour_vectors(data.interactions, data.split.train, SET_SIZES["hidden_size"], seed)


def _model(
    args: argparse.Namespace,
    method: str,
    catalog: Catalog,
    seed: int = 0,
    vectors: NDArray[np.float64] | None = None,
) -> EarnModel:
    from earn.model.methods import build_model

    names = {"text": "template"} | {name: name for name in ("separator", "item", "chat", "system", "answer")}
    changed = {name: value for name, option in names.items() if (value := getattr(args, option)) not in (None, False)}
    registers = _registers(args)
    return build_model(
        method,
        args.backbone,
        catalog,
        args.early_layers,
        (0, 0) if args.dense else registers,
        args.max_history or MAX_HISTORY,
        Template(**changed) if changed else None,
        {"num_hidden_layers": args.layers} if args.layers else None,
        seed,
        args.temperature or EarnConfig.temperature,
        vectors,
    )
