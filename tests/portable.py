"""Bundles in the portable precision, for the tests that compare lists between processors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from earn.calibration.calibrate import CalibrationSettings, calibrate
from earn.calibration.gate import HeldOut
from earn.calibration.precisions import PORTABLE


def portable_bundle(source: Path, out: Path, histories: Sequence[Sequence[str]]) -> None:
    """Writes the fp32 bundle `source` in the portable precision, whatever the gate says."""
    held_out = HeldOut(tuple(map(tuple, histories[:2])), tuple(history[0] for history in histories[:2]))
    settings = CalibrationSettings(force=True, explain=False, compare=False, requests=0, least_overlap=0)
    calibrate(source, out, histories[:2], held_out, PORTABLE, settings)
