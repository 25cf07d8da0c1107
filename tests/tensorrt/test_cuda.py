from __future__ import annotations

import gc

import numpy as np
import pytest

from earn.errors import EarnError
from earn.runtime.cuda import GRAIN, Cuda, CudaArray
from earn.runtime.memory import Array
from tests.tensorrt.simulated_gpu import SimulatedCuda


@pytest.fixture
def device(cuda: SimulatedCuda) -> Cuda:
    return Cuda()


def numbers(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_what_is_copied_there_comes_back(device: Cuda) -> None:
    memory = device.empty((2, 3))
    assert not device.to_host(memory).any()
    device.copy(numbers(2, 3), memory)
    assert np.array_equal(device.to_host(memory), numbers(2, 3))
    assert (memory.shape, memory.nbytes, len(memory)) == ((2, 3), 24, 2)


def test_rows_are_views(device: Cuda) -> None:
    memory = device.empty((4, 2, 3))
    device.copy(numbers(2, 2, 3), memory[1:3])
    assert memory[1:3].address == memory.address + 2 * 3 * 4
    whole = device.to_host(memory)
    assert np.array_equal(whole[1:3], numbers(2, 2, 3))
    assert not whole[[0, 3]].any()
    assert memory[4:].shape == (0, 2, 3)
    assert device.to_host(memory[:0]).shape == (0, 2, 3)
    with pytest.raises(ValueError, match="not in steps of 2"):
        memory[::2]


@pytest.mark.parametrize("is_on_device", [True, False])
def test_one_users_rows_serve_many(device: Cuda, is_on_device: bool) -> None:
    one, many = numbers(3, 1, 2, 2), device.empty((3, 4, 2, 2))
    source: Array | CudaArray = one
    if is_on_device:
        source = device.empty(one.shape)
        device.copy(one, source)
    device.copy(source, many)
    assert np.array_equal(device.to_host(many), np.broadcast_to(one, (3, 4, 2, 2)))


def test_memory_is_kept_for_the_next_array_of_its_size(device: Cuda, cuda: SimulatedCuda) -> None:
    first = device.empty((GRAIN,))
    device.copy(np.ones(GRAIN, np.float32), first)
    address, view = first.address, first[:1]
    del first
    gc.collect()
    assert device.empty((GRAIN,)).address != address  # the view still holds it
    del view
    gc.collect()
    again = device.empty((GRAIN,))
    assert again.address == address
    assert not device.to_host(again).any()
    device.release()
    assert cuda.taken == again.nbytes
    assert device.to_host(again).shape == (GRAIN,)


def test_what_is_kept_makes_room(device: Cuda, cuda: SimulatedCuda) -> None:
    cuda.memory = 4 * GRAIN
    del [device.empty((GRAIN // 2,))][:]  # kept: two grains
    gc.collect()
    assert device.empty((GRAIN,)).nbytes == 4 * GRAIN


def test_no_device_is_an_error_with_its_remedy(cuda: SimulatedCuda) -> None:
    cuda.devices = 0
    with pytest.raises(EarnError, match=r"cudaGetDeviceCount failed with cudaErrorNoDevice.*nvidia-smi.*engine='cpu'"):
        Cuda()


def test_a_machine_without_a_driver_says_so() -> None:
    """The real CUDA runtime."""
    from cuda.bindings import runtime

    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("this machine has a GPU")
    with pytest.raises(EarnError, match="cudaGetDeviceCount failed with cudaError"):
        Cuda()
