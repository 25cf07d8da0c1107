"""The pictures of docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earn.files import written_whole
from earn.report.page import COLOURS
from experiments.grid import PAPER_ABLATIONS
from experiments.tables import ABLATED, MODEL, Row, groups, model_name, share_of, usual_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_all(rows: Sequence[Row], folder: Path) -> None:
    """Writes every picture; the same rows give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    style: Any = {
        "svg.hashsalt": "earn",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    for name, draw in PICTURES.items():
        with mpl.rc_context(style):
            figure = Figure(layout="constrained", facecolor=COLOURS["paper"])
            draw(rows, figure)
            with written_whole(folder / name) as path:
                figure.savefig(path, format="svg", metadata={"Date": None})


def draw_twins(rows: Sequence[Row], figure: Figure) -> None:
    """Recall@10 with its interval, dense above EARN, for each model and seed."""
    pairs = [
        (f"{model_name(*names)}, seed {earn['seed']}", dense, earn)
        for names, group in groups(rows, *MODEL).items()
        for dense in group
        if dense["variant"] == "dense"
        for earn in group
        if (earn["variant"], earn["seed"], earn["early_layers"]) == ("earn", dense["seed"], usual_split(group))
    ]
    figure.set_size_inches(7.5, 0.6 + 0.36 * max(1, len(pairs)))
    axes = figure.subplots()
    for place, (_, dense, earn) in enumerate(pairs):
        for shift, row, colour, mark in ((-0.13, dense, "muted", "s"), (0.13, earn, "main", "o")):
            lowest, highest = row["interval"]["recall@10"]
            axes.plot([lowest, highest], [place + shift] * 2, color=COLOURS[colour], linewidth=1.6)
            label = ("dense" if row is dense else "EARN") if place == 0 else None
            axes.plot(row["recall@10"], place + shift, mark, color=COLOURS[colour], markersize=5, label=label)
    axes.set_yticks(range(len(pairs)), [name for name, *_ in pairs])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("Recall@10, 95 % interval over users")
    axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)
    if pairs:
        figure.legend(loc="outside upper right", ncols=2, frameon=False)


def draw_sweep(rows: Sequence[Row], figure: Figure) -> None:
    """Recall@10 by k, as a share of the dense model's; a dot for each seed, a line through their means."""
    figure.set_size_inches(7.5, 3.4)
    axes = figure.subplots()
    lines = (("main", "-", "o"), ("mark", "--", "s"), ("good", "-.", "^"), ("bad", ":", "D"))
    for (*names, recipe), group in groups(rows, *MODEL).items():
        dense = [row for row in group if row["variant"] == "dense"]
        earn = [row for row in group if row["variant"] == "earn"]
        splits = sorted({row["early_layers"] for row in earn})
        if len(splits) < 3 or not dense or recipe:
            continue
        colour, line, mark = lines[len(axes.lines) // 2 % len(lines)]
        by_split = list(groups(sorted(earn, key=lambda row: int(row["early_layers"])), "early_layers").values())
        for each, form in (([[row] for row in earn], mark), (by_split, line)):
            shared = [found for found in each if share_of(found, dense) is not None]
            places = [found[0]["early_layers"] / found[0]["layers"] for found in shared]
            values = [share_of(found, dense) or 0 for found in shared]
            label = model_name(*names) if form == line else None
            axes.plot(places, values, form, color=COLOURS[colour], markersize=4, label=label, clip_on=False)
    axes.axhline(1, color=COLOURS["muted"], linewidth=1)
    axes.annotate("dense", (0.005, 1), xycoords=("axes fraction", "data"), va="bottom", color=COLOURS["muted"])
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, axes.get_ylim()[1] + 0.08)  # room for the line's name
    axes.set_xlabel("early layers, k / N")
    axes.set_ylabel("Recall@10, dense = 1")
    axes.grid(color=COLOURS["rule"], linewidth=0.6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", frameon=False)


def draw_ablations(rows: Sequence[Row], figure: Figure) -> None:
    """Recall@10 of each variant as a share of whole EARN's, ours beside the paper's."""
    shares: dict[str, dict[str, float]] = {}
    shown = (row for row in rows if row["variant"] in ABLATED and not row["recipe"])
    for (*names, k), group in groups(shown, *MODEL[:3], "early_layers").items():
        variants = groups(group, "variant")
        earn = variants.pop(("earn",), [])
        for (variant,), found in variants.items():
            if (share := share_of(found, earn)) is not None:
                shares.setdefault(variant, {})[f"{model_name(*names)}, k = {k}"] = share
    for variant, recall in PAPER_ABLATIONS.items():
        if variant in shares:
            shares[variant]["the paper: LC-Rec, Beauty, Llama-7B"] = recall / PAPER_ABLATIONS["earn"]
    series = list(dict.fromkeys(name for found in shares.values() for name in found))
    figure.set_size_inches(7.5, 0.8 + 0.22 * max(1, len(shares) * (len(series) + 1)))
    axes = figure.subplots()
    colours = ("main", "good", "mark", "bad")
    for number, name in enumerate(series):
        colour = COLOURS["muted" if name.startswith("the paper") else colours[number % len(colours)]]
        height = 0.8 / len(series)
        places = [place for place, found in enumerate(shares.values()) if name in found]
        values = [found[name] for found in shares.values() if name in found]
        axes.barh([place + (number - (len(series) - 1) / 2) * height for place in places], values, height * 0.9,
                  color=colour, label=name)  # fmt: skip
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.01, place + (number - (len(series) - 1) / 2) * height, f"{value:.0%}", va="center",
                      bbox={"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 0.5})  # fmt: skip
    axes.axvline(1, color=COLOURS["muted"], linewidth=1, zorder=0)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, max([1.08, *(share for found in shares.values() for share in found.values())]) + 0.12)
    axes.set_xlabel("Recall@10, whole EARN = 1")
    if series:
        figure.legend(loc="outside upper right", ncols=2, frameon=False)


PICTURES: Mapping[str, Callable[[Sequence[Row], Figure], None]] = {
    "twins.svg": draw_twins,
    "sweep.svg": draw_sweep,
    "ablations.svg": draw_ablations,
}
