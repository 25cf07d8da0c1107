"""What the benchmarks compare and how: one list of sides, models' shapes, tasks of random weights, timing in turn.

    hf                Hugging Face's generate over the dense model: beams constrained to the catalog
    ctranslate2       CTranslate2 over the dense model: beams over the whole vocabulary, for it takes no trie
    ours, session     this runtime over EARN, its dense twin or the method set: whole requests, or an open session

`benchmarks/engines.py` has the engines behind the sides and what they read, and tasks of checkpoints. EARN and its
dense twin (k = N, no registers) have the same weights and prompts of the same tokens: a register is text to the dense
model. The vocabulary holds token 0, the identifier tokens and two registers, not a tokenizer's 150,000 rows.

`measure` asks each side in every round, so that what else the machine does falls on all. A request is a list of steps,
each a call that says how many milliseconds it took and what it answered.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import distributions
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from earn.catalog import Catalog
from earn.config import EarnConfig, Prompt
from earn.errors import EarnError
from earn.model.earn_model import EarnModel
from earn.prompts import constant_head, prompt_end, whole_prompt
from earn.runtime.lists import Recommendation
from earn.specs import Sizes

DEPTH = 4  # codes per item of a random catalog
ITEMS = 10  # of every answer
HEAD = 50  # tokens of the prompt's constant head: the prefix register and an instruction
MOST_ITEMS = 240  # of a history
HISTORIES = 12  # of each length: how many passes a request takes varies more than what they should show
AS_THEY_COME = 0  # instead of a prompt's tokens
OTHER_TOKENS = 3  # of the vocabulary: token 0, two registers

NEAR_TIE = 1e-4  # difference of scores below which two searches may order items otherwise
PAUSE = 0.2  # seconds in which the threads of the side before fall asleep

KEEP_MEMORY = {  # environment of the processes; read by glibc
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
}

Tokens = Sequence[int]
History = Sequence[str]  # item ids
Answer = tuple[float, Any]  # milliseconds, and what was answered
Step = Callable[[], Answer]
Lists = Sequence[Sequence[Recommendation]]

# Groups of sides: those that `benchmarks/peers.py` asks, those that it asks with --all-sides alone, those of --set.
USUAL, EXTRA, SET_SIDES = "usual", "extra", "set"


@dataclass(frozen=True)
class Contender:
    """A row of the list of sides."""

    kind: str  # hf, ctranslate2, ours, session
    split: str = "dense"  # or earn
    precision: str = "fp32"
    rule: str = "vocab"  # scoring
    is_static: bool = False  # whether CTranslate2 keeps the constant head as its static prompt
    group: str = USUAL


SIDES: Mapping[str, Contender] = {
    "hf_generate": Contender("hf"),
    "ctranslate2_int8_plain": Contender("ctranslate2", precision="int8"),
    "ctranslate2_int8_static_prompt": Contender("ctranslate2", precision="int8", is_static=True),
    "dense_int8": Contender("ours", "dense", "int8", "trie"),
    "earn_fp32": Contender("ours", "earn", "fp32", "trie"),
    "earn_int8": Contender("ours", "earn", "int8", "trie"),
    "earn_int8_vocab": Contender("ours", "earn", "int8"),
    "earn_int8_session": Contender("session", "earn", "int8", "trie"),
    "dense_fp32_vocab": Contender("ours", "dense", group=EXTRA),  # does what generate does
    "earn_fp32_vocab": Contender("ours", "earn", group=EXTRA),
    "earn_int8_refined": Contender("ours", "earn", "int8-refined", "trie", group=EXTRA),
    "earn_int8_dynamic": Contender("ours", "earn", "int8-dynamic", "trie", group=EXTRA),
    "beams": Contender("ours", "earn", "int8", "trie", group=SET_SIDES),
    "set": Contender("ours", "set", "int8", "level", group=SET_SIDES),
    "set_int4": Contender("ours", "set", "int8-int4", "level", group=SET_SIDES),
    "beams_session": Contender("session", "earn", "int8", "trie", group=SET_SIDES),
    "set_session": Contender("session", "set", "int8", "level", group=SET_SIDES),
    "set_int4_session": Contender("session", "set", "int8-int4", "level", group=SET_SIDES),
    "ctranslate2_int8": Contender("ctranslate2", precision="int8", is_static=True, group=SET_SIDES),
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
        own = (self.family, self.layers, self.early_layers, self.hidden, self.intermediate)
        heads = (self.heads, self.key_value_heads)
        return Sizes(*own, *heads, head_size=self.hidden // self.heads, embedding_rows=rows, logits=rows)


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape("qwen2", 64, 128, 4, 4, 2, early_layers=1, history=10, items=200, codebook=16),
    "0.5b": Shape("qwen2", 896, 4864, 24, 14, 2, early_layers=6),
    "llama-7b": Shape("llama", 4096, 11008, 32, 32, 32, early_layers=8),
    "qwen2.5-7b": Shape("qwen2", 3584, 18944, 28, 28, 4, early_layers=7),
}


def backbone_config(sizes: Sizes, **others: Any) -> PretrainedConfig:
    """The configuration of a backbone with these sizes; what is not said is the family's own."""
    settings: dict[str, Any] = {
        "vocab_size": sizes.embedding_rows,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "max_position_embeddings": 2048,
        "rope_theta": 10_000.0,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    config: PretrainedConfig = AutoConfig.for_model(sizes.family, **settings | others)
    return config


def random_histories(catalog: Catalog, count: int, length: int, seed: int = 0) -> list[list[str]]:
    """Histories of random items, as item ids."""
    drawn = np.random.default_rng(seed).integers(0, len(catalog), (count, length)).tolist()
    return [[catalog.item_ids[item] for item in history] for history in drawn]


def check_depth(catalog: Catalog, depth: int = DEPTH) -> Catalog:
    """The catalog; EarnError where it has identifiers of other lengths."""
    if set(map(len, catalog.identifiers)) != {depth}:
        raise EarnError(f"The catalog has identifiers of other lengths than {depth}. Take one where all have {depth}.")
    return catalog


def make_splits(shape: Shape, tokens: int, head: Tokens, tail: Tokens, history: int) -> dict[str, EarnConfig]:
    """EARN and its dense twin over so many identifier tokens; `head` and `tail` are the text around the history."""
    earn = EarnConfig(
        early_layers=shape.early_layers,
        prefix_ids=(tokens + 1,),
        suffix_ids=(tokens + 2,),
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

    @abstractmethod
    def backbone(self, split: str) -> PreTrainedModel:
        """A split's weights, the same in every process."""

    def model(self, split: str) -> EarnModel:
        """A split's model in this runtime."""
        model: EarnModel = EarnModel(self.backbone(split), self.splits[split], self.catalog).eval()
        return model

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
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
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


@dataclass(frozen=True)
class Side:
    """Whom to ask, and how often."""

    request: Callable[[int], Sequence[Step]]  # from the number of the round to the steps that are timed
    requests: int  # in every round
    rounds: int | None = None  # None: all of them
    warm_up: int = 1  # requests of every round before those that count


@dataclass
class Timings:
    """What a side took and answered."""

    steps: list[list[float]] = field(default_factory=list)  # milliseconds, request by request
    answers: list[Any] = field(default_factory=list)  # the last one of every round

    @property
    def totals(self) -> list[float]:
        """Milliseconds of every request."""
        return list(map(sum, self.steps))

    @property
    def median(self) -> float:
        """Milliseconds of a request."""
        return round(statistics.median(self.totals), 2)

    @property
    def step_medians(self) -> list[float]:
        """Milliseconds of every step of a request."""
        return [round(statistics.median(step), 2) for step in zip(*self.steps, strict=True)]


def timed(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Step:
    """A step that makes the call here, by the wall clock or another one in seconds."""

    def step() -> Answer:
        started = clock()
        answer = call()
        return 1000 * (clock() - started), answer

    return step


def measure(
    sides: Mapping[str, Side],
    rounds: int,
    failed: Callable[[str, Exception], None] | None = None,
    time_is_up: Callable[[], bool] = lambda: False,
    pause: float = PAUSE,
    finished: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Timings]:
    """Asks all sides in turn, round by round.

    Args:
        failed: is told of a side that raises an error, which is left out then; None: the error goes on.
        time_is_up: asked after every round; what has been measured by then counts.
        pause: seconds before each side's turn.
        finished: called after every round with the number of rounds done and the number of all.
    """
    timings = {name: Timings() for name in sides}
    for turn in range(rounds):
        for name, side in sides.items():
            if name not in timings or (side.rounds is not None and turn >= side.rounds):
                continue
            time.sleep(pause)
            try:
                _ask(side, turn, timings[name])
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del timings[name]
        finished(turn + 1, rounds)
        if time_is_up():
            break
    return timings


def _ask(side: Side, turn: int, timings: Timings) -> None:
    for request in range(-side.warm_up, side.requests):
        taken, answer = [], None
        for step in side.request(turn):
            milliseconds, answer = step()
            taken.append(milliseconds)
        if request >= 0:
            timings.steps.append(taken)
    timings.answers.append(answer)


class OwnProcess(ProcessPoolExecutor):
    """An object in a process of its own. Its methods are timed there."""

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        """Makes the object when it is first asked."""
        super().__init__(1, get_context("spawn"), _begin, (make, arguments))

    def ask(self, method: str, *arguments: object) -> Answer:
        """Calls a method."""
        return self.submit(_call, method, arguments).result()


_here: dict[str, object] = {}  # in a process of its own: the object


def _begin(make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    _here["object"] = make(*arguments)


def _call(method: str, arguments: tuple[object, ...]) -> Answer:
    call = getattr(_here["object"], method)
    return timed(lambda: call(*arguments))()


def is_same_list(want: Sequence[str], got: Sequence[Recommendation]) -> bool:
    """Whether `got` has the items of `want` in the same order, but for items of nearly the same score."""
    score = {item.item_id: item.score for item in got}
    return sorted(want) == sorted(score) and all(
        abs(score[item_id] - item.score) < NEAR_TIE for item_id, item in zip(want, got, strict=True)
    )


def overlap(want: Sequence[Sequence[str]], got: Sequence[Sequence[str]]) -> float:
    """The mean share of a list's items that the other list has too."""
    shares = [len(set(one) & set(other)) / max(1, len(one)) for one, other in zip(want, got, strict=True)]
    return round(statistics.mean(shares), 4)


def same_order(want: Sequence[Sequence[str]], got: Lists) -> float:
    """The share of lists with the same items in the same order, but for near ties."""
    return round(statistics.mean(is_same_list(*pair) for pair in zip(want, got, strict=True)), 4)


def item_ids(lists: Lists) -> list[list[str]]:
    """Lists without scores."""
    return [[item.item_id for item in items] for items in lists]


def versions(*packages: str) -> dict[str, str]:
    """Versions of those that are installed."""
    return {name: found.version for name in packages for found in islice(distributions(name=name), 1)}
