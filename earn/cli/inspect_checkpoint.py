"""`earn inspect` of a checkpoint: what it is, what would be read, and what stands in the way. No weight is read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from earn.console import pairs, show, show_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earn.model.checkpoint_facts import CheckpointFacts, TokenizerFacts

MARKS = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
TIED = {
    True: "the head is the embedding's table (tied)",
    False: "the head has a table of its own",
    None: "the files hold a head that config.json ties: on loading it counts as its own where it differs",
}


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint: a GGUF file, or a folder with a file of one."""
    if path.is_dir():
        return any(True for mark in MARKS for _ in path.glob(mark))
    return path.suffix == ".gguf" and path.is_file()


def run(path: Path, as_json: bool) -> int:
    """Describes the checkpoint; 1 if something stands in the way of loading it."""
    from earn.model.checkpoint_facts import checkpoint_facts

    facts = checkpoint_facts(path)
    show_json(asdict(facts)) if as_json else show(_text(facts))
    return 1 if facts.obstacles else 0


def _text(facts: CheckpointFacts) -> str:
    rows = [("kind", facts.kind), *_model_rows(facts), *_tokenizer_rows(facts.tokenizer)]
    if facts.items is not None:
        rows.append(("catalog", f"{facts.items:,} items"))
    obstacles = [" ".join(obstacle.split()) for obstacle in facts.obstacles]
    rows += [("" if index else "in the way", obstacle) for index, obstacle in enumerate(obstacles or ["nothing"])]
    return pairs(rows)


def _model_rows(facts: CheckpointFacts) -> Iterator[tuple[str, str]]:
    """Names and values; what has no name goes on with the line above."""
    sizes = facts.sizes
    if sizes is None:
        yield "backbone", facts.family or "unknown"
    else:
        yield "backbone", f"{sizes.family}, {sizes.layers} layers, hidden size {sizes.hidden}"
        yield "", f"{sizes.heads} heads, {sizes.key_value_heads} of keys and values, {sizes.head_size} numbers each"
        yield "", f"{sizes.embedding_rows:,} token embeddings; {TIED[facts.tied]}"
        yield "", f"{facts.positions:,} positions"
    if facts.padding_rows:
        yield "padding", f"{facts.padding_rows:,} rows stand behind the tokenizer's last id; new tokens take them first"
    if facts.parameters is not None:
        types = ", ".join(f"{dtype} ({count} weights)" for dtype, count in facts.dtypes.items())
        yield "weights", f"{facts.parameters / 1e6:,.2f} million numbers: {types}"
        files = facts.weight_files
        yield "", f"read from {files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    if sizes is not None:
        by_default = "" if facts.kind == "EARN checkpoint" else " by default"
        yield "split", f"k = {sizes.early_layers} of {sizes.layers} layers see every token{by_default}"


def _tokenizer_rows(tokenizer: TokenizerFacts | None) -> Iterator[tuple[str, str]]:
    if tokenizer is None:
        yield "tokenizer", "none that can be read: prompts are identifiers alone"
        return
    chat = "with a chat template" if tokenizer.has_chat_template else "without a chat template"
    yield "tokenizer", f"{tokenizer.kind}, {tokenizer.tokens:,} tokens, {chat}"
    known = tokenizer.identifiers
    if known is None:
        yield "identifiers", "none of a known form; training adds those of the data"
        return
    levels = ", ".join(f"{level.name}: {level.codes:,} up to {level.highest:,}" for level in known.levels)
    yield "identifiers", f"learned: {known.form} on {len(known.levels)} levels ({levels})"
    if known.wrapper:
        yield "", f"each item between {' and '.join(known.wrapper)}"
