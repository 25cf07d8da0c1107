"""The attention analysis as a page: where each layer looks, what a cut costs, and which k that suggests.

The page says only what the figures hold (see `attention_figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean

from earn.model.attention_figures import ABOVE, BINS, HEAD, TAIL, Analysis, suggestions_text
from earn.report.attention_pictures import draw_cut, draw_map, draw_shares, draw_sparsity
from earn.report.page import Page, Picture, Section, Table

LAYER_INCHES = 0.27  # height of a layer in the map

# The paper's figures (arXiv 2507.00715, "Attention analysis"): what, Llama, Qwen.
PAPER = (
    ("Sparsity, early layers", "0.025", "-"),
    ("Sparsity, late layers", "0.048", "-"),
    (f"Head sink: first {HEAD} tokens", "0.56", "0.30"),
    (f"Tail sink: last {TAIL} tokens", "0.09", "0.24"),
)


def analysis_page(found: Analysis, name: str, settings: Sequence[tuple[str, str]]) -> Page:
    """The page, without writing it.

    Args:
        name: of the model.
        settings: name and value of what else a reader must know: checkpoint, data, sizes.
    """
    return Page(
        title=f"Attention of {name}",
        summary=_summary(found),
        tiles=_tiles(found),
        sections=(
            Section("Where each layer looks", _map(found)),
            Section("Sinks and sparsity", _curves(found)),
            Section("What a cut costs", _cut(found)),
            Section(
                "All figures",
                [figures_table(found), "The standard error is that of the loss's rise over the uncut model's."],
            ),
            Section("Beside the paper", _paper(found)),
            Section("How this was measured", _method(found, settings)),
        ),
    )


def figures_table(found: Analysis) -> Table:
    """Every figure of every layer."""
    header = (
        "Layer",
        "Sees",
        "Columns",
        "Sparsity",
        "Head",
        "Middle",
        "Tail",
        "Generated",
        "Loss if cut above",
        "Std. error",
    )
    cuts = [(f"{loss:.4f}", f"{error:.4f}") for loss, error in zip(found.cut, found.errors, strict=True)]
    cuts += [("-", "-")] * (len(found.layers) - len(cuts))
    rows = [
        (
            f"{row.layer}",
            "registers, generated" if row.is_late else "everything",
            f"{row.columns:.1f}",
            *(f"{value:.3f}" for value in (row.sparsity, row.head, row.middle, row.tail, row.generated)),
            *cut,
        )
        for row, cut in zip(found.layers, cuts, strict=True)
    ]
    suggested = set(found.suggestions.values())
    return Table(header, rows, text_columns=2, marked=[place for place, _ in enumerate(rows) if place + 1 in suggested])


def _summary(found: Analysis) -> str:
    early = found.layers[: found.early_layers]
    least, most = (choose(early, key=lambda row: row.middle) for choose in (min, max))
    text = (
        f"Where the next item is predicted, the layers that see the history give {least.middle:.0%} (layer "
        f"{least.layer}) to {most.middle:.0%} (layer {most.layer}) of their attention to the middle of the prompt. "
        if len(early) > 1
        else f"Where the next item is predicted, the only layer that sees the history gives {most.middle:.0%} of its "
        "attention to the middle of the prompt. "
    )
    if not found.is_dense:
        text += f"Layers {found.early_layers + 1} to {len(found.layers)} see registers and generated tokens alone. "
    return text + f"Prompts of {found.users:,} users, each followed by the item that came next."


def _tiles(found: Analysis) -> list[tuple[str, str]]:
    none = "none" if found.is_dense else f"none below {found.early_layers}"
    kind = "all see the history" if found.is_dense else f"{found.early_layers} of them see the history"
    return [
        (f"{found.users:,}", "users"),
        (f"{len(found.layers)}", f"layers, {kind}"),
        *(
            (none if k is None else f"k = {k}", f"suggested by the {name} rule")
            for name, k in found.suggestions.items()
        ),
    ]


def _map(found: Analysis) -> list[str | Table | Picture]:
    late = "" if found.is_dense else " Registers stand at the prompt's ends. A dash: what the layer cannot see."
    return [
        Picture(
            "Attention of the rows that predict, in percent; each layer's cells add up to 100, and what rounds to 0 is "
            f"left empty. The middle of the prompt is laid onto {BINS} equal parts, whatever its length.{late}",
            partial(draw_map, found),
            height=0.75 + LAYER_INCHES * len(found.layers),
        )
    ]


def _curves(found: Analysis) -> list[str | Table | Picture]:
    late = " In the shaded layers nothing but registers and generated tokens is seen." if not found.is_dense else ""
    return [
        Picture(
            f"The same by part of the prompt: head (first {HEAD} tokens), tail (last {TAIL}), what lies between, and "
            f"generated tokens.{late}",
            partial(draw_shares, found),
            height=3.2,
        ),
        Picture(
            f"Sparsity: the share of a row's attention probabilities above {ABOVE:g}, over the columns it may see. Of "
            f"few columns most get more than that, so only layers that see equally many compare.{late}",
            partial(draw_sparsity, found),
            height=2.4,
        ),
    ]


def _cut(found: Analysis) -> list[str | Table | Picture]:
    kept = f"the prompt's first {_rows(found.prefix)}, its last {_rows(found.suffix)} and generated tokens"
    parts: list[str | Table | Picture] = [
        f"Layers above k see {kept} alone, as in EARN, with the weights as they are. A model that is trained with "
        "the cut can adapt to it; this one could not.",
    ]
    if len(found.cut) > 1:
        parts.append(
            Picture(
                "Mean cross-entropy of the target's codes over the whole vocabulary, in nats, by the number of layers "
                f"that see the history. At k = {found.early_layers} nothing is cut: the model's own loss. "
                "The lines are two standard errors of the rise over it to either side.",
                partial(draw_cut, found),
            )
        )
    return [*parts, *suggestions_text(found)]


def _paper(found: Analysis) -> list[str | Table | Picture]:
    early = found.layers[: found.early_layers]
    half = (len(early) + 1) // 2
    own = (
        mean(row.sparsity for row in early[:half]),
        mean(row.sparsity for row in early[-half:]),
        mean(row.head for row in early),
        mean(row.tail for row in early),
    )
    which = "layer 1, which sees" if len(early) == 1 else f"layers 1 to {len(early)}, which see"
    rows = [(name, f"{value:.3f}", llama, qwen) for (name, llama, qwen), value in zip(PAPER, own, strict=True)]
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


def _method(found: Analysis, settings: Sequence[tuple[str, str]]) -> list[str | Table | Picture]:
    return [
        "Each prompt is followed by the codes of the item that came next, but the last one. Figures are of the rows "
        "that predict, the prompt's last one and the generated ones, and are averaged over heads, rows and users. Rows "
        "near the prompt's start are left out: they have few columns to share their attention out to.",
        Table(
            ("Setting", "Value"),
            [*settings, ("users", f"{found.users:,}"), ("rows that predict", f"{found.rows:,}")],
            text_columns=2,
        ),
    ]


def _rows(count: int) -> str:
    return "row" if count == 1 else f"{count} rows"
