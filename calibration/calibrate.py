"""Turns a float bundle into one of a lower precision, and lets it out only if it recommends the same.

    observe      real histories through the float graphs, prompts and decode steps, as in service
    equalize     outliers of activations go into the weights; observed once more
    quantize     all products
    judge        held-out users; where the gate stays shut, activations are refined, at first before the products that
                 need it most; then the most sensitive layers go back to float, more and more
    write        beside the place, then renamed

The graphs that are judged are, byte for byte, those that are written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from earn.calibration.bench import Bench, Mix
from earn.calibration.collect import RANGE_METHODS, Observations, observe
from earn.calibration.equalize import ALPHA, equalize
from earn.calibration.gate import LEAST_OVERLAP, HeldOut, Ranking, Verdict, judge
from earn.calibration.linear_layers import Product
from earn.calibration.precisions import FASTEST, PRECISIONS, Form, Precision, find_form, find_precisions
from earn.calibration.quantize import quantize
from earn.calibration.refine import LEVELS
from earn.calibration.sensitivity import sensitivities
from earn.catalog import CATALOG_FILE
from earn.errors import EarnError
from earn.files import folder_written_whole
from earn.manifest import Manifest, refuse_foreign_folder
from earn.runtime.engine import load_engine
from earn.runtime.evaluation import median_ms
from earn.runtime.recommender import DEFAULT_BEAMS, Recommender
from earn.specs import STAGES

OLDEST_ONNXRUNTIME = (1, 22)  # the first with the quantizer of 4-bit blocks
NOISE = 1.1  # a factor between medians that may be chance
MOST_FLOAT = 0.5  # of the units: beyond that a precision does not deserve its name

Progress = Callable[[str], Callable[[int, int], None]]  # what goes on -> a callback (done, all)


@dataclass(frozen=True)
class Settings:
    """How to calibrate and judge."""

    engine: str | None = None  # whose form is written; the precision's usual one if None
    method: str = "minmax"  # one of RANGE_METHODS
    alpha: float | None = ALPHA  # exponent of the equalization; None: outliers stay where they are
    beams: int = DEFAULT_BEAMS
    least_overlap: float = LEAST_OVERLAP
    force: bool = False  # write a bundle that fails, and say so in its manifest
    explain: bool = True  # measure every layer's sensitivity for the report, even where the gate opens at once
    compare: bool = True  # judge the engine's other precisions too, for the report
    mix: Mix | None = None  # try this alone
    requests: int = 30  # to time each candidate with, and as many to the float bundle, in turn; 0: it is not timed
    seed: int = 0


@dataclass(frozen=True)
class Attempt:
    """One try to pass the gate."""

    mix: Mix
    verdict: Verdict


@dataclass(frozen=True)
class Candidate:
    """A precision, quantized and judged."""

    precision: Precision
    form: Form
    folder: Path  # of its graphs
    attempts: tuple[Attempt, ...]  # the last one is what stands in the folder
    graph_bytes: int
    milliseconds: float | None  # median of a request; None where this machine cannot tell
    sensitivity: dict[str, float]  # by unit; empty where it was not measured

    @property
    def verdict(self) -> Verdict:
        """The gate's on what stands in the folder."""
        return self.attempts[-1].verdict

    @property
    def mix(self) -> Mix:
        """What is not plainly quantized in it."""
        return self.attempts[-1].mix


@dataclass(frozen=True)
class Calibration:
    """All that a calibration found."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    before: dict[str, Observations]  # by stage; empty where nothing had to be observed
    after: dict[str, Observations]  # once outliers were moved into weights; likewise
    products: dict[str, list[Product]]  # by stage
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
            "float_layers": list(self.chosen.mix.float_units),
        }


def calibrate(
    source: str | Path,
    out: str | Path,
    histories: Sequence[Sequence[str]],
    held_out: HeldOut,
    precision: str = FASTEST,
    settings: Settings | None = None,
    progress: Progress = lambda label: lambda done, total: None,
) -> Calibration:
    """Calibrates a bundle and writes the new one, if it passes the gate.

    Args:
        source: a bundle in fp32.
        out: folder of the new bundle; a bundle that stands there is replaced.
        histories: item ids of real users to calibrate with (see `samples.choose`).
        held_out: other users, who judge.
        precision: a row of PRECISIONS, or "fastest": the faster of AUTOMATIC that passes.

    Raises:
        EarnError: the source is not in fp32, `out` is something else than a bundle, or a name is unknown.
    """
    source, out = Path(source), Path(out)
    settings = settings or Settings()
    plan = check(source, out, precision, settings)
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.resolve().parent) as folder:
        run = _Run(Bench(source, Path(folder)), histories, held_out, settings, progress)
        candidates = [run.candidate(row, form) for row, form in plan]
        chosen = _best(candidates)
        if settings.explain:
            explained = replace(chosen, sensitivity=run.sensitivity(chosen.precision))
            candidates[candidates.index(chosen)] = chosen = explained
        manifest = None
        if chosen.verdict.passed or settings.force:
            manifest = _write(run.bench, chosen, out, len(histories), settings)
        if settings.compare:
            engine = chosen.form.engine
            others = [row for row in PRECISIONS.values() if engine in row.engines and row.method != "none"]
            known = {candidate.precision.name for candidate in candidates}
            candidates += [
                run.candidate(row, find_form(row, engine), may_mix=False) for row in others if row.name not in known
            ]
        return Calibration(
            chosen=chosen,
            candidates=tuple(candidates),
            before=run.observed.get("float", {}),
            after=run.observed.get("equalized", {}),
            products={stage: run.bench.products(stage) for stage in STAGES},
            manifest=manifest,
            float_bytes=_graph_bytes(source),
            float_milliseconds=run.float_milliseconds,
            samples=len(histories),
        )


def check(source: Path, out: Path, precision: str, settings: Settings) -> list[tuple[Precision, Form]]:
    """Refuses what cannot be done, before anything is done; returns the precisions to make with their forms.

    Raises:
        EarnError: see `calibrate`; or ONNX Runtime is too old.
    """
    found = Manifest.load(source, verify=False).precision
    if found != "fp32":
        raise EarnError(f"{source}: is in {found} already. Give the bundle that earn export wrote.")
    plan = [(row, find_form(row, settings.engine)) for row in find_precisions(precision, settings.engine)]
    if settings.method not in RANGE_METHODS:
        raise EarnError(f"There is no range method {settings.method!r}. Take one of: {', '.join(RANGE_METHODS)}.")
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise EarnError(
            f"Calibration needs onnxruntime {oldest} or newer; this is {onnxruntime.__version__}. Update it."
        )
    old, new = source.resolve(), out.resolve()
    if old == new or old in new.parents or new in old.parents:
        raise EarnError(f"{out}: is, holds or lies in the bundle to calibrate. Choose another folder for the new one.")
    refuse_foreign_folder(out)
    return plan


def _best(candidates: Sequence[Candidate]) -> Candidate:
    """Of those that pass, if possible with no layer in float, the fastest; of equally fast ones what keeps most.

    If none passes, the one that came nearest.
    """
    passing = [row for row in candidates if row.verdict.passed]
    rows = [row for row in passing if not row.mix.float_units] or passing
    least = min((row.milliseconds or 0.0 for row in rows), default=0.0)
    rows = [row for row in rows if (row.milliseconds or 0.0) <= NOISE * least]
    return max(rows or candidates, key=lambda row: row.verdict.beam_set_overlap)


class _Run:
    """What the precisions of one calibration share: observations, equalized graphs, the float bundle's answers."""

    def __init__(
        self,
        bench: Bench,
        histories: Sequence[Sequence[str]],
        held_out: HeldOut,
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.bench = bench
        self.float_milliseconds: float | None = None
        self._histories = histories
        self._held_out = held_out
        self._settings = replace(settings, beams=min(settings.beams, bench.manifest.limits.beams))
        self._progress = progress
        self.observed: dict[str, dict[str, Observations]] = {}  # by variant and stage
        self._rankings: list[Ranking] | None = None
        self._sensitivities: dict[str, dict[str, float]] = {}  # by precision and unit

    def observations(self, variant: str) -> dict[str, Observations]:
        """What goes into the products of a variant, by stage; observed when first asked for."""
        if variant == "equalized":
            self._equalize()
        if variant not in self.observed:
            # Extremes decide what is moved; how a range is chosen matters for what is rounded alone.
            method = "minmax" if variant == "float" else self._settings.method
            self.observed[variant] = observe(
                self.bench.paths(variant),
                self.bench.manifest,
                self.bench.catalog,
                self._histories,
                self._settings.beams,
                method,
                self._progress(f"observe, {variant}"),
            )
        return self.observed[variant]

    def candidate(self, precision: Precision, form: Form, may_mix: bool = True) -> Candidate:
        """Quantizes and judges; while the gate stays shut, less and less coarsely."""
        self._quantize(precision, form)
        folder = self.bench.folder / f"{precision.name}-bundle"
        attempts: list[Attempt] = []
        for mix in self._mixes(precision, may_mix):
            self.bench.finish(_base(precision), precision.name, mix, folder)
            attempts.append(Attempt(mix, self._judge(precision.name, folder)))
            if attempts[-1].verdict.passed:
                break
        timed = self._milliseconds(folder) if form.engine == "cpu" and self._settings.requests else None
        sensitivity = self._sensitivities.get(precision.name, {})
        return Candidate(precision, form, folder, tuple(attempts), _graph_bytes(folder), timed, sensitivity)

    def _mixes(self, precision: Precision, may_mix: bool) -> Iterator[Mix]:
        """What to try, one after the other: all plain, finer activations, the most sensitive layers in float."""
        yield self._settings.mix or Mix()
        if not may_mix or self._settings.mix is not None:
            return
        fine: tuple[str, ...] = ()
        if precision.method == "static":
            for fine in LEVELS:
                yield Mix(fine_kinds=fine)
        if precision.method == "half":
            return
        sensitivity = self.sensitivity(precision)
        units = sorted(sensitivity, key=lambda unit: -sensitivity[unit])
        count, most = 0, int(MOST_FLOAT * len(units))
        while count < most:
            count = min(most, count + 1 + count // 2)
            yield Mix(tuple(units[:count]), fine)

    def sensitivity(self, precision: Precision) -> dict[str, float]:
        """Every unit's, measured when first asked for; nothing where no unit can be taken back to float."""
        if precision.method != "half" and precision.name not in self._sensitivities:
            self._sensitivities[precision.name] = sensitivities(
                self.bench,
                _base(precision),
                precision.name,
                load_engine("cpu", self.bench.source, self.bench.manifest),
                self._histories,
                self._settings.beams,
                self._progress(f"layers, {precision.name}"),
            )
        return self._sensitivities.get(precision.name, {})

    def _equalize(self) -> None:
        seen = self.observations("float")

        def change(stage: str, graph: onnx.ModelProto) -> onnx.ModelProto:
            if self._settings.alpha is not None:
                equalize(graph, seen[stage].channels, self._settings.alpha)
            return graph

        if not self.bench.has("equalized"):
            self.bench.change("float", "equalized", change)

    def _quantize(self, precision: Precision, form: Form) -> None:
        """Makes the variant of that name."""
        base = _base(precision)
        if base == "equalized":
            self._equalize()
        observed = self.observations(base) if precision.method == "static" else {}

        def change(stage: str, graph: onnx.ModelProto) -> onnx.ModelProto:
            return quantize(graph, precision, form, observed[stage].ranges if observed else {})

        self.bench.change(base, precision.name, change)

    def _judge(self, name: str, folder: Path) -> Verdict:
        if self._rankings is None:
            self._rankings = self._held_out.rankings(self._load(self.bench.source), self._progress("ask, fp32"))
        after = self._held_out.rankings(self._load(folder), self._progress(f"ask, {name}"))
        return judge(self._rankings, after, self._held_out.targets, self._settings.least_overlap, self._settings.seed)

    def _milliseconds(self, folder: Path) -> float:
        """The median time of a request, beside the float bundle's in the same run."""
        sides = {"before": self._load(self.bench.source), "after": self._load(folder)}
        beams, requests = self._settings.beams, self._settings.requests
        taken = median_ms(sides, self._held_out.histories, beams, beams, self._held_out.exclude_history, requests)
        self.float_milliseconds = self.float_milliseconds or taken["before"]
        return self.float_milliseconds * taken["after"] / taken["before"]

    def _load(self, folder: Path) -> Recommender:
        manifest = self.bench.manifest
        return Recommender(load_engine("cpu", folder, manifest), manifest, self.bench.catalog)


def _base(precision: Precision) -> str:
    """The variant that a precision starts from."""
    return "equalized" if precision.equalizes else "float"


def _graph_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.onnx*"))


def _write(bench: Bench, chosen: Candidate, out: Path, samples: int, settings: Settings) -> Manifest:
    """Puts the bundle in its place."""
    tools = {**bench.manifest.tools, **{module.__name__: module.__version__ for module in (onnx, onnxruntime, np)}}
    with folder_written_whole(out) as folder:
        for path in chosen.folder.iterdir():
            shutil.move(path, folder / path.name)
        shutil.copy(bench.source / CATALOG_FILE, folder / CATALOG_FILE)
        manifest = replace(
            bench.manifest,
            precision=chosen.precision.name,
            tools=tools,
            parity=None,  # said how near the float graphs were to torch
            accuracy=chosen.verdict.as_json(),
            calibration={
                "engine": chosen.form.engine,
                "method": settings.method if chosen.precision.method == "static" else None,
                "samples": samples,
                "seed": settings.seed,
                "fine_products": list(chosen.mix.fine_kinds),
                "float_layers": list(chosen.mix.float_units),
            },
        ).with_files(folder)
        manifest.save(folder)
    return manifest
