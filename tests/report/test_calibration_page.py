from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from earn.calibration.calibrate import Attempt, Calibration, CalibrationSettings, Candidate
from earn.calibration.collect import ChannelRange
from earn.calibration.gate import HeldOut, Measure, Verdict
from earn.calibration.linear_layers import LinearLayer
from earn.calibration.precisions import PRECISIONS, find_form
from earn.calibration.variants import MixedPrecision
from earn.errors import EarnError
from earn.report.calibration import calibration_page, check_page, write_report
from earn.report.calibration_figures import LengthRow, PrecisionRow, RangeRow, Report, report_of

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
KINDS = ("qkv", "o_proj", "gate_up", "down_proj")
HEAD = RangeRow("late", None, "head", -2.0, 3.0, -4.0, 6.0)
OUTLIER = RangeRow("early", 1, "down_proj", -1.5, 2.0, -300.0, 10.0)


def report_with(*candidates: Candidate, force: bool = False, ranges: tuple[RangeRow, ...] = ()) -> Report:
    """The report of a calibration that chose the first candidate; its ranges need no graphs here."""
    found = replace(FOUND, chosen=candidates[0], candidates=candidates)
    return replace(
        report_of(found, HELD_OUT, CalibrationSettings(force=force), "bundle", "bundle-int8", "ml"), ranges=ranges
    )


def layer_ranges(stage: str, layers: int) -> tuple[RangeRow, ...]:
    return tuple(RangeRow(stage, layer, kind, -1.0, 1.0, -1.0, 1.0) for layer in range(layers) for kind in KINDS)


REPORT = report_with(INT8, INT4, ranges=(*layer_ranges("early", 1), OUTLIER, *layer_ranges("late", 2), HEAD))
PLAIN = replace(INT8, attempts=INT8.attempts[1:], sensitivity={})


def text_of(report: Report) -> str:
    """What a reader sees of the page, figures included."""
    page = calibration_page(report).html()
    body = page[page.index("<body>") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\u00a0", " ").split())


def test_the_rows_hold_what_was_measured() -> None:
    assert REPORT.precisions == (
        PrecisionRow("fp32", 52_428_800, 1.0, 40.0, 1.0, 0.125, True, False),
        PrecisionRow("int8", 13_107_200, 0.25, 20.0, 0.96, 0.124, True, True),
        PrecisionRow("int4", 7000, 7000 / 52_428_800, None, 0.9499, 0.1, False, False),
    )
    shortest = REPORT.lengths[0]
    assert (shortest.mean, shortest.tenth_percentile) == pytest.approx((0.95, 0.91))
    assert [(row.span, row.users) for row in REPORT.lengths] == [("1", 2), ("2", 1), ("4", 1), ("8", 1)]


def test_linear_layers_that_read_one_tensor_share_a_range() -> None:
    layers = [
        LinearLayer(kind, index, kind, tensor, "w", "o")
        for kind, index, tensor in (("gate_proj", 0, "a"), ("up_proj", 0, "a"), ("o_proj", 0, "b"), ("head", None, "c"))
    ]
    wide = ChannelRange(np.array([-4.0, -1.0], np.float32), np.array([2.0, 6.0], np.float32))
    narrow = ChannelRange(np.array([-2.0, -1.0], np.float32), np.array([2.0, 3.0], np.float32))
    before, after = ({"late": dict.fromkeys("abc", ranges)} for ranges in (wide, narrow))
    found = replace(FOUND, linear_layers={"late": layers}, before=before, after=after)
    ranges = report_of(found, HELD_OUT, CalibrationSettings(), "bundle", "bundle-int8", "ml").ranges
    assert [(row.unit, row.product) for row in ranges] == [
        ("late.0", "gate_up"),
        ("late.0", "o_proj"),
        ("head", "head"),
    ]
    assert ranges[2] == HEAD
    assert ranges[2].change == 0.5


def test_the_page_shows_every_figure() -> None:
    text = text_of(REPORT)
    for figures in (
        "96.00%",
        "5 held-out users",
        "✓ met 0.9600 at least 0.95",
        "0.9400",
        "0.2500 0.2400 −0.0100",
        "✓ met 0.1250 0.1240 −0.0010 (−0.0030 to +0.0010)",
        "late.0 ✓ passes 0.9600",
        "90.00%, for histories of 4 items",
        "1 of 2 passed: int8.",
        "int8 (chosen) ✓ passes 12.5 MiB 25.0% 20.0 ms 0.9600 0.1240",
        "int4 ✕ fails 6.8 KiB 0.0% not measured 0.9499 0.1000",
        "most sensitive is late.0",
        "3.00%",
        "head: −2 to 3.",
        "Of 14 ranges, 2 are narrower and 0 are wider",
        "down_proj of early.1 shrank most: it was −300 to 10 and is −1.5 to 2.",
    ):
        assert figures in text, f"{figures!r} is missing in:\n{text}"
    assert calibration_page(REPORT).html().count("<svg") == 4


@pytest.mark.parametrize(("force", "said"), [(False, "No bundle was written."), (True, "It was written all the same")])
def test_a_gate_that_fails_stands_above_everything(force: bool, said: str) -> None:
    text = text_of(report_with(replace(PLAIN, attempts=(Attempt(MixedPrecision(), BAD),)), force=force))
    assert text.startswith(f"✕ The gate is not passed. {said}")
    assert all(reason in text for reason in BAD.reasons)
    assert "✕ not met 0.9499" in text
    assert "fails because" not in text_of(REPORT)


def test_what_was_not_measured_is_called_so() -> None:
    report = report_with(PLAIN)
    text = text_of(report)
    assert "The sensitivity of the layers was not measured." in text
    assert "No ranges were measured." in text
    assert "tried" not in text
    assert calibration_page(report).html().count("<svg") == 2


@pytest.mark.parametrize(
    "ranges",
    [
        (*layer_ranges("early", 4), HEAD),  # dense: the late stage is the head alone
        (*layer_ranges("early", 1), HEAD),
        (HEAD,),
        layer_ranges("early", 24)[1:],
        tuple(row for row in layer_ranges("late", 3) if row.product != "qkv"),  # three panels
        (RangeRow("early", 0, "qkv", 0.0, 0.0, 0.0, 0.0), RangeRow("early", 1, "qkv", 0.0, 0.0, -5.0, 0.0)),
    ],
)
def test_ranges_of_any_model_are_drawn(ranges: tuple[RangeRow, ...]) -> None:
    page = calibration_page(report_with(PLAIN, ranges=ranges))
    assert page.html().count("<svg") == 3


def test_ranges_that_stayed_are_not_said_to_shrink() -> None:
    text = text_of(report_with(PLAIN, ranges=layer_ranges("early", 2)))
    assert "Of 8 ranges, 0 are narrower and 0 are wider" in text
    assert "shrank" not in text


def test_names_are_escaped() -> None:
    evil = "<script>$x_{"
    odd = report_with(replace(INT8, precision=replace(INT8.precision, name=evil), sensitivity={evil: 0.1}))
    ranges = tuple(replace(row, product=evil) for row in REPORT.ranges)
    page = calibration_page(replace(odd, source=evil, ranges=ranges))
    assert "<script" not in page.html()
    assert page.html().count("&lt;script&gt;$x_{") > 5


def test_the_json_beside_the_page_holds_the_same_figures(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "report.html")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    plain = "source out precision engine method data passed forced samples users seed gate"
    rows = {name: list(written.pop(name)) for name in ("ranges", "sensitivity", "precisions", "attempts")}
    lengths = written.pop("overlap_by_length")
    assert written.keys() == set(plain.split())
    assert [RangeRow(**row) for row in rows["ranges"]] == list(REPORT.ranges)
    assert [PrecisionRow(**row) for row in rows["precisions"]] == list(REPORT.precisions)
    assert [LengthRow(**row) for row in lengths] == list(REPORT.lengths)
    assert rows["sensitivity"][1] == {"name": "late.0", "error": 0.03, "is_float": True}
    assert rows["attempts"][1] == {
        "fine_products": ["down_proj"],
        "float_layers": ["late.0"],
        "beam_set_overlap": 0.96,
        "passed": True,
    }


def test_the_page_goes_over_no_figures_but_a_reports(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match="lies in a bundle"):
        check_page(tmp_path / "bundle" / "deep" / "page.html", tmp_path / "bundle")
    (tmp_path / "page.json").touch()
    with pytest.raises(EarnError, match="stands where the report's figures go"):
        check_page(tmp_path / "page.html")
    (tmp_path / "page.html").touch()
    check_page(tmp_path / "page.html")  # an earlier report
