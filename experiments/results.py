"""docs/results.json, of what experiments measured, and the generated parts of docs/results.md, of that file alone.

    python -m experiments.results --collect runs/experiments    # into docs/results.json, then into the page
    python -m experiments.results                               # tables and pictures again
    python -m experiments.results --check                       # exit status 1 where they are not what the file says

The prose of the page is written by hand. What stands between `<!-- table: NAME -->` and `<!-- end -->` is the table of
that name in `experiments.tables`; the pictures are by `experiments.pictures`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from earn.console import note
from earn.errors import EarnError
from earn.files import read_json, write_json, written_whole
from earn.metrics import bootstrap_interval
from experiments.afterwards import INT8_RANKS, LOOKS
from experiments.grid import RUNS, Run
from experiments.pictures import draw_all
from experiments.runs import MEASURES, RANKS, RESULT, asked_of
from experiments.tables import TABLES, Row, groups, run_name, table

DECIMALS = 6  # enough for any share of users
DOCS = Path(__file__).parent.parent / "docs"
RESULTS, PAGE = "results.json", "results.md"
TABLE = re.compile(r"(<!-- table: ([a-z0-9 ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Collects, writes or checks; returns the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments.results", description=__doc__, formatter_class=raw)
    parser.add_argument("--collect", type=Path, metavar="DIR", help="results of runs, added to those that are known")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    try:
        rows: list[Row] = read_json(DOCS / RESULTS) if (DOCS / RESULTS).is_file() else []
        if args.collect:
            rows = merged(rows, collect(args.collect))
            write_json(DOCS / RESULTS, rows)
        if not rows:
            raise EarnError(f"{DOCS / RESULTS}: holds no run. Pass --collect.")
        files = generated(rows)
        stale = [path for path, content in files.items() if not path.is_file() or path.read_bytes() != content]
        if args.check:
            note(f"not what {RESULTS} says: {', '.join(map(str, stale))}" if stale else f"all is what {RESULTS} says")
            return min(len(stale), 1)
        for path in stale:
            path.parent.mkdir(exist_ok=True)
            with written_whole(path) as beside:
                beside.write_bytes(files[path])
    except (EarnError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    note(f"{DOCS / PAGE}: {len(rows)} runs")
    return 0


def generated(rows: Sequence[Row]) -> dict[Path, bytes]:
    """The page and its pictures, as the rows have them."""
    text = page((DOCS / PAGE).read_text(encoding="utf-8"), rows)
    pictures = {DOCS / "pictures" / name: content for name, content in draw_all(rows).items()}
    return {DOCS / PAGE: text.encode(), **pictures}


def page(text: str, rows: Sequence[Row]) -> str:
    """The page with its tables made anew.

    Raises:
        EarnError: there is no table of a name that the page asks for.
    """

    def made(match: re.Match[str]) -> str:
        opening, name, _, end = match.groups()
        if name not in TABLES:
            raise EarnError(f"{PAGE}: there is no table {name!r}. Take one of: {', '.join(TABLES)}.")
        return f"{opening}\n{table(name, rows)}\n\n{end}"

    return TABLE.sub(made, text)


def collect(out: Path) -> dict[str, Row]:
    """The row of every finished run below OUT, by name: its result, and what was looked at afterwards, where it was.

    Raises:
        EarnError: there is none of real data.
    """
    rows = {}
    for name, run in RUNS.items():
        folder = out / name
        if (folder / RESULT).is_file():
            files = [folder / look.file for look in LOOKS.values()]
            looks = {file.stem: read_json(file) for file in files if file.is_file()}
            rows[name] = {**read_json(folder / RESULT), **looks, **_difference(out, run)}
            if "int8" in looks and (folder / INT8_RANKS).is_file():
                rows[name]["int8"]["difference"] = _paired(folder / INT8_RANKS, folder / RANKS)
    best = _best_sasrec(rows.values())
    for name, row in rows.items():
        rival = best.get(RUNS[name].data)
        if rival and RUNS[name].method != "sasrec" and asked_of(RUNS[name]) == asked_of(RUNS[rival]):
            row["to_sasrec"] = _paired(out / name / RANKS, out / rival / RANKS)
    if not rows:
        raise EarnError(f"{out}: holds no finished run of real data. First: python -m experiments PRESET --out {out}")
    return rows


def _difference(out: Path, run: Run) -> Row:
    """EARN minus its dense twin; nothing where no dense model was trained and asked the same way."""
    own, dense = out / run.name, out / run.dense.name
    if own == dense or not (dense / RESULT).is_file():
        return {}
    alike = asked_of(run) == asked_of(run.dense)
    return {"difference": _paired(own / RANKS, dense / RANKS)} if alike else {}


def _best_sasrec(rows: Iterable[Row]) -> dict[str, str]:
    """Of each data set the name of the SASRec run that the validation users put first."""
    tried = groups((row for row in rows if RUNS[run_name(row)].method == "sasrec"), "data")
    return {data: run_name(max(found, key=lambda row: row["valid_ndcg@10"])) for (data,), found in tried.items()}


def _paired(own: Path, other: Path) -> dict[str, list[float]]:
    """Figures of one file of ranks minus those of another, user by user: mean and ends of the 95 % interval."""
    own_ranks, other_ranks = np.load(own), np.load(other)
    pairs = {name: measure(own_ranks, 10) - measure(other_ranks, 10) for name, measure in MEASURES.items()}
    return {name: [float(each.mean()), *bootstrap_interval(each)] for name, each in pairs.items()}


def merged(known: Iterable[Row], found: Mapping[str, Row]) -> list[Row]:
    """The rows in the presets' order, what is found in the place of what was known of the same run.

    What was looked at afterwards is kept where it was not found anew and the run's figures are still the same, those
    of its dense twin and of SASRec too. Rows of runs that the grid no longer has are kept, last.
    """
    rows = {run_name(row): row for row in known}
    rounded: dict[str, Row] = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), DECIMALS))
    changed = {name for name in rounded if any(rounded[name][key] != rows.get(name, {}).get(key) for key in MEASURES)}
    again = {RUNS[name].data for name in changed & RUNS.keys() if RUNS[name].method == "sasrec"}
    for name, row in rounded.items():
        rows[name] = {**({} if name in changed else rows[name]), **row}
    for name, row in rows.items():
        if name in RUNS and RUNS[name].dense.name in changed and "difference" not in rounded.get(name, {}):
            row.pop("difference", None)
        if name in RUNS and RUNS[name].data in again and "to_sasrec" not in rounded.get(name, {}):
            row.pop("to_sasrec", None)
    order = {name: index for index, name in enumerate(RUNS)}
    return [rows[name] for name in sorted(rows, key=lambda name: order.get(name, len(order)))]


if __name__ == "__main__":
    sys.exit(main())
