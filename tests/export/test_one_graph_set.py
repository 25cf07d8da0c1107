"""The one graph of models that name all codes at once: no loop, the lists of the stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from earn.calibration.calibrate import CalibrationSettings, calibrate
from earn.calibration.gate import HeldOut
from earn.calibration.variants import MixedPrecision
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.export.one_graph_request import EMPTY, NO_NUMBER, OUT_OF_RANGE
from earn.runtime.lists import Recommendation
from earn.runtime.recommender import Recommender
from tests.export.test_one_graph import run
from tests.model.test_set_model import ITEMS, set_model
from tests.support import histories_of

HISTORIES = 100


def made(folder: Path, family: str = "tiny-llama", form: str = "digits") -> Path:
    """A bundle with its one graph."""
    model = set_model(family, form, max_history=6)
    export_bundle(model, folder / "bundle", [["1", "2"]])
    compose_bundle(folder / "bundle")
    return folder / "bundle"


def same(want: Sequence[Recommendation], got: Sequence[Recommendation]) -> None:
    """The same items in the same order; those whose scores differ by rounding alone may change places."""
    np.testing.assert_allclose([item.score for item in got], [item.score for item in want], atol=1e-4)
    score = {item.item_id: item.score for item in want}
    for one, other in zip(want, got, strict=True):
        assert one == other or abs(score.get(other.item_id, want[-1].score) - one.score) < 1e-4


def check(bundle: Path) -> None:
    """The lists of random histories, alone and in batches, with exclusions, are those of the stages."""
    stages, graph = (Recommender.load(bundle, engine=engine, threads=1) for engine in ("cpu", "one-graph"))
    generator = np.random.default_rng(0)
    histories = histories_of(stages.catalog, HISTORIES, 8)
    exclude = [generator.choice(ITEMS, generator.integers(0, ITEMS - 1), replace=False).tolist() for _ in histories]
    want = stages.recommend_batch(histories, 15, None, exclude)
    identical = 0
    for start in range(0, HISTORIES, 7):
        part = slice(start, start + 7)
        for first, second in zip(
            want[part], graph.recommend_batch(histories[part], 15, None, exclude[part]), strict=True
        ):
            same(first, second)
            assert second.exact
            identical += [item.item_id for item in first] == [item.item_id for item in second]
    assert identical > 0.99 * HISTORIES
    same(want[0], graph.recommend(histories[0], 15, exclude=exclude[0]))


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("tiny-qwen3", "both"),
        pytest.param("tiny-llama", "digits", marks=pytest.mark.slow),
        pytest.param("tiny-qwen2", "items", marks=pytest.mark.slow),
    ],
)
def test_its_lists_are_those_of_the_stages_in_fp32_and_int8(tmp_path: Path, family: str, form: str) -> None:
    bundle = made(tmp_path, family, form)
    check(bundle)
    onnx.checker.check_model(str(bundle / "recommend.onnx"), full_check=True)
    graph = onnx.load(bundle / "recommend.onnx").graph
    assert not {"Loop", "If", "Scan"} & {node.op_type for node in graph.node}
    packed = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.UINT8]
    assert {numpy_helper.to_array(tensor).shape for tensor in packed} == {(ITEMS,)}
    users = tuple(tuple(map(str, history)) for history in histories_of(Recommender.load(bundle).catalog, 8, 6))
    settings = CalibrationSettings(compare=False, explain=False, force=True, requests=0, mixed=MixedPrecision())
    calibrate(bundle, tmp_path / "int8", users, HeldOut(users, ("1",) * len(users)), "int8", settings)
    compose_bundle(tmp_path / "int8")
    check(tmp_path / "int8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("set"), form="both")


def test_rows_without_an_answer_say_so_and_harm_no_other(bundle: Path) -> None:
    alone = run(bundle, [[3, 5]])
    answer = run(bundle, [[-1, 3, -1, 5], [-1, -1, -1, -1], [3, ITEMS, -1, -1]])
    assert answer["status"].tolist() == [0, EMPTY, OUT_OF_RANGE]
    assert answer["count"].tolist() == [10, 0, 0]
    assert answer["exact"].tolist() == [True, False, False]
    assert (answer["items"][1:] == -1).all()
    assert np.isneginf(answer["scores"][1:]).all()
    np.testing.assert_array_equal(answer["items"][0], alone["items"][0])


def test_few_items_left_many_wanted_and_all_excluded(bundle: Path) -> None:
    few = run(bundle, [[1]], range(ITEMS - 3), [5])
    assert few["count"].tolist() == [3]
    assert sorted(few["items"][0].tolist()) == [-1, -1, ITEMS - 3, ITEMS - 2, ITEMS - 1]
    assert sorted(run(bundle, [[1]], k=[10**6])["items"][0].tolist()) == list(range(ITEMS))
    none = run(bundle, [[1]], range(ITEMS))
    assert (none["count"].tolist(), none["status"].tolist(), none["exact"].tolist()) == ([0], [0], [True])


def test_what_is_no_number_is_no_answer(bundle: Path, tmp_path: Path) -> None:
    graph = onnx.load(bundle / "recommend.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("head.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan  # one digit of some items
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, tmp_path / "recommend.onnx")
    answer = run(tmp_path, [[1], [-1]])
    assert answer["status"].tolist() == [NO_NUMBER, EMPTY]
    assert answer["count"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "says"), [({"form": "loop"}, "plain"), ({"beams": 5}, "at once"), ({"k": 65}, "k")]
)
def test_what_cannot_be_composed_is_refused(bundle: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(EarnError, match=says):
        compose_bundle(bundle, **settings)
