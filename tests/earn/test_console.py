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


def test_table_sets_numbers_to_the_right_and_text_to_the_left() -> None:
    assert table(("item", "score", "title"), [("7", "-0.5", "One"), ("12", "-12.25", "Another")]) == (
        "item   score  title\n"
        "----  ------  -------\n"
        "   7    -0.5  One\n"
        "  12  -12.25  Another"
    )  # fmt: skip


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


def test_progress_counts_on_terminals_and_ends_with_a_line_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal, text in ((False, "      label: 2\n"), (True, "\r      label: 1 of 2\r      label: 2 of 2\n")):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda shown=is_terminal: shown)
        monkeypatch.setattr(sys, "stderr", stream)
        update = progress("label")
        update(1, 2)
        update(2, 2)
        assert stream.getvalue() == text


def test_the_first_process_speaks_for_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for rank, expected in (("0", ("one\n[1]\n", "two\n\rwrong\n")), ("1", ("", "wrong\n"))):
        monkeypatch.setenv("RANK", rank)
        show("one")
        show_json([1])
        note("two")
        progress("label")(1, 2)
        complain("wrong")
        out, err = capsys.readouterr()
        assert (out, err.replace("      label: 1 of 2", "")) == expected


def test_quiet_silences_warnings_and_gives_them_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    with quiet():
        warnings.warn("noise", stacklevel=1)
        logging.getLogger("library").warning("noise")
    assert capsys.readouterr().err == ""
    assert logging.root.manager.disable == before


def test_what_libraries_print_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with results_kept_clean():
        print("chatter")
    assert capsys.readouterr() == ("", "chatter\n")
