from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from earn.errors import EarnError
from earn.export.parity import SMALLEST_SCALE, TOLERANCE, ComparingEngine, check_parity
from earn.export.stages import TorchEngine, bundle_model
from earn.model import EarnModel
from earn.runtime.engine import Array

Outputs = dict[str, Array]
HISTORIES = [["1", "2", "3"], ["4"]]


class Answers:
    """An engine that always answers the same."""

    def __init__(self, **outputs: list[float]) -> None:
        self._outputs = {name: np.array(values, np.float32) for name, values in outputs.items()}

    def run(self, stage: str, feeds: Mapping[str, Array]) -> Outputs:
        return self._outputs


def compare(want: Answers, got: Answers) -> ComparingEngine:
    engine = ComparingEngine(want, got)
    assert engine.run("late", {}) is want.run("late", {})
    return engine


def test_differences_within_the_tolerance_pass_and_are_measured() -> None:
    engine = compare(Answers(logits=[0, 100]), Answers(logits=[0.05, 100]))  # relative to the largest value
    assert engine.failures == []
    assert engine.worst == pytest.approx(0.05 / 100)
    assert engine.calls == 1


def test_a_difference_shows_its_largest_and_mean_value() -> None:
    engine = compare(Answers(logits=[0, 1, 2, 3]), Answers(logits=[0, 1, 2.5, 3]))
    assert engine.failures == ["late logits: differs by 0.5 at most, 0.125 on average"]


def test_small_outputs_are_compared_absolutely() -> None:
    allowed = TOLERANCE * SMALLEST_SCALE
    assert compare(Answers(logits=[0.0]), Answers(logits=[allowed / 2])).failures == []
    assert compare(Answers(logits=[0.0]), Answers(logits=[allowed * 2])).failures
    assert compare(Answers(logits=[0.1]), Answers(logits=[0.1 + allowed * 20])).failures


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails(value: float) -> None:
    assert compare(Answers(logits=[1.0]), Answers(logits=[value])).failures


def test_other_names_and_shapes_fail() -> None:
    assert compare(Answers(logits=[1]), Answers(logit=[1])).failures == [
        "late: outputs ['logit'] instead of ['logits']"
    ]
    assert compare(Answers(logits=[1]), Answers(logits=[1, 1])).failures == ["late logits: shape (2,) instead of (1,)"]
    assert compare(Answers(logits=[]), Answers(logits=[])).failures == []


class Disturbed:
    """The torch stages, with an error put into what they answer."""

    def __init__(self, engine: TorchEngine, disturb: Callable[[str, Outputs], None]) -> None:
        self._engine = engine
        self._disturb = disturb

    def run(self, stage: str, feeds: Mapping[str, Array]) -> Outputs:
        outputs = self._engine.run(stage, feeds)
        self._disturb(stage, outputs)
        return outputs


def check(model: EarnModel, disturb: Callable[[str, Outputs], None], histories: list[list[str]]) -> float:
    bundle = bundle_model(model)
    engine = TorchEngine(bundle.stages)
    return check_parity(engine, Disturbed(engine, disturb), bundle.manifest, model.catalog, histories)


def test_equal_engines_pass(toy_model: EarnModel) -> None:
    assert check(toy_model, lambda stage, outputs: None, HISTORIES) == 0.0


@pytest.mark.parametrize(
    "output", ["late logits", "early hidden", "early new_key_values.0.key", "late new_key_values.1.value"]
)
def test_an_error_in_any_output_is_found(toy_model: EarnModel, output: str) -> None:
    def disturb(stage: str, outputs: Outputs) -> None:
        for name, values in outputs.items():
            if f"{stage} {name}" == output:
                values[..., -1] += 0.5

    with pytest.raises(EarnError, match=rf"{output}: differs by 0\.5 at most") as raised:
        check(toy_model, disturb, HISTORIES)
    assert "Nothing was written" in str(raised.value)


def test_an_error_in_the_batch_alone_is_found(toy_model: EarnModel) -> None:
    def disturb(stage: str, outputs: Outputs) -> None:
        for values in outputs.values():
            values[1:] += 1

    with pytest.raises(EarnError, match="differs by 1 at most"):
        check(toy_model, disturb, HISTORIES)


def test_without_a_history_nothing_is_checked(toy_model: EarnModel) -> None:
    with pytest.raises(EarnError, match="no history to check"):
        check(toy_model, lambda stage, outputs: None, [])
