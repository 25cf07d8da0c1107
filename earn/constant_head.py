"""Keys and values of the prompt's constant head, which a bundle may bring along: `constant_head.npz`.

    early   float32 [s,1,2l,g,e]   of all its s tokens in the early stage
    late    float32 [p,1,2l,g,e]   of its p prefix registers in the late stage, if that has layers

l layers of the stage, keys before values; g heads of keys and values; e the size of a head.

The first tokens of a prompt draw attention that says nothing (sinks). What makes them do so are values inside the MLPs
that are hundreds of times larger than any other token's, and rounding that leaves room for these leaves few steps for
the rest. But these tokens are the same in every request. So a quantized bundle brings what the float graphs made of
them, and its ranges are those of all other tokens.

    IntactKV (Liu et al., Findings of ACL 2024, arXiv 2403.01241)
    PrefixQuant (Chen et al., arXiv 2410.05265)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earn.arrays import ArrayForm, read_arrays, write_arrays
from earn.errors import EarnError
from earn.files import written_whole
from earn.manifest import HEAD_FILE, Manifest
from earn.specs import STAGES

Floats = NDArray[np.float32]
MOST_HEADERS = 4096  # bytes of the arrays' own


@dataclass(frozen=True)
class ConstantHead:
    """Keys and values by stage."""

    early: Floats
    late: Floats

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> ConstantHead | None:
        """That of a bundle; None where its graphs compute it.

        Raises:
            EarnError: the file is damaged, or another bundle's.
        """
        if not manifest.brings_head:
            return None
        path, shapes = folder / HEAD_FILE, head_shapes(manifest)
        forms = {stage: ArrayForm("<f4", 5) for stage in STAGES}
        most = MOST_HEADERS + sum(4 * int(np.prod(shape)) for shape in shapes.values())
        try:
            with path.open("rb") as file:
                head = cls(**read_arrays(file, forms, most))
        except (OSError, TypeError, ValueError) as error:
            raise EarnError(f"{path}: no keys and values of a prompt ({error}). Copy the bundle again.") from error
        if head.shapes != shapes:
            raise EarnError(f"{path}: has the shapes {head.shapes}, the bundle needs {shapes}. Copy the bundle again.")
        return head

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """By stage."""
        return {stage: getattr(self, stage).shape for stage in STAGES}

    def save(self, folder: Path) -> None:
        """Writes the file, whole or not at all."""
        with written_whole(folder / HEAD_FILE) as beside, beside.open("wb") as file:
            write_arrays(file, {stage: np.asarray(getattr(self, stage)) for stage in STAGES})


def head_shapes(manifest: Manifest) -> Mapping[str, tuple[int, ...]]:
    """The shapes of a bundle's keys and values, by stage."""
    sizes = manifest.sizes
    rows = {"early": manifest.limits.head, "late": manifest.limits.prefix if sizes.stage_layers("late") else 0}
    return {
        stage: (rows[stage], 1, 2 * sizes.stage_layers(stage), sizes.key_value_heads, sizes.head_size)
        for stage in STAGES
    }
