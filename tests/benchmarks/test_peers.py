"""The comparison with the field runs from end to end, on a catalog of its own, and compares what it says it does."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import engines, peers, sides
from benchmarks.engines import make_generate
from benchmarks.peers import CTRANSLATE2, HEADLINE, SESSIONS, SHAPES, check_same_work, figures
from benchmarks.sides import Answer, OwnProcess, Side, Step, Timings, make_task, measure
from earn.catalog import Catalog
from earn.prompts import whole_prompt
from earn.runtime.lists import Recommendation
from tests.benchmarks.conftest import write_data
from tests.support import toy_catalog


def catalog() -> Catalog:
    """120 items; "0" and "1" share an identifier."""
    codes = [(item % 6, item // 6 % 5, item % 7, item // 2) for item in range(2, 121)]
    return toy_catalog(
        [" ".join(f"<{letter}_{code}>" for letter, code in zip("abcd", row, strict=True)) for row in (codes[0], *codes)]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("in_one_process")
def test_it_prints_its_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "HISTORIES", 3)
    monkeypatch.setattr(sides, "HISTORIES", 3)
    items = catalog()
    write_data(tmp_path, items, {"user": items.item_ids[:5]})
    options = ["--quick", "--all-sides", "--shape", "tiny", "--threads", "1", "--data", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["peers.py", *options])
    peers.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["prompt"], result["beams"], result["items"]) == (200, 20, 120)
    assert result["speedup_vs_hf"] == round(result["hf_generate_ms"] / result["earn_int8_ms"], 2)
    assert result["speedup_vs_dense"] == round(result["dense_int8_ms"] / result["earn_int8_ms"], 2)
    assert all(
        result[name] > 0
        for name in ("earn_fp32_ms", "earn_int8_dynamic_ms", "earn_int8_vocab_ms", "earn_int8_session_ms", *SESSIONS)
    )
    assert (result["ctranslate2_int8_ms"] is None) == (find_spec("ctranslate2") is None)
    # Rows of 2 heads of 16 numbers, keys and values, 4 bytes each; the last of 4 codes leaves no row.
    row = 2 * 2 * 16 * 4
    assert result["hf_cache_bytes"] == 20 * (200 + 3) * 4 * row
    assert result["dense_cache_bytes"] == (200 + 20 * 3) * 4 * row
    assert result["operation_ratio_vs_dense"] > 1
    assert 0 < result["search_share"] < 1
    assert 0 < result["prefill_share_of_gemm_rate"] < 1


def test_all_sides_read_as_many_tokens() -> None:
    task = make_task(catalog(), SHAPES["tiny"], threads=1)
    history = HEADLINE.histories(task)[0]
    earn = whole_prompt([task.identifiers[item] for item in history], task.splits["earn"])
    assert task.prompt(history) == earn
    assert len(earn) == HEADLINE.prompt == 200
    assert make_generate(task).named([task.identifiers[5], task.identifiers[1], task.identifiers[2]]) == [
        "5",
        "0",
        "1",
        "2",
    ]


def test_a_peer_that_is_not_installed_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setattr(engines, "write_bundles", lambda *arguments: None)
    task = make_task(catalog(), SHAPES["tiny"], threads=1)
    assert not engines.write(task, tmp_path, [[0, 1]], {})
    assert "without ctranslate2_int8" in capsys.readouterr().err


def test_an_object_is_asked_in_a_process_of_its_own() -> None:
    with OwnProcess(os.getpid) as process:
        milliseconds, number = process.ask("__int__")
    assert number != os.getpid()
    assert milliseconds >= 0


def test_sides_take_turns_and_only_requests_are_counted() -> None:
    asked: list[str] = []

    def step(name: str) -> Step:
        def ask() -> Answer:
            asked.append(name)
            return len(asked), name

        return ask

    def side(name: str) -> Side:
        return Side(lambda turn: [step(f"{name}{turn}")], requests=2)

    slow = Side(lambda turn: [step("slow")] * 2, requests=1, rounds=1, warm_up=0)
    found = measure({"a": side("a"), "slow": slow, "b": side("b")}, 2, pause=0)
    assert asked == [*["a0"] * 3, "slow", "slow", *["b0"] * 3, *["a1"] * 3, *["b1"] * 3]
    assert [len(found[name].steps) for name in ("a", "slow", "b")] == [4, 1, 4]
    assert [len(found[name].answers) for name in ("a", "slow", "b")] == [2, 1, 2]
    assert (found["slow"].steps, found["slow"].totals) == ([[4, 5]], [9])


def test_the_faster_way_of_a_peer_counts() -> None:
    plain, static = CTRANSLATE2
    names = {
        "hf_generate": 900.0,
        "dense_int8": 30.0,
        "earn_fp32": 25.0,
        "earn_int8": 10.0,
        "earn_int8_vocab": 15.0,
        plain: 80.0,
        static: 60.0,
    }
    found = {name: Timings([[ms], [ms], [9999.0]]) for name, ms in names.items()}
    found["earn_int8_session"] = Timings([[1.0, 4.0], [2.0, 3.0], [3.0, 9.0]])
    result = figures(found)
    assert (result["ctranslate2_int8_ms"], result["ctranslate2_faster"]) == (60, static)
    assert (result["speedup_vs_hf"], result["speedup_vs_dense"], result["speedup_vs_ctranslate2"]) == (90, 3, 6)
    assert (result["session_append_ms"], result["session_recommend_ms"], result["earn_int8_session_ms"]) == (2, 4, 5)
    assert (result["vocab_speedup_vs_ctranslate2"], result["session_speedup_vs_ctranslate2"]) == (4, 12)
    without = figures({name: side for name, side in found.items() if name not in CTRANSLATE2})
    assert without["ctranslate2_int8_ms"] is without["speedup_vs_ctranslate2"] is None


def test_nothing_is_measured_where_the_dense_sides_differ() -> None:
    got = [Recommendation("1", -1.0, ""), Recommendation("2", -2.0, ""), Recommendation("3", -2.00001, "")]
    check_same_work(["1", "2", "3"], got)
    check_same_work(["1", "3", "2"], got)  # a near tie
    for want in (["2", "1", "3"], ["1", "2", "4"], ["1", "2"]):
        with pytest.raises(SystemExit, match="differ"):
            check_same_work(want, got)
