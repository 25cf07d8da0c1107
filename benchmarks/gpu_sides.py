"""What `benchmarks/gpu.py` times: this runtime on an engine, and Hugging Face's generate in torch."""

from __future__ import annotations

import gc
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from earn.catalog import CATALOG_FILE, Catalog
from earn.errors import EarnError
from earn.manifest import ENGINES_FOLDER, Manifest
from earn.model.reference import build_trie, descend
from earn.prompts import whole_prompt
from earn.runtime.cuda import Cuda
from earn.runtime.engine import ENGINES, load_engine
from earn.runtime.engine_files import TENSORRT
from earn.runtime.recommender import Recommender

ITEMS, BEAMS = 10, 20
PER_REPEAT = 4  # requests of this runtime beside each of generate

History = Sequence[str]  # item ids


class Clock:
    """How much time is left, and progress with the time that has passed."""

    def __init__(self, minutes: float) -> None:
        self._started = time.perf_counter()
        self._seconds = 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - (time.perf_counter() - self._started)

    def note(self, text: str) -> None:
        """Progress, beside the results."""
        print(f"[{time.perf_counter() - self._started:6.1f} s] {text}", file=sys.stderr, flush=True)


def why_not(engine: str) -> str:
    """What this machine lacks for an engine; "" if nothing is known to be missing."""
    try:
        ENGINES[engine].check_machine()
    except (EarnError, ImportError) as error:
        return one_line(error)
    return ""


def one_line(error: Exception) -> str:
    """An error for a line of progress."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def load(engine: str, folder: Path) -> Recommender:
    """A bundle on an engine; what the engine has built in the bundle is removed once it is loaded.

    Raises:
        EarnError: the engine does not take it.
        ModuleNotFoundError: a package is missing.
    """
    if engine == TENSORRT:
        from earn.export.engines import build_engines  # a machine without it has the other engines

        build_engines(folder)
    manifest = Manifest.load(folder, verify=False)
    recommender = Recommender(load_engine(engine, folder, manifest), manifest, Catalog.load(folder / CATALOG_FILE))
    if engine != "cpu":
        shutil.rmtree(folder / ENGINES_FOLDER, ignore_errors=True)
    return recommender


def unload(recommenders: dict[str, Recommender]) -> None:
    """Forgets recommenders and gives the GPU its memory back."""
    devices = [recommender.decoder.device for recommender in recommenders.values()]
    recommenders.clear()
    gc.collect()
    for device in devices:
        if isinstance(device, Cuda):
            device.release()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Generate:
    """Hugging Face's generate over the dense model."""

    def __init__(self, model: PreTrainedModel, manifest: Manifest, catalog: Catalog) -> None:
        """Takes a model in the token numbers of the dense twin's bundle, whose prompt it reads."""
        self._model, self._config, self._depth = model, manifest.model, catalog.depth
        self._identifiers = [tuple(row) for row in catalog.codes.tolist()]
        self._index = catalog.index
        self._trie = build_trie(self._identifiers)
        self._named: dict[tuple[int, ...], list[str]] = {}
        for item_id, identifier in zip(catalog.item_ids, self._identifiers, strict=True):
            self._named.setdefault(identifier, []).append(item_id)

    @torch.no_grad()
    def search(self, histories: Sequence[History], constrained: bool = True) -> list[list[str]]:
        """The best items of histories of one length; without the constraint only the work is done."""
        prompts = [
            whole_prompt([self._identifiers[self._index[item_id]] for item_id in history], self._config)
            for history in histories
        ]
        tokens = torch.tensor(prompts, device=self._model.device)
        length = tokens.shape[1]

        def allowed(batch: int, sequence: torch.Tensor) -> list[int]:
            return list(descend(self._trie, sequence[length:].tolist()))

        found = self._model.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=BEAMS,
            num_return_sequences=ITEMS,
            max_new_tokens=self._depth,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed if constrained else None,
            early_stopping=True,
        )
        return self._items(found[:, length:].tolist()) if constrained else []

    def _items(self, found: Sequence[Sequence[int]]) -> list[list[str]]:
        """The items that identifiers name, by history; one may name several."""
        lists = []
        for start in range(0, len(found), ITEMS):
            own = found[start : start + ITEMS]
            lists.append([item_id for identifier in own for item_id in self._named[tuple(identifier)]][:ITEMS])
        return lists


@dataclass(frozen=True)
class Side:
    """Whom to ask."""

    ask: Callable[[], Any]
    requests: int  # in every repeat
    in_torch: bool = False  # CUDA events can time it as well


@dataclass
class Measured:
    """What a side took and answered."""

    wall_ms: list[float] = field(default_factory=list)  # with the host waiting for the answer
    event_ms: list[float] = field(default_factory=list)  # between CUDA events in torch's stream
    answer: Any = None  # the last

    @property
    def median_ms(self) -> float:
        """Of the wall clock."""
        return round(statistics.median(self.wall_ms), 3)


def measure(sides: Mapping[str, Side], repeats: int, clock: Clock, events: bool) -> dict[str, Measured]:
    """Asks the sides in turn, after a warm-up of each; a side that fails is left out by name.

    When the time is up, what has been measured counts.
    """
    found = {name: Measured() for name in sides}
    for repeat in range(-1, repeats):
        for name, side in sides.items():
            for _ in range(side.requests if name in found else 0):
                try:
                    _ask(side, found[name], events and side.in_torch, repeat >= 0)
                except Exception as error:  # torch, ONNX Runtime and TensorRT raise classes of their own
                    clock.note(f"without {name}: {one_line(error)}")
                    del found[name]
                    break
        if repeat >= 0 and clock.left < 0:
            break
    return found


def _ask(side: Side, found: Measured, events: bool, counts: bool) -> None:
    if events:
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
    started = time.perf_counter()
    found.answer = side.ask()
    if events:
        end.record()
        torch.cuda.synchronize()
    taken = 1000 * (time.perf_counter() - started)
    if counts:
        found.wall_ms.append(taken)
        if events:
            found.event_ms.append(start.elapsed_time(end))
