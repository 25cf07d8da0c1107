"""Whether two searches found the same list: the same items in the same order, but for near ties."""

from __future__ import annotations

from collections.abc import Sequence

from earn.runtime.recommender import Recommendation

NEAR_TIE = 1e-4  # difference of scores below which two searches may order items otherwise


def is_same_list(want: Sequence[str], got: Sequence[Recommendation]) -> bool:
    """Whether `got` has the items of `want`, each where it stands there or at a place of nearly the same score."""
    score = {item.item_id: item.score for item in got}
    return sorted(want) == sorted(score) and all(
        abs(score[item_id] - item.score) < NEAR_TIE for item_id, item in zip(want, got, strict=True)
    )
