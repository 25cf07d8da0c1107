"""The smallest app around a bundle: python examples/embed.py BUNDLE ITEM [ITEM ...]"""

from __future__ import annotations

import sys

from earn.runtime.recommender import Recommender


def main() -> None:
    """Recommends five items that the history does not hold."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    bundle, *history = sys.argv[1:]
    recommender = Recommender.load(bundle)
    for item in recommender.recommend(history, k=5, exclude_history=True):
        print(f"{item.score:8.3f}  {item.item_id:>8}  {item.title}")


if __name__ == "__main__":
    main()
