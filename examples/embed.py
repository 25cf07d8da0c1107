"""The smallest app around a bundle: python examples/embed.py BUNDLE ITEM [ITEM ...]"""

from __future__ import annotations

import sys

from earn.errors import EarnError
from earn.runtime.recommender import Recommender


def main() -> None:
    """Recommends five items that the history does not hold."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    bundle, *history = sys.argv[1:]
    try:
        items = Recommender.load(bundle).recommend(history, k=5, exclude_history=True)
    except EarnError as error:  # says what happened and what to do
        sys.exit(str(error))
    for item in items:
        print(f"{item.score:8.3f}  {item.item_id:>8}  {item.title}")


if __name__ == "__main__":
    main()
