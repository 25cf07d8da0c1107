"""What goes into the linear layers while the runtime answers real histories: its ranges and its second moments.

Prompts and decode steps are run as in service. Ranges go from the least to the largest value (min-max).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from earn.calibration.error_feedback import Moments
from earn.calibration.linear_layers import activations, linear_layers
from earn.calibration.variants import GraphVariants
from earn.runtime.memory import HOST, Array
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


class ActivationCollector(ABC):
    """An engine that answers as a variant's graphs do, and keeps something of what goes into their linear layers."""

    device = HOST

    def __init__(self, variants: GraphVariants, variant: str, stages: Collection[str] = STAGES) -> None:
        self._sessions = {stage: _session(variants, variant, stage, stage in stages) for stage in STAGES}

    @abstractmethod
    def keep(self, stage: str, name: str, rows: Floats) -> None:
        """Takes in one call's rows of a tensor, [rows, channels]."""

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Runs the stage."""
        session, tensors = self._sessions[stage]
        names = [*outputs, *tensors]
        values = dict(zip(names, session.run(names, dict(feeds)), strict=True))
        for name, array in outputs.items():
            array[...] = values[name]
        for name in tensors:
            self.keep(stage, name, values[name].reshape(-1, values[name].shape[-1]))


class RangeCollector(ActivationCollector):
    """Keeps the least and largest value of every channel."""

    def __init__(self, variants: GraphVariants, variant: str) -> None:
        super().__init__(variants, variant)
        self.ranges: dict[str, dict[str, ChannelRange]] = {stage: {} for stage in STAGES}

    def keep(self, stage: str, name: str, rows: Floats) -> None:
        """Widens the tensor's ranges."""
        lowest, highest = rows.min(axis=0), rows.max(axis=0)
        seen = self.ranges[stage].setdefault(name, ChannelRange(lowest, highest))
        np.minimum(seen.lowest, lowest, out=seen.lowest)
        np.maximum(seen.highest, highest, out=seen.highest)


class MomentCollector(ActivationCollector):
    """Keeps the second moments: a matrix as wide as the tensor, so of the stages that need it alone."""

    def __init__(self, variants: GraphVariants, variant: str, stages: Collection[str]) -> None:
        super().__init__(variants, variant, stages)
        self.moments: dict[str, dict[str, Floats]] = {stage: {} for stage in STAGES}

    def keep(self, stage: str, name: str, rows: Floats) -> None:
        """Adds the rows' moments."""
        moments, own = self.moments[stage], rows.T @ rows
        if name in moments:
            moments[name] += own
        else:
            moments[name] = own


def collect_activations(
    variants: GraphVariants,
    variant: str,
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, StageRanges]:
    """Answers every history by a variant's graphs; returns by stage the ranges of what goes into the linear layers."""
    collector = RangeCollector(variants, variant)
    _answer(collector, variants, histories, beams, progress)
    return {**collector.ranges}


def collect_moments(
    variants: GraphVariants,
    variant: str,
    stages: Collection[str],
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Moments]:
    """Likewise the second moments, of these stages."""
    collector = MomentCollector(variants, variant, stages)
    _answer(collector, variants, histories, beams, progress)
    return {**collector.moments}


def _answer(
    engine: ActivationCollector,
    variants: GraphVariants,
    histories: Sequence[Sequence[str]],
    beams: int,
    progress: Callable[[int, int], None],
) -> None:
    recommender = Recommender(engine, variants.manifest, variants.catalog)
    for done, history in enumerate(histories, start=1):
        recommender.recommend(history, beams, beams)  # with k below the beams the search could end early
        progress(done, len(histories))


def _session(variants: GraphVariants, variant: str, stage: str, is_collected: bool) -> tuple[Any, list[str]]:
    """A session that gives out the inputs of the linear layers too, and their names; none if nothing is collected."""
    graph = variants.load_without_weights(variant, stage)
    tensors = activations(linear_layers(graph)) if is_collected else []
    known = {output.name for output in graph.graph.output}
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors if name not in known
    )
    path = variants.path(f"{variant}.collect", stage)  # its weights are the variant's, which lie beside it
    onnx.save(graph, str(path))
    return variants.session(path), tensors
