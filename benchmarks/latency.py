"""Latency of one request: this runtime in fp32 beside Hugging Face's generate, same weights, same run.

    python benchmarks/latency.py                    # Qwen2.5-0.5B shape, random weights
    python benchmarks/latency.py --shape tiny       # a minute's check that everything runs

Both sides answer the same prompt with the same number of beams over the same catalog: `generate` with beams and
`prefix_allowed_tokens_fn` on the dense model, the runtime on the EARN split of it. The vocabulary holds the identifier
tokens alone, which spares `generate` a real tokenizer's 150,000 rows. The two alternate; medians are compared.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from earn.catalog import Catalog
from earn.config import EarnConfig, Prompt
from earn.export.bundle import export_bundle
from earn.model import EarnModel
from earn.prompts import constant_head, history_tokens, prompt_end
from earn.reference import Trie, build_trie, descend
from earn.runtime.cache import cache_bytes
from earn.runtime.recommender import Recommender

DEPTH = 4  # codes per item
HEAD = (0, 0)  # two instruction tokens, which fill the prompt up to its size


@dataclass(frozen=True)
class Shape:
    """A model to measure."""

    backbone: Mapping[str, Any]  # settings of Qwen2Config
    early_layers: int
    history: int  # items; the prompt has 4 * history + 4 tokens
    items: int
    codebook: int


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
        history=49,
        items=12_000,
        codebook=256,
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
        history=10,
        items=200,
        codebook=16,
    ),
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="measured requests of generate")
    parser.add_argument("--per-repeat", type=int, default=5, help="requests of the runtime beside each of them")
    parser.add_argument("--threads", type=int, default=None, help="threads of both sides (default: all cores)")
    arguments = parser.parse_args()
    threads = arguments.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    shape = SHAPES[arguments.shape]
    backbone, model = make_model(shape)
    history = list(range(shape.history))
    with tempfile.TemporaryDirectory() as folder:
        note("exporting")
        export_bundle(model, Path(folder) / "bundle", [[str(item) for item in history]])
        recommender = Recommender.load(Path(folder) / "bundle", threads=threads)
        sides: dict[str, tuple[Callable[[], object], int]] = {
            "hf_generate": (lambda: generate(backbone, model, history, arguments.beams), 1),
            "earn_fp32": (
                lambda: recommender.recommend(history, k=10, beams=arguments.beams),
                arguments.per_repeat,
            ),
        }
        times = measure(sides, arguments.repeats)
        report(times, recommender, arguments.shape, arguments.beams, threads)


def make_model(shape: Shape) -> tuple[PreTrainedModel, EarnModel]:
    """A random backbone over a random catalog, as the dense model and as EARN over the same weights."""
    catalog = make_catalog(shape)
    tokens = len(catalog.tokens)
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
    backbone = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    earn = EarnConfig(
        early_layers=shape.early_layers,
        prefix_ids=(tokens + 1,),
        suffix_ids=(tokens + 2,),
        prompt=Prompt(head=HEAD),
        token_ids=tuple(range(1, tokens + 1)),
        max_history=shape.history,
    )
    return backbone, EarnModel(backbone, earn, catalog).eval()


def make_catalog(shape: Shape) -> Catalog:
    """Random distinct identifiers."""
    generator = np.random.default_rng(0)
    codes = np.unique(generator.integers(0, shape.codebook, (2 * shape.items, DEPTH)), axis=0)
    codes = generator.permutation(codes)[: shape.items]
    identifiers = tuple(tuple(f"<{letter}_{code}>" for letter, code in zip("abcd", row, strict=True)) for row in codes)
    return Catalog(tuple(map(str, range(shape.items))), identifiers, ("",) * shape.items)


def generate(backbone: PreTrainedModel, model: EarnModel, history: Sequence[int], beams: int) -> torch.Tensor:
    """Hugging Face's constrained beam search over the same prompt."""
    identifiers, trie = identifiers_of(model)
    prompt = constant_head(model.earn)
    prompt += history_tokens([identifiers[item] for item in history], model.earn) + prompt_end(model.earn)

    def allowed(batch: int, sequence: torch.Tensor) -> list[int]:
        return list(descend(trie, sequence[len(prompt) :].tolist()))

    with torch.no_grad():
        found: torch.Tensor = backbone.generate(  # type: ignore[operator]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=beams,
            num_return_sequences=10,
            max_new_tokens=DEPTH,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
            early_stopping=True,
        )
    return found


_TRIES: dict[int, tuple[list[tuple[int, ...]], Trie]] = {}


def identifiers_of(model: EarnModel) -> tuple[list[tuple[int, ...]], Trie]:
    """Identifiers in token ids and their trie, made once: building them is not what is measured."""
    if id(model) not in _TRIES:
        identifiers = [tuple(model.earn.token_ids[code] for code in row) for row in model.catalog.codes.tolist()]
        _TRIES[id(model)] = identifiers, build_trie(identifiers)
    return _TRIES[id(model)]


def measure(sides: Mapping[str, tuple[Callable[[], object], int]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every request, the sides in turn, after one warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, (request, count) in sides.items():
            for _ in range(count):
                started = time.perf_counter()
                request()
                if repeat:
                    times[name].append(1000 * (time.perf_counter() - started))
        note(f"{'warm-up' if not repeat else f'repeat {repeat} of {repeats}'} done")
    return times


def report(
    times: Mapping[str, Sequence[float]], recommender: Recommender, shape: str, beams: int, threads: int
) -> None:
    """The table and the line of JSON."""
    median = {name: statistics.median(values) for name, values in times.items()}
    sizes, limits = recommender.manifest.sizes, recommender.manifest.limits
    print(f"{shape}, k = {sizes.early_layers} of {sizes.layers}, prompt {limits.prompt}, {beams} beams, {DEPTH} codes")
    print(f"{'':24}{'median ms':>12}{'least':>10}{'most':>10}{'requests':>10}")
    for name, values in times.items():
        print(f"{name:24}{median[name]:12.1f}{min(values):10.1f}{max(values):10.1f}{len(values):10}")
    speedup = median["hf_generate"] / median["earn_fp32"]
    print(f"speed-up {speedup:.1f}x")
    result = {
        **{f"{name}_ms": round(value, 2) for name, value in median.items()},
        "speedup_vs_hf": round(speedup, 2),
        "shape": shape,
        "prompt": limits.prompt,
        "beams": beams,
        "threads": threads,
        "cache_bytes": cache_bytes(sizes, limits, limits.prompt, beams),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime")},
    }
    print(json.dumps(result))


def note(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
