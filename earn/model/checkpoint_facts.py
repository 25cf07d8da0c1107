"""What a checkpoint is, and everything that stands in the way of loading it, before a weight is read.

Looked at are config.json, the headers of the weights (safetensors, PyTorch, GGUF), the tokenizer and, of an EARN
checkpoint, its catalog. Two checks of loading need the weights themselves and are left out: that none is NaN, and that
the stages compute what the family's own code computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from earn.catalog import CATALOG_FILE, Catalog
from earn.errors import EarnError
from earn.identifier_tokens import IdentifierTokens, identifier_tokens
from earn.model.adapters import base_folder, is_adapter
from earn.model.backbones import folder_config, gguf_config, weight_problems, written_problems
from earn.model.checkpoint_files import EMBEDDING, HEAD, StoredTensor, is_gguf, read_config, stored_tensors
from earn.model.earn_model import default_early_layers, earn_problems, read_earn
from earn.model.families import FAMILIES, positions_of, sizes_of
from earn.model.tokenizer import check_rows, load_tokenizer
from earn.specs import Sizes

T = TypeVar("T")

GGUF_NAMES = {"token_embd.weight": EMBEDDING, "output.weight": HEAD}


@dataclass(frozen=True)
class TokenizerFacts:
    """A checkpoint's tokenizer."""

    kind: str  # its class
    tokens: int
    rows: int  # of the embedding table that its ids need: the highest id + 1
    has_chat_template: bool
    identifiers: IdentifierTokens | None  # the identifier tokens that it knows


@dataclass
class CheckpointFacts:
    """What is known of a checkpoint; None where an obstacle hides it."""

    kind: str  # "EARN checkpoint", "Hugging Face folder", "GGUF file" or "LoRA adapter over ..."
    family: str | None = None
    sizes: Sizes | None = None  # with the k that an EARN checkpoint has, or that training would take
    parameters: int | None = None  # numbers in the weights' files
    dtypes: dict[str, int] = field(default_factory=dict)  # type of number: how many weights
    weight_files: list[str] = field(default_factory=list)  # that would be read
    tied: bool | None = None  # whether the head is the embedding's table; None also where the files hold both
    padding_rows: int | None = None  # rows of the embedding table behind the tokenizer's last id
    positions: int | None = None  # the most tokens that it can read
    tokenizer: TokenizerFacts | None = None
    items: int | None = None  # of an EARN checkpoint's catalog
    obstacles: list[str] = field(default_factory=list)  # every refusal that loading would raise, in its order

    def attempt(self, check: Callable[[], T]) -> T | None:
        """What the check returns; a refusal becomes an obstacle."""
        try:
            return check()
        except EarnError as error:
            self.add(str(error))
            return None

    def add(self, *obstacles: str) -> None:
        """Notes obstacles that are not noted yet: some are found by two checks."""
        self.obstacles += [obstacle for obstacle in dict.fromkeys(obstacles) if obstacle not in self.obstacles]


def checkpoint_facts(path: Path) -> CheckpointFacts:
    """Looks at a folder in Hugging Face format, an EARN checkpoint among them, or at a GGUF file."""
    return _gguf_facts(path) if is_gguf(path) else _folder_facts(path)


def _gguf_facts(path: Path) -> CheckpointFacts:
    facts = CheckpointFacts("GGUF file", weight_files=[path.name])
    config = facts.attempt(lambda: gguf_config(path))
    if config is not None:
        import gguf

        weights = {}
        for tensor in gguf.GGUFReader(path).tensors:
            shape = tuple(tensor.shape[::-1].tolist())
            weights[GGUF_NAMES.get(tensor.name, tensor.name)] = StoredTensor(shape, tensor.tensor_type.name, path)
        _add_weights(facts, config, weights)
    _add_tokenizer(facts, path)
    return facts


def _adapter_facts(adapter: Path) -> CheckpointFacts:
    """The facts of the model that an adapter is merged into."""
    facts = CheckpointFacts("LoRA adapter")
    base = facts.attempt(lambda: base_folder(adapter))
    return facts if base is None else replace(_folder_facts(base), kind=f"LoRA adapter over {base}")


def _folder_facts(folder: Path) -> CheckpointFacts:
    if is_adapter(folder):
        return _adapter_facts(folder)
    facts = CheckpointFacts("Hugging Face folder")
    written = facts.attempt(lambda: read_config(folder)) or {}
    facts.add(*written_problems(folder, written) if written else ())
    facts.family = written.get("model_type")
    config = facts.attempt(lambda: folder_config(folder, written)) if facts.family in FAMILIES else None
    stored = facts.attempt(lambda: stored_tensors(folder))
    if stored is not None:
        facts.weight_files = sorted({tensor.file.name for tensor in stored.values()})
        _add_weights(facts, config, stored)
    if config is not None and stored is not None:
        facts.add(*facts.attempt(partial(weight_problems, folder, config, stored)) or ())
    _add_tokenizer(facts, folder)
    if written.get("earn") is not None:
        _add_earn(facts, folder, written["earn"], config)
    return facts


def _add_weights(facts: CheckpointFacts, config: PretrainedConfig | None, weights: Mapping[str, StoredTensor]) -> None:
    facts.parameters = sum(prod(weight.shape) for weight in weights.values())
    facts.dtypes = dict(Counter(weight.dtype for weight in weights.values()).most_common())
    if config is None:
        return
    facts.family, facts.positions = config.model_type, positions_of(config)
    holds_both = {EMBEDDING, HEAD} <= weights.keys()
    facts.tied = None if config.tie_word_embeddings and holds_both else bool(config.tie_word_embeddings)
    table = weights.get(EMBEDDING) or weights.get(HEAD)
    rows = table.shape[0] if table else config.vocab_size
    facts.sizes = sizes_of(config, default_early_layers(config.num_hidden_layers), rows, rows)


def _add_tokenizer(facts: CheckpointFacts, source: Path) -> None:
    tokenizer: PreTrainedTokenizerBase | None = facts.attempt(lambda: load_tokenizer(source))
    if tokenizer is None:
        return
    vocabulary = tokenizer.get_vocab()
    rows = max(vocabulary.values(), default=-1) + 1
    kind, has_template = type(tokenizer).__name__, bool(tokenizer.chat_template)
    facts.tokenizer = TokenizerFacts(kind, len(vocabulary), rows, has_template, identifier_tokens(vocabulary))
    if facts.sizes is not None:
        table = facts.sizes.embedding_rows
        facts.padding_rows = max(0, table - rows)
        facts.attempt(lambda: check_rows(tokenizer, table))


def _add_earn(facts: CheckpointFacts, folder: Path, settings: Any, config: PretrainedConfig | None) -> None:
    facts.kind = "EARN checkpoint"
    earn = facts.attempt(lambda: read_earn(settings, str(folder / "config.json")))
    catalog = facts.attempt(lambda: Catalog.load(folder / CATALOG_FILE))
    facts.items = None if catalog is None else len(catalog)
    if earn is not None and catalog is not None and config is not None:
        facts.add(*earn_problems(earn, catalog, config))
        facts.sizes = facts.sizes and replace(facts.sizes, early_layers=earn.early_layers)
