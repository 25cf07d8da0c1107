"""python lists.py HISTORIES.json BUNDLE...: each bundle's lists, by stages and by the one graph, as a line of JSON.

HISTORIES.json: [["50", "172"], ...]. Runs on both sides of tests/arm; ARM has nothing but numpy and onnxruntime.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from earn.runtime.recommender import Recommender


def main() -> None:
    histories = json.loads(Path(sys.argv[1]).read_text())
    lists = {}
    for bundle in sys.argv[2:]:
        for engine in ("cpu", "one-graph"):
            recommender = Recommender.load(bundle, engine=engine, threads=1)
            answers = [recommender.recommend(history, exclude_history=True) for history in histories]
            lists[f"{Path(bundle).name} {engine}"] = [[item.item_id for item in items] for items in answers]
    print(json.dumps(lists))


if __name__ == "__main__":
    main()
