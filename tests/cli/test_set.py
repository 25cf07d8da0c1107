"""`--method set` from training to a calibrated bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from earn.config import SET
from earn.manifest import Manifest
from earn.model.earn_model import EarnModel
from tests.cli.conftest import ITEMS, Earn

OPTIONS = ("--method", "set", "--digits", "4+items", "--epochs", 12, "--max-history", 6)


@pytest.fixture(scope="module")
def trained(data: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `earn train --method set` wrote; not to be changed."""
    from earn.cli.main import main

    folder = tmp_path_factory.mktemp("set") / "checkpoint"
    argv = ["train", data, "--out", folder, "--backbone", backbone, *OPTIONS]
    assert main(list(map(str, argv))) == 0
    return folder


def test_from_training_to_a_calibrated_bundle(trained: Path, data: Path, earn: Earn, tmp_path: Path) -> None:
    assert EarnModel.from_pretrained(trained).earn.method == SET
    bundle = tmp_path / "bundle"
    assert earn("export", trained, "--out", bundle, "--one-graph").status == 0
    assert Manifest.load(bundle).model.method == SET
    shown = earn("recommend", bundle, "--history", "i1,i2,i3", "-k", 5, "--json").json
    assert "i4" in str(shown)  # every user walks through the items in order
    assert earn("inspect", bundle, "--json").json["method"] == SET
    assert "all codes at once" in earn("inspect", bundle).out
    assert earn("evaluate", bundle, data, "--json").status == 0
    again = earn("recommend", bundle, "--engine", "one-graph", "--history", "i1,i2,i3", "-k", 5, "--json").json
    assert [item["item_id"] for item in again] == [item["item_id"] for item in shown]
    assert "names all codes at once" in earn("compose", bundle, "--beams", 4).error
    out = tmp_path / "int8"
    argv = ("calibrate", bundle, data, "--out", out, "--precision", "int8", "--samples", 32)
    assert earn(*argv, "--no-compare", "--min-overlap", "0.5").status == 0
    assert Manifest.load(out).model.method == SET


def test_the_analysis_is_refused(trained: Path, data: Path, earn: Earn) -> None:
    assert "names all codes at once" in earn("analyze", trained, data).error


def test_every_item_can_be_listed(trained: Path) -> None:
    from earn.export.stages import torch_recommender

    items = torch_recommender(EarnModel.from_pretrained(trained)).recommend(["i1"], ITEMS)
    assert len({item.item_id for item in items}) == ITEMS
