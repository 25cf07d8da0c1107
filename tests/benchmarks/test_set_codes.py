"""The comparison of digits with beams runs from end to end, and its catalogs are what they should be."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import set_codes
from benchmarks.set_codes import DIGITS, VALUES, digit_catalog, random_digits, scoring_ms
from earn.digits import Digits


def test_the_catalog_has_the_digits() -> None:
    want, got = random_digits(300), Digits.of(digit_catalog(300))
    assert (want.codes == got.codes).all()
    assert got.sizes.tolist() == [VALUES] * DIGITS
    assert np.array_equal(want.weights, got.weights)


@pytest.mark.usefixtures("in_one_process")
def test_scoring_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_codes, "SCORINGS", 2)
    assert scoring_ms(1000) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("in_one_process")
def test_it_prints_its_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, few in {"CATALOGS": (500,), "ROUNDS": 1, "REQUESTS": 1, "SCORINGS": 1}.items():
        monkeypatch.setattr(set_codes, name, few)
    monkeypatch.setattr("sys.argv", ["set_codes.py", "--shape", "tiny", "--threads", "1"])
    set_codes.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(result[f"{name}_ms"] > 0 for name in ("beams", "set", "beams_session", "set_session"))
    assert (result["ctranslate2_int8_ms"] is None) == (find_spec("ctranslate2") is None)
    assert result["scoring_ms"].keys() == {"500"}
    assert result["history"] == 37
