"""What goes into the linear layers while the runtime answers real histories: its ranges and its second moments.

Prompts and decode steps are run as in service, behind the constant head that every calibrated bundle brings: its
tokens, whose values are by far the largest, do not count. Ranges go from the least to the largest value (min-max).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from earn.calibration.linear_layers import activations
from earn.calibration.variants import GraphVariants
from earn.runtime.memory import HOST, Array
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
Progress = Callable[[int, int], None]  # (done, all)
Keep = Callable[[str, str, Floats], None]  # takes a stage, a tensor's name, and one call's rows of it [rows, channels]


class CollectingEngine:
    """An engine that answers as a variant's graphs do, and hands on some of what goes into the linear layers."""

    device = HOST

    def __init__(self, variants: GraphVariants, variant: str, tensors: Mapping[str, Sequence[str]], keep: Keep) -> None:
        """Hands on these tensors, by stage."""
        self._keep, self._tensors = keep, {stage: tensors.get(stage, ()) for stage in STAGES}
        self._sessions = {}
        for stage in STAGES:
            graph = variants.load_without_weights(variant, stage)
            known = {output.name for output in graph.graph.output}
            graph.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                for name in self._tensors[stage]
                if name not in known
            )
            path = variants.path(f"{variant}.collect", stage)  # its weights are the variant's, which lie beside it
            onnx.save(graph, str(path))
            self._sessions[stage] = variants.session(path)

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage."""
        tensors = self._tensors[stage]
        names = [*outputs, *tensors]
        values = dict(zip(names, self._sessions[stage].run(names, dict(feeds)), strict=True))
        for name, array in outputs.items():
            array[...] = values[name]
        for name in tensors:
            self._keep(stage, name, values[name].reshape(-1, values[name].shape[-1]))


def collect_ranges(
    variants: GraphVariants,
    variant: str,
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Progress = lambda done, total: None,
) -> dict[str, StageRanges]:
    """Answers every history by a variant's graphs; returns by stage the ranges of what goes into the linear layers."""
    ranges: dict[str, dict[str, ChannelRange]] = {stage: {} for stage in STAGES}

    def widen(stage: str, name: str, rows: Floats) -> None:
        lowest, highest = rows.min(axis=0), rows.max(axis=0)
        seen = ranges[stage].setdefault(name, ChannelRange(lowest, highest))
        np.minimum(seen.lowest, lowest, out=seen.lowest)
        np.maximum(seen.highest, highest, out=seen.highest)

    tensors = {stage: activations(variants.linear_layers(stage)) for stage in STAGES}
    _answer(CollectingEngine(variants, variant, tensors, widen), variants, histories, beams, progress)
    return {**ranges}


def collect_moments(
    variants: GraphVariants,
    variant: str,
    stage: str,
    tensors: Sequence[str],
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Progress = lambda done, total: None,
) -> dict[str, Floats]:
    """Likewise the second moments X^T X of some tensors of a stage, each a matrix as wide as its tensor."""
    moments: dict[str, Floats] = {}

    def add(_: str, name: str, rows: Floats) -> None:
        own = rows.T @ rows
        if name in moments:
            moments[name] += own
        else:
            moments[name] = own

    _answer(CollectingEngine(variants, variant, {stage: tensors}, add), variants, histories, beams, progress)
    return moments


def _answer(
    engine: CollectingEngine,
    variants: GraphVariants,
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Progress,
) -> None:
    recommender = variants.recommender_of(engine)
    for done, history in enumerate(histories, start=1):
        recommender.recommend(history, beams, beams)  # with k below the beams the search could end early
        progress(done, len(histories))
