"""The pictures of the attention analysis, each drawn into an empty figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from earn.model.attention_figures import BINS, HEAD, TAIL, Analysis, most_loss, place_names
from earn.report.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 0.94  # width of a cell, of the 1 that it takes
GAP = 0.5  # cells between the parts of a prompt
READABLE = 0.55  # cells of this opacity carry light figures
SHARES = (  # of the prompt's parts: figure, colour, line
    ("middle", "main", "-"),
    ("head", "mark", "--"),
    ("tail", "good", "-."),
    ("generated", "muted", ":"),
)
MOST_LABELS = 24  # bars with figures on them: those of more would run into each other
FORMS = {"attention": "s", "cut": "o"}  # of the rules' marks


def draw_map(found: Analysis, figure: Figure) -> None:
    """Attention by layer and place: the darker, the more."""
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    places = _columns(found)
    largest = max(max(row.received) for row in found.layers)
    for row in found.layers:
        for left, share, seen in zip(places, row.received, row.seen, strict=True):
            if not seen:
                axes.plot([left + 0.3, left + 0.64], [row.layer - 0.04] * 2, color=COLOURS["rule"], linewidth=1.2)
                continue
            corner = (left, row.layer - 0.5)
            opacity = (share / largest) ** 0.5  # small shares differ too
            axes.add_patch(Rectangle(corner, CELL, 0.92, facecolor=COLOURS["main"], alpha=opacity, linewidth=0))
            if share >= 0.005:
                ink = COLOURS["paper" if opacity > READABLE else "ink"]
                axes.text(left + CELL / 2, row.layer - 0.04, f"{share:.0%}"[:-1], color=ink, size=6.5, ha="center",
                          va="center")  # fmt: skip
    if not found.is_dense:
        axes.axhline(found.early_layers + 0.46, color=COLOURS["mark"], linewidth=1.2)
    _name_places(axes, found, places)
    axes.set_yticks([row.layer for row in found.layers])
    axes.set_ylim(len(found.layers) + 0.5, 0.5)
    axes.set_ylabel("layer")
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)


def draw_shares(found: Analysis, figure: Figure) -> None:
    """Attention on each part of the prompt, layer by layer."""
    axes = figure.subplots()
    layers = [row.layer for row in found.layers]
    for name, colour, line in SHARES:
        shares = [getattr(row, name) for row in found.layers]
        axes.plot(layers, shares, line, color=COLOURS[colour], linewidth=1.8, marker="o", markersize=4, label=name)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(_percent)
    _layers_below(axes, found)
    figure.legend(loc="outside upper left", ncols=len(SHARES), handlelength=2.5)


def draw_sparsity(found: Analysis, figure: Figure) -> None:
    """The sparsity of each layer."""
    axes = figure.subplots()
    for is_late, colour in ((False, "main"), (True, "muted")):
        rows = [row for row in found.layers if row.is_late == is_late]
        bars = axes.bar([row.layer for row in rows], [row.sparsity for row in rows], 0.6, color=COLOURS[colour])
        if len(found.layers) <= MOST_LABELS:
            axes.bar_label(bars, [f"{row.sparsity:.3f}" for row in rows], padding=2, size=7)
    axes.margins(y=0.15)
    axes.set_ylabel("sparsity")
    _layers_below(axes, found)


def draw_cut(found: Analysis, figure: Figure) -> None:
    """The loss by k, the model's own, the most that the cut rule allows, and what the rules suggest."""
    axes = figure.subplots()
    places = range(1, len(found.cut) + 1)
    own = found.cut[-1]
    if (most := most_loss(found.cut, found.errors)) is not None:
        axes.axhline(most, color=COLOURS["mark"], linestyle="--", linewidth=1.2, label="most the cut rule allows")
    axes.axhline(own, color=COLOURS["muted"], linestyle=":", linewidth=1.2, label="uncut")
    twice = [2 * error for error in found.errors]
    axes.errorbar(places, found.cut, twice, fmt="none", ecolor=COLOURS["muted"], elinewidth=1, capsize=3)
    axes.plot(places, found.cut, color=COLOURS["main"], linewidth=1.8, marker="o", markersize=4, label="cut above k")
    for name, k in found.suggestions.items():
        if k is not None:
            axes.plot(k, found.cut[k - 1], FORMS[name], color=COLOURS["mark"], markerfacecolor="none", markersize=11,
                      markeredgewidth=1.6, linestyle="none", label=f"{name} rule: k = {k}")  # fmt: skip
    axes.set_xticks(places)
    axes.set_xlim(0.5, len(found.cut) + 0.5)
    axes.set_xlabel("k, layers that see the history")
    axes.set_ylabel("loss, nats per code")
    axes.margins(y=0.12)
    figure.legend(loc="outside upper left", ncols=5, handlelength=2.5)


def _columns(found: Analysis) -> list[float]:
    """The left edge of each place, with gaps between the parts of a prompt."""
    ends = (HEAD, HEAD + BINS, HEAD + BINS + TAIL)
    return [place + GAP * sum(place >= end for end in ends) for place in range(len(place_names(found)))]


def _name_places(axes: Axes, found: Analysis, places: list[float]) -> None:
    """Names below the exact places, and of the parts above them."""
    names = ["" if name.startswith("m") else name for name in place_names(found)]
    axes.set_xticks([left + CELL / 2 for left in places], names)
    axes.set_xlim(-0.2, places[-1] + 1.2)
    starts = (0, HEAD, HEAD + BINS, HEAD + BINS + TAIL, len(places))
    titles = ("head", "middle: oldest to newest", "tail", "generated")
    for title, start, end in zip(titles, starts, starts[1:], strict=False):
        if start < end:  # identifiers of one code have nothing generated
            middle = (places[start] + places[end - 1] + CELL) / 2
            axes.text(middle, 0.35, title, color=COLOURS["muted"], ha="center", va="bottom")


def _layers_below(axes: Axes, found: Analysis) -> None:
    """Names the layers on the x axis, and shades the late ones."""
    if not found.is_dense:
        axes.axvspan(found.early_layers + 0.5, len(found.layers) + 0.5, color=COLOURS["pale"], alpha=0.25, linewidth=0)
    axes.set_xticks([row.layer for row in found.layers])
    axes.set_xlim(0.5, len(found.layers) + 0.5)
    axes.set_xlabel("layer")


def _percent(value: float, _: float) -> str:
    return f"{value:.0%}"
