"""docs/results.json, of what experiments measured, and the generated parts of docs/results.md, of that file alone.

    python -m experiments.results --collect runs/experiments    # into docs/results.json, then into the page
    python -m experiments.results                               # tables and pictures again
    python -m experiments.results --check                       # exit status 1 where they are not what the file says

The prose of the page is written by hand. What stands between `<!-- table: NAME -->` and `<!-- end -->` is the table of
that name in `experiments.tables`; the pictures are drawn here.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earn.console import note
from earn.errors import EarnError
from earn.files import read_json, write_json, written_whole
from earn.metrics import bootstrap_interval
from earn.report.plots import COLOURS
from experiments.grid import RUNS, Run, asked_of
from experiments.runs import INT8_RANKS, LOOKS, MEASURES, RANKS, RESULT
from experiments.tables import (
    PAPER_SHARES,
    TABLES,
    Line,
    Row,
    ablations,
    groups,
    of_same_seeds,
    pairs,
    run_name,
    sweep,
    table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECIMALS = 6  # enough for any share of users
DOCS = Path(__file__).parent.parent / "docs"
RESULTS, PAGE = "results.json", "results.md"
STYLE: Any = {
    "svg.hashsalt": "earn",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SERIES = (("main", "-", "o"), ("mark", "--", "s"), ("good", "-.", "^"), ("bad", ":", "D"))
PAPER = "the paper: LC-Rec, Beauty, Llama-7B"
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


# Pictures


def draw_all(rows: Sequence[Row]) -> dict[str, bytes]:
    """The SVG files by their names; the same rows give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = {}
    for name, draw in PICTURES.items():
        with mpl.rc_context(STYLE):
            figure, file = Figure(layout="constrained", facecolor=COLOURS["paper"]), io.BytesIO()
            draw(rows, figure)
            figure.savefig(file, format="svg", metadata={"Date": None})
            found[name] = file.getvalue()
    return found


def draw_twins(rows: Sequence[Row], figure: Figure) -> None:
    """Recall@10 with its interval, dense above EARN, for each model and seed."""
    twins = [(pair.model, of_same_seeds(pair.others, [earn])[0], earn) for pair in pairs(rows) for earn in pair.rows]
    figure.set_size_inches(7.5, 0.6 + 0.36 * max(1, len(twins)))
    axes = figure.subplots()
    for height, (_, *twin) in enumerate(twins):
        for row, shift, colour, mark in zip(twin, (-0.13, 0.13), ("muted", "main"), "so", strict=True):
            axes.plot(row["interval"]["recall@10"], [height + shift] * 2, color=COLOURS[colour], linewidth=1.6)
            label = row["variant"] if height == 0 else None
            axes.plot(row["recall@10"], height + shift, mark, color=COLOURS[colour], markersize=5, label=label)
    axes.set_yticks(range(len(twins)), [f"{model}, seed {earn['seed']}" for model, _, earn in twins])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("Recall@10, 95 % interval over users")
    axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)
    _add_legend(figure)


def draw_sweep(rows: Sequence[Row], figure: Figure) -> None:
    """Recall@10 by k, as a share of the dense model's; a dot for each seed, a line through their means."""
    figure.set_size_inches(7.5, 3.4)
    axes = figure.subplots()
    models: dict[str, list[Line]] = {}
    for line in sweep(rows):
        if line.first["variant"] == "earn" and line.share() is not None:
            models.setdefault(line.model, []).append(line)
    for (model, means), (colour, stroke, mark) in zip(models.items(), cycle(SERIES), strict=False):
        seeds = [Line([row], line.others) for line in means for row in of_same_seeds(line.rows, line.others)]
        for lines, form, label in ((seeds, mark, None), (means, stroke, model)):
            splits = [line.first["early_layers"] / line.first["layers"] for line in lines]
            shares = [line.share() or 0 for line in lines]
            axes.plot(splits, shares, form, color=COLOURS[colour], markersize=4, label=label, clip_on=False)
    axes.axhline(1, color=COLOURS["muted"], linewidth=1)
    axes.annotate("dense", (0.005, 1), xycoords=("axes fraction", "data"), va="bottom", color=COLOURS["muted"])
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, axes.get_ylim()[1] + 0.08)  # room for the line's name
    axes.set_xlabel("early layers, k / N")
    axes.set_ylabel("Recall@10, dense = 1")
    axes.grid(color=COLOURS["rule"], linewidth=0.6)
    _add_legend(figure)


def draw_ablations(rows: Sequence[Row], figure: Figure) -> None:
    """Recall@10 of each variant as a share of whole EARN's, ours beside the paper's."""
    series: dict[str, dict[str, float]] = {}
    for line in ablations(rows):
        shown = line.first["variant"] != "earn" and not line.first["recipe"]
        if shown and (share := line.share()) is not None:
            series.setdefault(f"{line.model}, k = {line.first['early_layers']}", {})[line.first["variant"]] = share
    variants = list(dict.fromkeys(variant for shares in series.values() for variant in shares))
    series[PAPER] = {variant: share for variant, share in PAPER_SHARES.items() if variant in variants}
    figure.set_size_inches(7.5, 0.8 + 0.22 * max(1, len(variants) * (len(series) + 1)))
    axes = figure.subplots()
    bar, box = 0.8 / len(series), {"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 0.5}
    for index, (name, shares) in enumerate(series.items()):
        colour = COLOURS["muted" if name == PAPER else SERIES[index % len(SERIES)][0]]
        heights = [variants.index(variant) + (index - (len(series) - 1) / 2) * bar for variant in shares]
        axes.barh(heights, list(shares.values()), bar * 0.9, color=colour, label=name)
        for height, share in zip(heights, shares.values(), strict=True):
            axes.text(share + 0.01, height, f"{share:.0%}", va="center", bbox=box)
    axes.axvline(1, color=COLOURS["muted"], linewidth=1, zorder=0)
    axes.set_yticks(range(len(variants)), variants)
    axes.invert_yaxis()
    axes.set_xlim(0, max([1.08, *(share for shares in series.values() for share in shares.values())]) + 0.12)
    axes.set_xlabel("Recall@10, whole EARN = 1")
    _add_legend(figure)


def _add_legend(figure: Figure) -> None:
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", ncols=2, frameon=False)


PICTURES: Mapping[str, Callable[[Sequence[Row], Figure], None]] = {
    "twins.svg": draw_twins,
    "sweep.svg": draw_sweep,
    "ablations.svg": draw_ablations,
}


if __name__ == "__main__":
    sys.exit(main())
