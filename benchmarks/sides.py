"""What the benchmarks compare: one list of sides, the models' shapes, and tasks of random weights.

`benchmarks/trained.py` makes tasks of checkpoints, `benchmarks/engines.py` has the engines behind the sides.

    hf                Hugging Face's generate over the dense model: beams constrained to the catalog
    ctranslate2       CTranslate2 over the dense model: beams over the whole vocabulary, for it takes no trie
    ours, session     this runtime over the EARN split or its dense twin: whole requests, or an open session

EARN and its dense twin (k = N, no registers) have the same weights and prompts of the same tokens: a register is text
to the dense model. The vocabulary holds token 0, the identifier tokens and two registers, not a tokenizer's 150,000
rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from earn.catalog import Catalog
from earn.config import EarnConfig, Prompt
from earn.errors import EarnError
from earn.prompts import constant_head, prompt_end, whole_prompt
from earn.specs import Sizes

DEPTH = 4  # codes per item of a random catalog
ITEMS = 10  # of every answer
HEAD = 50  # tokens of the prompt's constant head: the prefix register and an instruction
MOST_ITEMS = 240  # of a history
HISTORIES = 12  # of each length: how many passes a request takes varies more than what they should show
AS_THEY_COME = 0  # instead of a prompt's tokens
OTHER_TOKENS = 3  # of the vocabulary: token 0, two registers

Tokens = Sequence[int]
History = Sequence[str]  # item ids


@dataclass(frozen=True)
class Contender:
    """A row of the list of sides."""

    kind: str  # hf, ctranslate2, ours, session
    split: str = "dense"  # or earn
    precision: str = "fp32"
    rule: str = "vocab"  # scoring
    is_static: bool = False  # whether CTranslate2 keeps the constant head as its static prompt
    is_extra: bool = False  # asked with --all-sides alone


SIDES: Mapping[str, Contender] = {
    "hf_generate": Contender("hf"),
    "ctranslate2_int8_plain": Contender("ctranslate2", precision="int8"),
    "ctranslate2_int8_static_prompt": Contender("ctranslate2", precision="int8", is_static=True),
    "dense_int8": Contender("ours", "dense", "int8", "trie"),
    "earn_fp32": Contender("ours", "earn", "fp32", "trie"),
    "earn_int8": Contender("ours", "earn", "int8", "trie"),
    "earn_int8_vocab": Contender("ours", "earn", "int8"),
    "earn_int8_session": Contender("session", "earn", "int8", "trie"),
    "dense_fp32_vocab": Contender("ours", "dense", is_extra=True),  # does what generate does
    "earn_fp32_vocab": Contender("ours", "earn", is_extra=True),
    "earn_int8_refined": Contender("ours", "earn", "int8-refined", "trie", is_extra=True),
    "earn_int8_dynamic": Contender("ours", "earn", "int8-dynamic", "trie", is_extra=True),
}


@dataclass(frozen=True)
class Shape:
    """A model to measure."""

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    early_layers: int
    history: int = 41  # items, of a prompt on the GPU: 170 tokens
    items: int = 12_000  # of a random catalog
    codebook: int = 256

    def sizes(self, tokens: int) -> Sizes:
        """Those of a bundle over so many identifier tokens."""
        rows = tokens + OTHER_TOKENS
        heads, groups = self.heads, self.key_value_heads
        own = (self.family, self.layers, self.early_layers, self.hidden, self.intermediate, heads, groups)
        return Sizes(*own, head_size=self.hidden // heads, embedding_rows=rows, logits=rows)


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape("qwen2", 64, 128, 4, 4, 2, early_layers=1, history=10, items=200, codebook=16),
    "0.5b": Shape("qwen2", 896, 4864, 24, 14, 2, early_layers=6),
    "llama-7b": Shape("llama", 4096, 11008, 32, 32, 32, early_layers=8),
    "qwen2.5-7b": Shape("qwen2", 3584, 18944, 28, 28, 4, early_layers=7),
}
CONFIGS: Mapping[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "qwen2": Qwen2Config}


def backbone_config(sizes: Sizes, **others: Any) -> PretrainedConfig:
    """The configuration of a backbone with these sizes."""
    settings = {
        "vocab_size": sizes.embedding_rows,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return CONFIGS[sizes.family](**{**settings, **others})


def make_catalog(shape: Shape) -> Catalog:
    """Random distinct identifiers."""
    generator = np.random.default_rng(0)
    codes = np.unique(generator.integers(0, shape.codebook, (2 * shape.items, DEPTH)), axis=0)
    codes = generator.permutation(codes)[: shape.items]
    identifiers = tuple(tuple(f"<{letter}_{code}>" for letter, code in zip("abcd", row, strict=True)) for row in codes)
    return Catalog(tuple(map(str, range(shape.items))), identifiers, ("",) * shape.items)


def check_depth(catalog: Catalog, depth: int = DEPTH) -> Catalog:
    """The catalog; EarnError where it has identifiers of other lengths."""
    if set(map(len, catalog.identifiers)) != {depth}:
        raise EarnError(f"The catalog has identifiers of other lengths than {depth}. Take one where all have {depth}.")
    return catalog


def make_splits(shape: Shape, tokens: int, head: Tokens, tail: Tokens, history: int) -> dict[str, EarnConfig]:
    """EARN and its dense twin over so many identifier tokens; `head` and `tail` are the text around the history."""
    prefix, suffix = (tokens + 1,), (tokens + 2,)
    earn = EarnConfig(
        early_layers=shape.early_layers,
        prefix_ids=prefix,
        suffix_ids=suffix,
        prompt=Prompt(head=tuple(head), tail=tuple(tail)),
        token_ids=tuple(range(1, tokens + 1)),
        max_history=history,
    )
    return {"dense": as_text(earn, shape.layers), "earn": earn}


def as_text(earn: EarnConfig, layers: int) -> EarnConfig:
    """The dense model that reads EARN's prompt: its registers are text."""
    prompt = Prompt(tuple(constant_head(earn)), earn.prompt.separator, tuple(prompt_end(earn)))
    return replace(earn, early_layers=layers, prefix_ids=(), suffix_ids=(), prompt=prompt)


def identifiers_of(catalog: Catalog, config: EarnConfig) -> list[tuple[int, ...]]:
    """The items' identifiers in a model's token ids."""
    return [tuple(config.token_ids[code] for code in row) for row in catalog.codes.tolist()]


@dataclass(frozen=True)
class Task(ABC):
    """What all sides of `benchmarks/peers.py` share."""

    catalog: Catalog
    splits: Mapping[str, EarnConfig]  # "earn" and "dense"
    threads: int

    @cached_property
    def identifiers(self) -> list[tuple[int, ...]]:
        """The items' identifiers in the dense backbone's token ids."""
        return identifiers_of(self.catalog, self.splits["dense"])

    @property
    def head(self) -> int:
        """Tokens of the dense prompt's constant head."""
        return len(constant_head(self.splits["dense"]))

    @abstractmethod
    def backbone(self, split: str) -> PreTrainedModel:
        """A split's weights, the same in every process."""

    @abstractmethod
    def histories(self, items: int) -> list[list[int]]:
        """HISTORIES histories of so many item indices."""

    def prompt(self, items: Sequence[int]) -> list[int]:
        """The prompt of a history of item indices, in the dense backbone's token ids."""
        return whole_prompt([self.identifiers[item] for item in items], self.splits["dense"])

    def items_in(self, prompt: int) -> int:
        """How many items fill a prompt of so many tokens."""
        config = self.splits["earn"]
        space, separator = prompt - len(constant_head(config)) - len(prompt_end(config)), len(config.prompt.separator)
        return (space + separator) // (self.catalog.depth + separator)

    def item_ids(self, items: Sequence[int]) -> list[str]:
        """Item indices as item ids."""
        return [self.catalog.item_ids[item] for item in items]


@dataclass(frozen=True)
class RandomTask(Task):
    """Random weights and random histories."""

    shape: Shape

    def backbone(self, split: str = "dense") -> PreTrainedModel:
        """The same weights for both splits."""
        torch.set_num_threads(self.threads)
        sizes = self.shape.sizes(len(self.catalog.tokens))
        config = backbone_config(sizes, tie_word_embeddings=True, initializer_range=0.05)
        torch.manual_seed(0)
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        backbone.eval()
        return backbone

    def histories(self, items: int) -> list[list[int]]:
        """The longer ones begin with the shorter ones."""
        drawn = np.random.default_rng(0).integers(0, len(self.catalog), (HISTORIES, MOST_ITEMS))
        return drawn[:, :items].tolist()  # type: ignore[no-any-return]


def make_task(catalog: Catalog, shape: Shape, threads: int, depth: int = DEPTH) -> RandomTask:
    """Random weights over a catalog; the prompt's texts are drawn from the identifier tokens."""
    tokens = len(check_depth(catalog, depth).tokens)
    *head, tail = np.random.default_rng(0).integers(1, tokens + 1, HEAD).tolist()
    return RandomTask(catalog, make_splits(shape, tokens, head, [tail], MOST_ITEMS), threads, shape)
