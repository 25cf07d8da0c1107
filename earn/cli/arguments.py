"""What the parsers of all commands share: how a command is declared, one-line errors, and types of values."""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

from earn.errors import EarnError
from earn.files import read_text
from earn.manifest import MANIFEST_FILE
from earn.places import HUB

Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"
Value = TypeVar("Value", int, float)

PLACE_HELP = "folder of earn export or earn calibrate, file of earn pack, or hf://org/name"
DATA_HELP = (
    "a table (csv, tsv, json lines, parquet), a folder of earn import, LC-Rec, LETTER, AtSpeed, MiniOneRec, "
    "OpenOneRec or Amazon Reviews 2023, RecBole files, or ml-100k (fetched when first used); "
    "what is no path here is looked for in $EARN_DATA"
)


class Parser(argparse.ArgumentParser):
    """Raises EarnError instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Refuses the command line."""
        raise EarnError(f"{message}. See: {self.prog} --help")


def command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    examples: str,
) -> Parser:
    """Adds a command.

    Args:
        run: called with the parsed arguments; returns the exit status.
        summary: its line in `earn --help`.
        description: what stands above its options.
        examples: command lines that stand below them.
    """
    parser = _parser(subparsers, name, summary, description, examples)
    parser.set_defaults(run=run)
    return parser


def command_group(subparsers: Subparsers, name: str, summary: str, description: str, examples: str) -> Subparsers:
    """Adds a command that has commands of its own; see `command`."""
    parser = _parser(subparsers, name, summary, description, examples)
    return parser.add_subparsers(metavar="COMMAND", required=True)


def _parser(subparsers: Subparsers, name: str, summary: str, description: str, examples: str) -> Parser:
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    return subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 79),
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def option(
    group: argparse._ActionsContainer,
    signature: str,
    text: str,
    kind: Callable[[str], object] = str,
    default: object = None,
    **more: Any,
) -> None:
    """Declares an argument or an option.

    Args:
        group: the parser, or a group of its options.
        signature: name and metavar with a space between: "data DATA", "--users N".
        text: its help; a default is shown behind it.
        kind: reads a value; bool: a switch, which has none.
        more: see `add_argument` of argparse.
    """
    name, _, metavar = signature.partition(" ")
    if kind is bool:
        group.add_argument(name, action="store_true", help=text)
        return
    shown = text if default is None else f"{text} (default: %(default)s)".lstrip()
    group.add_argument(name, type=kind, metavar=metavar or None, default=default, help=shown, **more)


def add_shared(group: argparse._ActionsContainer, *names: str) -> None:
    """Declares what several commands take, by name; see SHARED."""
    for name in names:
        option(group, *SHARED[name])


def add_report(parser: Parser, default: str = "none") -> None:
    """Declares the page of a command that makes one."""
    option(parser, "--report FILE", f"the page with pictures, an .html file (default: {default})", Path)


def add_filters(group: argparse._ActionsContainer) -> None:
    """Declares --allow and --block."""
    for name, what, how in (("allow", "what alone may come back", "all"), ("block", "what may not come back", "each")):
        text = f"{what}: a tag of earn tags, or a filter in JSON; given several times, {how} of them"
        group.add_argument(f"--{name}", action="append", default=[], metavar="TAG", help=text)


def add_unknown(group: argparse._ActionsContainer, text: str) -> None:
    """Declares what is done with ids that the catalog lacks."""
    option(group, "--unknown", text, default="error", choices=("error", "skip"))


def _checked(convert: Callable[[str], Value], is_valid: Callable[[Value], bool], kind: str) -> Callable[[str], Value]:
    """A type for argparse: converts a text and refuses what is not of this kind."""

    def parse(text: str) -> Value:
        try:
            value = convert(text)
            if is_valid(value):  # no comparison holds for nan
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {kind}")

    return parse


positive = _checked(int, lambda value: value >= 1, "a whole number from 1")
natural = _checked(int, lambda value: value >= 0, "a whole number from 0")
above_zero = _checked(float, lambda value: 0 < value < math.inf, "a finite number above 0")
from_zero = _checked(float, lambda value: 0 <= value < math.inf, "a finite number from 0")
share = _checked(float, lambda value: 0 <= value < 1, "a number from 0, below 1")
fraction = _checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def bundle_folder(text: str) -> Path:
    """A folder that may be a bundle; a checkpoint's is refused, lest the advice be to export it onto itself."""
    folder = Path(text)
    if text.startswith(HUB):
        repository = text.removeprefix(HUB).partition("@")[0]
        raise argparse.ArgumentTypeError(
            f"{text!r} is a repository, and this command takes a folder; fetch it into one: "
            f"hf download {repository} --local-dir BUNDLE"
        )
    if folder.is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r} is one file, and this command takes a folder; unpack it into one: "
            f"python -m zipfile -e {text} BUNDLE"
        )
    if (folder / "config.json").is_file() and not (folder / MANIFEST_FILE).is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r} is a checkpoint, not a bundle; write one into another folder: earn export {text} --out BUNDLE"
        )
    return folder


def bundle_place(text: str) -> str | Path:
    """A folder that may be a bundle, one file, or a repository as `hf://org/name`; see earn.places."""
    if text.startswith(HUB):
        return text
    return path if (path := Path(text)).is_file() else bundle_folder(text)


def checkpoint_folder(text: str) -> Path:
    """A folder that may be a checkpoint; a bundle, whose graphs show no layer's inside, is refused."""
    folder = Path(text)
    if folder.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is one file, not a checkpoint; give a folder of earn train")
    if (folder / MANIFEST_FILE).is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r} is a bundle, not a checkpoint; give the folder of earn train that it was exported from"
        )
    return folder


ITEM_IDS_HELP = 'ids with commas between them; a JSON list: ["a,b", "c"]; or @FILE with such a list or an id per line'


def item_ids(text: str) -> list[str]:
    """Item ids with commas between them, as a JSON list, or @FILE: a file with such a list or an id per line.

    Raises:
        ArgumentTypeError: a list that is no JSON or holds other things than ids, or a file that cannot be read.
    """
    separator = ","
    if text.startswith("@"):
        try:
            text, separator = read_text(Path(text[1:]).expanduser()), "\n"
        except EarnError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(separator) if part.strip()]
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f'{text[:60]!r} is no JSON list ({error}). Write: ["a,b", "c"]') from error
    if odd := [value for value in values if type(value) not in (str, int)]:
        raise argparse.ArgumentTypeError(f"{odd[0]!r} in {text[:60]!r} is no item id. Write texts or whole numbers.")
    return [str(value) for value in values]


SHARED: Mapping[str, tuple[str, str, Callable[[str], object]]] = {
    # signature, help and type of what several commands take
    "bundle": ("bundle BUNDLE", "folder of earn export or earn calibrate", bundle_folder),
    "place": ("bundle BUNDLE", PLACE_HELP, bundle_place),  # of a bundle that is only read
    "checkpoint": ("checkpoint CKPT", "folder of earn train", checkpoint_folder),
    "data": ("data DATA", DATA_HELP, str),
    "json": ("--json", "print one line of JSON; tables, if any, go to stderr", bool),
    "exclude_history": ("--exclude-history", "items of the history may not come back", bool),
    "threads": ("--threads N", "threads of a request (default: the physical cores)", positive),
    "beams": ("--beams N", "width of the search (default: 20)", positive),
}
