"""What is compared: one set of random weights in this runtime, under Hugging Face's generate, and in CTranslate2.

Each runs in a process of its own, which keeps the memory that it frees. In one process they slow each other, and
whether glibc gives freed memory back to the system is a matter of luck: where it does, CTranslate2 asks for a gigabyte
anew in every request, which then takes half as long again.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from earn.calibration.bench import Mix
from earn.calibration.calibrate import Settings, calibrate
from earn.calibration.gate import HeldOut
from earn.calibration.refine import LEVELS
from earn.catalog import CATALOG_FILE, Catalog
from earn.config import EarnConfig, Prompt
from earn.console import note
from earn.export.bundle import export_bundle
from earn.manifest import Manifest
from earn.model.earn_model import EarnModel
from earn.model.reference import Trie, build_trie, descend
from earn.profiling.profiler import TimedEngine
from earn.profiling.roofline import product_rate, stage_work
from earn.prompts import whole_prompt
from earn.runtime.engine import Engine, load_engine
from earn.runtime.recommender import Recommendation, Recommender
from earn.runtime.session import Session

DEPTH = 4  # codes per item
ITEMS = 10  # of every answer
HEAD = 50  # tokens of the prompt's constant head: the prefix register and an instruction
MOST_ITEMS = 240  # of a history

KEEP_MEMORY = {  # environment of the processes; read by glibc
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
}

# What the calibrated bundles do not plainly quantize, by their names.
CALIBRATED = {
    "int8": ("int8", Mix()),
    "int8-refined": ("int8", Mix(fine_kinds=LEVELS[0])),
    "int8-dynamic": ("int8-dynamic", Mix()),
}

Items = Sequence[int]  # item indices
Tokens = Sequence[int]  # in the backbone's token ids


@dataclass(frozen=True)
class Shape:
    """A model to measure."""

    backbone: Mapping[str, Any]  # settings of Qwen2Config
    early_layers: int


SHAPES: Mapping[str, Shape] = {
    "qwen2.5-0.5b": Shape(
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
        early_layers=6,
    ),
    "tiny": Shape(
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        early_layers=1,
    ),
}


def make_backbone(shape: Shape, tokens: int) -> PreTrainedModel:
    """A random backbone; its vocabulary: BOS, the identifier tokens, two registers."""
    config = Qwen2Config(
        **shape.backbone,
        vocab_size=1 + tokens + 2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    backbone: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    backbone.eval()
    return backbone


def generate(backbone: PreTrainedModel, prompt: Sequence[int], trie: Trie, beams: int) -> list[tuple[int, ...]]:
    """Hugging Face's constrained beam search: the best identifiers in token ids, best first."""

    def allowed(batch: int, sequence: torch.Tensor) -> list[int]:
        return list(descend(trie, sequence[len(prompt) :].tolist()))

    with torch.no_grad():
        found: torch.Tensor = backbone.generate(  # type: ignore[operator]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=beams,
            num_return_sequences=ITEMS,
            max_new_tokens=DEPTH,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
            early_stopping=True,
        )
    return [tuple(row) for row in found[:, len(prompt) :].tolist()]


@dataclass(frozen=True)
class Task:
    """What all sides share."""

    shape: Shape
    catalog: Catalog
    splits: Mapping[str, EarnConfig]  # "earn" and its dense twin, whose prompt has the same tokens
    threads: int

    @cached_property
    def identifiers(self) -> list[tuple[int, ...]]:
        """The items' identifiers in the backbone's token ids."""
        token_ids = self.splits["dense"].token_ids
        return [tuple(token_ids[code] for code in row) for row in self.catalog.codes.tolist()]

    @cached_property
    def trie(self) -> Trie:
        """The identifiers for generate."""
        return build_trie(self.identifiers)

    def backbone(self) -> PreTrainedModel:
        """The weights, the same in every process."""
        torch.set_num_threads(self.threads)
        return make_backbone(self.shape, len(self.catalog.tokens))

    def prompt(self, history: Items) -> list[int]:
        """The prompt in the backbone's token ids."""
        return whole_prompt([self.identifiers[item] for item in history], self.splits["dense"])

    def item_ids(self, history: Items) -> list[str]:
        """Item indices as item ids."""
        return [self.catalog.item_ids[item] for item in history]

    def named(self, identifiers: Sequence[Tokens]) -> list[str]:
        """The first items that identifiers name; one may name several."""
        items: dict[tuple[int, ...], list[str]] = {}
        for item_id, identifier in zip(self.catalog.item_ids, self.identifiers, strict=True):
            items.setdefault(identifier, []).append(item_id)
        return [item_id for identifier in identifiers for item_id in items[tuple(identifier)]][:ITEMS]


def make_task(catalog: Catalog, shape: Shape, threads: int) -> Task:
    """Random weights over a catalog; the prompt's texts are drawn from the identifier tokens."""
    if set(map(len, catalog.identifiers)) != {DEPTH}:
        sys.exit(f"The catalog has identifiers of other lengths than {DEPTH}. Take one where all have {DEPTH} codes.")
    tokens = len(catalog.tokens)
    prefix, suffix = (tokens + 1,), (tokens + 2,)
    *instruction, tail = np.random.default_rng(0).integers(1, tokens + 1, HEAD).tolist()
    earn = EarnConfig(
        early_layers=shape.early_layers,
        prefix_ids=prefix,
        suffix_ids=suffix,
        prompt=Prompt(head=tuple(instruction), tail=(tail,)),
        token_ids=tuple(range(1, tokens + 1)),
        max_history=MOST_ITEMS,
    )
    dense = replace(
        earn,
        early_layers=shape.backbone["num_hidden_layers"],
        prefix_ids=(),
        suffix_ids=(),
        prompt=Prompt(head=(*prefix, *instruction), tail=(tail, *suffix)),
    )
    return Task(shape, catalog, {"dense": dense, "earn": earn}, threads)


def write_bundles(
    task: Task, backbone: PreTrainedModel, folder: Path, history: Items, calibrated: Sequence[str] = ("int8",)
) -> None:
    """Exports and calibrates: folder/<split>/<name>, "fp32" and keys of CALIBRATED.

    No gate is asked: calibration only gives the graphs their form and ranges, for which one history serves.
    """
    items = task.item_ids(history)
    users = HeldOut((tuple(items),), (items[0],))
    for split, config in task.splits.items():
        note(f"exporting {split}")
        model = EarnModel(backbone, config, task.catalog).eval()
        export_bundle(model, folder / split / "fp32", [items], "vocab")
        del model
        gc.collect()  # the exporter leaves copies of the weights in cycles
        for name in calibrated:
            note(f"calibrating {split} to {name}")
            precision, mix = CALIBRATED[name]
            settings = Settings(least_overlap=0, mix=mix, explain=False, compare=False, requests=0)
            calibrate(folder / split / "fp32", folder / split / name, [items, items[::-1]], users, precision, settings)
            gc.collect()


@dataclass(frozen=True)
class Ours:
    """A side in this runtime."""

    split: str  # "earn" or "dense"
    precision: str  # "fp32" or a key of CALIBRATED
    rule: str


@dataclass(frozen=True)
class Profile:
    """What a side does for a request; medians."""

    operations: float
    prefill_rate: float  # operations per second of the early stage over the prompt
    gemm_rate: float  # of its bare products
    search_share: float  # of the time, outside the graphs
    prompt_rows: list[int]  # that the early stage reads of a prompt, piece by piece
    pass_rows: list[int]  # that each pass after it feeds, in the last request


class Runtime:
    """Every split and precision in this runtime."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Loads what `write_bundles` wrote."""
        self._threads = threads
        self._loaded: dict[tuple[str, str], tuple[Engine, Manifest]] = {}
        self._recommenders: dict[Ours, Recommender] = {}
        for place in sorted(folder.glob("*/*")):
            manifest = Manifest.load(place, verify=False)
            self._loaded[place.parent.name, place.name] = load_engine("cpu", place, manifest, threads), manifest
        self._catalog = Catalog.load(place / CATALOG_FILE)
        self._session: Session | None = None

    def manifest(self, ours: Ours) -> Manifest:
        """A side's; the graphs serve every rule, for all but three tokens of this vocabulary are an identifier's."""
        return replace(self._loaded[ours.split, ours.precision][1], scoring=ours.rule)

    def recommend(self, ours: Ours, items: Sequence[str], beams: int) -> list[Recommendation]:
        """A side's answer."""
        return self._recommender(ours).recommend(items, ITEMS, beams)

    def open(self, ours: Ours, items: Sequence[str]) -> None:
        """Opens a session, which takes the place of the one before."""
        self._session = self._recommender(ours).session(items)

    def append(self, item: str) -> None:
        """The session's next item."""
        self._open_session().append(item)

    def show(self, beams: int) -> list[Recommendation]:
        """The session's list."""
        return self._open_session().recommend(ITEMS, beams)

    def profile(self, ours: Ours, histories: Sequence[Sequence[str]], beams: int, requests: int) -> Profile:
        """Looks at every call that requests make."""
        manifest = self.manifest(ours)
        engine = TimedEngine(self._loaded[ours.split, ours.precision][0])
        recommender = Recommender(engine, manifest, self._catalog)
        found: list[tuple[float, float, float]] = []
        for items in histories:
            for _ in range(requests):
                engine.calls.clear()
                started = time.perf_counter()
                recommender.recommend(items, ITEMS, beams)
                total = 1000 * (time.perf_counter() - started)
                calls = engine.calls
                work = [stage_work(manifest, it.stage, it.rows, it.cached, it.kept).operations for it in calls]
                ms = [call.milliseconds for call in calls]
                pieces = [call.stage for call in calls].index("late")  # calls in which the early stage reads the prompt
                rate = 1000 * sum(work[:pieces]) / sum(ms[:pieces])
                found.append((sum(work), rate, 1 - sum(ms) / total))
        operations, rate, share = (statistics.median(column) for column in zip(*found, strict=True))
        prompt_rows = [call.rows for call in calls[:pieces]]
        pass_rows = [call.rows for call in calls[pieces:] if call.stage == "early"]
        gemm_rate = product_rate(manifest, prompt_rows[0], self._threads)
        return Profile(operations, rate, gemm_rate, share, prompt_rows, pass_rows)

    def _recommender(self, ours: Ours) -> Recommender:
        if ours not in self._recommenders:
            engine = self._loaded[ours.split, ours.precision][0]
            self._recommenders[ours] = Recommender(engine, self.manifest(ours), self._catalog)
        return self._recommenders[ours]

    def _open_session(self) -> Session:
        if self._session is None:
            raise ValueError("No session is open.")
        return self._session


class HuggingFace:
    """Hugging Face's generate over the dense model, constrained to the catalog."""

    def __init__(self, task: Task) -> None:
        self._task, self._backbone = task, task.backbone()
        self._held: list[int] = []  # bytes of keys and values after each pass of the last request
        self._backbone.register_forward_hook(self._look)

    def search(self, history: Items, beams: int) -> list[str]:
        """The items that it recommends."""
        self._held.clear()
        found = generate(self._backbone, self._task.prompt(history), self._task.trie, beams)
        return self._task.named(found)

    def cache_bytes(self) -> int:
        """The most bytes of keys and values that it held for the last request."""
        return max(self._held)

    def _look(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._held.append(sum(keys.nbytes + values.nbytes for keys, values in output.past_key_values))


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
        """The best continuations.

        Args:
            static: tokens at the start of every prompt, whose keys and values it keeps.
        """
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
