from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from earn.calibration import rounding
from earn.calibration.precisions import FORMS, PRECISIONS
from earn.calibration.quantize import quantize
from earn.calibration.rounding import Rounding
from earn.calibration.variants import FLOAT, GraphVariants
from earn.specs import STAGES
from tests.calibration.conftest import Case

# Each way to whole numbers, and what stands behind a weight's name for these and for their scales.
QUANTIZERS = [
    ("int8", "cpu", ("_quantized", "_scale")),
    ("int8", "tensorrt", ("_quantized", "_scale")),
    ("int8-dynamic", "cpu", ("_quantized", "_scale")),
    ("int8-weights", "cpu", (".int8", ".scale")),
]


def weights_of(graph: onnx.ModelProto, names: list[str]) -> dict[str, NDArray[Any]]:
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    return {name: numpy_helper.to_array(constants[name]) for name in names}


def test_weights_stand_on_steps_that_the_quantizer_finds(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is rounded twice; and with few moments at a time the weights are the same."""
    makers = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        variants = GraphVariants(case.bundle, tmp_path / folder)
        makers.append(Rounding(variants, case.histories[:8], 8, lambda label: lambda done, total: None))
    for stage in STAGES:
        names = [linear.weight for linear in variants.linear_layers(stage)]
        rounded = weights_of(variants.load(makers[1].make(FLOAT, stage, 8), stage), names)
        with monkeypatch.context() as patch:
            patch.setattr(rounding, "MOST_BYTES", 1)
            few_at_a_time = makers[0].make(FLOAT, stage, 8)
        for name, values in weights_of(makers[0].variants.load(few_at_a_time, stage), names).items():
            np.testing.assert_array_equal(values, rounded[name])
        before = weights_of(variants.load(FLOAT, stage), names)
        for name in names:
            steps = np.abs(before[name]).max(axis=0) / 127
            assert (np.rint(before[name] / steps) != np.rint(rounded[name] / steps)).any()
            assert (np.abs(before[name] - rounded[name]) < 20 * steps).all()
        ranges = {linear.activation: (-1.0, 1.0) for linear in variants.linear_layers(stage)}
        for precision, engine, parts in QUANTIZERS:
            graph = quantize(variants.load("float-rounded-8", stage), PRECISIONS[precision], FORMS[engine], ranges)
            stored = weights_of(graph, [f"{name}{part}" for name in names for part in parts])
            for name in names:
                whole, scale = (stored[f"{name}{part}"] for part in parts)
                np.testing.assert_allclose(whole * scale, rounded[name], atol=1e-6)
