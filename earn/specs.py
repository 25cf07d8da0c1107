"""The one table of tensors that go in and out of a stage: names, axes, types, and the range of every axis.

The ONNX export takes names and dynamic axes from here, TensorRT its profiles, the runtime its checks. No torch.

Axes: b users, m new tokens, s cached tokens, s+m both, r kept rows, v logits; 2l keys and values of the stage's layers,
g key-value heads, e head size, d hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STAGES = ("early", "late")


@dataclass(frozen=True)
class Sizes:
    """The fixed sizes of an exported model."""

    family: str  # Hugging Face's model_type: llama, qwen2, qwen3
    layers: int  # N
    early_layers: int  # k
    hidden: int  # d
    intermediate: int
    heads: int  # h
    key_value_heads: int  # g
    head_size: int  # e
    embedding_rows: int  # tokens that the early stage knows
    logits: int  # v, rows of the item head

    def stage_layers(self, stage: str) -> int:
        """l: the number of layers of the stage "early" or "late"."""
        return self.early_layers if stage == "early" else self.layers - self.early_layers


@dataclass(frozen=True)
class Limits:
    """What one call of the runtime may ask for; from these follow the range of every axis."""

    batch: int  # users per pass
    beams: int  # beams per user
    history: int  # items
    prompt: int  # tokens of a whole prompt, registers and constant head included
    head: int  # tokens of the constant head: prefix registers and instruction
    prefix: int  # prefix registers, cached in the late stage
    readout: int  # rows that a prompt hands to the late stage: its suffix registers, or its last token
    depth: int  # tokens of the longest identifier

    @property
    def generated(self) -> int:
        """Cache rows that decoding adds at the most: every beam at every step but the last."""
        return generated_rows(self.beams, self.depth)

    @property
    def pass_rows(self) -> int:
        """Rows of one decoding pass at the most: the beams, and as many of the tokens that may follow them."""
        return self.beams * min(2, max(1, self.depth - 1))


def generated_rows(beams: int, depth: int) -> int:
    """Cache rows that `beams` beams add to a user's sequence at the most."""
    return beams * (depth - 1)


CALL_AXES = ("b", "m", "s", "s+m", "r")  # their sizes depend on the call, even where the limits leave one size alone


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: a name and the sizes it may take."""

    name: str
    least: int
    usual: int
    most: int

    @property
    def is_fixed(self) -> bool:
        """Whether the model fixes the axis's size."""
        return self.name not in CALL_AXES


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a stage."""

    name: str
    axes: tuple[Axis, ...]
    dtype: str  # numpy's name

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Number and name of the axes whose size is not fixed."""
        return {index: axis.name for index, axis in enumerate(self.axes) if not axis.is_fixed}


@dataclass(frozen=True)
class StageSpecs:
    """Inputs and outputs of one stage, in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


PAST = "past_key_values"  # the cache that goes in
NEW = "new_key_values"  # the rows of it that come out

PIECE = 256  # rows that the early stage reads at once: prompts are read in pieces of at most so many. Bundles state it


def stage_specs(stage: str, sizes: Sizes, limits: Limits) -> StageSpecs:
    """The tensors of the stage "early" or "late".

    A late stage without layers (a dense model's) takes hidden states and kept rows alone.
    """
    axis = _axes(stage, limits)
    layers = sizes.stage_layers(stage)
    hidden = _fixed("d", sizes.hidden)
    row = (_fixed("2l", 2 * layers), _fixed("g", sizes.key_value_heads), _fixed("e", sizes.head_size))
    inputs = [
        TensorSpec("input_ids", (axis["b"], axis["m"]), "int64")
        if stage == "early"
        else TensorSpec("hidden", (axis["b"], axis["m"], hidden), "float32")
    ]
    outputs = [
        TensorSpec("hidden", (axis["b"], axis["r"], hidden), "float32")
        if stage == "early"
        else TensorSpec("logits", (axis["b"], axis["r"], _fixed("v", sizes.logits)), "float32")
    ]
    if layers:
        inputs += [
            TensorSpec("position_ids", (axis["b"], axis["m"]), "int64"),
            TensorSpec("attention_bias", (axis["b"], _fixed("1", 1), axis["m"], axis["s+m"]), "float32"),
            TensorSpec(PAST, (axis["s"], axis["b"], *row), "float32"),
        ]
        outputs.append(TensorSpec(NEW, (axis["m"], axis["b"], *row), "float32"))
    inputs.append(TensorSpec("keep", (axis["r"],), "int64"))
    return StageSpecs(tuple(inputs), tuple(outputs))


def all_specs(sizes: Sizes, limits: Limits) -> Mapping[str, StageSpecs]:
    """The tensors of both stages."""
    return {stage: stage_specs(stage, sizes, limits) for stage in STAGES}


def _axes(stage: str, limits: Limits) -> dict[str, Axis]:
    """The dynamic axes of a stage: prefill of a prompt or its constant head and decode steps fit into them."""
    early = stage == "early"
    prompt = limits.prompt if early else limits.prefix + limits.readout
    rows = max(min(limits.prompt, PIECE) if early else prompt, limits.pass_rows)
    kept = max(limits.prefix, limits.readout, limits.pass_rows)
    cached = prompt + max(0, limits.generated - limits.beams)  # the last step's own rows are never read back
    ranges = {
        "b": (1, 1, limits.batch),
        "m": (1, limits.beams, rows),
        "s": (0, prompt, cached),
        "s+m": (1, prompt + limits.beams, prompt + max(limits.generated, limits.pass_rows)),
        "r": (1, limits.beams, kept),
    }
    return {name: Axis(name, least, min(usual, most), most) for name, (least, usual, most) in ranges.items()}


def _fixed(name: str, size: int) -> Axis:
    return Axis(name, size, size, size)
