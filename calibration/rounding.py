"""Makes variants whose weights stand on the steps of 8 or 4 bits, for all precisions that round them so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnx import numpy_helper

from earn.calibration.collect import collect_moments
from earn.calibration.error_feedback import STEPS, round_with_feedback
from earn.calibration.linear_layers import LinearLayer
from earn.calibration.variants import GraphVariants

ROUNDED = "rounded"  # stands in the variants' names
MOST_HISTORIES = 64  # that moments are collected of; with 32 int4 kept .01 less, with 128 no more
MOST_BYTES = 1 << 30  # of the moments that are in memory at a time; each round of them answers the histories again

Progress = Callable[[str], Callable[[int, int], None]]  # what goes on -> a callback (done, all)


@dataclass(frozen=True)
class Rounding:
    """Rounds the weights of a bundle's graphs."""

    variants: GraphVariants
    histories: Sequence[Sequence[str]]  # of the calibration; without any, weights are left to go to their nearest steps
    beams: int
    progress: Progress

    def make(self, base: str, stage: str, bits: int) -> str:
        """Rounds a stage of a variant, if that was not done before; returns the name of the variant to quantize.

        A weight whose last block is not full stays as it is: not every engine takes it in blocks.
        """
        if not self.histories:
            return base
        variants, name = self.variants, f"{base}-{ROUNDED}-{bits}"
        if variants.path(name, stage).exists():
            return name
        graph = variants.load(base, stage)
        constants = {tensor.name: tensor for tensor in graph.graph.initializer}
        histories = self.histories[:: -(-len(self.histories) // MOST_HISTORIES)]
        rows = {linear.weight: constants[linear.weight].dims[0] for linear in variants.linear_layers(stage)}
        is_whole = {name: count % (STEPS[bits].rows or count) == 0 for name, count in rows.items()}
        wanted = [linear for linear in variants.linear_layers(stage) if is_whole[linear.weight]]
        for linears in _groups(wanted, rows):
            progress = self.progress(f"collect, {bits} bits, {stage} stage")
            tensors = list(dict.fromkeys(linear.activation for linear in linears))
            moments = collect_moments(variants, base, stage, tensors, histories, self.beams, progress)
            for tensor in tensors:
                readers = [linear for linear in linears if linear.activation == tensor]
                weights = [constants[linear.weight] for linear in readers]
                arrays, layer = map(numpy_helper.to_array, weights), f"{readers[0].name} of the {stage} stage"
                values = round_with_feedback(arrays, moments.pop(tensor), STEPS[bits], layer)
                for weight, rounded in zip(weights, values, strict=True):
                    weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
        variants.save(name, stage, graph)
        return name

    def forget(self, stage: str) -> None:
        """Removes what was made of a stage: each is as large as the float graph."""
        for path in self.variants.folder.glob(f"*-{ROUNDED}-*.{stage}.onnx*"):
            path.unlink()


def _groups(linears: Sequence[LinearLayer], rows: dict[str, int]) -> Iterator[list[LinearLayer]]:
    """The linear layers in their order, so many at a time as moments have room for.

    Args:
        rows: of each weight, which are the channels of what goes in.
    """
    group: list[LinearLayer] = []
    tensors: dict[str, int] = {}  # bytes of the moments of each
    for linear in linears:
        own = {linear.activation: 4 * rows[linear.weight] ** 2}
        if group and sum({**tensors, **own}.values()) > MOST_BYTES:
            yield group
            group, tensors = [], {}
        group.append(linear)
        tensors |= own
    if group:
        yield group
