"""How sensitive each layer is to quantization: it alone quantized, measured at its stage's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from earn.calibration.linear_layers import EMBEDDING, HEAD
from earn.calibration.variants import GraphVariants, MixedPrecision
from earn.runtime.engine import Engine
from earn.runtime.memory import HOST, Array
from earn.specs import STAGES

HISTORIES = 8  # whose prompts and decode steps are replayed for every layer

Call = tuple[dict[str, Array], Array]  # a stage's inputs, and its first output


class Recorder:
    """An engine that keeps what goes in and out of another."""

    device = HOST

    def __init__(self, engine: Engine) -> None:
        self.calls: dict[str, list[Call]] = {stage: [] for stage in STAGES}
        self._engine = engine

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage."""
        self._engine.run(stage, feeds, outputs)
        inputs = {name: np.array(array) for name, array in feeds.items()}
        self.calls[stage].append((inputs, np.array(next(iter(outputs.values())))))


def layer_sensitivities(
    variants: GraphVariants,
    base: str,
    quantized: str,
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """The relative error of its stage's output (hidden states or logits) for every layer that alone is quantized.

    Args:
        base, quantized: variants; the layers but one are taken from the base.
        histories: of these, HISTORIES are replayed.
    """
    recorder = Recorder(variants.engine(variants.source))
    recommender = variants.recommender_of(recorder)
    for history in histories[:HISTORIES]:
        recommender.recommend(history, beams, beams)  # with k below the beams the search could end early
    layers = variants.layers(quantized)
    errors = {}
    for done, layer in enumerate(layers, start=1):
        stage = {HEAD: "late", EMBEDDING: "early"}.get(layer, layer.partition(".")[0])
        others = MixedPrecision(float_layers=tuple(other for other in layers if other != layer))
        errors[layer] = _error(
            variants.session(variants.write_mixed(base, quantized, stage, others)), recorder.calls[stage]
        )
        progress(done, len(layers))
    return errors


def _error(session: Any, calls: Sequence[Call]) -> float:
    """||actual - expected|| / ||expected|| of the graph's first output over all calls."""
    name = session.get_outputs()[0].name
    difference = size = 0.0
    for feeds, expected in calls:
        actual = session.run([name], feeds)[0]
        difference += float(np.square(actual - expected, dtype=np.float64).sum())
        size += float(np.square(expected, dtype=np.float64).sum())
    return float(np.sqrt(difference / size)) if size else 0.0
