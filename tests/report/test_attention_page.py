from __future__ import annotations

from dataclasses import replace

import pytest

from earn.model.attention_figures import BINS, HEAD, TAIL, Analysis, LayerFigures
from earn.report.attention import analysis_page, figures_table

END = HEAD + BINS + TAIL


def layer(number: int, middle: float, is_late: bool = False, generated: int = 3) -> LayerFigures:
    """A layer that gives so much to the middle, and shares the rest between the prompt's ends."""
    received = [0.0] * (END + generated)
    received[HEAD], received[0], received[END - 1] = middle, 0.75 * (1 - middle), 0.25 * (1 - middle)
    seen = tuple(not is_late or place in (0, END - 1) or place >= END for place in range(len(received)))
    return LayerFigures(number, is_late, 4.0 if is_late else 40.0, 0.1 * number, tuple(received), seen)


DENSE = Analysis(
    users=1234,
    rows=4936,
    early_layers=4,
    prefix=HEAD,
    suffix=1,
    layers=tuple(layer(number, middle) for number, middle in enumerate((0.9, 0.4, 0.05, 0.02), 1)),
    cut=(3.0, 2.6, 2.04, 2.0),
    errors=(0.1, 0.05, 0.01, 0.0),
)
EARN = replace(
    DENSE,
    early_layers=1,
    prefix=1,
    layers=(layer(1, 0.9), *(layer(number, 0.0, True) for number in (2, 3, 4))),
    cut=(2.0,),
    errors=(0.0,),
)


def test_a_dense_models_page_suggests_a_k() -> None:
    html = analysis_page(DENSE, "<dense>", [("data", "some")]).html()
    assert "Attention of &lt;dense&gt;" in html
    assert "give 2% (layer 4) to 90% (layer 1) of their attention" in html
    assert "By the cut rule k = 3 of 4 layers" in html
    assert "the prompt&#39;s first 3 rows, its last row and generated tokens" in html
    assert html.count("<svg") == 2
    assert "nan" not in html.lower().split("</style>")[1]


def test_an_earn_models_page_says_that_no_larger_k_can_be_suggested() -> None:
    html = analysis_page(EARN, "earn", []).html()
    assert "give 90% (layer 1) of their attention" in html
    assert html.count("<svg") == 1  # one loss is no curve
    for words in ("Layers 2 to 4 see registers", "none below 1", "Of a k above 1 this model says nothing"):
        assert words in html


def test_without_a_measurable_cost_of_cuts_more_users_are_asked_for() -> None:
    html = analysis_page(replace(DENSE, errors=(0.6, 0.05, 0.01, 0.0)), "unsure", []).html()
    assert "less than 2 standard errors: take more users" in html
    assert "most the cut rule allows" not in html


def test_identifiers_of_one_code_have_no_generated_tokens() -> None:
    found = replace(DENSE, layers=tuple(layer(number, 0.5, generated=0) for number in (1, 2, 3, 4)))
    assert ">g1<" not in analysis_page(found, "short", []).html()


def test_the_table_has_every_figure_and_marks_what_is_suggested() -> None:
    table = figures_table(DENSE)
    assert table.marked == [2]
    name, sees, *figures = table.rows[1]
    assert (name, sees) == ("2", "everything")
    assert [float(figure) for figure in figures] == pytest.approx([40, 0.2, 0.45, 0.4, 0.15, 0, 2.6, 0.05])
    assert figures_table(EARN).rows[0][-2:] == ("2.0000", "0.0000")
    assert figures_table(EARN).rows[3][-2:] == ("-", "-")
