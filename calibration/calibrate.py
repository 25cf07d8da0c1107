"""Turns a float bundle into one of a lower precision, and writes the quantized bundle only if it passes the gate.

    collect      ranges of activations: real histories through the float graphs, prompts and decode steps as in service
    equalize     move outliers of activations into the weights
    collect      the ranges that are left
    round        weights to their steps, each making up for the errors of those before
    quantize     all linear layers
    judge        ask held-out users; while the gate fails, refine activations, then leave sensitive layers in float
    write        into a folder beside the bundle's, then rename it

The graphs that are judged are, byte for byte, those that are written. All answer behind the constant head of the float
graphs, which the new bundle brings (see earn.constant_head).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from earn.bundle_edit import bundle_locked
from earn.calibration.collect import StageRanges, collect_ranges
from earn.calibration.equalize import ALPHA, equalize
from earn.calibration.fallbacks import fallbacks, free_layers
from earn.calibration.gate import LEAST_OVERLAP, HeldOut, Ranking, Verdict, apply_gate
from earn.calibration.linear_layers import LinearLayer
from earn.calibration.precisions import (
    FASTEST,
    PRECISIONS,
    QUANTIZED,
    RANGE_METHOD,
    GraphForm,
    Precision,
    find_form,
    find_precisions,
)
from earn.calibration.quantize import quantize
from earn.calibration.refine import LEVELS
from earn.calibration.rounding import Rounding
from earn.calibration.sensitivity import layer_sensitivities
from earn.calibration.variants import EQUALIZED, FLOAT, GraphVariants, MixedPrecision, graph_bytes
from earn.catalog import CATALOG_FILE
from earn.errors import EarnError
from earn.files import folder_written_whole
from earn.manifest import NEIGHBOURS_FILE, Manifest, refuse_foreign_folder
from earn.quantizer import QUANTIZER_FILE
from earn.runtime.evaluation import median_ms
from earn.runtime.request import DEFAULT_BEAMS
from earn.specs import STAGES
from earn.tags import TAGS_FILE

OLDEST_ONNXRUNTIME = (1, 22)  # the first with the quantizer of 4-bit blocks
NOISE = 1.1  # a factor between medians that may be chance
MOST_FLOAT = 0.5  # of the layers: beyond that a precision does not deserve its name

Progress = Callable[[str], Callable[[int, int], None]]  # what goes on -> a callback (done, all)


@dataclass(frozen=True)
class CalibrationSettings:
    """How to calibrate and judge."""

    engine: str | None = None  # whose form is written; the precision's usual one if None
    alpha: float | None = ALPHA  # exponent of the equalization; None: outliers stay where they are
    feedback: bool = True  # round weights with error feedback; without it, which loses more, in less time
    beams: int = DEFAULT_BEAMS  # at most the bundle's
    least_overlap: float = LEAST_OVERLAP
    force: bool = False  # write a bundle that fails, and say so in its manifest
    explain: bool = True  # measure every layer's sensitivity for the report, even where the gate passes at once
    compare: bool = True  # judge the engine's other precisions too, for the report
    mixed: MixedPrecision | None = None  # try this alone
    requests: int = 30  # to time each candidate with, and as many to the float bundle, in turn; 0: it is not timed
    seed: int = 0
    threads: int | None = None  # of every graph that runs; ONNX Runtime's own choice if None


@dataclass(frozen=True)
class Attempt:
    """One try to pass the gate."""

    mixed: MixedPrecision
    verdict: Verdict


@dataclass(frozen=True)
class Candidate:
    """A precision, quantized and judged."""

    precision: Precision
    form: GraphForm
    folder: Path  # of its graphs
    attempts: tuple[Attempt, ...]  # the last one is in the folder
    graph_bytes: int
    milliseconds: float | None  # median of a request; None where this machine cannot tell
    sensitivity: Mapping[str, float]  # by layer; empty where it was not measured

    @property
    def verdict(self) -> Verdict:
        """Of the gate on the graphs in the folder."""
        return self.attempts[-1].verdict

    @property
    def mixed(self) -> MixedPrecision:
        """What is more precise in the graphs in the folder."""
        return self.attempts[-1].mixed


@dataclass(frozen=True)
class Calibration:
    """What a calibration did and measured."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    before: Mapping[str, StageRanges]  # by stage; empty where no precision needs ranges
    after: Mapping[str, StageRanges]  # once outliers were moved into weights; likewise
    linear_layers: Mapping[str, list[LinearLayer]]  # by stage
    manifest: Manifest | None  # of the bundle that was written, if one was
    float_bytes: int  # of the float graphs
    float_milliseconds: float | None
    samples: int

    def summary(self) -> dict[str, Any]:
        """The figures for programs."""
        figures = self.chosen.verdict.as_json()
        return {
            "precision": self.chosen.precision.name,
            **{name: figures[name] for name in ("passed", "beam_set_overlap", "top10_overlap", "recall@10", "ndcg@10")},
            "size_ratio": self.chosen.graph_bytes / self.float_bytes,
            "float_layers": list(self.chosen.mixed.float_layers),
        }


@dataclass(frozen=True)
class _Trial:
    """What all precisions are judged with."""

    variants: GraphVariants
    histories: Sequence[Sequence[str]]  # some are replayed to measure sensitivity
    held_out: HeldOut
    rankings: list[Ranking]  # the float bundle's, for the held-out users
    float_milliseconds: float | None  # median of a request to the float bundle; None: nothing is timed
    settings: CalibrationSettings
    progress: Progress


def calibrate(
    source: str | Path,
    out: str | Path,
    histories: Sequence[Sequence[str]],
    held_out: HeldOut,
    precision: str = FASTEST,
    settings: CalibrationSettings | None = None,
    progress: Progress = lambda label: lambda done, total: None,
) -> Calibration:
    """Calibrates a bundle and writes the new one, if it passes the gate.

    Args:
        source: a bundle in fp32.
        out: folder of the new bundle; a bundle that stands there is replaced. The new one has the source's catalog as
            it was when the calibration began, with which it was judged.
        histories: item ids of real users to calibrate with (see `samples.choose`).
        held_out: other users, for the gate.
        precision: a row of PRECISIONS, or "fastest": the faster of AUTOMATIC that passes.

    Raises:
        EarnError: the source is not in fp32, `out` is something else than a bundle, a name is unknown, or there is no
            history; or another process is changing the bundle at `out`.
    """
    source, out = Path(source), Path(out)
    settings = settings or CalibrationSettings()
    wanted = check(source, out, precision, settings)
    if not histories:
        raise EarnError("There are no histories to calibrate with. Give those of some real users.")
    compared = _others(wanted) if settings.compare else []
    precisions = [row for row, _ in wanted + compared]
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with (
        bundle_locked(out),
        tempfile.TemporaryDirectory(prefix=f".{out.name}-calibration.", dir=out.resolve().parent) as folder,
    ):
        variants = GraphVariants(source, Path(folder), settings.threads)
        source = variants.source
        settings = replace(settings, beams=min(settings.beams, variants.manifest.limits.beams))
        before: Mapping[str, StageRanges] = {}
        after: Mapping[str, StageRanges] = {}
        if any(row.equalizes for row in precisions):
            before = collect_ranges(variants, FLOAT, histories, settings.beams, progress("collect, float"))
            _equalize(variants, before, settings.alpha)
        if any(row.method == "static" for row in precisions):
            after = collect_ranges(variants, EQUALIZED, histories, settings.beams, progress("collect, equalized"))
        rounding = Rounding(variants, histories if settings.feedback else (), settings.beams, progress)
        for stage in STAGES:
            for row, form in wanted + compared:
                _quantize(rounding, stage, row, form, after.get(stage, {}))
            rounding.forget(stage)

        rankings = held_out.rankings(variants.recommender(source), progress("ask, fp32"))
        timed = settings.requests and any(form.runs_on_cpu for _, form in wanted)
        float_milliseconds = _median_ms(variants, [source], held_out, settings)[0] if timed else None
        trial = _Trial(variants, histories, held_out, rankings, float_milliseconds, settings, progress)
        candidates = [_judge(trial, row, form) for row, form in wanted]
        chosen = _best(candidates, free_layers(variants))
        if settings.explain and not chosen.sensitivity:
            explained = replace(chosen, sensitivity=_sensitivity(trial, chosen.precision))
            candidates[candidates.index(chosen)] = chosen = explained

        manifest = None
        if chosen.verdict.passed or settings.force:
            manifest = _write(variants, chosen, out, len(histories), settings)
        candidates += [_judge(trial, row, form, only_plain=True) for row, form in compared]
        return Calibration(
            chosen=chosen,
            candidates=tuple(candidates),
            before=before,
            after=after,
            linear_layers={stage: variants.linear_layers(stage) for stage in STAGES},
            manifest=manifest,
            float_bytes=graph_bytes(source),
            float_milliseconds=float_milliseconds,
            samples=len(histories),
        )


def check(source: Path, out: Path, precision: str, settings: CalibrationSettings) -> list[tuple[Precision, GraphForm]]:
    """Refuses what cannot be done, before anything is done; returns the precisions to make with their forms.

    Raises:
        EarnError: see `calibrate`; or ONNX Runtime is too old.
    """
    present = Manifest.load(source, verify=False).precision
    if present != "fp32":
        raise EarnError(f"{source}: is in {present} already. Give the bundle that earn export wrote.")
    wanted = [(row, find_form(row, settings.engine)) for row in find_precisions(precision, settings.engine)]
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise EarnError(
            f"Calibration needs onnxruntime {oldest} or newer; this is {onnxruntime.__version__}. Update it."
        )
    old, new = source.resolve(), out.resolve()
    if old == new or old in new.parents or new in old.parents:
        raise EarnError(f"{out}: is, holds or lies in the bundle to calibrate. Choose another folder for the new one.")
    refuse_foreign_folder(out)
    return wanted


def _others(wanted: Sequence[tuple[Precision, GraphForm]]) -> list[tuple[Precision, GraphForm]]:
    """The other precisions that can be written for the same engine, each in a form of its own."""
    engine = wanted[0][1].engine
    known = {row.name for row, _ in wanted}
    others = [PRECISIONS[name] for name in QUANTIZED if name not in known]
    return [(row, find_form(row, engine)) for row in others if engine in row.engines and row.of_stage("late") is row]


def _equalize(variants: GraphVariants, ranges: Mapping[str, StageRanges], alpha: float | None) -> None:
    """Makes the equalized variant, which is as the float one if alpha is None."""
    for stage in STAGES:  # no name holds a graph, so that one is in memory at a time
        if alpha is None:
            variants.save(EQUALIZED, stage, variants.load(FLOAT, stage))
        else:
            variants.save(EQUALIZED, stage, equalize(variants.load(FLOAT, stage), ranges[stage], alpha))


def _quantize(rounding: Rounding, stage: str, precision: Precision, form: GraphForm, ranges: StageRanges) -> None:
    """Makes a stage of the variant of the precision's name."""
    base, row, variants = _base(precision), precision.of_stage(stage), rounding.variants
    if row.method != "half":
        base = rounding.make(base, stage, row.weight_bits)
    spans = {name: seen.whole for name, seen in ranges.items()}
    variants.save(precision.name, stage, quantize(variants.load(base, stage), row, form, spans))


def _judge(trial: _Trial, precision: Precision, form: GraphForm, only_plain: bool = False) -> Candidate:
    """Asks the gate about a precision; while it fails, about less and less coarse ones, unless `only_plain`."""
    folder = trial.variants.folder / f"{precision.name}-bundle"
    options = [trial.settings.mixed or MixedPrecision()]
    may_mix = not only_plain and trial.settings.mixed is None
    if may_mix and precision.method != "half":
        options += fallbacks(trial.variants, precision, LEVELS)
    attempts = _try_until_passed(trial, precision, options, folder)
    sensitivity: Mapping[str, float] = {}
    if may_mix and not attempts[-1].verdict.passed:
        sensitivity = _sensitivity(trial, precision)
        attempts += _try_until_passed(trial, precision, _with_float_layers(options[-1], sensitivity), folder)
    milliseconds = None
    if trial.float_milliseconds is not None and form.runs_on_cpu:
        beside, taken = _median_ms(trial.variants, [trial.variants.source, folder], trial.held_out, trial.settings)
        milliseconds = trial.float_milliseconds * taken / beside
    return Candidate(precision, form, folder, tuple(attempts), graph_bytes(folder), milliseconds, sensitivity)


def _try_until_passed(
    trial: _Trial, precision: Precision, options: Sequence[MixedPrecision], folder: Path
) -> list[Attempt]:
    """Writes and judges one option after the other; the last one tried stays in the folder."""
    attempts: list[Attempt] = []
    for mixed in options:
        trial.variants.write_bundle_graphs(_base(precision), precision.name, mixed, folder)
        rankings = trial.held_out.rankings(trial.variants.recommender(folder), trial.progress(f"ask, {precision.name}"))
        limit, seed = trial.settings.least_overlap, trial.settings.seed
        verdict = apply_gate(trial.rankings, rankings, trial.held_out.targets, limit, seed)
        attempts.append(Attempt(mixed, verdict))
        if verdict.passed:
            break
    return attempts


def _with_float_layers(mixed: MixedPrecision, sensitivity: Mapping[str, float]) -> list[MixedPrecision]:
    """With the most sensitive layers in float too, more and more of them."""
    ranked = sorted(sensitivity, key=lambda layer: -sensitivity[layer])  # equal ones as they stand in the graphs
    layers = list(dict.fromkeys([*mixed.float_layers, *ranked]))
    options: list[MixedPrecision] = []
    count, most = len(mixed.float_layers), int(MOST_FLOAT * len(layers))
    while count < most:
        count = min(most, count + 1 + count // 2)
        options.append(replace(mixed, float_layers=tuple(layers[:count])))
    return options


def _sensitivity(trial: _Trial, precision: Precision) -> Mapping[str, float]:
    """Every layer's; empty for fp16, of which no layer can stay in float."""
    if precision.method == "half":
        return {}
    progress = trial.progress(f"layers, {precision.name}")
    base, beams = _base(precision), trial.settings.beams
    return layer_sensitivities(trial.variants, base, precision.name, trial.histories, beams, progress)


def _best(candidates: Sequence[Candidate], free: Collection[str]) -> Candidate:
    """Of those that pass, if possible with no layer in float, the fastest; of equally fast ones what keeps most.

    If none passes, the one that came nearest. Free layers may be in float.
    """
    passing = [row for row in candidates if row.verdict.passed]
    rows = [row for row in passing if not {*row.mixed.float_layers} - {*free}] or passing
    least = min((row.milliseconds or 0.0 for row in rows), default=0.0)
    rows = [row for row in rows if (row.milliseconds or 0.0) <= NOISE * least]
    return max(rows or candidates, key=lambda row: row.verdict.beam_set_overlap)


def _base(precision: Precision) -> str:
    """The variant that a precision is made from."""
    return EQUALIZED if precision.equalizes else FLOAT


def _median_ms(
    variants: GraphVariants, folders: Sequence[Path], held_out: HeldOut, settings: CalibrationSettings
) -> list[float]:
    """The median milliseconds of a request to the graphs in each folder, asked in turn."""
    sides = {str(folder): variants.recommender(folder) for folder in folders}
    beams = settings.beams
    taken = median_ms(sides, held_out.histories, beams, beams, held_out.exclude_history, settings.requests)
    return list(taken.values())


def _write(
    variants: GraphVariants, chosen: Candidate, out: Path, samples: int, settings: CalibrationSettings
) -> Manifest:
    """Moves the chosen graphs into the new bundle."""
    packages = {module.__name__: module.__version__ for module in (onnx, onnxruntime, np)}
    with folder_written_whole(out) as folder:
        for path in chosen.folder.iterdir():
            shutil.move(path, folder / path.name)
        for name in {CATALOG_FILE, QUANTIZER_FILE, TAGS_FILE, NEIGHBOURS_FILE} & set(variants.manifest.files):
            shutil.copy(variants.source / name, folder / name)
        manifest = replace(
            variants.manifest,
            precision=chosen.precision.name,
            tools={**variants.manifest.tools, **packages},
            parity=None,  # said how near the float graphs were to torch
            accuracy=chosen.verdict.as_json(),
            calibration={
                "engine": chosen.form.engine,
                "method": RANGE_METHOD if chosen.precision.method == "static" else None,
                "samples": samples,
                "seed": settings.seed,
                "fine_products": list(chosen.mixed.refined_kinds),
                "float_layers": list(chosen.mixed.float_layers),
            },
        ).with_files(folder)
        manifest.save(folder)
    return manifest
