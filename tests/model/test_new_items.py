"""Items added to a finished model: who gets them, with which score, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from earn.data.digits import build_digits
from earn.data.identifiers import item_vectors
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.stages import torch_recommender
from earn.model.set_model import SetModel
from earn.new_items import NewItems
from earn.quantizer import QUANTIZER_FILE
from earn.runtime.lists import Recommendations
from earn.runtime.recommender import Recommender
from tests.data.test_digits import interactions
from tests.support import scramble, small_backbone, small_model

DATA = interactions()
VECTORS = item_vectors(DATA, DATA.sequences, 0)
HISTORY = ["i3", "i8"]


def model(form: str) -> SetModel:
    catalog = build_digits(DATA, DATA.sequences, form)
    made = SetModel.from_backbone(small_backbone("tiny-llama"), catalog, temperature=0.5, max_history=5)
    scramble(made)
    made.eval()
    assert isinstance(made, SetModel)
    return made


def scores(items: Recommendations) -> dict[str, float]:
    return {item.item_id: item.score for item in items}


@pytest.mark.parametrize("form", ["6", "6+items"])
def test_a_copy_of_an_item_by_its_vector_has_its_score(form: str) -> None:
    recommender = torch_recommender(model(form))
    grown = recommender.with_new_items(NewItems(["new", "other"], ["New one", ""], vectors=VECTORS[[7, 12]]))
    got, before = grown.recommend(HISTORY, 32), recommender.recommend(HISTORY, 30)
    assert scores(got) == scores(before) | {"new": scores(before)["i7"], "other": scores(before)["i12"]}
    assert {item.title for item in got if item.item_id == "new"} == {"New one"}
    assert scores(grown.recommend(HISTORY, 32, exclude=["new", "i7"])).keys() == scores(got).keys() - {"new", "i7"}
    assert len(recommender.recommend(HISTORY, 32)) == 30  # stays as it was
    session = grown.session([*HISTORY, "new"])
    assert session.recommend(5) == grown.recommend([*HISTORY, "new"], 5)
    assert scores(grown.recommend([*HISTORY, "new"], 5)) == scores(grown.recommend([*HISTORY, "i7"], 5))


def test_new_items_can_be_added_to_new_items() -> None:
    recommender = torch_recommender(model("6+items"))
    once = recommender.with_new_items(NewItems(["a", "b"], vectors=VECTORS[[7, 12]]))
    twice = recommender.with_new_items(NewItems(["a"], vectors=VECTORS[[7]])).with_new_items(
        NewItems(["b"], vectors=VECTORS[[12]])
    )
    assert once.recommend(HISTORY, 32) == twice.recommend(HISTORY, 32)


def test_a_bundle_names_new_items_by_their_words(tmp_path: Path) -> None:
    export_bundle(model("6"), tmp_path, [HISTORY])
    recommender = Recommender.load(tmp_path)
    assert QUANTIZER_FILE in recommender.manifest.files
    grown = recommender.with_new_items(NewItems(["apple", "pear"], ["A red apple", "Green"], ["", "pear fruit"]))
    kinds = {"apple": 0, "pear": 1}
    digits = dict(zip(grown.catalog.item_ids, grown.catalog.identifiers, strict=True))
    for item, kind in kinds.items():
        shared = [len(set(digits[item]) & set(digits[other])) for other in recommender.catalog.item_ids]
        assert int(np.argmax(shared)) % 2 == kind
    assert kinds.keys() <= scores(grown.recommend(HISTORY, 32)).keys()
    (tmp_path / QUANTIZER_FILE).write_bytes(b"another")
    with pytest.raises(EarnError, match=QUANTIZER_FILE):
        Recommender.load(tmp_path)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (NewItems(["i3"], ["red apple"]), "stands twice"),
        (NewItems(["new"], ["Quince"]), "share no word"),
        (NewItems(["new"], vectors=VECTORS[:1, :3]), "have the shape"),
    ],
)
def test_what_cannot_be_added_is_refused(items: NewItems, message: str) -> None:
    with pytest.raises(EarnError, match=message):
        torch_recommender(model("6")).with_new_items(items)


def test_models_without_a_quantizer_are_refused() -> None:
    items = NewItems(["new"], ["red apple"])
    with pytest.raises(EarnError, match="does not hold what makes codes"):
        torch_recommender(model("items")).with_new_items(items)
    with pytest.raises(EarnError, match="Give each one's identifier"):
        torch_recommender(small_model()).with_new_items(items)
    with pytest.raises(EarnError, match="2 new items"):
        NewItems(["a", "b"], ["one"])
