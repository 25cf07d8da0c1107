"""The gate: a quantized bundle must recommend what the float bundle recommends, to users that it was not calibrated on.

Errors of logits are not asked: a small one may swap items, and a large one may not. The gate asks for
    overlap     of the set of the best BEAM_SET items, averaged over users (that of the best TOP is shown beside)
    NDCG@10     whose loss must not be significant: the paired bootstrap interval of (after - before) reaches 0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earn.metrics import Example, bootstrap_interval, ndcg, recall, target_rank
from earn.runtime.recommender import Recommender

BEAM_SET, TOP = 20, 10
LEAST_OVERLAP = 0.95

Ranking = list[str]  # item ids, best first


def beam_set(recommender: Recommender) -> int:
    """How many of the best items are compared: BEAM_SET, or what the bundle allows, or half of a small catalog."""
    return max(1, min(BEAM_SET, recommender.manifest.limits.beams, len(recommender.catalog) // 2))


@dataclass(frozen=True)
class HeldOut:
    """Users that the gate asks about: their histories as item ids, and what each chose next."""

    histories: tuple[tuple[str, ...], ...]
    targets: tuple[str, ...]
    exclude_history: bool = False

    @classmethod
    def of(cls, examples: Sequence[Example], item_ids: Sequence[str], exclude_history: bool = False) -> HeldOut:
        """The examples with item ids for indices."""
        histories = tuple(tuple(item_ids[item] for item in example.history) for example in examples)
        return cls(histories, tuple(item_ids[example.target] for example in examples), exclude_history)

    def rankings(
        self, recommender: Recommender, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Ranking]:
        """The best items of each user, one request at a time as on a device (a batch would share its ranges)."""
        width = beam_set(recommender)
        rankings = []
        for history in self.histories:
            items = recommender.recommend(history, width, width, exclude_history=self.exclude_history)
            rankings.append([item.item_id for item in items])
            progress(len(rankings), len(self.histories))
        return rankings


@dataclass(frozen=True)
class Measure:
    """A mean over users, before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class Verdict:
    """What the gate measured."""

    users: int
    beam_set: int  # items that are compared
    beam_set_overlap: float
    top10_overlap: float
    recall: Measure  # at 10
    ndcg: Measure  # at 10
    interval: tuple[float, float]  # of the change of NDCG@10
    least_overlap: float  # of the beam set, to pass
    overlaps: NDArray[np.float64]  # [users] of the beam set

    @property
    def reasons(self) -> list[str]:
        """Why it does not pass."""
        return [*self.shortfalls.values()]

    @property
    def shortfalls(self) -> dict[str, str]:
        """The figures that keep it from passing, and how each falls short."""
        shortfalls = {}
        if not self.beam_set_overlap >= self.least_overlap:  # so that no number fails too
            shortfalls["overlap"] = (
                f"the best {self.beam_set} items overlap by {self.beam_set_overlap:.4f}, less than {self.least_overlap}"
            )
        if self.interval[1] < 0:
            shortfalls["NDCG@10"] = (
                f"NDCG@10 falls from {self.ndcg.before:.4f} to {self.ndcg.after:.4f}, by "
                f"{-self.interval[1]:.4f} to {-self.interval[0]:.4f}"
            )
        return shortfalls

    @property
    def passed(self) -> bool:
        """Whether the gate passes."""
        return not self.reasons

    def as_json(self) -> dict[str, Any]:
        """The figures, without those of single users."""
        return {
            "passed": self.passed,
            "users": self.users,
            "beam_set": self.beam_set,
            "beam_set_overlap": self.beam_set_overlap,
            "top10_overlap": self.top10_overlap,
            "recall@10": asdict(self.recall),
            "ndcg@10": {**asdict(self.ndcg), "interval": list(self.interval)},
            "limits": {"beam_set_overlap": self.least_overlap},
        }


def apply_gate(
    before: Sequence[Ranking],
    after: Sequence[Ranking],
    targets: Sequence[str],
    least_overlap: float = LEAST_OVERLAP,
    seed: int = 0,
) -> Verdict:
    """Compares two recommenders' rankings for the same users.

    Args:
        least_overlap: mean share of the beam set that must stay, 0 to 1.
        seed: of the bootstrap.
    """
    ranks = [
        np.array([target_rank(list(ranking), target) for ranking, target in zip(side, targets, strict=True)])
        for side in (before, after)
    ]
    gains = [ndcg(side, 10) for side in ranks]
    overlaps = _overlaps(before, after, BEAM_SET)
    return Verdict(
        users=len(targets),
        beam_set=max(map(len, before), default=0),
        beam_set_overlap=float(overlaps.mean()),
        top10_overlap=float(_overlaps(before, after, TOP).mean()),
        recall=Measure(*(float(recall(side, 10).mean()) for side in ranks)),
        ndcg=Measure(*(float(gain.mean()) for gain in gains)),
        interval=bootstrap_interval(gains[1] - gains[0], seed),
        least_overlap=least_overlap,
        overlaps=overlaps,
    )


def _overlaps(before: Sequence[Ranking], after: Sequence[Ranking], cutoff: int) -> NDArray[np.float64]:
    """The share of each user's best items before that are among the best after [users]."""
    return np.array(
        [
            len(set(old[:cutoff]) & set(new[:cutoff])) / len(old[:cutoff]) if old else 1.0
            for old, new in zip(before, after, strict=True)
        ]
    )
