"""Compares two engines call by call while the runtime searches: the values of every output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from earn.catalog import Catalog
from earn.errors import EarnError
from earn.manifest import Manifest
from earn.runtime.engine import Engine
from earn.runtime.memory import HOST, Array
from earn.runtime.recommender import Recommender

SMALLEST_SCALE = 1e-2  # an output whose largest value is smaller is measured as if it were this
TOLERANCE = 1e-3  # largest difference of any hidden state, key, value or logit, relative to the output's largest value


class ComparingEngine:
    """Answers as the reference does, and notes where the candidate answers otherwise."""

    device = HOST

    def __init__(self, reference: Engine, candidate: Engine) -> None:
        self._reference = reference
        self._candidate = candidate
        self.failures: list[str] = []
        self.calls = 0
        self.worst = 0.0  # largest relative difference so far

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """The reference's outputs, after comparing the candidate's with them."""
        candidate = {name: np.full_like(array, np.nan) for name, array in outputs.items()}
        self._candidate.run(stage, feeds, candidate)
        self._reference.run(stage, feeds, outputs)
        self.calls += 1
        for name, want in outputs.items():
            self._compare(f"{stage} {name}", want, candidate[name])

    def _compare(self, name: str, want: Array, got: Array) -> None:
        if want.size:
            difference = np.abs(got - want)
            relative = float(difference.max() / max(SMALLEST_SCALE, float(np.abs(want).max())))
            self.worst = max(self.worst, relative)
            if not relative <= TOLERANCE:  # also true of nan
                self.failures.append(
                    f"{name}: differs by {difference.max():.3g} at most, {difference.mean():.3g} on average"
                )


def check_parity(
    reference: Engine,
    candidate: Engine,
    manifest: Manifest,
    catalog: Catalog,
    histories: Sequence[Sequence[str]],
    beams: int = 20,
) -> float:
    """Runs real histories through both engines, one by one and as a batch.

    Returns:
        The largest relative difference of any output.

    Raises:
        EarnError: there is no history, or an output differs; lists the first failures.
    """
    if not histories:
        raise EarnError("There is no history to check the graphs with. Give data with at least one user.")
    engine = ComparingEngine(reference, candidate)
    recommender = Recommender(engine, manifest, catalog)
    beams = min(beams, manifest.limits.beams)
    for history in histories[:4]:
        recommender.recommend(history, beams, beams)
    recommender.recommend_batch(histories, beams, beams)
    if engine.failures:
        listed = "; ".join(engine.failures[:5])
        raise EarnError(
            f"The exported graphs do not compute what torch computes, {len(engine.failures)} times in {engine.calls} "
            f"calls: {listed}. Nothing was written; check the versions of torch and transformers "
            "against constraints.txt."
        )
    return engine.worst
