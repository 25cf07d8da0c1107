from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from earn.errors import EarnError
from earn.export.parity import SMALLEST_SCALE, TOLERANCE, ComparingEngine, check_parity
from earn.export.stages import TorchEngine, bundle_model
from earn.model.earn_model import EarnModel
from earn.runtime.memory import HOST, Array
from earn.specs import NEW

Outputs = Mapping[str, Array]
HISTORIES = [["1", "2", "3"], ["4"]]
ALLOWED = TOLERANCE * SMALLEST_SCALE


class Answers:
    """An engine that always answers the same."""

    device = HOST

    def __init__(self, **outputs: Any) -> None:
        self.outputs = {name: np.array(values, np.float32) for name, values in outputs.items()}

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Outputs) -> None:
        assert outputs.keys() == self.outputs.keys()
        for name, array in outputs.items():
            assert array.shape == self.outputs[name].shape
            array[...] = self.outputs[name]


def compare(want: Answers, got: Answers) -> ComparingEngine:
    engine = ComparingEngine(want, got)
    outputs = {name: np.zeros_like(array) for name, array in want.outputs.items()}
    engine.run("late", {}, outputs)
    for name, array in outputs.items():
        assert np.array_equal(array, want.outputs[name])  # the candidate's answer never reaches the caller
    return engine


def test_differences_within_the_tolerance_pass_and_are_measured() -> None:
    engine = compare(Answers(logits=[0, 100]), Answers(logits=[0.05, 100]))  # relative to the largest value
    assert engine.failures == []
    assert engine.worst == pytest.approx(0.05 / 100)
    assert engine.calls == 1


@pytest.mark.parametrize(
    ("want", "got", "failures"),
    [
        (
            {"logits": [0, 1, 2, 3]},
            {"logits": [0, 1, 2.5, 3]},
            ["late logits: differs by 0.5 at most, 0.125 on average"],
        ),
        ({"a": [1], "b": [2, 3]}, {"a": [1], "b": [2, 4]}, ["late b: differs by 1 at most, 0.5 on average"]),
        ({"logits": []}, {"logits": []}, []),
        ({"logits": [0.0]}, {"logits": [ALLOWED / 2]}, []),  # small outputs are compared absolutely
    ],
)
def test_every_output_is_compared(want: dict[str, Any], got: dict[str, Any], failures: list[str]) -> None:
    assert compare(Answers(**want), Answers(**got)).failures == failures


@pytest.mark.parametrize(("want", "got"), [(0.0, ALLOWED * 2), (0.1, 0.1 + ALLOWED * 20), (1, np.nan), (1, np.inf)])
def test_what_is_too_far_away_or_no_number_fails(want: float, got: float) -> None:
    assert compare(Answers(logits=[want]), Answers(logits=[got])).failures


def test_the_candidate_writes_into_memory_of_its_own() -> None:
    """Or the reference would write over what is to be compared, and anything would pass."""
    written: list[Array] = []

    class Noting(Answers):
        def run(self, stage: str, feeds: Mapping[str, Array], outputs: Outputs) -> None:
            super().run(stage, feeds, outputs)
            written.extend(outputs.values())

    engine, logits = ComparingEngine(Noting(logits=[1, 2]), Noting(logits=[1, 2])), np.zeros(2, np.float32)
    engine.run("late", {}, {"logits": logits})
    candidate, reference = written
    assert reference is logits
    assert not np.shares_memory(candidate, reference)


class Disturbed:
    """The torch stages, with an error put into what they answer."""

    device = HOST

    def __init__(self, engine: TorchEngine, disturb: Callable[[str, Outputs], None]) -> None:
        self._engine = engine
        self._disturb = disturb

    def run(self, stage: str, feeds: Mapping[str, Array], outputs: Outputs) -> None:
        self._engine.run(stage, feeds, outputs)
        self._disturb(stage, outputs)


def check(model: EarnModel, disturb: Callable[[str, Outputs], None], histories: list[list[str]]) -> float:
    bundle = bundle_model(model)
    engine = TorchEngine(bundle.stages)
    return check_parity(engine, Disturbed(engine, disturb), bundle.manifest, model.catalog, histories)


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ("late logits", ()),
        ("early hidden", ()),
        ("early new_key_values", (..., 0, slice(None), slice(None))),  # keys of the first layer alone
        ("late new_key_values", (..., 3, slice(None), slice(None))),  # values of the second
    ],
    ids=str,
)
def test_an_error_in_any_output_is_found(toy_model: EarnModel, output: str, place: tuple[Any, ...]) -> None:
    def disturb(stage: str, outputs: Outputs) -> None:
        for name, values in outputs.items():
            if f"{stage} {name}" == output:
                values[place][..., -1] += 0.5

    assert check(toy_model, lambda stage, outputs: None, HISTORIES) == 0.0
    with pytest.raises(EarnError, match=rf"{output}: differs by 0\.5 at most") as raised:
        check(toy_model, disturb, HISTORIES)
    assert "Nothing was written" in str(raised.value)


def test_an_error_in_the_batch_alone_is_found(toy_model: EarnModel) -> None:
    def disturb(stage: str, outputs: Outputs) -> None:
        for name, values in outputs.items():
            (values[:, 1:] if name == NEW else values[1:])[...] += 1  # of every user but the first

    with pytest.raises(EarnError, match="differs by 1 at most"):
        check(toy_model, disturb, HISTORIES)
