from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.calibration.calibrate import Attempt, Calibration, CalibrationSettings, Candidate
from earn.calibration.collect import ChannelRange
from earn.calibration.gate import HeldOut, Measure, Verdict
from earn.calibration.linear_layers import LinearLayer
from earn.calibration.precisions import PRECISIONS, find_form
from earn.calibration.variants import MixedPrecision
from earn.errors import EarnError
from earn.report.calibration import calibration_page, check_page, figures_of, report_calibration

GOOD = Verdict(
    users=5,
    beam_set=20,
    beam_set_overlap=0.96,
    top10_overlap=0.94,
    recall=Measure(0.25, 0.24),
    ndcg=Measure(0.125, 0.124),
    interval=(-0.003, 0.001),
    least_overlap=0.95,
    overlaps=np.array([1.0, 0.9, 1.0, 0.9, 1.0]),
)
BAD = replace(GOOD, beam_set_overlap=0.9499, ndcg=Measure(0.125, 0.1), interval=(-0.03, -0.02))
INT8 = Candidate(
    precision=PRECISIONS["int8"],
    form=find_form(PRECISIONS["int8"], "cpu"),
    folder=Path("int8"),
    attempts=(Attempt(MixedPrecision(), BAD), Attempt(MixedPrecision(("late.0",), ("down_proj",)), GOOD)),
    graph_bytes=13_107_200,
    milliseconds=20.0,
    sensitivity={"early.0": 0.01, "late.0": 0.03, "head": 0.0},
)
INT4 = replace(
    INT8, precision=PRECISIONS["int4"], attempts=(Attempt(MixedPrecision(), BAD),), graph_bytes=7000, milliseconds=None
)
FOUND = Calibration(INT8, (INT8, INT4), {}, {}, {}, None, 52_428_800, 40.0, 128)
HELD_OUT = HeldOut(tuple(("1",) * count for count in (1, 1, 2, 4, 8)), ("1",) * 5)
Row = Mapping[str, Any]
KINDS = ("qkv", "o_proj", "gate_up", "down_proj")
HEAD = {
    **{"layer": "head", "kind": "head"},
    **{"lowest": -2.0, "highest": 3.0, "lowest_before": -4.0, "highest_before": 6.0},
}
OUTLIER = {
    **{"layer": "early.1", "kind": "down_proj"},
    **{"lowest": -1.5, "highest": 2.0, "lowest_before": -300.0, "highest_before": 10.0},
}


def ranges_of(stage: str, layers: int, kinds: Sequence[str] = KINDS) -> list[dict[str, Any]]:
    sides = {"lowest": -1.0, "highest": 1.0, "lowest_before": -1.0, "highest_before": 1.0}
    return [{"layer": f"{stage}.{layer}", "kind": kind, **sides} for layer in range(layers) for kind in kinds]


def figures_with(*candidates: Candidate, force: bool = False, ranges: Sequence[Row] = ()) -> dict[str, Any]:
    """The figures of a calibration that chose the first candidate; its ranges need no graphs here."""
    found = replace(FOUND, chosen=candidates[0], candidates=candidates)
    settings = CalibrationSettings(force=force)
    return {**figures_of(found, HELD_OUT, settings, "bundle", "bundle-int8", "ml"), "ranges": list(ranges)}


FIGURES = figures_with(INT8, INT4, ranges=[*ranges_of("early", 1), OUTLIER, *ranges_of("late", 2), HEAD])
PLAIN = replace(INT8, attempts=INT8.attempts[1:], sensitivity={})


def text_of(figures: Row) -> str:
    """What a reader sees of the page, figures included."""
    page = calibration_page(figures).html()
    body = page[page.index("<body>") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\u00a0", " ").split())


def test_the_figures_are_those_that_were_measured() -> None:
    assert [tuple(row.values()) for row in FIGURES["precisions"]] == [
        ("fp32", 52_428_800, 40.0, 1.0, 0.125, True, False, 1.0),
        ("int8", 13_107_200, 20.0, 0.96, 0.124, True, True, 0.25),
        ("int4", 7000, None, 0.9499, 0.1, False, False, 7000 / 52_428_800),
    ]
    shortest, *longer = FIGURES["overlap_by_length"]
    assert (shortest["mean"], shortest["tenth_percentile"]) == pytest.approx((0.95, 0.91))
    assert (shortest["least"], shortest["most"], shortest["users"]) == (1, 1, 2)
    assert [(row["least"], row["most"], row["users"]) for row in longer] == [(2, 2, 1), (4, 4, 1), (8, 8, 1)]
    assert FIGURES["sensitivity"][1] == {"name": "late.0", "error": 0.03, "is_float": True}
    assert FIGURES["attempts"][1] == {
        "refined_kinds": ["down_proj"],
        "float_layers": ["late.0"],
        "beam_set_overlap": 0.96,
        "passed": True,
    }


def test_linear_layers_that_read_one_tensor_share_a_range() -> None:
    layers = [
        LinearLayer(kind, index, kind, tensor, "w", "o")
        for kind, index, tensor in (("gate_proj", 0, "a"), ("up_proj", 0, "a"), ("o_proj", 0, "b"), ("head", None, "c"))
    ]
    wide = ChannelRange(np.array([-4.0, -1.0], np.float32), np.array([2.0, 6.0], np.float32))
    narrow = ChannelRange(np.array([-2.0, -1.0], np.float32), np.array([2.0, 3.0], np.float32))
    before, after = ({"late": dict.fromkeys("abc", ranges)} for ranges in (wide, narrow))
    found = replace(FOUND, linear_layers={"late": layers}, before=before, after=after)
    ranges = figures_of(found, HELD_OUT, CalibrationSettings(), "bundle", "bundle-int8", "ml")["ranges"]
    assert [(row["layer"], row["kind"]) for row in ranges] == [
        ("late.0", "gate_proj+up_proj"),
        ("late.0", "o_proj"),
        ("head", "head"),
    ]
    assert ranges[2] == HEAD


def test_the_page_shows_every_figure() -> None:
    text = text_of(FIGURES)
    for figures in (
        "96.00%",
        "✓ passes 0.9600 at least 0.95",
        "0.9400",
        "0.2500 0.2400 −0.0100",
        "✓ passes 0.1250 0.1240 −0.0010 (−0.0030 to +0.0010)",
        "late.0 ✓ passes 0.9600",
        "4 1 0.9000 0.9000",
        "int8 (chosen) ✓ passes 12.5 MiB 25.0% 20.0 ms 0.9600 0.1240",
        "int4 ✕ fails 6.8 KiB 0.0% not measured 0.9499 0.1000",
        "3.00%",
        "head (head): -2 to 3.",
        "down_proj (early.1): -300 to 10.",
    ):
        assert figures in text, f"{figures!r} is missing in:\n{text}"


@pytest.mark.parametrize(("force", "said"), [(False, "No bundle was written."), (True, "It was written all the same")])
def test_a_gate_that_fails_stands_above_everything(force: bool, said: str) -> None:
    text = text_of(figures_with(replace(PLAIN, attempts=(Attempt(MixedPrecision(), BAD),)), force=force))
    assert text.startswith(f"✕ The gate fails. {said}")
    assert all(reason in text for reason in BAD.reasons)


def test_what_was_not_measured_is_called_so() -> None:
    text = text_of(figures_with(PLAIN))
    assert "The sensitivity of the layers was not measured." in text
    assert "No ranges were measured." in text


@pytest.mark.parametrize(
    "ranges",
    [
        [HEAD],  # a dense model's late stage is the head alone
        ranges_of("early", 24)[1:],
        ranges_of("late", 3, KINDS[1:]),  # three panels
        [{**HEAD, "lowest": 0.0, "highest": 0.0, "lowest_before": low, "highest_before": 0.0} for low in (0.0, -5.0)],
    ],
)
def test_ranges_of_any_model_are_drawn(ranges: list[Row]) -> None:
    assert "<svg" in calibration_page(figures_with(PLAIN, ranges=ranges)).html()


def test_names_are_escaped() -> None:
    evil = "<script>$x_{"
    odd = figures_with(replace(INT8, precision=replace(INT8.precision, name=evil), sensitivity={evil: 0.1}))
    ranges = [{**row, "kind": evil} for row in FIGURES["ranges"]]
    page = calibration_page({**odd, "source": evil, "ranges": ranges})
    assert "<script" not in page.html()
    assert page.html().count("&lt;script&gt;$x_{") > 5


def test_the_json_beside_the_page_holds_the_same_figures(tmp_path: Path) -> None:
    found = replace(FOUND, chosen=PLAIN, candidates=(PLAIN,), linear_layers={})
    asked = (found, HELD_OUT, CalibrationSettings(), tmp_path / "a", tmp_path / "b", "ml")
    assert report_calibration(*asked, tmp_path / "page.html") == tmp_path / "page-failed.html"  # no bundle was written
    written = json.loads((tmp_path / "page-failed.json").read_text("utf-8"))
    assert written == figures_of(*asked[:3], "a", "b", "ml")


def test_the_page_goes_over_no_figures_but_a_reports(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match="lies in a bundle"):
        check_page(tmp_path / "bundle" / "deep" / "page.html", tmp_path / "bundle")
    (tmp_path / "page.json").touch()
    with pytest.raises(EarnError, match="stands where the report's figures go"):
        check_page(tmp_path / "page.html")
    (tmp_path / "page.html").touch()
    check_page(tmp_path / "page.html")  # an earlier report
