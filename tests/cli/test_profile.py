from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from earn.cli.main import build_parser
from earn.cli.profile import QUICK, bundle_names, numbers
from earn.profiling import roofline
from tests.cli.conftest import Earn

FAST = ("--quick", "--seconds", "0.01", "--callers", "1", "--threads", "1")


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of this machine are not what is tested."""
    monkeypatch.setitem(QUICK, "window", 0.01)
    monkeypatch.setattr(roofline, "SECONDS", 0.0)
    monkeypatch.setattr(roofline, "LEAST_ARRAY", 1 << 16)
    monkeypatch.setattr(roofline, "last_cache_bytes", lambda: None)


def test_json_has_every_stage_of_every_bundle(toy_bundle: Path, earn: Earn, tmp_path: Path) -> None:
    outcome = earn("profile", toy_bundle, "--against", toy_bundle, *FAST, "--json", "--report", tmp_path / "page.html")
    assert outcome.status == 0
    assert outcome.out.count("\n") == 1
    value = outcome.json
    assert [bundle["name"] for bundle in value["bundles"]] == ["bundle", "bundle (2)"]
    assert value["settings"]["threads"] == 1
    for bundle in value["bundles"]:
        (case,) = bundle["cases"]
        assert (case["items"], case["beams"], bundle["precision"]) == (6, 20, "fp32")
        assert case["requests"] >= 8
        assert isinstance(case["noisy"], bool)
        assert list(case["stages"])[:2] == ["early_prefill", "late_prefill"]
        assert list(case["stages"])[-2:] == ["search", "total"]
        for name, stage in case["stages"].items():
            assert 0 < stage["ms"]["p50"] <= stage["ms"]["p90"] <= stage["ms"]["p99"]
            assert (stage["limit"] is None) == (name in ("search", "total"))
        assert case["least_ms"] > 0
        assert bundle["callers"][0]["per_second"] > 0
        assert bundle["loading"]["ms"]["p50"] > 0
    assert value["memory_bandwidth"] > 0
    assert "Profile of bundle beside bundle (2)" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("p99 ms", "early prefill", "Of limit", "Histories: random items", f"Report: {tmp_path}"):
        assert words in outcome.err


def test_tables_are_the_result_without_json(toy_bundle: Path, earn: Earn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUICK, "tolerance", 0.0)  # no machine is that steady
    outcome = earn("profile", toy_bundle, *FAST, "--histories", "1,3", "--beams", "2,4", "-k", "2")
    rows = [line.split()[2:5] for line in outcome.out.splitlines()[2:6]]
    assert [(items, beams) for items, _, beams in rows] == [("1", "2"), ("3", "2"), ("1", "4"), ("3", "4")]
    assert "[7/8]" in outcome.err
    assert "[8/8]" in outcome.err
    assert all("(noisy)" in line for line in outcome.out.splitlines()[2:6])
    assert "Noisy: the median is not known to 0%" in outcome.out


def test_real_histories_are_asked_where_there_are_any(exported: Path, data: Path, earn: Earn, tmp_path: Path) -> None:
    value = earn("profile", exported, "--data", data, *FAST, "--json").json
    assert value["settings"]["histories"].startswith("of users of ")
    assert value["bundles"][0]["cases"][0]["items"] == 6
    lines = (data / "walks.inter").read_text().splitlines()
    short = [line for line in lines[1:] if int(line.split("\t")[2]) < 4]
    (tmp_path / "walks.inter").write_text("\n".join([lines[0], *short]) + "\n")
    outcome = earn("profile", exported, "--data", tmp_path, *FAST, "--histories", "4")
    assert "no user has a history of 4 items. Ask for shorter --histories" in outcome.error


def test_numbers_and_names_are_told_apart(tmp_path: Path) -> None:
    assert numbers("20, 5,20") == (20, 5)
    folders = [tmp_path / name for name in ("a", "b/a", "c", "a")]
    assert bundle_names(folders) == ["a", "a (2)", "c", "a (3)"]


def test_settings_of_the_quick_way_can_be_changed(toy_bundle: Path) -> None:
    from earn.cli.profile import _settings
    from earn.manifest import Manifest

    def settings(*options: str) -> Any:
        args = build_parser().parse_args(["profile", str(toy_bundle), *options])
        return _settings(args, [Manifest.load(toy_bundle)], None)

    assert (settings().lengths, settings().beams, settings().seconds) == ((1, 3, 6), (20,), 10)
    assert (settings("--quick").lengths, settings("--quick").seconds) == ((6,), 2)
    assert settings("--quick", "--seconds", "5").seconds == 5
    assert settings("--histories", "5,2").lengths == (2, 5)
