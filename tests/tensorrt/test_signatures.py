"""The checks that the other tests here rest on: what TensorRT has not must fail."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.tensorrt.signatures import fake, signatures

USED = {
    "Builder": ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    "IBuilderConfig": (
        "add_optimization_profile",
        "clear_flag",
        "set_flag",
        "create_timing_cache",
        "set_timing_cache",
        "set_memory_pool_limit",
    ),
    "IOptimizationProfile": ("set_shape",),
    "OnnxParser": ("parse_from_file", "get_error"),
    "ParserError": ("desc", "node_operator", "node_name"),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": ("get_tensor_name", "get_tensor_dtype", "create_execution_context"),
    "IExecutionContext": (
        "set_device_memory",
        "set_optimization_profile_async",
        "set_input_shape",
        "set_tensor_address",
        "execute_async_v3",
    ),
    "ITimingCache": ("serialize",),
}


@pytest.mark.parametrize("kind", USED)
def test_the_signatures_of_what_is_used_are_known(kind: str, bindings: ModuleType) -> None:
    for method in USED[kind]:
        assert signatures(getattr(getattr(bindings, kind), method)), method


def test_what_a_class_has_not_fails(bindings: ModuleType) -> None:
    config = fake(bindings.IBuilderConfig)
    config.progress_monitor = None
    with pytest.raises(AttributeError):
        config.no_such_attribute = 1
    with pytest.raises(AttributeError):
        config.no_such_method()
    with pytest.raises(AssertionError, match="no_such_method"):
        fake(bindings.IBuilderConfig, no_such_method=lambda: None)


def test_arguments_that_a_method_does_not_take_fail(bindings: ModuleType) -> None:
    profile = fake(bindings.IOptimizationProfile, set_shape=lambda name, least, usual, most: None)
    profile.set_shape("x", (1,), (2,), (3,))
    with pytest.raises(TypeError, match="set_shape takes"):
        profile.set_shape("x", (1,), (2,))
    with pytest.raises(TypeError, match="set_shape takes"):
        profile.set_shape(1, (1,), (2,), (3,))
    with pytest.raises(TypeError, match="set_shape takes"):
        profile.set_shape("x", (1,), (2,), maximum=(3,))


def test_every_overload_counts(bindings: ModuleType) -> None:
    context = fake(bindings.IExecutionContext, set_input_shape=lambda name, shape: True)
    assert context.set_input_shape("x", (1, 2))
    with pytest.raises(TypeError, match="set_input_shape takes"):
        context.set_input_shape("x")


def test_what_is_not_simulated_fails(bindings: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match="reset is not simulated"):
        fake(bindings.Builder).reset()
