"""What is looked at once a model is trained: attention, speed, rare items, an int8 bundle. One after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from earn.console import note, progress
from earn.data.dataset import sample
from earn.files import write_json
from earn.metrics import summarise
from experiments.grid import RIVALS, VARIANTS, Run
from experiments.runs import RANKS, RESULT, asked_of, intervals, load_data, load_model

INT8_RANKS = "int8-ranks.npy"  # the place of each test user's item by the int8 bundle
BUNDLE, INT8_BUNDLE = "bundle", "int8-bundle"
REPORT = "int8-report.html"  # the calibration's; its figures stand beside it as .json
RARE = 5  # an item with fewer training interactions is rare
TIMED_USERS = 256
K, BEAMS, BATCH = 10, 20, 64
REQUESTS, ROUNDS = 200, 3


class Look(NamedTuple):
    """One thing that is looked at."""

    file: str  # of its figures, in the run's folder
    is_for: Callable[[Run, Path], bool]  # whether a trained run below OUT has it
    figures: Callable[[Run, Path], dict[str, Any]]


def look_at(runs: Sequence[Run], look: Look, out: Path) -> None:
    """Writes the figures of every run that is trained, is meant, and has none yet."""
    for run in runs:
        folder = out / run.name
        if (folder / RESULT).is_file() and look.is_for(run, out) and not (folder / look.file).is_file():
            note(f"{run.name}: {look.file}")
            write_json(folder / look.file, look.figures(run, out))


def attention(run: Run, out: Path) -> dict[str, Any]:
    """The attention analysis of a dense model: what it would suggest as k before anything is trained with it."""
    from earn.model.attention import analyze

    model = load_model(run, out)
    return analyze(model, load_data(run, out).questions(model.catalog), progress(run.name)).as_json()


def rare(run: Run, out: Path) -> dict[str, Any]:
    """Figures over the test users whose item is rare; without intervals where there are none."""
    dataset, ranks = load_data(run, out), np.load(out / run.name / RANKS)
    counts = np.bincount(np.concatenate(dataset.split.train), minlength=len(dataset.interactions.item_ids))
    targets = [example.target for example in dataset.examples(users=len(ranks))]
    chosen = ranks[counts[targets] < RARE]
    return {"users": len(chosen), **summarise(chosen), "interval": intervals(chosen) if len(chosen) else {}}


def _is_timed(run: Run, out: Path) -> bool:
    """One seed of each shape and scoring rule, if its dense twin was trained: other weights take as long."""
    variant, dense = VARIANTS[run.variant], VARIANTS["dense"]
    own_graph = variant.scoring != dense.scoring or not variant.of
    alike = variant.max_history == dense.max_history and (out / run.dense.name / RESULT).is_file()
    return run.variant != "dense" and run.seed == 0 and own_graph and alike


def _is_analyzed(run: Run, out: Path) -> bool:
    return run.variant == "dense" and run.method not in RIVALS


def speed(run: Run, out: Path) -> dict[str, Any]:
    """Compares a run's bundle with its dense twin's, in fp32 in ONNX Runtime on the CPU.

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

    dataset = load_data(run, out)
    histories = dataset.histories(sample(dataset.examples(), TIMED_USERS))
    bundles: dict[str, Recommender] = {}
    with TemporaryDirectory() as folder:
        for name, twin in (("earn", run), ("dense", run.dense)):
            export_bundle(load_model(twin, out), Path(folder) / name, histories[:8], VARIANTS[run.variant].scoring)
            bundles[name] = Recommender.load(Path(folder) / name)
        typical = median_ms(bundles, histories, K, BEAMS, True, REQUESTS)
        seconds = _batch_seconds(bundles, histories)
    caches, rows = [], []
    for bundle in bundles.values():
        sizes, limits = bundle.manifest.sizes, bundle.manifest.limits
        caches.append(cache_bytes(sizes, limits, limits.prompt, BEAMS))
        late_rows = (sizes.layers - sizes.early_layers) * (limits.prefix + limits.readout)
        rows.append(sizes.early_layers * limits.prompt + late_rows)
    return {
        "speedup": round(typical["dense"] / typical["earn"], 3),
        "p50_ms": [round(typical[name], 3) for name in bundles],
        "cache_bytes": caches,
        "cache_reduction": round(1 - caches[0] / caches[1], 4),
        "batch_speedup": round(seconds["dense"] / seconds["earn"], 3),
        "sequence_cache_reduction": round(1 - rows[0] / rows[1], 4),
        "tokens_per_second": [round(bundles["earn"].catalog.depth / seconds[name]) for name in bundles],
    }


def _batch_seconds(bundles: Mapping[str, Any], histories: Sequence[Sequence[str]]) -> dict[str, float]:
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


def int8(run: Run, out: Path) -> dict[str, Any]:
    """Writes a float and an int8 bundle and all users' ranks; returns what the gate says of the latter."""
    from earn.calibration.calibrate import CalibrationSettings, calibrate
    from earn.calibration.samples import draw_samples
    from earn.export.bundle import export_bundle
    from earn.report.calibration import report_calibration
    from earn.runtime.evaluation import target_ranks
    from earn.runtime.recommender import Recommender

    folder, dataset = out / run.name, load_data(run, out)
    histories, held_out = draw_samples(dataset, seed=run.seed, exclude_history=True)
    source, bundle, settings = folder / BUNDLE, folder / INT8_BUNDLE, CalibrationSettings(compare=False, seed=run.seed)
    export_bundle(load_model(run, out), source, histories[:8])
    found = calibrate(source, bundle, histories, held_out, "int8", settings, progress)
    page = report_calibration(found, held_out, settings, source, bundle, dataset.source, folder / REPORT)
    verdict = found.summary()
    if verdict["passed"]:
        users, item_ids = dataset.examples(users=len(np.load(folder / RANKS))), dataset.interactions.item_ids
        exclude, recommender = asked_of(run)["exclude_history"], Recommender.load(bundle)
        np.save(folder / INT8_RANKS, target_ranks(recommender, users, item_ids, exclude, progress("all users")))
    outcome = "passes" if verdict["passed"] else "fails"
    note(f"{run.name}: {outcome}, {verdict['beam_set_overlap']:.1%} of the best items stay; see {page}")
    return {**verdict, "users": len(held_out.histories), "refined": list(found.chosen.mixed.refined_kinds)}


# By the option that asks for it.
LOOKS: Mapping[str, Look] = {
    "analyze": Look("attention.json", _is_analyzed, attention),
    "rare": Look("rare.json", lambda run, out: True, rare),
    "speed": Look("speed.json", _is_timed, speed),
    "quantize": Look("int8.json", lambda run, out: run.variant != "dense" and run.trained == run, int8),
}
