"""How much each layer suffers from quantization: it alone quantized, measured at the stage's own output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from earn.calibration.bench import Bench, Mix
from earn.calibration.linear_layers import HEAD
from earn.calibration.quantize import EMBEDDING
from earn.runtime.engine import Engine
from earn.runtime.memory import HOST, Array, Host
from earn.runtime.recommender import Recommender
from earn.specs import STAGES

HISTORIES = 8  # whose prompts and decode steps are replayed for every layer


@dataclass
class Recorder:
    """An engine that keeps what went in and out of another."""

    device: ClassVar[Host] = HOST
    engine: Engine
    calls: dict[str, list[tuple[dict[str, Array], Array]]] = field(
        default_factory=lambda: {stage: [] for stage in STAGES}
    )

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage."""
        self.engine.run(stage, feeds, outputs)
        inputs = {name: np.array(array) for name, array in feeds.items()}
        self.calls[stage].append((inputs, np.array(next(iter(outputs.values())))))


def sensitivities(
    bench: Bench,
    base: str,
    quantized: str,
    engine: Engine,
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """The relative error of its stage's output (hidden states or logits) for every unit that alone is quantized.

    Args:
        base, quantized: variants on the bench.
        engine: runs the float graphs.
        histories: of these, HISTORIES are replayed.
    """
    recorder = Recorder(engine)
    recommender = Recommender(recorder, bench.manifest, bench.catalog)
    for history in histories[:HISTORIES]:
        recommender.recommend(history, beams, beams)  # or the search would end with the first
    units = bench.units(quantized)
    errors = {}
    for number, unit in enumerate(units):
        stage = {HEAD: "late", EMBEDDING: "early"}.get(unit, unit.partition(".")[0])
        others = Mix(float_units=tuple(other for other in units if other != unit))
        errors[unit] = _error(bench.mix(base, quantized, stage, others), recorder.calls[stage])
        progress(number + 1, len(units))
    return errors


def _error(path: Path, calls: Sequence[tuple[dict[str, Array], Array]]) -> float:
    """||got - want|| / ||want|| of the graph's first output over all calls."""
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_outputs()[0].name
    off = size = 0.0
    for feeds, want in calls:
        got = session.run([name], feeds)[0]
        off += float(np.square(got - want, dtype=np.float64).sum())
        size += float(np.square(want, dtype=np.float64).sum())
    return float(np.sqrt(off / size)) if size else 0.0
