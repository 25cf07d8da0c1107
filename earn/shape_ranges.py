"""Ranges of shapes that compiled engines are built for: one for prompts, one for decoding passes. No torch.

TensorRT chooses its kernels per range (an "optimization profile") and refuses shapes outside. Each range here is a box
over the axes of the tensor table (see earn.specs); together they hold every call that the runtime can make within a
bundle's limits:

    decode     passes of generated rows; also a session's new item, or another prompt of few rows
    prefill    the constant head, a prompt, or a piece of it

The one graph has a profile for each of a few lengths, to which histories are padded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from earn.specs import PIECE, Axis, Limits, Sizes, TensorSpec, stage_specs

Shape = tuple[int, ...]

MOST_EXCLUDED = 65_536  # items that a request of the one graph's engine may exclude


@dataclass(frozen=True)
class Range:
    """The shapes that one input may have."""

    least: Shape
    usual: Shape  # what kernels are chosen for
    most: Shape

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a shape lies within."""
        sizes = zip(self.least, shape, self.most, strict=True)
        return len(shape) == len(self.most) and all(least <= size <= most for least, size, most in sizes)


@dataclass(frozen=True)
class OptimizationProfile:
    """A range for every input of a stage, as TensorRT's optimization profiles have."""

    name: str  # "decode" or "prefill"
    ranges: Mapping[str, Range]

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether inputs of these shapes lie within."""
        return all(own.holds(shapes[name]) for name, own in self.ranges.items())


def profiles(stage: str, sizes: Sizes, limits: Limits) -> tuple[OptimizationProfile, ...]:
    """The ranges of the stage "early" or "late", decode first."""
    inputs = stage_specs(stage, sizes, limits).inputs
    return tuple(
        OptimizationProfile(name, {spec.name: _range(spec, axes) for spec in inputs})
        for name, axes in _profile_axes(stage, limits).items()
    )


def whole_profile(stage: str, sizes: Sizes, limits: Limits) -> OptimizationProfile:
    """One range for all calls, for engines that can have one alone; what is usual is a decoding pass."""
    inputs = stage_specs(stage, sizes, limits).inputs
    decode, prefill = _profile_axes(stage, limits).values()
    axes = {
        name: Axis(name, min(axis.least, prefill[name].least), axis.usual, max(axis.most, prefill[name].most))
        for name, axis in decode.items()
    }
    axes["s+m"] = _sum("s+m", axes["s"], axes["m"])
    return OptimizationProfile("all", {spec.name: _range(spec, axes) for spec in inputs})


def one_graph_profiles(limits: Limits) -> tuple[OptimizationProfile, ...]:
    """The ranges of the one graph's inputs: a quarter, half and all of the longest history, shortest first."""
    lengths = sorted({max(1, limits.history // part) for part in (4, 2, 1)})
    excluded, k = Range((1, 1), (1, limits.history), (limits.batch, MOST_EXCLUDED)), Range((1,), (1,), (1,))
    return tuple(
        OptimizationProfile(
            f"{length} items",
            {"history": Range((1, length), (1, length), (limits.batch, length)), "excluded": excluded, "k": k},
        )
        for length in lengths
    )


def profile_for(stage: Sequence[OptimizationProfile], shapes: Mapping[str, Sequence[int]]) -> int:
    """The index of the profile for inputs of these shapes: of those that hold them, the one with the nearest row count.

    Raises:
        ValueError: none does; the runtime keeps its calls within the bundle's limits, so this is a defect.
    """
    tokens = "input_ids" if "input_ids" in shapes else "hidden"  # [b,m] or [b,m,d]
    distance = {
        index: abs(math.log(shapes[tokens][1] / profile.ranges[tokens].usual[1]))
        for index, profile in enumerate(stage)
        if profile.holds(shapes)
    }
    if not distance:
        raise ValueError(f"No profile holds { ({name: tuple(shape) for name, shape in shapes.items()}) }.")
    return min(distance, key=distance.__getitem__)


def profile_hash(stages: Mapping[str, Sequence[OptimizationProfile]]) -> str:
    """A SHA-256 of all profiles: an engine that was built for others does not fit."""
    plain = {stage: [asdict(profile) for profile in own] for stage, own in stages.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _profile_axes(stage: str, limits: Limits) -> dict[str, dict[str, Axis]]:
    """Least, usual and most of the axes that depend on the call, per profile.

    The sum s+m is at its most where both are: an engine's builder tries the most of all axes together.
    """
    early = stage == "early"
    prompt = limits.prompt if early else limits.prefix + limits.readout
    beams, rows = min(limits.beams, 20), limits.pass_rows
    generated = max(0, limits.generated - limits.beams)  # the last pass does not read its own rows back
    read = min(limits.prompt, PIECE) if early else max(limits.prefix, limits.readout)
    before = limits.prompt - 1 if early else limits.prefix
    kept = max(limits.prefix, limits.readout) if early else 1
    usual = min(before, limits.head) if early else before
    ranges = {
        "decode": {"m": (1, beams, rows), "s": (1, prompt, prompt + generated), "r": (1, beams, rows)},
        "prefill": {"m": (1, read, read), "s": (0, usual, before), "r": (1, min(kept, limits.readout), kept)},
    }
    profile_axes = {}
    for name, own in ranges.items():
        axes = {axis: Axis(axis, *sizes) for axis, sizes in {**own, "b": (1, 1, limits.batch)}.items()}
        profile_axes[name] = {**axes, "s+m": _sum("s+m", axes["s"], axes["m"])}
    return profile_axes


def _sum(name: str, one: Axis, other: Axis) -> Axis:
    return Axis(name, one.least + other.least, one.usual + other.usual, one.most + other.most)


def _range(spec: TensorSpec, axes: Mapping[str, Axis]) -> Range:
    own = [axis if axis.is_fixed else axes[axis.name] for axis in spec.axes]
    return Range(tuple(axis.least for axis in own), tuple(axis.usual for axis in own), tuple(axis.most for axis in own))
