from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from earn.data.dataset import load_dataset
from earn.model.earn_model import EarnModel
from tests.cli.conftest import USERS, Earn
from tests.support import small_backbone


@pytest.fixture(scope="session")
def untrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that nobody trained, dense and EARN; not to be changed."""
    folders = {}
    for name, early, registers in (("dense", None, 0), ("earn", 2, 1)):
        catalog = load_dataset(str(data)).catalog()
        model = EarnModel.from_backbone(small_backbone("tiny-llama"), catalog, early, registers, registers, 6)
        folders[name] = tmp_path_factory.mktemp("untrained") / name
        model.save_pretrained(folders[name])
    return folders


def test_json_has_every_figure_of_every_layer(
    untrained: dict[str, Path], data: Path, earn: Earn, tmp_path: Path
) -> None:
    page = tmp_path / "new" / "attention.html"
    outcome = earn("analyze", untrained["earn"], data, "--users", 20, "--json", "--report", page)
    assert outcome.status == 0
    assert outcome.out.count("\n") == 1
    value = outcome.json
    assert (value["users"], value["early_layers"], len(value["cut"])) == (20, 2, 2)
    assert [row["is_late"] for row in value["layers"]] == [False, False, True, True]
    assert [row["middle"] > 0 for row in value["layers"]] == [True, True, False, False]
    assert "Attention of earn" in page.read_text(encoding="utf-8")
    assert list(page.parent.iterdir()) == [page]
    for words in ("analyze: 20", "Loss if cut above", "this model says nothing", f"Report: {page}"):
        assert words in outcome.err


def test_the_table_is_the_result_without_json(untrained: dict[str, Path], data: Path, earn: Earn) -> None:
    outcome = earn("analyze", untrained["dense"], data)
    rows = [line.split() for line in outcome.out.splitlines()[2:6]]
    assert [(row[0], row[1]) for row in rows] == [(str(layer), "everything") for layer in (1, 2, 3, 4)]
    assert np.allclose([sum(map(float, row[4:8])) for row in rows], 1, atol=0.003)
    assert outcome.out.count("By the cut rule") == 1
    assert f"analyze: {USERS}" in outcome.err


def test_data_with_other_items_is_refused(untrained: dict[str, Path], data: Path, earn: Earn, tmp_path: Path) -> None:
    text = (data / "walks.inter").read_text(encoding="utf-8")
    (tmp_path / "walks.inter").write_text(text.replace("\ti3\t", "\tother\t"), encoding="utf-8")
    assert "such as 'other', are not in the catalog" in earn("analyze", untrained["earn"], tmp_path).error
