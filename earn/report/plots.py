"""What the figures of all reports share: colours, style, lines, cells, and inline SVG that follows the page.

matplotlib is imported when a figure is drawn, not before.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# name: in light mode and in print, in dark mode. Blue, orange and grey differ for every kind of colour blindness.
PALETTE: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14181f"),
    "ink": ("#1c2430", "#e6e9ef"),
    "muted": ("#5b6574", "#9ba6b5"),
    "rule": ("#dde2e9", "#323a47"),
    "main": ("#1f6fb2", "#6ab2ee"),
    "pale": ("#c2d6e8", "#38536d"),
    "mark": ("#b8500c", "#f0994f"),
    "good": ("#0d7468", "#5cc4b2"),
    "bad": ("#a92c18", "#f58d76"),
}
COLOURS: Mapping[str, str] = {name: light for name, (light, _) in PALETTE.items()}  # to draw with
LINES = (("main", "-"), ("mark", "--"), ("good", "-."), ("muted", ":"), ("bad", "-"))  # colour and dashes, in turn
WIDTH = 9.0  # inches, of every figure
_DARK = 0.55  # opacity beyond which text on a coloured area is light
_STYLE: Mapping[str, object] = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.size": 8.5,
    "grid.color": COLOURS["rule"],
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "xtick.color": COLOURS["muted"],
    "xtick.major.size": 0.0,
    "ytick.color": COLOURS["muted"],
    "ytick.major.size": 0.0,
}


def svg(draw: Callable[[Figure], None], height: float, number: int) -> str:
    """The <svg> element of what `draw` draws into an empty figure; its colours and its font are the page's.

    Args:
        height: inches.
        number: of the figure on its page; keeps the ids of different figures apart.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    text = io.StringIO()
    with style.context(["default", {**_STYLE, "svg.hashsalt": f"figure {number}"}]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    content = text.getvalue()
    content = content[content.index(">", content.index("<svg")) + 1 :]
    content = re.sub(r"<style.*?</style>", "", content, count=1, flags=re.DOTALL)
    content = re.sub(r'<g id="[^"]*"', "<g", content).replace(" xlink:href=", " href=")
    for name, colour in COLOURS.items():
        content = content.replace(f": {colour}", f": var(--{name})")
    return f'<svg viewBox="0 0 {WIDTH * 72:g} {height * 72:g}" aria-hidden="true">{content}'


def legend(figure: Figure) -> None:
    """Names what all panels of a figure show, each name once, above them."""
    named: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    figure.legend(list(named.values()), list(named), loc="outside upper left", ncols=8, handlelength=2.2)


def line(axes: Axes, number: int, x: Sequence[float], y: Sequence[float], name: str) -> None:
    """The line of this number, from 0: colours and dashes tell lines apart, points show what was measured."""
    colour, dashes = LINES[number % len(LINES)]
    axes.plot(x, y, dashes, color=COLOURS[colour], marker="o", markersize=4, label=name)


def cell(axes: Axes, row: float, left: float, width: float, text: str, colour: str, opacity: float, name: str) -> None:
    """An area with a text in it; `name` is for the legend, "" for none."""
    axes.barh(row, width, 0.9, left, color=COLOURS[colour], alpha=opacity, edgecolor=COLOURS["paper"], label=name)
    ink = COLOURS["paper" if opacity > _DARK else "ink"]
    axes.text(left + width / 2, row, text, color=ink, size=7, ha="center", va="center")


def name_columns(axes: Axes, names: Sequence[str], room: int) -> None:
    """Names below columns at 0, 1, ...; where there is no room for all, every second one or fewer."""
    step = 1 + (len(names) - 1) // room
    axes.set_xticks(range(0, len(names), step), names[::step])
    axes.set_xlim(-0.7, len(names) - 0.3)
