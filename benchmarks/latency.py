"""Latency of one request, same weights and same run: Hugging Face's generate beside this runtime in fp32.

    python benchmarks/latency.py                    # Qwen2.5-0.5B shape, random weights
    python benchmarks/latency.py --shape tiny       # a minute's check that everything runs

    hf_generate      the dense model under `generate` with beams and `prefix_allowed_tokens_fn`
    dense_fp32       the same dense model in this runtime: what the runtime saves
    earn_fp32        the EARN split of the weights in this runtime: what EARN saves on top
    earn_fp32_trie   the same under the rule "trie": what determined beams save on top of that
    earn_int8*       the same graphs in static int8: plain, with refined activations, in dynamic int8, under "trie"

All sides read the same prompt tokens and search the same catalog with as many beams. Those without "trie" normalise
over the whole vocabulary, as `generate` does, so that every beam goes on in every step. Before anything is timed,
dense_fp32 must give the items that hf_generate gives: the two do the same work. The sides alternate; medians are
compared.

Random weights and random identifiers exaggerate what "trie" saves: here almost every beam is determined after two codes
and needs no further pass; those of a trained model gather where identifiers share longer beginnings. They also say
nothing about accuracy, so no gate is asked here: calibration only gives the graphs their form and ranges.

The vocabulary holds the identifier tokens alone, which spares `generate` a real tokenizer's 150,000 rows.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.near_ties import is_same_list
from earn.calibration.calibrate import CalibrationSettings, calibrate
from earn.calibration.gate import HeldOut
from earn.calibration.refine import LEVELS
from earn.calibration.variants import MixedPrecision
from earn.catalog import Catalog
from earn.config import EarnConfig, Prompt
from earn.export.bundle import export_bundle
from earn.model.earn_model import EarnModel
from earn.model.reference import Trie, build_trie, descend
from earn.prompts import whole_prompt
from earn.runtime.cache import cache_bytes
from earn.runtime.recommender import Recommendation, Recommender

DEPTH = 4  # codes per item
ITEMS = 10  # of every answer
HEAD = (0, 0)  # two instruction tokens, which fill the prompt up to its size

# The sides in this runtime: the split of the weights, and the scoring rule.
BUNDLES = {"dense_fp32": ("dense", "vocab"), "earn_fp32": ("earn", "vocab"), "earn_fp32_trie": ("earn", "trie")}

# The calibrated sides: the bundle that each is made from, its precision, and what is not plainly quantized.
CALIBRATED = {
    "earn_int8": ("earn_fp32", "int8", MixedPrecision()),
    "earn_int8_refined": ("earn_fp32", "int8", MixedPrecision(refined_kinds=LEVELS[0])),
    "earn_int8_dynamic": ("earn_fp32", "int8-dynamic", MixedPrecision()),
    "earn_int8_trie": ("earn_fp32_trie", "int8", MixedPrecision()),
}


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
    parser.add_argument("--per-repeat", type=int, default=5, help="requests of each other side beside each of them")
    parser.add_argument("--threads", type=int, default=None, help="threads of all sides (default: all cores)")
    arguments = parser.parse_args()
    threads, beams = arguments.threads or os.cpu_count() or 1, arguments.beams
    torch.set_num_threads(threads)
    shape = SHAPES[arguments.shape]
    catalog = make_catalog(shape)
    backbone, splits = make_backbone(shape, len(catalog.tokens)), make_splits(shape, len(catalog.tokens))
    history = list(range(shape.history))
    identifiers = EarnModel(backbone, splits["dense"], catalog).identifiers
    prompt, trie = whole_prompt([identifiers[item] for item in history], splits["dense"]), build_trie(identifiers)
    with tempfile.TemporaryDirectory() as folder:
        recommenders = export(backbone, splits, catalog, history, Path(folder), threads)
        theirs = partial(generate, backbone, prompt, trie, beams)
        ours = {name: partial(side.recommend, history, ITEMS, beams) for name, side in recommenders.items()}
        check_same_work([str(identifiers.index(identifier)) for identifier in theirs()], ours["dense_fp32"]())
        sides: dict[str, tuple[Callable[[], object], int]] = {
            "hf_generate": (theirs, 1),
            **{name: (request, arguments.per_repeat) for name, request in ours.items()},
        }
        report(measure(sides, arguments.repeats), recommenders, arguments.shape, beams, threads)


def make_catalog(shape: Shape) -> Catalog:
    """Random distinct identifiers."""
    generator = np.random.default_rng(0)
    codes = np.unique(generator.integers(0, shape.codebook, (2 * shape.items, DEPTH)), axis=0)
    codes = generator.permutation(codes)[: shape.items]
    identifiers = tuple(tuple(f"<{letter}_{code}>" for letter, code in zip("abcd", row, strict=True)) for row in codes)
    return Catalog(tuple(map(str, range(shape.items))), identifiers, ("",) * shape.items)


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


def make_splits(shape: Shape, tokens: int) -> dict[str, EarnConfig]:
    """EARN, and its dense twin, whose prompt has the same tokens: those of the registers are text to it."""
    prefix, suffix = (tokens + 1,), (tokens + 2,)
    earn = EarnConfig(
        early_layers=shape.early_layers,
        prefix_ids=prefix,
        suffix_ids=suffix,
        prompt=Prompt(head=HEAD),
        token_ids=tuple(range(1, tokens + 1)),
        max_history=shape.history,
    )
    dense = replace(
        earn,
        early_layers=shape.backbone["num_hidden_layers"],
        prefix_ids=(),
        suffix_ids=(),
        prompt=Prompt(head=(*prefix, *HEAD), tail=suffix),
    )
    return {"dense": dense, "earn": earn}


def export(
    backbone: PreTrainedModel,
    splits: Mapping[str, EarnConfig],
    catalog: Catalog,
    history: Sequence[int],
    folder: Path,
    threads: int,
) -> dict[str, Recommender]:
    """The sides in this runtime. All are written before any is loaded: an export holds the weights several times."""
    for name, (split, scoring) in BUNDLES.items():
        note(f"exporting {name}")
        model = EarnModel(backbone, splits[split], catalog).eval()
        export_bundle(model, folder / name, [list(map(str, history))], scoring)
        del model
        gc.collect()  # the exporter leaves copies of the weights in cycles
    for name, (source, precision, mixed) in CALIBRATED.items():
        note(f"calibrating {name}")
        items = [str(item) for item in history]
        users = HeldOut((tuple(items),), (items[0],))
        settings = CalibrationSettings(least_overlap=0, mixed=mixed, explain=False, compare=False, requests=0)
        calibrate(folder / source, folder / name, [items, items[::-1]], users, precision, settings)
        gc.collect()
    sides = (*BUNDLES, *CALIBRATED)
    return {name: Recommender.load(folder / name, threads=threads, verify=False) for name in sides}


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


def check_same_work(want: Sequence[str], got: Sequence[Recommendation]) -> None:
    """Stops where the runtime's dense list is not generate's; only near ties may stand in another order."""
    if not is_same_list(want, got):
        found = [item.item_id for item in got]
        sys.exit(f"dense_fp32 and hf_generate differ, so their times say nothing: {found} instead of {want}")


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
    times: Mapping[str, Sequence[float]],
    recommenders: Mapping[str, Recommender],
    shape: str,
    beams: int,
    threads: int,
) -> None:
    """The table and the line of JSON."""
    median = {name: round(statistics.median(values), 2) for name, values in times.items()}
    manifests = {name: recommenders[f"{name}_fp32"].manifest for name in ("dense", "earn")}
    sizes, prompt = manifests["earn"].sizes, manifests["earn"].limits.prompt
    print(f"{shape}, k = {sizes.early_layers} of {sizes.layers}, prompt {prompt}, {beams} beams, {DEPTH} codes")
    print(f"{'':18}{'median ms':>12}{'least':>10}{'most':>10}{'requests':>10}{'factor':>10}")
    for name, values in times.items():
        factor = f"{median['hf_generate'] / median[name]:.2f}x"
        print(f"{name:18}{median[name]:12.2f}{min(values):10.2f}{max(values):10.2f}{len(values):10}{factor:>10}")
    result = {
        **{f"{name}_ms": value for name, value in median.items()},
        "speedup_vs_hf": round(median["hf_generate"] / median["earn_fp32"], 2),
        "speedup_vs_dense": round(median["dense_fp32"] / median["earn_fp32"], 2),
        "speedup_of_precision": {
            name: round(median[source] / median[name], 2) for name, (source, *_) in CALIBRATED.items()
        },
        "shape": shape,
        "prompt": prompt,
        "beams": beams,
        "threads": threads,
        "cache_bytes": {
            name: cache_bytes(manifest.sizes, manifest.limits, prompt, beams) for name, manifest in manifests.items()
        },
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime")},
    }
    print(json.dumps(result))


def machine() -> str:
    """The CPU's name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def note(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
