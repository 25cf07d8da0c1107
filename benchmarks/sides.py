"""What the benchmarks compare: one list of sides, the models' shapes, and the engines behind the sides.

Weights are random in all of them. They say how long a model takes, and nothing about what it recommends.

    hf                Hugging Face's generate over the dense model: beams constrained to the catalog
    ctranslate2       CTranslate2 over the dense model: beams over the whole vocabulary, for it takes no trie
    ours, session     this runtime over the EARN split or its dense twin: whole requests, or an open session

EARN and its dense twin (k = N, no registers) have the same weights and prompts of the same tokens: a register is text
to the dense model. The vocabulary holds token 0, the identifier tokens and two registers, not a tokenizer's 150,000
rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from benchmarks.measure import timed
from earn.catalog import CATALOG_FILE, Catalog
from earn.config import EarnConfig, Prompt
from earn.errors import EarnError
from earn.manifest import Manifest
from earn.model.reference import build_trie, descend
from earn.profiling.profiler import TimedEngine
from earn.profiling.roofline import MatmulBench, stage_work
from earn.prompts import whole_prompt
from earn.runtime.engine import Engine, load_engine
from earn.runtime.recommender import Recommendation, Recommender
from earn.runtime.session import Session
from earn.specs import Sizes

DEPTH = 4  # codes per item
ITEMS = 10  # of every answer
HEAD = 50  # tokens of the prompt's constant head: the prefix register and an instruction
MOST_ITEMS = 240  # of a history
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
    static: int = 0  # tokens of the static prompt, which CTranslate2 keeps
    is_extra: bool = False  # asked with --all-sides alone


SIDES: Mapping[str, Contender] = {
    "hf_generate": Contender("hf"),
    "ctranslate2_int8_plain": Contender("ctranslate2", precision="int8"),
    "ctranslate2_int8_static_prompt": Contender("ctranslate2", precision="int8", static=HEAD),
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
    text = Prompt(head=(*prefix, *head), tail=(*tail, *suffix))
    dense = replace(earn, early_layers=shape.layers, prefix_ids=(), suffix_ids=(), prompt=text)
    return {"dense": dense, "earn": earn}


def identifiers_of(catalog: Catalog, config: EarnConfig) -> list[tuple[int, ...]]:
    """The items' identifiers in a model's token ids."""
    return [tuple(config.token_ids[code] for code in row) for row in catalog.codes.tolist()]


@dataclass(frozen=True)
class Task:
    """What all sides of `benchmarks/peers.py` share."""

    shape: Shape
    catalog: Catalog
    splits: Mapping[str, EarnConfig]  # "earn" and "dense"
    threads: int

    @cached_property
    def identifiers(self) -> list[tuple[int, ...]]:
        """The items' identifiers in the backbone's token ids."""
        return identifiers_of(self.catalog, self.splits["dense"])

    def backbone(self) -> PreTrainedModel:
        """The weights, the same in every process."""
        torch.set_num_threads(self.threads)
        sizes = self.shape.sizes(len(self.catalog.tokens))
        config = backbone_config(sizes, tie_word_embeddings=True, initializer_range=0.05)
        torch.manual_seed(0)
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        backbone.eval()
        return backbone

    def prompt(self, items: Sequence[int]) -> list[int]:
        """The prompt of a history of item indices, in the backbone's token ids."""
        return whole_prompt([self.identifiers[item] for item in items], self.splits["dense"])

    def item_ids(self, items: Sequence[int]) -> list[str]:
        """Item indices as item ids."""
        return [self.catalog.item_ids[item] for item in items]


def make_task(catalog: Catalog, shape: Shape, threads: int, depth: int = DEPTH) -> Task:
    """Random weights over a catalog; the prompt's texts are drawn from the identifier tokens."""
    tokens = len(check_depth(catalog, depth).tokens)
    *head, tail = np.random.default_rng(0).integers(1, tokens + 1, HEAD).tolist()
    return Task(shape, catalog, make_splits(shape, tokens, head, [tail], MOST_ITEMS), threads)


class Generate:
    """Hugging Face's generate over the dense model."""

    def __init__(self, model: PreTrainedModel, config: EarnConfig, catalog: Catalog) -> None:
        """Takes a model in the token ids of the dense split's `config`."""
        self._model, self._config, self._index, self._depth = model, config, catalog.index, catalog.depth
        self._identifiers = identifiers_of(catalog, config)
        self._trie = build_trie(self._identifiers)
        self._items: dict[tuple[int, ...], list[str]] = {}  # that an identifier names: one may name several
        for item_id, identifier in zip(catalog.item_ids, self._identifiers, strict=True):
            self._items.setdefault(identifier, []).append(item_id)
        self._held: list[int] = []  # bytes of keys and values after each pass of the last request
        model.register_forward_hook(self._look)

    @torch.no_grad()
    def search(self, histories: Sequence[History], beams: int, constrained: bool = True) -> list[list[str]]:
        """The best items of histories of one length; without the constraint only the work is done."""
        self._held.clear()
        prompts = [
            whole_prompt([self._identifiers[self._index[item_id]] for item_id in history], self._config)
            for history in histories
        ]
        tokens = torch.tensor(prompts, device=self._model.device)
        length = tokens.shape[1]

        def allowed(batch: int, sequence: Tensor) -> list[int]:
            return list(descend(self._trie, sequence[length:].tolist()))

        found = self._model.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=beams,
            num_return_sequences=ITEMS,
            max_new_tokens=self._depth,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed if constrained else None,
            early_stopping=True,
        )
        rows = found[:, length:].tolist() if constrained else []
        return [self.named(rows[start : start + ITEMS]) for start in range(0, len(rows), ITEMS)]

    def named(self, identifiers: Sequence[Tokens]) -> list[str]:
        """The first items that identifiers name."""
        return [item_id for identifier in identifiers for item_id in self._items[tuple(identifier)]][:ITEMS]

    def cache_bytes(self) -> int:
        """The most bytes of keys and values that it held for the last request."""
        return max(self._held)

    def _look(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._held.append(sum(keys.nbytes + values.nbytes for keys, values in output.past_key_values))


def make_generate(task: Task) -> Generate:
    """Hugging Face's side of a task."""
    return Generate(task.backbone(), task.splits["dense"], task.catalog)


def convert(backbone: PreTrainedModel, folder: Path) -> None:
    """Writes the weights for CTranslate2, which makes int8 of them when they are loaded."""
    loader = import_module("ctranslate2.converters.transformers").Qwen2Loader()
    spec = loader.get_model_spec(deepcopy(backbone))  # which it takes apart
    # Token 0 is in no identifier; as the end it is held back until `min_length`, and more is never asked for.
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.register_vocabulary([str(token) for token in range(backbone.config.vocab_size)])
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir(parents=True)
    spec.save(str(folder))


class CTranslate2:
    """The dense model in CTranslate2: products in int8, beam search in C++.

    Its generator takes no trie, so it searches the whole vocabulary: it is spared the catalog, and what it names need
    not exist. Everything else is the same: weights, prompt, beams, tokens to generate.
    """

    def __init__(self, folder: Path, threads: int, kind: str) -> None:
        """Loads what `convert` wrote; `kind` is the type of its products."""
        self._generator = import_module("ctranslate2").Generator(
            str(folder), device="cpu", compute_type=kind, intra_threads=threads, inter_threads=1
        )

    def search(self, prompt: Tokens, beams: int, static: int) -> list[tuple[int, ...]]:
        """The best continuations; keys and values of the first `static` tokens are kept from prompt to prompt."""
        words = list(map(str, prompt))
        (found,) = self._generator.generate_batch(
            [words[static:]],
            static_prompt=words[:static] or None,
            cache_static_prompt=True,
            beam_size=beams,
            num_hypotheses=ITEMS,
            max_length=DEPTH,
            min_length=DEPTH,
            include_prompt_in_result=False,
            sampling_topk=1,
        )
        return [tuple(map(int, row)) for row in found.sequences]

    def log_probabilities(self, sequences: Sequence[Tokens]) -> Any:  # [sequences, tokens - 1]
        """Those of every token but the first."""
        scored = self._generator.score_batch([list(map(str, sequence)) for sequence in sequences])
        return np.array([found.log_probs for found in scored])


@torch.no_grad()
def log_probabilities(backbone: PreTrainedModel, sequences: Sequence[Tokens]) -> Any:  # [sequences, tokens - 1]
    """Torch's log-probability of every token of equally long sequences but the first."""
    tokens = torch.tensor(sequences)
    scores: Tensor = backbone(tokens).logits[:, :-1].log_softmax(-1)
    return scores.gather(2, tokens[:, 1:, None])[..., 0].numpy()


@dataclass(frozen=True)
class RequestFigures:
    """What a side does for a request; medians."""

    operations: float
    prefill_rate: float  # operations per second of the early stage over the prompt
    matmul_rate: float  # of its bare matmuls
    search_share: float  # of the time, outside the graphs
    prompt_rows: list[int]  # that the early stage reads of a prompt, piece by piece
    pass_rows: list[int]  # that each pass after it feeds, in the last request


class Runtime:
    """This runtime over bundles in folder/<split>/<precision>; each is loaded when it is first asked."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self._engines: dict[Path, Engine] = {}
        self._recommenders: dict[Contender, Recommender] = {}
        self._session: Session  # once it is open

    def manifest(self, side: Contender) -> Manifest:
        """A side's; the graphs serve every rule, for all but three tokens of this vocabulary are an identifier's."""
        return replace(Manifest.load(self._folder_of(side), verify=False), scoring=side.rule)

    def recommend(self, side: Contender, items: History, beams: int) -> list[Recommendation]:
        """A side's answer."""
        return self._recommender(side).recommend(items, ITEMS, beams)

    def open(self, side: Contender, items: History) -> None:
        """Opens a session, which takes the place of the one before."""
        self._session = self._recommender(side).session(items)

    def append(self, item: str) -> None:
        """The session's next item."""
        self._session.append(item)

    def show(self, beams: int) -> list[Recommendation]:
        """The session's list."""
        return self._session.recommend(ITEMS, beams)

    def figures(self, side: Contender, histories: Sequence[History], beams: int, requests: int) -> RequestFigures:
        """Looks at every call that requests make."""
        manifest, engine = self.manifest(side), TimedEngine(self._engine(side))
        recommender = Recommender(engine, manifest, Catalog.load(self._folder_of(side) / CATALOG_FILE))
        columns: list[tuple[float, float, float]] = []
        for items in (items for items in histories for _ in range(requests)):
            engine.calls.clear()
            total, _ = timed(partial(recommender.recommend, items, ITEMS, beams))()
            calls = engine.calls
            work = [stage_work(manifest, it.stage, it.rows, it.cached, it.kept).operations for it in calls]
            ms = [call.milliseconds for call in calls]
            pieces = [call.stage for call in calls].index("late")  # calls in which the early stage reads the prompt
            columns.append((sum(work), 1000 * sum(work[:pieces]) / sum(ms[:pieces]), 1 - sum(ms) / total))
        operations, rate, share = (statistics.median(column) for column in zip(*columns, strict=True))
        prompt_rows = [call.rows for call in calls[:pieces]]
        pass_rows = [call.rows for call in calls[pieces:] if call.stage == "early"]
        matmul_rate = MatmulBench(manifest, manifest.precision, self._threads).rate(prompt_rows[0])
        return RequestFigures(operations, rate, matmul_rate, share, prompt_rows, pass_rows)

    def _folder_of(self, side: Contender) -> Path:
        return self._folder / side.split / side.precision

    def _engine(self, side: Contender) -> Engine:
        folder = self._folder_of(side)
        if folder not in self._engines:
            self._engines[folder] = load_engine("cpu", folder, Manifest.load(folder, verify=False), self._threads)
        return self._engines[folder]

    def _recommender(self, side: Contender) -> Recommender:
        if side not in self._recommenders:
            catalog = Catalog.load(self._folder_of(side) / CATALOG_FILE)
            self._recommenders[side] = Recommender(self._engine(side), self.manifest(side), catalog)
        return self._recommenders[side]
