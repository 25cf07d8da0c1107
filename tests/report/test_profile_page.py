from __future__ import annotations

import json
import re
from dataclasses import replace

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
from earn.report.profile import profile_page

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
    profile = profile_of(side("earn"), side("dense", 2.5))
    text = text_of(profile)
    for part in (
        "a history of 40 items (163 tokens) and 20 beams, half of the requests to earn are answered within 10.0 ms",
        "dense takes 2.50 times as long",
        "The largest part of a request to earn is early prefill: 40%.",
        "early prefill 4.00 4.80 6.00 160 400 1.00 200 100 2.00 50%",
        "decode step 2, in 50% 2.00 2.40 3.00 160 30.0 1.00 200 15.0 1.00 50%",
        "earn 40 163 20 120 10.0 12.0 15.0 9.00–11.0 40% 512.0 KiB",
        "30.0 GB/s",
        "earn 2 120 110 125",
        "/bundles/dense: int8, 2 of 8 layers early, 5.0 MiB of weights",
    ):
        assert part in text, part
    assert profile.warnings == []


def test_figures_that_cannot_be_relied_on_say_so_first() -> None:
    calm = profile_of(side("earn"))
    assert not replace(calm, others_busy=None).disturbed
    for profile, warning in (
        (profile_of(side("earn", noisy=True), side("dense")), "Noisy: the median is not known to 5% (earn, 40 items"),
        (replace(calm, others_busy=0.3), "Disturbed: other processes kept 0.3 processors busy meanwhile."),
    ):
        text = text_of(profile)
        assert text.index(warning) < text.index("Profile of")
        assert profile.noisy or profile.disturbed
    assert "earn (noisy)" in text_of(profile_of(side("earn", noisy=True)))


def test_without_limits_the_page_says_why() -> None:
    profile = profile_of(side("earn", limited=False), bandwidth=None, note="Limits were left out. Install it.")
    assert "Limits were left out. Install it." in text_of(profile)
    assert "limit is reached" not in text_of(profile)


def test_one_length_has_no_curve_and_several_widths_have_panels() -> None:
    one = side("earn")
    profile = profile_of(replace(one, cases=one.cases[1:]))
    profile = replace(profile, settings=replace(profile.settings, lengths=(40,)))
    assert "One length alone was measured." in text_of(profile)
    wide = replace(one, cases=(*one.cases, *(replace(case, beams=50) for case in one.cases)))
    html = profile_page(profile_of(wide)).html()
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
    assert value["bundles"][0]["matmul_rates"] == {"40": 1e11, "160": 2e11}
    assert value["machine"]["governor"] is None
