"""The engines behind the sides of `benchmarks/sides.py`: each is made in a process of its own and asked there.

Generate       Hugging Face's generate over the dense model, beams constrained to the catalog
CTranslate2    CTranslate2 over the dense model: products in int8, beams over the whole vocabulary
Runtime        this runtime over bundles: whole requests, or an open session
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.measure import timed
from benchmarks.sides import DEPTH, ITEMS, MOST_ITEMS, Contender, History, Task, Tokens, identifiers_of
from earn.catalog import CATALOG_FILE, Catalog
from earn.config import EarnConfig
from earn.manifest import Manifest, limits_of, stage_precision
from earn.model.reference import build_trie, descend
from earn.profiling.profiler import TimedEngine
from earn.profiling.roofline import MatmulBench, stage_work
from earn.prompts import whole_prompt
from earn.runtime.engine import Engine, load_engine
from earn.runtime.recommender import Recommendation, Recommender
from earn.runtime.session import Session


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
    return Generate(task.backbone("dense"), task.splits["dense"], task.catalog)


class CTranslate2:
    """The dense model in CTranslate2: products in int8, beam search in C++.

    Its generator takes no trie, so it searches the whole vocabulary: it is spared the catalog, and what it names need
    not exist. Everything else is the same: weights, prompt, beams, tokens to generate.
    """

    def __init__(self, folder: Path, threads: int, kind: str, depth: int = DEPTH) -> None:
        """Loads what `convert` wrote; `kind` is the type of its products, `depth` the tokens that it generates."""
        self._depth = depth
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
            max_length=self._depth,
            min_length=self._depth,
            include_prompt_in_result=False,
            sampling_topk=1,
        )
        return [tuple(map(int, row)) for row in found.sequences]

    def log_probabilities(self, sequences: Sequence[Tokens]) -> Any:  # [sequences, tokens - 1]
        """Those of every token but the first."""
        scored = self._generator.score_batch([list(map(str, sequence)) for sequence in sequences])
        return np.array([found.log_probs for found in scored])


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
        """A side's, which takes histories of MOST_ITEMS.

        The graphs serve every rule, for nearly all tokens of these vocabularies are an identifier's.
        """
        own = Manifest.load(self._folder_of(side), verify=False)
        model, limits = replace(own.model, max_history=MOST_ITEMS), own.limits
        limits = limits_of(model, limits.depth, limits.batch, limits.beams)
        return replace(own, scoring=side.rule, model=model, limits=limits)

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
        matmul_rate = MatmulBench(manifest, stage_precision(manifest.precision, "early"), self._threads).rate(
            prompt_rows[0]
        )
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
