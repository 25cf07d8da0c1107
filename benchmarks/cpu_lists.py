"""What a bundle recommends on the CPU, in a process of its own that `benchmarks/gpu_lists.py` can end.

    python benchmarks/cpu_lists.py BUNDLE ITEMS BEAMS < histories.json

Reads a JSON list of histories (item ids) and prints a JSON list of as many lists of item ids. It imports no torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if not __package__:  # run as a script, for which Python looks in this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from earn.errors import EarnError
from earn.runtime.recommender import Recommender


def main() -> None:
    """Asks about one history after the other."""
    folder, items, beams = sys.argv[1:]
    try:
        recommender = Recommender.load(folder, verify=False)
        lists = [recommender.recommend(history, int(items), int(beams)) for history in json.load(sys.stdin)]
    except EarnError as error:
        sys.exit(str(error))
    print(json.dumps([[item.item_id for item in own] for own in lists]))


if __name__ == "__main__":
    main()
