"""The attention analysis as a page: where each layer looks, what a cut costs, and which k that suggests.

The page says only what the figures hold (see `attention_figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

from earn.model.attention_figures import (
    ABOVE,
    BINS,
    HEAD,
    TAIL,
    Analysis,
    most_loss,
    place_names,
    suggestions_text,
)
from earn.report.page import Page, Parts, Picture, Section, Table
from earn.report.plots import COLOURS, ink_on, legend, limit_line, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The paper's figures (arXiv 2507.00715, "Attention analysis"): what, Llama, Qwen.
PAPER = (
    ("Sparsity, early layers", "0.025", "-"),
    ("Sparsity, late layers", "0.048", "-"),
    (f"Head sink: first {HEAD} tokens", "0.56", "0.30"),
    (f"Tail sink: last {TAIL} tokens", "0.09", "0.24"),
)
FIGURES = ("sparsity", "head", "middle", "tail", "generated")  # of a layer, as the table shows them
SHARES = {"middle": ("main", "-"), "head": ("mark", "--"), "tail": ("good", "-."), "generated": ("muted", ":")}
MARKERS = {"cut": "o"}  # of what each rule suggests
CELL = 0.94  # width of a cell in the map, of the 1 that it takes
GAP = 0.5  # cells between the parts of a prompt
MOST_LABELS = 24  # bars with figures on them: those of more would run into each other


def analysis_page(analysis: Analysis, name: str, settings: Sequence[tuple[str, str]]) -> Page:
    """The page, without writing it.

    Args:
        name: of the model.
        settings: name and value of what else a reader must know: checkpoint, data, sizes.
    """
    error = "The standard error is that of the loss's rise over the uncut model's."
    return Page(
        title=f"Attention of {name}",
        summary=_summary(analysis),
        tiles=_tiles(analysis),
        sections=(
            Section("Where each layer looks", _map(analysis)),
            Section("Sinks and sparsity", _curves(analysis)),
            Section("What a cut costs", _cut(analysis)),
            Section("All figures", [figures_table(analysis), error]),
            Section("Beside the paper", _paper(analysis)),
            Section("How this was measured", _method(analysis, settings)),
        ),
    )


def figures_table(analysis: Analysis) -> Table:
    """Every figure of every layer; the layers that the rules suggest as k are marked."""
    cuts = [(f"{loss:.4f}", f"{error:.4f}") for loss, error in zip(analysis.cut, analysis.errors, strict=True)]
    cuts += [("-", "-")] * (len(analysis.layers) - len(cuts))
    rows = [
        (
            f"{row.layer}",
            "registers, generated" if row.is_late else "everything",
            f"{row.columns:.1f}",
            *(f"{getattr(row, name):.3f}" for name in FIGURES),
            *cut,
        )
        for row, cut in zip(analysis.layers, cuts, strict=True)
    ]
    header = ("Layer", "Sees", "Columns", *(name.title() for name in FIGURES), "Loss if cut above", "Std. error")
    suggested = {k - 1 for k in analysis.suggestions.values() if k is not None}
    return Table(header, rows, text_columns=2, marked=sorted(suggested))


def _summary(analysis: Analysis) -> str:
    early = analysis.layers[: analysis.early_layers]
    least, most = (choose(early, key=lambda row: row.middle) for choose in (min, max))
    layers, shares = ("the only layer that sees", f"gives {most.middle:.0%}")
    if len(early) > 1:
        layers = "the layers that see"
        shares = f"give {least.middle:.0%} (layer {least.layer}) to {most.middle:.0%} (layer {most.layer})"
    text = f"Where the next item is predicted, {layers} the history {shares} of {'their' if len(early) > 1 else 'its'} "
    text += "attention to the middle of the prompt. "
    if not analysis.is_dense:
        text += f"Layers {len(early) + 1} to {len(analysis.layers)} see registers and generated tokens alone. "
    return text + f"Prompts of {analysis.users:,} users, each followed by the item that came next."


def _tiles(analysis: Analysis) -> list[tuple[str, str]]:
    early = analysis.early_layers
    none, kind = ("none", "all") if analysis.is_dense else (f"none below {early}", f"{early} of them")
    return [
        (f"{analysis.users:,}", "users"),
        (f"{len(analysis.layers)}", f"layers, {kind} see the history"),
        *(
            (none if k is None else f"k = {k}", f"suggested by the {name} rule")
            for name, k in analysis.suggestions.items()
        ),
    ]


def _map(analysis: Analysis) -> Parts:
    late = "" if analysis.is_dense else " Registers stand at the prompt's ends. A dash: what the layer cannot see."
    return [
        Picture(
            "Attention of the rows that predict, in percent; each layer's cells add up to 100, and what rounds to 0 is "
            f"left empty. The middle of the prompt is laid onto {BINS} equal parts, whatever its length.{late}",
            partial(_draw_map, analysis),
            height=0.75 + 0.27 * len(analysis.layers),
        )
    ]


def _draw_map(analysis: Analysis, figure: Figure) -> None:
    """Attention by layer and place: the darker, the more."""
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    names = place_names(analysis)
    starts = (0, HEAD, HEAD + BINS, HEAD + BINS + TAIL, len(names))  # of the prompt's parts
    left_edges = [place + GAP * sum(place >= start for start in starts[1:4]) for place in range(len(names))]
    largest = max(max(row.received) for row in analysis.layers)
    for row in analysis.layers:
        for left, share, seen in zip(left_edges, row.received, row.seen, strict=True):
            if not seen:
                axes.plot([left + 0.3, left + 0.64], [row.layer - 0.04] * 2, color=COLOURS["rule"], linewidth=1.2)
                continue
            opacity = (share / largest) ** 0.5  # small shares differ too
            area = Rectangle((left, row.layer - 0.5), CELL, 0.92, facecolor=COLOURS["main"], alpha=opacity, linewidth=0)
            axes.add_patch(area)
            if share >= 0.005:
                middle, text = (left + CELL / 2, row.layer - 0.04), f"{100 * share:.0f}"
                axes.text(*middle, text, color=ink_on(opacity), size=6.5, ha="center", va="center")
    if not analysis.is_dense:
        axes.axhline(analysis.early_layers + 0.46, color=COLOURS["mark"], linewidth=1.2)
    titles = ("head", "middle: oldest to newest", "tail", "generated")
    for title, start, end in zip(titles, starts, starts[1:], strict=False):
        if start < end:  # identifiers of one code have nothing generated
            middle_x = (left_edges[start] + left_edges[end - 1] + CELL) / 2
            axes.text(middle_x, 0.35, title, color=COLOURS["muted"], ha="center", va="bottom")
    shown = ["" if name.startswith("m") else name for name in names]  # a part of the middle has no name
    axes.set_xticks([left + CELL / 2 for left in left_edges], shown)
    axes.set_xlim(-0.2, left_edges[-1] + 1.2)
    axes.set_yticks([row.layer for row in analysis.layers])
    axes.set_ylim(len(analysis.layers) + 0.5, 0.5)
    axes.set_ylabel("layer")
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)


def _curves(analysis: Analysis) -> Parts:
    late = "" if analysis.is_dense else " In the shaded layers nothing but registers and generated tokens is seen."
    return [
        Picture(
            f"The same by part of the prompt: head (first {HEAD} tokens), tail (last {TAIL}), what lies between, and "
            f"generated tokens.{late}",
            partial(_draw_shares, analysis),
            height=3.2,
        ),
        Picture(
            f"Sparsity: the share of a row's attention probabilities above {ABOVE:g}, over the columns it may see. Of "
            f"few columns most get more than that, so only layers that see equally many compare.{late}",
            partial(_draw_sparsity, analysis),
            height=2.4,
        ),
    ]


def _draw_shares(analysis: Analysis, figure: Figure) -> None:
    """Attention on each part of the prompt, layer by layer."""
    axes = figure.subplots()
    layers = [row.layer for row in analysis.layers]
    for name, (colour, line) in SHARES.items():
        shares = [getattr(row, name) for row in analysis.layers]
        axes.plot(layers, shares, line, color=COLOURS[colour], marker="o", markersize=4, label=name)
    axes.set_ylim(0, 1)
    percent(axes.yaxis)
    _layers_below(axes, analysis)
    legend(figure)


def _draw_sparsity(analysis: Analysis, figure: Figure) -> None:
    """The sparsity of each layer."""
    axes = figure.subplots()
    values = [row.sparsity for row in analysis.layers]
    colours = [COLOURS["muted" if row.is_late else "main"] for row in analysis.layers]
    bars = axes.bar([row.layer for row in analysis.layers], values, 0.6, color=colours)
    if len(values) <= MOST_LABELS:
        axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=2, size=7)
    axes.margins(y=0.15)
    axes.set_ylabel("sparsity")
    _layers_below(axes, analysis)


def _layers_below(axes: Axes, analysis: Analysis) -> None:
    """Names the layers on the x axis, and shades the late ones."""
    end = len(analysis.layers) + 0.5
    if not analysis.is_dense:
        axes.axvspan(analysis.early_layers + 0.5, end, color=COLOURS["pale"], alpha=0.25, linewidth=0)
    axes.set_xticks([row.layer for row in analysis.layers])
    axes.set_xlim(0.5, end)
    axes.set_xlabel("layer")


def _cut(analysis: Analysis) -> Parts:
    prefix, suffix = ("row" if count == 1 else f"{count} rows" for count in (analysis.prefix, analysis.suffix))
    parts: list[str | Table | Picture] = [
        f"Layers above k see the prompt's first {prefix}, its last {suffix} and generated tokens alone, as in EARN, "
        "with the weights as they are. A model that is trained with the cut can adapt to it; this one could not.",
    ]
    if len(analysis.cut) > 1:
        caption = (
            "Mean cross-entropy of the target's codes over the whole vocabulary, in nats, by the number of layers "
            f"that see the history. At k = {analysis.early_layers} nothing is cut: the model's own loss. "
            "The lines are two standard errors of the rise over it to either side."
        )
        parts.append(Picture(caption, partial(_draw_cut, analysis)))
    return [*parts, *suggestions_text(analysis)]


def _draw_cut(analysis: Analysis, figure: Figure) -> None:
    """The loss by k, the model's own, the most that the cut rule allows, and what the rules suggest."""
    axes = figure.subplots()
    losses, ks = analysis.cut, range(1, len(analysis.cut) + 1)
    if (most := most_loss(losses, analysis.errors)) is not None:
        limit_line(axes, most, "most the cut rule allows")
    axes.axhline(losses[-1], color=COLOURS["muted"], linestyle=":", linewidth=1.2, label="uncut")
    axes.errorbar(ks, losses, [2 * error for error in analysis.errors], fmt="none", ecolor=COLOURS["muted"],
                  elinewidth=1)  # fmt: skip
    axes.plot(ks, losses, color=COLOURS["main"], marker="o", markersize=4, label="cut above k")
    for name, k in analysis.suggestions.items():
        if k is not None:
            axes.plot(k, losses[k - 1], MARKERS[name], color=COLOURS["mark"], markerfacecolor="none", markersize=11,
                      markeredgewidth=1.6, label=f"{name} rule: k = {k}")  # fmt: skip
    axes.set_xticks(ks)
    axes.set_xlim(0.5, len(losses) + 0.5)
    axes.set_xlabel("k, layers that see the history")
    axes.set_ylabel("loss, nats per code")
    axes.margins(y=0.12)
    legend(figure)


def _paper(analysis: Analysis) -> Parts:
    early = analysis.layers[: analysis.early_layers]
    half = (len(early) + 1) // 2
    halves = early[:half], early[-half:]
    own = [mean(row.sparsity for row in rows) for rows in halves]
    own += [mean(row.head for row in early), mean(row.tail for row in early)]
    which = "layer 1, which sees" if len(early) == 1 else f"layers 1 to {len(early)}, which see"
    rows = [(name, f"{value:.3f}", *others) for (name, *others), value in zip(PAPER, own, strict=True)]
    columns = early[0].columns
    return [
        "The paper's are of Llama-7B and Qwen2.5-7B, fine-tuned for recommendation. In its language tasks the order is "
        "the other one: a sparsity of 0.064 in Llama's early layers, 0.026 in the late ones.",
        Table(("Figure", "This model", "Llama (paper)", "Qwen (paper)"), rows),
        f"This model's are means over {which} the history; early and late are their two halves. The paper's prompts "
        f"have 100 to 170 tokens, this model's rows see {columns:.1f} columns; of fewer, more get above {ABOVE:g}. "
        f"A row that spread its attention evenly over {columns:.1f} columns would give {HEAD / columns:.3f} to the "
        f"head and {TAIL / columns:.3f} to the tail. In a prompt of identifiers alone the tail is most of "
        "the newest item: attention on it is a reading of the history rather than a sink.",
    ]


def _method(analysis: Analysis, settings: Sequence[tuple[str, str]]) -> Parts:
    rows = [*settings, ("users", f"{analysis.users:,}"), ("rows that predict", f"{analysis.rows:,}")]
    return [
        "Each prompt is followed by the codes of the item that came next, but the last one. Figures are of the rows "
        "that predict, the prompt's last one and the generated ones, and are averaged over heads, rows and users. Rows "
        "near the prompt's start are left out: they have few columns to share their attention out to.",
        Table(("Setting", "Value"), rows, text_columns=2),
    ]
