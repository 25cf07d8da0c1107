"""The comparison of digits with beams runs from end to end, and its catalogs are what they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import set_codes
from benchmarks.set_codes import DIGITS, VALUES, digit_catalog, random_digits, scoring_ms
from earn.digits import Digits

ROOT = Path(__file__).parent.parent.parent


def test_the_catalog_has_the_digits() -> None:
    want, got = random_digits(300), Digits.of(digit_catalog(300))
    assert (want.codes == got.codes).all()
    assert got.sizes.tolist() == [VALUES] * DIGITS
    assert np.array_equal(want.weights, got.weights)


def test_scoring_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_codes, "SCORINGS", 2)
    assert scoring_ms(1000) > 0


@pytest.mark.slow
def test_it_prints_its_line_of_json() -> None:
    few = "it.CATALOGS, it.ROUNDS, it.REQUESTS, it.SCORINGS = (500,), 1, 1, 1"
    program = f"import benchmarks.set_codes as it; {few}; it.main()"
    command = [sys.executable, "-c", program, "--shape", "tiny", "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(result[f"{name}_ms"] > 0 for name in ("beams", "set", "beams_session", "set_session"))
    assert (result["ctranslate2_int8_ms"] is None) == (find_spec("ctranslate2") is None)
    assert result["scoring_ms"].keys() == {"500"}
    assert result["history"] == 37
