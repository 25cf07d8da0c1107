"""docs/results.json, of what experiments measured, and the generated parts of docs/results.md, of that file alone.

    python -m experiments.results --collect runs/experiments    # into docs/results.json, then into the page
    python -m experiments.results                               # tables and pictures again
    python -m experiments.results --check                       # exit status 1 where they are not what the file says

The prose of the page is written by hand. What stands between `<!-- table: NAME -->` and `<!-- end -->` is made by the
function of that name in `experiments.tables`, the pictures by `experiments.pictures`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from earn.console import note
from earn.errors import EarnError
from earn.files import read_json, write_json, written_whole
from earn.metrics import bootstrap_interval
from experiments.afterwards import ATTENTION, INT8, INT8_RANKS, SPEED
from experiments.grid import PRESETS, REMOVED_RECIPES, REMOVED_VARIANTS, Run
from experiments.pictures import draw_all
from experiments.runs import RANKS, RESULT
from experiments.tables import HIDDEN, MEASURES, TABLES, Row, run_name

DECIMALS = 6
AFTERWARDS = ("speedup", "cache_reduction", "speed", "difference", "attention", "int8")  # parts of a row
DOCS = Path(__file__).parent.parent / "docs"
RESULTS, PAGE, PICTURES = "results.json", "results.md", "pictures"
TABLE = re.compile(r"(<!-- table: ([a-z0-9 ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Collects, writes or checks; returns the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments.results", description=__doc__, formatter_class=raw)
    parser.add_argument("--collect", type=Path, metavar="DIR", help="results of runs, added to those that are known")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    file: Path = args.docs / RESULTS
    try:
        if args.collect:
            write_rows(file, collect(args.collect), known_rows(file))
        rows = known_rows(file)
        if not rows:
            raise EarnError(f"{file}: holds no run. Pass --collect, or another --docs.")
        if args.check:
            return _check(rows, args.docs)
        text = page((args.docs / PAGE).read_text(encoding="utf-8"), rows)
        with written_whole(args.docs / PAGE) as path:
            path.write_text(text, encoding="utf-8")
        draw_all(rows, args.docs / PICTURES)
    except (EarnError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    note(f"{args.docs / PAGE}: {len(rows)} runs")
    return 0


def page(text: str, rows: Sequence[Row]) -> str:
    """The page with its tables made anew.

    Raises:
        EarnError: there is no table of a name that the page asks for.
    """

    def made(match: re.Match[str]) -> str:
        opening, name, _, end = match.groups()
        if name not in TABLES:
            raise EarnError(f"{PAGE}: there is no table {name!r}. Take one of: {', '.join(TABLES)}.")
        return f"{opening}\n{TABLES[name](rows)}\n\n{end}"

    return TABLE.sub(made, text)


def differences(rows: Sequence[Row], docs: Path) -> Iterator[str]:
    """The tables and pictures that are not what the rows say."""
    text = (docs / PAGE).read_text(encoding="utf-8")
    for old, new in zip(TABLE.finditer(text), TABLE.finditer(page(text, rows)), strict=True):
        if old[0] != new[0]:
            yield f"the table {old[2]!r}"
    with TemporaryDirectory() as folder:
        draw_all(rows, Path(folder))
        for picture in sorted(Path(folder).iterdir()):
            path = docs / PICTURES / picture.name
            if not path.is_file() or path.read_bytes() != picture.read_bytes():
                yield f"the picture {picture.name}"


def _check(rows: Sequence[Row], docs: Path) -> int:
    wrong = next(differences(rows, docs), None)
    note(f"{docs / PAGE}: {f'{wrong} is not what {RESULTS} says' if wrong else f'is what {RESULTS} says'}")
    return int(wrong is not None)


def collect(out: Path) -> dict[str, Row]:
    """The rows of every finished run below OUT, by name."""
    rows = {}
    for name, run in _grid().items():
        if run.data not in HIDDEN and (out / name / RESULT).is_file():
            result = {"recipe": run.recipe, **read_json(out / name / RESULT)}
            rows[name] = {**result, **_speed(out, run), **_difference(out, run), **_attention(out, run)}
            rows[name] |= _int8(out, run)
    if not rows:
        raise EarnError(f"{out}: holds no finished run of real data. First: python -m experiments PRESET --out {out}")
    return rows


def _speed(out: Path, run: Run) -> Row:
    """Speed and cache: that of the run's own bundle, or of another seed's, whose shapes are the same."""
    same = sorted((out / run.name).parent.glob(f"{Path(run.name).name.rpartition('-seed')[0]}-seed*/{SPEED}"))
    own = out / run.name / SPEED
    found = own if own.is_file() else next(iter(same), None)
    figures = read_json(found) if found else {}
    return {"cache_reduction": figures.get("cache_reduction"), "speedup": figures.get("speedup"), "speed": figures}


def _difference(out: Path, run: Run) -> Row:
    """EARN minus its dense twin, user by user: [mean, lowest, highest] of the paired bootstrap's 95 %.

    Nothing where no dense model was trained and asked the same way.
    """
    twins = [out / twin.name for twin in (run, run.dense)]
    if run.variant == "dense" or not all((twin / RESULT).is_file() for twin in twins):
        return {}
    asked, dense_asked = (read_json(twin / RESULT)["asked"] for twin in twins)
    if asked != dense_asked:
        return {}
    return {"difference": _paired(*(twin / RANKS for twin in twins))}


def _paired(own: Path, other: Path) -> dict[str, list[float]]:
    """Figures of one file of ranks minus those of another, user by user: mean and ends of the 95 % interval."""
    own_ranks, other_ranks = np.load(own), np.load(other)
    pairs = {name: measure(own_ranks, 10) - measure(other_ranks, 10) for name, measure in MEASURES.items()}
    return {name: [float(each.mean()), *bootstrap_interval(each)] for name, each in pairs.items()}


def _int8(out: Path, run: Run) -> Row:
    """The gate's verdict of the int8 bundle, and of all users the difference to the model that it was made of."""
    folder = out / run.name
    if not (folder / INT8).is_file():
        return {}
    verdict, ranks = read_json(folder / INT8), folder / INT8_RANKS
    asked = verdict["passed"] and ranks.is_file()
    return {"int8": {**verdict, "difference": _paired(ranks, folder / RANKS) if asked else None}}


def _attention(out: Path, run: Run) -> Row:
    """What the attention analysis found of a dense model, by layer, and the k that it suggests."""
    path = out / run.name / ATTENTION
    if not path.is_file():
        return {}
    found = read_json(path)
    by_layer = {name: [row[name] for row in found["layers"]] for name in ("sparsity", "head", "middle", "tail")}
    return {"attention": {**by_layer, "cut": found["cut"], "suggestions": found["suggestions"]}}


def known_rows(path: Path) -> list[Row]:
    """What stands in results.json."""
    if not path.is_file():
        return []
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def write_rows(path: Path, found: Mapping[str, Row], known: Iterable[Row]) -> None:
    """Writes results.json, what is found in the place of what was known of the same run; in the presets' order.

    What was looked at afterwards is kept where it was not found anew and the run's figures are still the same, those
    of its dense twin too.
    """
    rows = {run_name(row): row for row in known}
    changed = {name for name, row in found.items() if not _same_figures(row, rows.get(name, {}))}
    for name, row in found.items():
        before = {} if name in changed else rows[name]
        rows[name] = {**row, **{part: before[part] for part in AFTERWARDS if before.get(part) and not row.get(part)}}
    for name in rows.keys() & _grid().keys():
        if _grid()[name].dense.name in changed and "difference" not in found.get(name, {}):
            rows[name].pop("difference", None)
    order = {name: place for place, name in enumerate(_grid())}
    for name in [name for name, row in rows.items() if name not in order and not _is_removed(row)]:
        note(f"{name}: left out, for it is no longer in the grid")
        del rows[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [_rounded(rows[name]) for name in sorted(rows, key=lambda name: order.get(name, len(order)))])


def _is_removed(row: Row) -> bool:
    """Whether a row was measured with code that is gone."""
    return row["variant"] in REMOVED_VARIANTS or row["recipe"] in REMOVED_RECIPES


def _same_figures(row: Row, known: Row) -> bool:
    return all(known.get(measure) == round(row[measure], DECIMALS) for measure in MEASURES)


def _grid() -> dict[str, Run]:
    """All runs by name, in the presets' order."""
    return {run.name: run for preset in PRESETS.values() for run in preset.runs}


def _rounded(value: Any) -> Any:
    """DECIMALS are enough for any share of users."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, DECIMALS) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
