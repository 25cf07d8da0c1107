from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from earn.errors import EarnError
from earn.profiling.machine import Machine
from earn.profiling.rows import (
    BundleProfile,
    Callers,
    Case,
    Limit,
    Loading,
    Percentiles,
    ProfileResult,
    ProfileSettings,
    RequestPart,
)
from earn.report.profile import check_page, noisy_cases, profile_page
from earn.report.profile_pictures import figures, milliseconds

MACHINE = Machine("Some CPU", 2, 4, 1 << 25, None, 0.25, "Linux 6 x86_64", {"python": "3.11.9", "numpy": "2.4.6"})
LOADING = Loading(3, 50.0, Percentiles(120.0, 130.0, 131.0), 17.0, 50 << 20, 80 << 20, 90 << 20)


def stage(p50: float, taken: float = 1.0, limit: Limit | None = None) -> RequestPart:
    return RequestPart(Percentiles(p50, 1.2 * p50, 1.5 * p50), p50 * taken, taken, limit)


def case_of(items: int, scale: float, limited: bool = True, **changes: object) -> Case:
    """A case that takes 10 * scale ms, of which the machine allows 4 * scale."""

    def limit(operations: int, least: float, p50: float) -> Limit | None:
        return Limit(4 * items, operations, 1 << 20, 2e11, least * scale, least / p50) if limited else None

    stages = {
        "early_prefill": stage(4 * scale, limit=limit(400_000_000, 2.0, 4.0)),
        "late_prefill": stage(1 * scale, limit=limit(2_000_000, 0.5, 1.0)),
        "step_1": stage(2 * scale, limit=limit(40_000_000, 1.0, 2.0)),
        "step_2": stage(2 * scale, 0.5, limit(30_000_000, 1.0, 2.0)),
        "search": stage(2 * scale),
        "total": stage(10 * scale),
    }
    case = Case(items, 4 * items + 3, 20, 120, (9 * scale, 11 * scale), False, 1 << 19, stages)
    return replace(case, least_ms=4 * scale if limited else None, **changes)  # type: ignore[arg-type]


def side(name: str, scale: float = 1.0, limited: bool = True, noisy: bool = False) -> BundleProfile:
    cases = (case_of(10, scale / 2, limited), case_of(40, scale, limited, noisy=noisy))
    callers = (Callers(1, 80 / scale, 70 / scale, 85 / scale), Callers(2, 120 / scale, 110 / scale, 125 / scale))
    rates = {40: 1e11, 160: 2e11} if limited else {}
    return BundleProfile(name, f"/bundles/{name}", "int8", 8, 2, 6 << 20, 5 << 20, LOADING, cases, callers, rates)


def profile_of(*sides: BundleProfile, bandwidth: float | None = 3e10, note: str = "") -> ProfileResult:
    settings = ProfileSettings(lengths=(10, 40), beams=(20,), histories="random items of the catalog, seed 0")
    return ProfileResult(settings, MACHINE, bandwidth, note, 0.1, sides)


def text_of(profile: ProfileResult) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", profile_page(profile).html().partition("<body>")[2]))


def test_the_page_says_what_was_found() -> None:
    text = text_of(profile_of(side("earn"), side("dense", 2.5)))
    for part in (
        "Profile of earn beside dense",
        "a history of 40 items (163 tokens) and 20 beams, half of the requests to earn are answered within 10.0 ms",
        "dense takes 2.50 times as long",
        "of the machine&#39;s limit is reached 40%",
        "The largest part of a request to earn is early prefill: 40%.",
        "decode step 2 (in 50% of the requests)",
        "30.0 GB/s",
        "Some CPU",
        "random items of the catalog, seed 0",
        "numpy 2.4.6",
        "/bundles/dense: int8, 8 layers, 2 of them early, 5.0 MiB of weights",
    ):
        assert part in text, part
    assert "oisy:" not in text


def test_the_pictures_name_stages_bundles_and_limits() -> None:
    html = profile_page(profile_of(side("earn"), side("dense", 2.5))).html()
    assert html.count("<svg") == 4
    texts = set(re.findall(r"<text[^>]*>([^<]*)</text>", html))
    wanted = {"early prefill", "late prefill", "decode step 1", "decode step 2", "search", "earn", "dense"}
    assert wanted | {"10.0 ms", "25.0 ms", "tokens of the prompt", "2 callers"} <= texts
    assert "earn: 30.0 GB/s of memory, 200 GOP/s of products" in texts


def test_one_bundle_stands_alone() -> None:
    text = text_of(profile_of(side("earn")))
    assert "Profile of earn " in text
    assert "times as long" not in text


def test_noise_is_said_first() -> None:
    noisy = profile_of(side("earn", noisy=True), side("dense"))
    assert noisy.noisy
    assert noisy_cases(noisy) == ["earn, 40 items, 20 beams"]
    text = text_of(noisy)
    assert text.index("Noisy: the median is not known to 5% (earn, 40 items, 20 beams).") < text.index("Profile of")
    assert "earn (noisy)" in text
    assert "Hollow points are noisy" in text


def test_a_disturbance_is_said_first() -> None:
    calm = profile_of(side("earn"))
    assert not replace(calm, others_busy=None).disturbed
    disturbed = replace(calm, others_busy=0.3)
    assert (calm.disturbed, disturbed.disturbed) == (False, True)
    text = text_of(disturbed)
    assert text.index("Disturbed: other processes kept 0.3 processors busy meanwhile.") < text.index("Profile of")


def test_without_limits_the_page_says_why() -> None:
    profile = profile_of(side("earn", limited=False), bandwidth=None, note="Limits were left out. Install it.")
    text = text_of(profile)
    assert "Limits were left out. Install it." in text
    assert "limit is reached" not in text
    assert profile_page(profile).html().count("<svg") == 3


def test_one_length_has_no_curve() -> None:
    one = replace(side("earn"), cases=side("earn").cases[1:])
    profile = profile_of(one)
    profile = replace(profile, settings=replace(profile.settings, lengths=(40,)))
    assert "One length alone was measured." in text_of(profile)


def test_several_widths_have_bars_and_panels() -> None:
    one = side("earn")
    wide = replace(one, cases=(*one.cases, *(replace(case, beams=50) for case in one.cases)))
    html = profile_page(profile_of(wide)).html()
    assert "earn, 40 items, 50 beams" in html
    assert {"20 beams", "50 beams"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", html))


def test_what_the_system_does_not_tell_is_called_so() -> None:
    unknown = replace(LOADING, imported_bytes=None, loaded_bytes=None, peak_bytes=None)
    few = replace(side("earn").cases[1], interval_ms=None)
    text = text_of(profile_of(replace(side("earn"), loading=unknown, cases=(few,))))
    assert "not known not known not known" in text
    assert "too few" in text
    assert "most memory" not in text


def test_the_longest_histories_are_the_main_case() -> None:
    one = side("earn")
    wide = replace(one, cases=(*(replace(case, beams=50) for case in one.cases), *one.cases))
    assert [(case.items, case.beams) for case in wide.longest] == [(40, 50), (40, 20)]
    assert wide.main.beams == 50


def test_as_json_it_has_every_figure_by_name() -> None:
    value = json.loads(json.dumps(profile_of(side("earn", 1 / 3), side("dense", noisy=True)).as_json()))
    measured = {"settings", "machine", "memory_bandwidth", "note", "others_busy", "bundles"}
    assert value.keys() == measured | {"noisy", "disturbed"}
    assert (value["noisy"], [bundle["noisy"] for bundle in value["bundles"]]) == (True, [False, True])
    case = value["bundles"][0]["cases"][1]
    assert case["stages"]["early_prefill"]["ms"] == {"p50": 1.33333, "p90": 1.6, "p99": 2.0}
    assert case["stages"]["early_prefill"]["limit"]["share"] == 0.5
    assert case["least_ms"] == 1.33333
    assert value["bundles"][0]["product_rates"] == {"40": 1e11, "160": 2e11}
    assert value["machine"]["governor"] is None


def test_figures_have_three_digits() -> None:
    assert [milliseconds(value) for value in (0.00042, 0.5, 1.234, 12.34, 1234.5)] == [
        *("0.00042", "0.50", "1.23", "12.3", "1,234")
    ]
    assert [figures(value) for value in (0.1234, 12.34, 1234.5)] == ["0.123", "12.3", "1,234"]


def test_a_place_for_the_page_is_checked_before_anything_is_measured(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (tmp_path / "file").write_text("")
    check_page(tmp_path / "new" / "page.html", bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "file"]  # nothing is left behind
    for path, says in (
        ("page.txt", "Give a file that ends in .html"),
        ("bundle/page.html", "lies in a bundle"),
        ("file/page.html", "cannot be written"),
    ):
        with pytest.raises(EarnError, match=says):
            check_page(tmp_path / path, bundle)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(EarnError, match=re.escape(f"cannot be written ({os.strerror(2)}: /proc)")):
        check_page(Path("/proc/page.html"))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EarnError, match=r"earn-edge\[report\]"):
        check_page(tmp_path / "page.html")
