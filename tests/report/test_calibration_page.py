from __future__ import annotations

import html
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from earn.errors import EarnError
from earn.report.calibration import calibration_page, check_page, write_report
from earn.report.calibration_rows import AttemptRow, LengthRow, PrecisionRow, RangeRow, Report, SensitivityRow

GATE = {
    "beam_set_overlap": 0.96,
    "top10_overlap": 0.94,
    "recall@10": {"before": 0.25, "after": 0.24},
    "ndcg@10": {"before": 0.125, "after": 0.124, "interval": [-0.003, 0.001]},
    "limits": {"beam_set_overlap": 0.95},
}
BAD_GATE = {
    **GATE,
    "beam_set_overlap": 0.9499,
    "ndcg@10": {"before": 0.125, "after": 0.1, "interval": [-0.03, -0.02]},
}
KINDS = ("qkv", "o_proj", "gate_up", "down_proj")
HEAD = RangeRow("late", None, "head", -2.0, 3.0, -4.0, 6.0)


def layer_ranges(stage: str, layers: int) -> tuple[RangeRow, ...]:
    return tuple(RangeRow(stage, layer, kind, -1.0, 1.0, -1.0, 1.0) for layer in range(layers) for kind in KINDS)


OUTLIER = RangeRow("early", 1, "down_proj", -1.5, 2.0, -300.0, 10.0)
REPORT = Report(
    source="bundle",
    out="bundle-int8",
    precision="int8",
    engine="cpu",
    method="minmax",
    data="ml-100k",
    passed=True,
    forced=False,
    samples=128,
    users=1815,
    seed=0,
    gate=GATE,
    ranges=(*layer_ranges("early", 1), OUTLIER, *layer_ranges("late", 2), HEAD),
    sensitivity=(
        SensitivityRow("early.0", 0.01, False),
        SensitivityRow("late.0", 0.03, True),
        SensitivityRow("head", 0.0, False),
    ),
    overlap_by_length=(LengthRow(1, 1, 10, 0.98, 0.95), LengthRow(2, 8, 20, 0.955, 0.8)),
    precisions=(
        PrecisionRow("fp32", 52_428_800, 1.0, 40.0, 1.0, 0.125, True, False),
        PrecisionRow("int8", 13_107_200, 0.25, 20.0, 0.96, 0.124, True, True),
        PrecisionRow("int4", 7_000, 0.125, None, 0.9, 0.1, False, False),
    ),
    attempts=(AttemptRow((), (), 0.94, False), AttemptRow(("down_proj",), ("late.0",), 0.96, True)),
)
EMPTY = replace(REPORT, ranges=(), sensitivity=(), overlap_by_length=(), precisions=(), attempts=())


def text_of(report: Report) -> str:
    """What a reader sees of the page, figures included."""
    page = calibration_page(report).html()
    body = page[page.index("<body>") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\u00a0", " ").split())


def test_the_page_says_what_the_figures_hold() -> None:
    text = text_of(REPORT)
    for said in (
        "The gate is passed.",
        "recommends 96.00%, averaged over 1,815 held-out users; at least 95.00% is required.",
        "Overlap of the beam set ✓ met 0.9600 at least 0.95",
        "Overlap of the best 10 0.9400",
        "Recall@10 0.2500 0.2400 −0.0100",
        "NDCG@10 ✓ met 0.1250 0.1240 −0.0010 (−0.0030 to +0.0010) no significant loss",
        "The gate was tried 2 times, each less coarse:",
        "late.0 ✓ passes 0.9600",
        "lowest, 95.50%, for histories of 2–8 items; a tenth of these 20 users have 80.00% or less",
        "1 of 2 passed: int8.",
        "int8 (chosen) ✓ passes 12.5 MiB 25.0% 20.0 ms 0.9600 0.1240",
        "int4 ✕ fails 6.8 KiB 12.5% not measured 0.9000 0.1000",
        "The most sensitive is late.0: with it alone quantized, the outputs of its stage change by 3.00%.",
        "Left in float: late.0.",
        "The widest range goes into head: −2 to 3.",
        "Of 14 ranges, 2 are narrower and 0 are wider than before",
        "The one into down_proj of early.1 shrank most: it was −300 to 10 and is −1.5 to 2.",
        "into qkv",
        "into head",
    ):
        assert said in text, f"{said!r} is missing in:\n{text}"


@pytest.mark.parametrize(("forced", "said"), [(False, "No bundle was written."), (True, "It was written all the same")])
def test_a_shut_gate_stands_above_everything(forced: bool, said: str) -> None:
    report = replace(REPORT, passed=False, forced=forced, gate=BAD_GATE)
    text = text_of(report)
    assert text.startswith(f"✕ The gate is not passed. {said}")
    assert (
        "It fails because the overlap of the beam set, 0.9499, is below 0.95 and the loss of NDCG@10 is significant"
        in text
    )
    assert "Overlap of the beam set ✕ not met 0.9499" in text
    assert "NDCG@10 ✕ not met" in text
    assert 'class="banner bad"' in calibration_page(report).html()


def test_reasons_are_not_made_up() -> None:
    assert "The figures do not tell why it fails." in text_of(replace(REPORT, passed=False))
    assert "fails because" not in text_of(REPORT)


def test_what_was_not_measured_is_called_so() -> None:
    text = text_of(EMPTY)
    for said in (
        "The overlap was not measured by length.",
        "No precisions were compared.",
        "The sensitivity of the layers was not measured.",
        "No ranges were measured.",
    ):
        assert said in text
    assert "tried" not in text
    assert "<svg" not in calibration_page(EMPTY).html()
    assert "int8" in text_of(replace(EMPTY, gate={}))


def test_one_precision_is_not_compared() -> None:
    report = replace(EMPTY, precisions=REPORT.precisions[1:2])
    assert "Only int8 was tried." in text_of(report)
    assert "<svg" not in calibration_page(report).html()


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
    assert calibration_page(replace(EMPTY, ranges=ranges)).html().count("<svg") == 1


def test_ranges_that_stayed_are_not_said_to_shrink() -> None:
    text = text_of(replace(EMPTY, ranges=layer_ranges("early", 2)))
    assert "Of 8 ranges, 0 are narrower and 0 are wider" in text
    assert "shrank" not in text


def test_names_are_escaped() -> None:
    evil = "<script>$x_{"
    report = replace(
        REPORT,
        source=evil,
        precision=evil,
        sensitivity=(SensitivityRow(evil, 0.1, True),),
        precisions=tuple(replace(row, name=evil) for row in REPORT.precisions),
        ranges=tuple(replace(row, product=evil) for row in REPORT.ranges),
    )
    page = calibration_page(report).html()
    assert "<script" not in page
    assert "&lt;script&gt;$x_{" in page


def test_the_json_beside_the_page_is_the_report(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "report.html")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(asdict(REPORT)))
    rows = {
        name: written.pop(name) for name in ("ranges", "sensitivity", "overlap_by_length", "precisions", "attempts")
    }
    attempts = tuple(
        AttemptRow(**{**row, **{name: tuple(row[name]) for name in ("fine_products", "float_layers")}})
        for row in rows["attempts"]
    )
    again = Report(
        **written,
        ranges=tuple(RangeRow(**row) for row in rows["ranges"]),
        sensitivity=tuple(SensitivityRow(**row) for row in rows["sensitivity"]),
        overlap_by_length=tuple(LengthRow(**row) for row in rows["overlap_by_length"]),
        precisions=tuple(PrecisionRow(**row) for row in rows["precisions"]),
        attempts=attempts,
    )
    assert again == REPORT
    first = (tmp_path / "report.html").read_bytes()
    write_report(again, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == first


def test_places_where_the_page_would_do_harm_are_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    for path, reason in (
        (tmp_path / "report.json", "ends in .html"),
        (tmp_path, "ends in .html"),
        (bundle / "deep" / "page.html", "lies in a bundle"),
    ):
        with pytest.raises(EarnError, match=reason):
            check_page(path, bundle)
    (tmp_path / "page.json").touch()
    with pytest.raises(EarnError, match="stands where the report's figures go"):
        check_page(tmp_path / "page.html", bundle)
    (tmp_path / "page.html").touch()
    check_page(tmp_path / "page.html", bundle)  # an earlier report
