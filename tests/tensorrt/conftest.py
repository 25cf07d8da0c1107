from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from earn.runtime import cuda as cuda_module
from earn.runtime.cuda import cuda_runtime
from earn.runtime.tensorrt_api import tensorrt
from tests.tensorrt.inert_libraries import load_bindings
from tests.tensorrt.simulated_gpu import SimulatedCuda
from tests.tensorrt.simulated_tensorrt import SimulatedTensorRT


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """TensorRT's real Python bindings, over libraries that do nothing."""
    return load_bindings(tmp_path_factory.mktemp("libraries"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    """A simulated CUDA device."""
    made = SimulatedCuda()
    monkeypatch.setattr("cuda.bindings.runtime", made.module)
    clear_caches()
    return made


@pytest.fixture
def trt(bindings: ModuleType, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> SimulatedTensorRT:
    """TensorRT, simulated on that device."""
    made = SimulatedTensorRT(bindings, cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", made.module)
    clear_caches()
    return made


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Later tests must not find what is simulated."""
    yield
    clear_caches()


def clear_caches() -> None:
    cuda_module._devices.clear()
    cuda_runtime.cache_clear()
    tensorrt.cache_clear()
