from __future__ import annotations

import io
import logging
import sys
import warnings

import pytest

from earn.console import (
    Steps,
    complain,
    note,
    pairs,
    progress,
    quiet,
    results_kept_clean,
    show,
    show_json,
    size,
    table,
)


def test_table_sets_numbers_to_the_right_and_text_to_the_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(("item", "score", "title"), [("7", "-0.5", "One"), ("12", "-12.25", "Another")]) == (
        "  item    score  title\n"
        "------  -------  -------\n"
        "     7     -0.5  One\n"
        "    12   -12.25  Another"
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "tabulate", None)  # without it cells have tabs between them
    assert table(("item", "score"), [("7", "-0.5")]) == "item\tscore\n7\t-0.5"


def test_pairs_align_values() -> None:
    assert pairs([("a", "1"), ("long", "2"), ("", "3")]) == "a     1\nlong  2\n      3"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (1 << 30, "1.0 GiB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_steps_are_numbered(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(2)
    steps("Read")
    steps("Write")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "[1/2] 0:00  Read\n[2/2] 0:00  Write\n")


def test_progress_in_a_log_is_a_line_every_tenth_or_after_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    update = progress("label")
    for done in range(1, 41):
        update(done, 40)
    assert capsys.readouterr().err.splitlines() == [f"      label: {done} of 40" for done in range(4, 41, 4)]
    monkeypatch.setattr("earn.console.LOG_SECONDS", 0.0)
    update = progress("slow")
    update(1, 1000)
    assert capsys.readouterr().err == "      slow: 1 of 1000\n"


def test_progress_on_a_terminal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    update = progress("label")
    for done in (1, 2):
        update(done, 2)
    assert stream.getvalue().count("\n") == 1
    assert "label: 100%" in stream.getvalue()


def test_the_first_process_prints_for_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, expected in (("0", ("one\n[1]\n", "two\n      label: 2 of 2\nwrong\n")), ("1", ("", "wrong\n"))):
        monkeypatch.setenv("RANK", rank)
        show("one")
        show_json([1])
        note("two")
        progress("label")(2, 2)
        complain("wrong")
        assert capsys.readouterr() == expected


def test_libraries_write_no_result_and_quiet_silences_their_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    with results_kept_clean():
        print("chatter")
    assert capsys.readouterr() == ("", "chatter\n")
    before = logging.root.manager.disable
    with quiet():
        warnings.warn("noise", stacklevel=1)
        logging.getLogger("library").warning("noise")
    assert capsys.readouterr().err == ""
    assert logging.root.manager.disable == before
