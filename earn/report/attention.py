"""The attention analysis as a page: where each layer looks, what a cut costs, and which k that suggests.

The page says only what the figures hold (see `attention_figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from earn.report.page import Page, Parts, Picture, Table, settings_table
from earn.report.plots import COLOURS, cell, legend, line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("sparsity", "head", "middle", "tail", "generated")  # of a layer, as the table shows them
GAP = 0.5  # cells between the parts of a prompt


def analysis_page(analysis: Analysis, name: str, settings: Sequence[tuple[str, str]]) -> Page:
    """The page, without writing it.

    Args:
        name: of the model.
        settings: name and value of what else a reader must know: checkpoint, data, sizes.
    """
    counts = [("users", f"{analysis.users:,}"), ("rows that predict", f"{analysis.rows:,}")]
    return Page(
        title=f"Attention of {name}",
        summary=_summary(analysis),
        tiles=_tiles(analysis),
        sections={
            "Where each layer looks": [_map(analysis)],
            "What a cut costs": _cut(analysis),
            "All figures": [
                f"Sparsity is the share of a row's attention probabilities above {ABOVE:g}, over the columns it may "
                "see. Of few columns most get more than that, so only layers that see equally many compare. The "
                "standard error is that of the loss's rise over the uncut model's.",
                figures_table(analysis),
            ],
            "How this was measured": [
                "Each prompt is followed by the codes of the item that came next, but the last one. Figures are of the "
                "rows that predict, the prompt's last one and the generated ones, and are averaged over heads, rows "
                "and users. Rows near the prompt's start are left out: they have few columns to attend to.",
                settings_table([*settings, *counts]),
            ],
        },
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
    suggested = [k - 1 for k in analysis.suggestions.values() if k is not None]
    return Table(header, rows, text_columns=2, marked=suggested)


def _summary(analysis: Analysis) -> str:
    early = sorted(analysis.layers[: analysis.early_layers], key=lambda row: row.middle)
    least, most = (f"{row.middle:.0%} (layer {row.layer})" for row in (early[0], early[-1]))
    late = f"Layers {len(early) + 1} to {len(analysis.layers)} see registers and generated tokens alone. "
    return (
        "Where the next item is predicted, the layers that see the history give "
        f"{least if least == most else f'{least} to {most}'} of their attention to the middle of the prompt. "
        f"{'' if analysis.is_dense else late}"
        f"Prompts of {analysis.users:,} users, each followed by the item that came next."
    )


def _tiles(analysis: Analysis) -> list[tuple[str, str]]:
    none = "none" if analysis.is_dense else f"none below {analysis.early_layers}"
    suggested = [(k, f"suggested by the {name} rule") for name, k in analysis.suggestions.items()]
    return [(f"{analysis.users:,}", "users"), *((none if k is None else f"k = {k}", text) for k, text in suggested)]


def _map(analysis: Analysis) -> Picture:
    return Picture(
        "Attention of the rows that predict, in percent; a layer's cells add up to 100, and what rounds to 0 is left "
        f"empty. The head is the first {HEAD} tokens, the tail the last {TAIL}; what lies between is laid onto {BINS} "
        "equal parts, oldest to newest, whatever its length. A dash: what the layer cannot see.",
        partial(_draw_map, analysis),
        height=0.75 + 0.27 * len(analysis.layers),
    )


def _draw_map(analysis: Analysis, figure: Figure) -> None:
    """Attention by layer and place: the darker, the more."""
    axes, names = figure.subplots(), place_names(analysis)
    starts = (HEAD, HEAD + BINS, HEAD + BINS + TAIL)  # of middle, tail and generated tokens
    lefts = [place + GAP * sum(place >= start for start in starts) for place in range(len(names))]
    largest = max(max(row.received) for row in analysis.layers)
    for row in analysis.layers:
        for left, share, seen in zip(lefts, row.received, row.seen, strict=True):
            text = f"{100 * share:.0f}" if share >= 0.005 else "" if seen else "–"
            cell(axes, row.layer, left, 1, text, "main", (share / largest) ** 0.5, "")  # small shares differ too
    axes.text(lefts[HEAD + BINS // 2], 0.4, "middle of the prompt", color=COLOURS["muted"], ha="center")
    shown = ["" if name.startswith("m") else name for name in names]  # a part of the middle has no name
    axes.set_xticks([left + 0.5 for left in lefts], shown)
    axes.set_yticks([row.layer for row in analysis.layers])
    axes.set_ylim(len(analysis.layers) + 0.5, 0.5)
    axes.set_ylabel("layer")
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)


def _cut(analysis: Analysis) -> Parts:
    prefix, suffix = ("row" if count == 1 else f"{count} rows" for count in (analysis.prefix, analysis.suffix))
    text = (
        f"Layers above k see the prompt's first {prefix}, its last {suffix} and generated tokens alone, as in EARN, "
        "with the weights as they are. A model that is trained with the cut can adapt to it; this one could not."
    )
    picture = Picture(
        "Mean cross-entropy of the target's codes over the whole vocabulary, in nats, by the number of layers that see "
        f"the history. At k = {analysis.early_layers} nothing is cut: the model's own loss. The lines are two standard "
        "errors of the rise over it to either side.",
        partial(_draw_cut, analysis),
    )
    return [text, *([picture] if len(analysis.cut) > 1 else []), *suggestions_text(analysis)]


def _draw_cut(analysis: Analysis, figure: Figure) -> None:
    """The loss by k, the most that the cut rule allows, and what the rules suggest."""
    axes, losses, ks = figure.subplots(), analysis.cut, range(1, len(analysis.cut) + 1)
    if (most := most_loss(losses, analysis.errors)) is not None:
        axes.axhline(most, color=COLOURS["mark"], linestyle="--", label="most the cut rule allows")
    line(axes, 0, ks, losses, "cut above k")
    axes.errorbar(ks, losses, [2 * error for error in analysis.errors], fmt="none", ecolor=COLOURS["muted"])
    for name, k in analysis.suggestions.items():
        if k is not None:
            axes.plot(k, losses[k - 1], "o", color=COLOURS["mark"], markersize=9, label=f"{name} rule: k = {k}")
    axes.set(xticks=ks, xlabel="k, layers that see the history", ylabel="loss, nats per code")
    legend(figure)
