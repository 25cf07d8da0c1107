"""Single studies. Each prints a table, then one line of JSON.

    python -m experiments.studies blend BUNDLE DATA             # for example set-bundle amazon-beauty-letter
    python -m experiments.studies rival-speed DATA BUNDLE...    # amazon-beauty-letter set-bundle beams-bundle
    python -m experiments.studies quantization BUNDLE DATA --exclude-history
    python -m experiments.studies new-items                     # ml-100k, about five minutes
    python -m experiments.studies new-items --epochs 1 --users 50   # a check that everything runs

`blend`: a bundle's model, its neighbours and the blend of both (earn.item_neighbours), for all users and for those
whose item is rare. Weight and decay are chosen by validation users, and the test users are asked once. Lists leave the
history out. The bundle stays as it is.

`rival-speed`: SASRec beside bundles, as an app would run them: milliseconds of a request, and megabytes. SASRec is
exported to ONNX in fp32 with the sizes of its best setting on Beauty; its weights are random, for they change no time.
A request is a test user's newest items, one thread, ten items without the history. SASRec's ten best are found by
numpy. Sides take turns, and processor time is counted: others on the machine change it little.

`quantization`: what each choice of the calibration keeps: overlap with the float bundle, one row a choice, all else the
same. Every row is calibrated and judged as `earn calibrate` does it, without its ladder of finer and finer tries. Means
over the held-out users with standard errors, and the size of the graphs beside the float ones.

`new-items`: whether items that training never saw reach those who chose them, from their titles and metadata alone.
Held-out items are taken out of the catalog, of all histories and of what identifiers are made of; a small model of
`--method set` is trained on the rest. Then they are added by their words. Everybody who chose one is asked, with the
known items before it as history; the last one of each counts.

    whole_catalog   Recall among all items, known and new
    new_alone       Recall among the new ones, the known ones excluded: does a user get the right ones?
    chance          of lists drawn at random; beams cannot name new items before another training and export: 0
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from earn.calibration.calibrate import CalibrationSettings, calibrate
from earn.calibration.refine import LEVELS
from earn.calibration.samples import draw_samples
from earn.calibration.variants import MixedPrecision
from earn.console import note, progress, quiet, show, show_json, table
from earn.data.dataset import Dataset, load_dataset, sample
from earn.data.formats import Interactions
from earn.data.splits import split_of
from earn.errors import EarnError
from earn.export.blend import choose_blend, with_neighbours
from earn.export.stages import torch_recommender
from earn.export.validation import search_validation
from earn.metrics import Example, bootstrap_interval, recall, target_rank
from earn.model.methods import build_model
from earn.model.training import train
from earn.new_items import NewItems
from earn.runtime import evaluation
from earn.runtime.recommender import Recommender
from earn.settings import TrainSettings
from experiments.rivals import RivalSettings, Sasrec
from experiments.runs import BEAMS, MEASURES, REQUESTS, K, has_rare_target

Floats = NDArray[np.float32]
Texts = tuple[str, ...]
Table = tuple[Sequence[str], Sequence[Sequence[str]], Any]  # header, rows, and what the line of JSON holds

# A blend
VALIDATION_USERS = 2000  # as of `earn blend`
NEIGHBOURS_ALONE = 1 - 1e-6  # the weight at which the model orders nothing but what the neighbours leave open


def blend(args: argparse.Namespace) -> Table:
    """A bundle's model, what is like the history, and both."""
    dataset, recommender = load_dataset(args.data), Recommender.load(args.bundle, threads=1)
    dataset.check_items(recommender.catalog, args.bundle)
    judges, users = dataset.examples("valid", VALIDATION_USERS), dataset.examples()
    chosen = choose_blend(recommender, dataset, judges, True, progress)
    is_rare, found = has_rare_target(dataset, users), dict[str, dict[str, Any]]()
    alone = replace(chosen.neighbours, weight=NEIGHBOURS_ALONE)
    both = chosen.neighbours if chosen.neighbours.weight else None  # None: the model alone ranks best
    for name, neighbours in (("model", None), ("neighbours", alone), ("blend", both)):
        asked = with_neighbours(recommender, neighbours)
        ranks = evaluation.target_ranks(asked, users, dataset.interactions.item_ids, True, progress(name))
        found[name] = {"weight": neighbours.weight if neighbours else 0.0}
        for measure, of_ranks in MEASURES.items():
            each = of_ranks(ranks, 10)
            found[name][measure] = float(each.mean())
            found[name][f"{measure} interval"] = bootstrap_interval(each)
            found[name][f"{measure} rare"] = float(each[is_rare].mean())
    columns = [f"{measure}{whose}" for whose in ("", " rare") for measure in MEASURES]
    rows = [(name, f"{row['weight']:g}", *(f"{row[it]:.4f}" for it in columns)) for name, row in found.items()]
    about = {"users": len(users), "rare": int(is_rare.sum()), "decay": chosen.neighbours.decay}
    return ("", "weight", *columns), rows, {**about, "valid": [chosen.model, chosen.best], **found}


# The speed of SASRec
WARM_UP = 5
SETTINGS = RivalSettings(width=128)
SASREC = "sasrec fp32"


class OnnxSasrec:
    """SASRec in ONNX Runtime on one thread, asked as a Recommender is."""

    def __init__(self, file: Path, item_ids: Sequence[str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._index = {item_id: index for index, item_id in enumerate(item_ids)}
        self._item_ids = item_ids

    def scores(self, history: NDArray[np.int64]) -> Floats:
        """Every item's score [items] after a history of item indices."""
        scores: Floats = self._session.run(None, feeds_of(history))[0]
        return scores

    def recommend(self, history: Sequence[str], k: int, beams: int, exclude_history: bool) -> list[str]:
        """The best items, best first; beams are none of it."""
        known = np.array([self._index[item_id] for item_id in history], np.int64)
        scores = self.scores(known)
        if exclude_history:
            scores[known] = -np.inf
        best = np.argpartition(-scores, k)[:k]
        return [self._item_ids[item] for item in best[np.argsort(-scores[best], kind="stable")]]


def feeds_of(history: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """What the graph takes of item indices: torch's exporter fixes the row's length, and SASRec sees no padding."""
    newest = history[-SETTINGS.max_history :]
    row = np.pad(newest, (0, SETTINGS.max_history - len(newest)))
    return {"history": row[None], "last": np.array([len(newest) - 1])}


def export_sasrec(model: Sasrec, item_ids: Sequence[str], file: Path) -> OnnxSasrec:
    """Writes and loads the graph for histories of the settings' length at the most.

    Raises:
        EarnError: it gives other scores than torch.
    """
    example = tuple(map(torch.from_numpy, feeds_of(np.arange(3)).values()))
    names = {"input_names": ["history", "last"], "output_names": ["scores"]}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no word for the operator that it takes
    try:
        with torch.no_grad():
            torch.onnx.export(model.eval(), example, str(file), dynamo=False, **names)  # type: ignore[arg-type]
        graph = OnnxSasrec(file, item_ids)
        for items in (1, 7, SETTINGS.max_history):
            history = np.arange(items) % len(item_ids)
            difference = float(np.abs(graph.scores(history) - model.scores([Example("", history, 0)])[0]).max())
            if difference > 1e-4:
                raise EarnError(f"SASRec's graph gives scores that differ from torch's by {difference:.2g}.")
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return graph


def rival_speed(args: argparse.Namespace) -> Table:
    """SASRec beside bundles: milliseconds of processor time of a request, and megabytes."""
    dataset = load_dataset(args.data)
    item_ids, asked, sizes = dataset.interactions.item_ids, dict[str, Any](), dict[str, int]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sasrec.onnx"
        asked[SASREC] = export_sasrec(Sasrec(len(item_ids), SETTINGS), item_ids, file)
        sizes[SASREC] = file.stat().st_size
        for bundle in args.bundles:
            asked[str(bundle)] = Recommender.load(bundle, threads=1)
            dataset.check_items(asked[str(bundle)].catalog, bundle)
            sizes[str(bundle)] = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
        taken: dict[str, list[float]] = {name: [] for name in asked}
        histories = dataset.histories(dataset.examples(users=REQUESTS))
        for history in islice(cycle(histories), WARM_UP + REQUESTS):
            for name, side in asked.items():
                began = time.process_time()
                side.recommend(history, K, BEAMS, exclude_history=True)
                taken[name].append(1000 * (time.process_time() - began))
    found = {name: {"ms": statistics.median(taken[name][WARM_UP:]), "mb": sizes[name] / 1e6} for name in asked}
    return ("", "ms", "MB"), [(name, f"{row['ms']:.2f}", f"{row['mb']:.1f}") for name, row in found.items()], found


# What quantization keeps
SAMPLES = 128
PLAIN = CalibrationSettings(least_overlap=0, explain=False, compare=False, mixed=MixedPrecision(), requests=0)
# Row -> precision, samples, settings.
CHOICES: Mapping[str, tuple[str, int, CalibrationSettings]] = {
    "int8": ("int8", SAMPLES, PLAIN),
    "int8, not equalized": ("int8", SAMPLES, replace(PLAIN, alpha=None)),
    **{f"int8, exponent {alpha}": ("int8", SAMPLES, replace(PLAIN, alpha=alpha)) for alpha in (0.5, 0.6, 0.8, 0.9)},
    **{f"int8, {samples} samples": ("int8", samples, PLAIN) for samples in (32, 64, 256)},
    "int8, form for TensorRT": ("int8", SAMPLES, replace(PLAIN, engine="tensorrt")),
    "int8-dynamic": ("int8-dynamic", SAMPLES, PLAIN),
    "int8-dynamic, not equalized": ("int8-dynamic", SAMPLES, replace(PLAIN, alpha=None)),
    **{precision: (precision, SAMPLES, PLAIN) for precision in ("int8-weights", "int4", "int8-int4", "fp16")},
    **{
        f"int8, {name} refined": ("int8", SAMPLES, replace(PLAIN, mixed=MixedPrecision(refined_kinds=kinds)))
        for name, kinds in (("down_proj", ("down_proj",)), ("down_proj and head", LEVELS[0]), ("all", LEVELS[1]))
    },
}


def quantization(args: argparse.Namespace) -> Table:
    """What each choice of the calibration keeps."""
    dataset, found = load_dataset(args.data), list[dict[str, Any]]()
    for choice, (precision, samples, settings) in CHOICES.items():
        histories, held_out = draw_samples(dataset, samples, args.users, 0, args.exclude_history)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "bundle"
            calibrated = calibrate(args.bundle, out, histories, held_out, precision, settings)
        verdict = calibrated.chosen.verdict
        figures = {
            "overlap 20": verdict.beam_set_overlap,
            "+-": verdict.overlaps.std() / np.sqrt(verdict.users),
            "overlap 10": verdict.top10_overlap,
            "NDCG@10": verdict.ndcg.after,
            "fp32": verdict.ndcg.before,
            "size": calibrated.chosen.graph_bytes / calibrated.float_bytes,
        }
        found.append({"choice": choice, **{name: round(float(figure), 4) for name, figure in figures.items()}})
        note(f"{choice}: overlap {verdict.beam_set_overlap:.4f}")
    rows = [(choice, *(f"{figure:.4f}" for figure in figures)) for choice, *figures in map(dict.values, found)]
    return tuple(found[0]), rows, found


# New items
CUTOFFS = (10, 20)
BACKBONE, SIZES = "tiny-llama", {"num_hidden_layers": 2}


def new_items(args: argparse.Namespace) -> Table:
    """Whether items that training never saw reach those who chose them."""
    data = load_dataset(args.data)
    whole, is_new = data.interactions, np.zeros(len(data.interactions.item_ids), bool)
    is_new[np.random.default_rng(args.seed).permutation(len(is_new))[: round(args.share * len(is_new))]] = True
    known = without(whole, is_new)
    rest, sizes = Dataset(args.data, known, split_of(known)), {"known": len(known.item_ids), "new": int(is_new.sum())}
    note(f"{sizes['known']} known items, {sizes['new']} new ones")
    model = build_model("set", BACKBONE, rest.catalog(args.seed, digits=args.digits), 1, sizes=SIZES, seed=args.seed)
    settings = TrainSettings(args.epochs, 32, 4e-3, hidden_dropout=0.1, validation_users=300, seed=args.seed)
    with tempfile.TemporaryDirectory() as name:
        train(model, rest.split.train, Path(name) / "model", search_validation(rest, True, 300), settings, say=note)
    recommender = torch_recommender(model.eval()).with_new_items(NewItems(*descriptions(whole, is_new)))
    asked, figures, rows = sample(questions(whole, is_new), args.users), dict[str, list[float]](), []
    for label, excluded in (("whole_catalog", ()), ("new_alone", known.item_ids)):
        each = [excluded] * len(asked)
        lists = recommender.recommend_batch(data.histories(asked), max(CUTOFFS), exclude=each, exclude_history=True)
        rankings = [[item.item_id for item in items] for items in lists]
        targets = [whole.item_ids[example.target] for example in asked]
        ranks = np.array(list(map(target_rank, rankings, targets)))
        figures[label] = [round(float(recall(ranks, cutoff).mean()), 4) for cutoff in CUTOFFS]
        chances = [cutoff / (len(is_new) - len(excluded)) for cutoff in CUTOFFS]
        rows.append((label, *(f"{value:.4f}" for value in (*figures[label], *chances))))
    header = ("", *(f"{name}@{cutoff}" for name in ("Recall", "chance") for cutoff in CUTOFFS))
    about = {"data": args.data, "digits": args.digits, **sizes, "users": len(asked), "cutoffs": CUTOFFS}
    return header, rows, {**figures, **about}


def descriptions(whole: Interactions, is_chosen: NDArray[np.bool_]) -> tuple[Texts, Texts, Texts]:
    """Ids, titles and metadata of the chosen items."""
    rows = zip(whole.item_ids, whole.titles, whole.metadata, is_chosen, strict=True)
    ids, titles, metadata = zip(*(row[:3] for row in rows if row[3]), strict=True)
    return ids, titles, metadata


def without(whole: Interactions, is_new: NDArray[np.bool_]) -> Interactions:
    """The interactions without those items; users with fewer than three left go too."""
    index, sequences = np.cumsum(~is_new) - 1, zip(whole.user_ids, whole.sequences, strict=True)
    left = {user: kept for user, items in sequences if len(kept := index[items[~is_new[items]]]) > 2}
    return Interactions(whole.name, *descriptions(whole, ~is_new), tuple(left), tuple(left.values()), catalog=None)


def questions(whole: Interactions, is_new: NDArray[np.bool_]) -> list[Example]:
    """Of every user the newest new item that known ones come before, with these."""
    found = []
    for user, items in zip(whole.user_ids, whole.sequences, strict=True):
        known = ~is_new[items]
        places = [place for place in np.flatnonzero(~known) if known[:place].any()]
        if places:
            found.append(Example(user, items[: places[-1]][known[: places[-1]]], int(items[places[-1]])))
    return found


STUDIES: Mapping[str, Callable[[argparse.Namespace], Table]] = {
    "blend": blend,
    "rival-speed": rival_speed,
    "quantization": quantization,
    "new-items": new_items,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a study and prints what it gives."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments.studies", description=__doc__, formatter_class=raw)
    studies = parser.add_subparsers(dest="study", required=True)
    of = {name: studies.add_parser(name, description=study.__doc__) for name, study in STUDIES.items()}
    for name in ("blend", "quantization"):
        of[name].add_argument("bundle", type=Path)
    for name in ("blend", "rival-speed", "quantization"):
        of[name].add_argument("data")
    of["rival-speed"].add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    of["quantization"].add_argument("--users", type=int, default=700, help="who judge (default: %(default)s)")
    of["quantization"].add_argument("--exclude-history", action="store_true")
    option = of["new-items"].add_argument
    option("--data", default="ml-100k", help="whose items (default: %(default)s)")
    option("--share", type=float, default=0.1, help="of the items held out (default: %(default)s)")
    option("--digits", default="16", help="16, or 16+items, ... (default: %(default)s)")
    option("--epochs", type=int, default=6)
    option("--users", type=int, default=100_000, help="at most so many are asked")
    option("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        with quiet():
            header, rows, found = STUDIES[args.study](args)
    except EarnError as error:
        sys.exit(f"{parser.prog} {args.study}: {error}")
    show(table(header, rows))
    show_json(found)


if __name__ == "__main__":
    main()
