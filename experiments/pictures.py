"""The pictures of docs/results.md."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from earn.report.plots import COLOURS
from experiments.tables import PAPER_SHARES, Line, Row, ablations, of_same_seeds, pairs, sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: Any = {
    "svg.hashsalt": "earn",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SERIES = (("main", "-", "o"), ("mark", "--", "s"), ("good", "-.", "^"), ("bad", ":", "D"))
PAPER = "the paper: LC-Rec, Beauty, Llama-7B"


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
