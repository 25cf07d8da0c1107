"""Ranges of the values that go into the linear layers while the runtime answers real histories.

Prompts and decode steps are run as in service. Ranges go from the least to the largest value (min-max).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from earn.calibration.linear_layers import activations, linear_layers
from earn.calibration.variants import GraphVariants
from earn.runtime.memory import HOST, Array
from earn.runtime.onnx_engine import session_options
from earn.runtime.recommender import Recommender
from earn.specs import STAGES

Floats = NDArray[np.float32]


@dataclass
class ChannelRange:
    """The least and largest value of every channel of a tensor."""

    lowest: Floats  # [channels]
    highest: Floats

    @property
    def magnitude(self) -> Floats:
        """The largest absolute value of every channel."""
        return np.maximum(np.abs(self.lowest), np.abs(self.highest))

    @property
    def whole(self) -> tuple[float, float]:
        """The least and largest value of the whole tensor: the range to round within."""
        return float(self.lowest.min()), float(self.highest.max())


StageRanges = Mapping[str, ChannelRange]  # by tensor that goes into a linear layer of the stage


class ActivationCollector:
    """An engine that answers as a variant's graphs do, and keeps the ranges of what goes into their linear layers."""

    device = HOST

    def __init__(self, variants: GraphVariants, variant: str) -> None:
        self.ranges: dict[str, dict[str, ChannelRange]] = {stage: {} for stage in STAGES}
        self._sessions = {stage: _session(variants, variant, stage) for stage in STAGES}

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage."""
        session, tensors = self._sessions[stage]
        names = [*outputs, *tensors]
        values = dict(zip(names, session.run(names, dict(feeds)), strict=True))
        for name, array in outputs.items():
            array[...] = values[name]
        for name in tensors:
            rows = values[name].reshape(-1, values[name].shape[-1])
            lowest, highest = rows.min(axis=0), rows.max(axis=0)
            seen = self.ranges[stage].setdefault(name, ChannelRange(lowest, highest))
            np.minimum(seen.lowest, lowest, out=seen.lowest)
            np.maximum(seen.highest, highest, out=seen.highest)


def collect_activations(
    variants: GraphVariants,
    variant: str,
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, StageRanges]:
    """Answers every history by a variant's graphs; returns by stage the ranges of what goes into the linear layers."""
    collector = ActivationCollector(variants, variant)
    recommender = Recommender(collector, variants.manifest, variants.catalog)
    for done, history in enumerate(histories, start=1):
        recommender.recommend(history, beams, beams)  # with k below the beams the search could end early
        progress(done, len(histories))
    return {**collector.ranges}


def _session(variants: GraphVariants, variant: str, stage: str) -> tuple[Any, list[str]]:
    """A session that gives out the inputs of the linear layers too, and their names."""
    graph = variants.load_without_weights(variant, stage)
    tensors = activations(linear_layers(graph))
    known = {output.name for output in graph.graph.output}
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors if name not in known
    )
    path = variants.path(f"{variant}.collect", stage)  # its weights are the variant's, which lie beside it
    onnx.save(graph, str(path))
    options = session_options(threads=None, spinning=False, arena=True)  # they wait while numpy works
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), tensors
