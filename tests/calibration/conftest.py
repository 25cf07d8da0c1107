from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from earn.calibration.gate import HeldOut
from earn.export.bundle import export_bundle
from tests.support import random_catalog, small_model

ITEMS, CALIBRATING, JUDGING = 300, 32, 48


@dataclass(frozen=True)
class Case:
    """A bundle over a catalog that is much wider than the beam set, and users of two kinds."""

    bundle: Path
    histories: Sequence[Sequence[str]]
    held_out: HeldOut


@pytest.fixture(scope="session", params=["tiny-llama"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("case") / "bundle")


def make_case(family: str, folder: Path) -> Case:
    catalog = random_catalog(ITEMS, codes=8)
    model = small_model(family, catalog, early_layers=1, max_history=8)
    generator = np.random.default_rng(3)
    users = [
        [str(item) for item in generator.integers(0, ITEMS, generator.integers(2, 9))]
        for _ in range(CALIBRATING + JUDGING)
    ]
    export_bundle(model, folder, users[:3], max_batch=4, max_beams=24)
    held_out = HeldOut(
        tuple(map(tuple, users[CALIBRATING:])), tuple(str(item) for item in generator.integers(0, ITEMS, JUDGING))
    )
    return Case(folder, users[:CALIBRATING], held_out)
