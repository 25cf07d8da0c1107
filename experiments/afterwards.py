"""What is looked at once a model is trained: its attention, its speed, its int8 bundle. One after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from earn.console import note, progress
from earn.data.dataset import sample
from earn.files import read_json, write_json
from experiments.grid import VARIANTS, Run
from experiments.runs import CHECKPOINT, RESULT, load_data, load_model

if TYPE_CHECKING:
    from earn.model.earn_model import EarnModel
    from earn.runtime.recommender import Recommender

ATTENTION = "attention.json"  # of a dense model
SPEED = "speed.json"  # beside the dense model
INT8 = "int8.json"  # the gate's verdict
INT8_RANKS = "int8-ranks.npy"  # the place of each test user's item by the int8 bundle
BUNDLE, INT8_BUNDLE = "bundle", "int8-bundle"
REPORT = "int8-report.html"  # the calibration's; its figures stand beside it as .json
TIMED_USERS = 256
K, BEAMS, BATCH = 10, 20, 64
REQUESTS, ROUNDS = 200, 3


def analyze_all(runs: Sequence[Run], out: Path) -> None:
    """The attention analysis of every dense model: what it would suggest as k before anything is trained with it."""
    from earn.model.attention import analyze
    from earn.model.earn_model import EarnModel

    for run in runs:
        path = out / run.name / ATTENTION
        if run.variant == "dense" and path.with_name(RESULT).is_file() and not path.is_file():
            model, dataset = EarnModel.from_pretrained(out / run.name / CHECKPOINT), load_data(run, out)
            found = analyze(model, dataset.questions(model.catalog), progress(run.name))
            write_json(path, found.as_json())
            note(f"{run.name}: suggests {found.suggestions}")


def time_all(runs: Sequence[Run], out: Path) -> None:
    """Latency and cache of bundles beside their dense twins', one pair after the other.

    One seed of each shape and scoring rule; other weights take as long.
    """
    for run in runs:
        variant = VARIANTS[run.variant]
        shaped = variant.scoring != "trie" or not variant.of  # otherwise it is another variant's graph
        alike = variant.max_history == VARIANTS["dense"].max_history
        done = all((out / twin.name / RESULT).is_file() for twin in (run, run.dense))
        if run.variant == "dense" or run.seed or not (shaped and alike and done) or (out / run.name / SPEED).is_file():
            continue
        dataset = load_data(run, out)
        histories = dataset.histories(sample(dataset.examples(), TIMED_USERS))
        models = {"earn": load_model(run, out), "dense": load_model(run.dense, out)}
        figures = twin_speed(models, histories, variant.scoring)
        write_json(out / run.name / SPEED, figures)
        note(f"{run.name}: {figures['speedup']:.2f}x, cache {figures['cache_reduction']:.1%} smaller")


def twin_speed(models: Mapping[str, EarnModel], histories: Sequence[Sequence[str]], scoring: str) -> dict[str, Any]:
    """Compares the bundles of models["earn"] and models["dense"], in fp32 in ONNX Runtime on the CPU.

    Returns:
        speedup                 of the median request, one at a time, 20 beams, both asked in turn
        p50_ms                  that request's milliseconds [EARN, dense]
        cache_bytes             of one request's caches, a full prompt and 20 beams' generated rows [EARN, dense]; all
                                beams share the prompt's rows
        cache_reduction         of these bytes
        batch_speedup           of the throughput in batches of 64 users (the paper takes the largest batch that fits)
        sequence_cache_reduction   of the rows of one sequence: N*L become k*L + (N-k)*r (paper, section 3.4)
        tokens_per_second       codes of one identifier per user, of users answered in these batches [EARN, dense]
    """
    from earn.export.bundle import export_bundle
    from earn.runtime.cache import cache_bytes
    from earn.runtime.evaluation import median_ms
    from earn.runtime.recommender import Recommender

    with TemporaryDirectory() as folder:
        bundles: dict[str, Recommender] = {}
        for name, model in models.items():
            export_bundle(model, Path(folder) / name, histories[:8], scoring)
            bundles[name] = Recommender.load(Path(folder) / name)
        typical = median_ms(bundles, histories, K, BEAMS, True, REQUESTS)
        seconds = _batch_seconds(bundles, histories)
    manifests = {name: bundle.manifest for name, bundle in bundles.items()}
    caches = {name: cache_bytes(row.sizes, row.limits, row.limits.prompt, BEAMS) for name, row in manifests.items()}
    rows = {name: _sequence_rows(bundle) for name, bundle in bundles.items()}
    depth = bundles["earn"].catalog.depth
    return {
        "speedup": round(typical["dense"] / typical["earn"], 3),
        "p50_ms": [round(typical[name], 3) for name in ("earn", "dense")],
        "cache_bytes": [caches["earn"], caches["dense"]],
        "cache_reduction": round(1 - caches["earn"] / caches["dense"], 4),
        "batch_speedup": round(seconds["dense"] / seconds["earn"], 3),
        "sequence_cache_reduction": round(1 - rows["earn"] / rows["dense"], 4),
        "tokens_per_second": [round(depth / seconds[name]) for name in ("earn", "dense")],
    }


def _batch_seconds(bundles: Mapping[str, Recommender], histories: Sequence[Sequence[str]]) -> dict[str, float]:
    """Median seconds per user in batches, both sides in turn."""
    taken: dict[str, list[float]] = {name: [] for name in bundles}
    for _ in range(ROUNDS):
        for start in range(0, max(1, len(histories) - BATCH + 1), BATCH):
            users = histories[start : start + BATCH]
            for name, bundle in bundles.items():
                begun = time.perf_counter()
                bundle.recommend_batch(users, K, BEAMS, exclude_history=True)
                taken[name].append((time.perf_counter() - begun) / len(users))
    return {name: float(np.median(times)) for name, times in taken.items()}


def _sequence_rows(recommender: Recommender) -> int:
    """Rows of keys and values of one sequence with a full prompt, over all layers."""
    sizes, limits = recommender.manifest.sizes, recommender.manifest.limits
    late = sizes.layers - sizes.early_layers
    return sizes.early_layers * limits.prompt + late * (limits.prefix + limits.readout)


def quantize_all(runs: Sequence[Run], out: Path) -> None:
    """A float and an int8 bundle of every trained EARN run, what the gate says of the latter, and all users' ranks."""
    from earn.calibration.calibrate import Settings, calibrate
    from earn.calibration.samples import draw_samples
    from earn.export.bundle import export_bundle
    from earn.report.calibration_summary import report_calibration
    from earn.runtime.evaluation import target_ranks
    from earn.runtime.recommender import Recommender

    for run in runs:
        folder = out / run.name
        if run.variant == "dense" or run.trained != run or not (folder / RESULT).is_file() or (folder / INT8).is_file():
            continue
        note(f"{run.name}: export and quantize")
        dataset = load_data(run, out)
        histories, held_out = draw_samples(dataset, seed=run.seed, exclude_history=True)
        source, settings = folder / BUNDLE, Settings(compare=False, seed=run.seed)
        export_bundle(load_model(run, out), source, histories[:8])
        report = folder / REPORT
        found = calibrate(source, folder / INT8_BUNDLE, histories, held_out, "int8", settings, progress)
        page = report_calibration(found, held_out, settings, source, folder / INT8_BUNDLE, dataset.source, report)
        verdict = found.summary()
        refined = list(found.chosen.mix.fine_kinds)
        if verdict["passed"]:
            asked = read_json(folder / RESULT)["asked"]
            users, item_ids = dataset.examples(users=asked["most_users"]), dataset.interactions.item_ids
            recommender = Recommender.load(folder / INT8_BUNDLE)
            ranks = target_ranks(recommender, users, item_ids, asked["exclude_history"], progress("all users"))
            np.save(folder / INT8_RANKS, ranks)
        write_json(folder / INT8, {**verdict, "users": len(held_out.histories), "refined": refined})
        outcome = "passes" if verdict["passed"] else "fails"
        note(f"{run.name}: {outcome}, {verdict['beam_set_overlap']:.1%} of the best items stay; see {page}")
