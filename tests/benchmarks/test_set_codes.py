"""The comparison of digits with beams runs from end to end, and its catalogs are what they should be."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.costs import DIGITS, VALUES, digit_catalog, random_digits, scoring_ms
from earn.digits import Digits


def test_the_catalog_has_the_digits() -> None:
    want, got = random_digits(300), Digits.of(digit_catalog(300))
    assert (want.codes == got.codes).all()
    assert got.sizes.tolist() == [VALUES] * DIGITS
    assert np.array_equal(want.weights, got.weights)


def test_scoring_is_timed() -> None:
    assert scoring_ms(1000) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("in_one_process")
def test_it_prints_its_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers, "SCORED", (500,))
    for name in ("ROUNDS", "SET_REQUESTS"):
        monkeypatch.setattr(peers, name, 1)
    monkeypatch.setattr("sys.argv", ["peers.py", "--set", "--shape", "tiny", "--threads", "1"])
    peers.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(result[f"{name}_ms"] > 0 for name in ("beams", "set", "beams_session", "set_session"))
    assert (result["ctranslate2_int8_ms"] is None) == (find_spec("ctranslate2") is None)
    assert result["scoring_ms"].keys() == {"500"}
    assert result["history"] == 37
