"""Every family's bundle can be calibrated to int8, and still recommends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from earn.calibration.calibrate import calibrate
from earn.calibration.gate import HeldOut
from earn.manifest import Manifest
from earn.model.families import TINY_BACKBONES
from earn.runtime.recommender import Recommender
from tests.calibration.conftest import make_case
from tests.calibration.test_calibrate import ONCE


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_an_int8_bundle_of_each_family_recommends(family: str, tmp_path: Path) -> None:
    case = make_case(family, tmp_path / "fp32")
    settings = replace(ONCE, force=True)
    histories = case.held_out.histories[:8]
    held_out = HeldOut(histories, case.held_out.targets[:8])
    calibrate(case.bundle, tmp_path / "int8", case.histories, held_out, "int8", settings)
    assert Manifest.load(tmp_path / "int8").precision == "int8"
    plain, int8 = (Recommender.load(tmp_path / name, threads=1) for name in ("fp32", "int8"))
    overlaps = []
    for history in histories:
        want, got = (recommender.recommend(history, 20, 20) for recommender in (plain, int8))
        assert len(got) == 20
        assert np.isfinite([item.score for item in got]).all()
        overlaps.append(len({item.item_id for item in want} & {item.item_id for item in got}))
    assert np.mean(overlaps) > 10
