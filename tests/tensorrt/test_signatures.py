"""The checks that the other tests here rest on: what TensorRT has not must fail."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.tensorrt.signatures import Fake


def test_what_a_class_has_not_and_arguments_that_no_overload_takes_fail(bindings: ModuleType) -> None:
    config = Fake(bindings.IBuilderConfig)
    config.progress_monitor = None
    with pytest.raises(AttributeError):
        config.no_such_attribute = 1
    with pytest.raises(AttributeError):
        config.no_such_method()
    with pytest.raises(NotImplementedError, match="reset is not simulated"):
        Fake(bindings.Builder).reset()
    profile = Fake(bindings.IOptimizationProfile, set_shape=lambda name, least, usual, most: None)
    profile.set_shape("x", (1,), (2,), (3,))
    for arguments, named in (
        (("x", (1,), (2,)), {}),
        ((1, (1,), (2,), (3,)), {}),
        (("x", (1,), (2,)), {"maximum": (3,)}),
    ):
        with pytest.raises(TypeError, match="set_shape takes"):
            profile.set_shape(*arguments, **named)
