"""What goes into the products while the runtime answers real histories: prompts and decode steps, as in service."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

from earn.calibration.linear_layers import activations, products, watch
from earn.catalog import Catalog
from earn.manifest import Manifest
from earn.runtime.memory import HOST, Array
from earn.runtime.recommender import Recommender
from earn.specs import STAGES

Floats = NDArray[np.float32]

# How a range is chosen from the values that were seen: settings of ONNX Runtime's collector; None: least to largest.
RANGE_METHODS: Mapping[str, Mapping[str, Any] | None] = {
    "minmax": None,
    "percentile": {"num_bins": 2048, "num_quantized_bins": 128, "percentile": 99.999},
    "entropy": {"num_bins": 512, "num_quantized_bins": 128, "percentile": 99.999},
}


@dataclass
class ChannelRange:
    """The least and largest value of every channel of a tensor."""

    lowest: Floats  # [channels]
    highest: Floats

    @property
    def magnitude(self) -> Floats:
        """The largest absolute value of every channel."""
        return np.maximum(np.abs(self.lowest), np.abs(self.highest))


@dataclass(frozen=True)
class Observations:
    """What one stage's tensors held."""

    channels: Mapping[str, ChannelRange]  # by tensor
    ranges: Mapping[str, tuple[float, float]]  # by tensor: the range to round within


class Observer:
    """An engine that answers as the graphs do and notes the values of every product's input."""

    device = HOST

    def __init__(self, graphs: Mapping[str, Path], method: str = "minmax") -> None:
        """Takes the stages' float graphs; writes a watched copy of each beside it, without its weights."""
        settings = RANGE_METHODS[method]
        self._channels: dict[str, dict[str, ChannelRange]] = {stage: {} for stage in graphs}
        self._collectors = {
            stage: settings and HistogramCollector(method=method, symmetric=False, scenario="same", **settings)
            for stage in graphs
        }
        self._sessions = {stage: _watched_session(path) for stage, path in graphs.items()}

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage."""
        session, tensors = self._sessions[stage]
        names = [*outputs, *tensors]
        found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
        for name, array in outputs.items():
            array[...] = found[name]
        seen = {name: found[name] for name in tensors}
        for name, values in seen.items():
            self._note(stage, name, values.reshape(-1, values.shape[-1]))
        if collector := self._collectors[stage]:
            with redirect_stdout(io.StringIO()):  # it talks
                collector.collect(seen)

    def observations(self, stage: str) -> Observations:
        """What was seen so far."""
        channels = self._channels[stage]
        ranges = {name: (float(seen.lowest.min()), float(seen.highest.max())) for name, seen in channels.items()}
        if collector := self._collectors[stage]:
            with redirect_stdout(io.StringIO()):
                found = collector.compute_collection_result()
            ranges = {name: (float(values[0]), float(values[1])) for name, values in found.items()}
        return Observations(channels, ranges)

    def _note(self, stage: str, name: str, rows: Floats) -> None:
        lowest, highest = rows.min(axis=0), rows.max(axis=0)
        seen = self._channels[stage].setdefault(name, ChannelRange(lowest, highest))
        np.minimum(seen.lowest, lowest, out=seen.lowest)
        np.maximum(seen.highest, highest, out=seen.highest)


def observe(
    graphs: Mapping[str, Path],
    manifest: Manifest,
    catalog: Catalog,
    histories: Sequence[Sequence[str]],
    beams: int,
    method: str,
    progress: Callable[[int, int], None],
) -> dict[str, Observations]:
    """Answers every history by the float graphs; returns by stage what went into the products."""
    observer = Observer(graphs, method)
    recommender = Recommender(observer, manifest, catalog)
    for number, history in enumerate(histories):
        recommender.recommend(history, beams, beams)  # or the search would end with the first
        progress(number + 1, len(histories))
    return {stage: observer.observations(stage) for stage in STAGES}


def _watched_session(path: Path) -> tuple[Any, list[str]]:
    """A session that gives out the products' inputs too, and their names."""
    graph = onnx.load(str(path), load_external_data=False)
    tensors = activations(products(graph))
    watched = path.with_suffix(".watched.onnx")  # external weights are found beside it
    onnx.save(watch(graph, tensors), str(watched))
    return onnxruntime.InferenceSession(str(watched), providers=["CPUExecutionProvider"]), tensors
