"""What is tried, one after the other, while a precision fails the gate: what costs least first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from earn.calibration.linear_layers import EMBEDDING, HEAD
from earn.calibration.precisions import Precision
from earn.calibration.variants import GraphVariants, MixedPrecision, graph_bytes

ENDS = (HEAD, EMBEDDING)  # what they round reorders items directly
SMALL = 0.02  # share of the float graphs' bytes, up to which the ends may stay in float for nothing


def free_layers(variants: GraphVariants) -> tuple[str, ...]:
    """The ends, if they are a small part of the graphs, as of a language model over few items; else none."""
    sizes = variants.manifest.sizes
    weights = (sizes.embedding_rows + sizes.logits) * sizes.hidden * np.dtype(np.float32).itemsize
    return ENDS if weights <= SMALL * graph_bytes(variants.source) else ()


def fallbacks(variants: GraphVariants, precision: Precision, levels: Sequence[tuple[str, ...]]) -> list[MixedPrecision]:
    """Activations refined, where ranges are fixed, and the ends in float; free ends come first.

    Args:
        levels: kinds of linear layers whose activations are refined, level by level.
    """
    ends = tuple(layer for layer in ENDS if layer in variants.layers(precision.name))
    levels = levels if precision.method == "static" else ()
    both = [MixedPrecision(ends, kinds) for kinds in levels]
    if free_layers(variants):
        return [MixedPrecision(ends), *both]
    return [*(MixedPrecision(refined_kinds=kinds) for kinds in levels), *both]
