from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.engines import build_engines
from earn.files import sha256
from earn.manifest import FileEntry
from earn.runtime import tensorrt_engine
from earn.runtime.cuda import shared_device
from earn.runtime.engine_files import TENSORRT_FOLDER
from earn.runtime.recommender import Recommender
from tests.support import FAMILIES, RULES, Agreement, histories_of, pairs, random_catalog, small_model, sweep
from tests.tensorrt.simulated_gpu import SimulatedCuda
from tests.tensorrt.simulated_tensorrt import SimulatedTensorRT


def compare(folder: Path, histories: Sequence[Sequence[str | int]]) -> None:
    """The lists of the engine "tensorrt" are those of the CPU."""
    want, got = Recommender.load(folder, threads=1), Recommender.load(folder, "tensorrt")
    agreement = Agreement()
    for history in histories:
        agreement.add(str(history), pairs(want.recommend(history, 8, 8)), pairs(got.recommend(history, 8, 8)))
    both = zip(want.recommend_batch(histories, 10, 12), got.recommend_batch(histories, 10, 12), strict=True)
    for ours, theirs in both:
        agreement.add("batch", pairs(ours), pairs(theirs))
    agreement.check()


@pytest.fixture
def gpu(trt: SimulatedTensorRT) -> SimulatedCuda:
    return trt.cuda


REGISTERS = ((0, 0), (1, 1), (2, 3))
FEW = list(zip(FAMILIES, RULES, REGISTERS, strict=True))
# Each family with each rule and each number of registers, and each rule with each of these: a Latin square.
EVERY = [(FAMILIES[i], RULES[j], REGISTERS[(2 * i - j) % 3]) for i, j in product(range(3), repeat=2)]


@pytest.mark.parametrize(("family", "scoring", "registers"), sweep(FEW, EVERY))
def test_every_rule_and_number_of_registers(
    family: str, scoring: str, registers: tuple[int, int], gpu: SimulatedCuda, tmp_path: Path
) -> None:
    """(0, 0) is the dense twin, whose late stage has no layers."""
    prefix, suffix = registers
    split: dict[str, Any] = {"early_layers": 2 if suffix else 4, "prefix_registers": prefix, "suffix_registers": suffix}
    model = small_model(family, random_catalog(40, codes=3), max_history=5, **split)
    export_bundle(model, tmp_path / "bundle", [["1", "2"]], scoring, max_batch=3, max_beams=12)
    build_engines(tmp_path / "bundle")
    compare(tmp_path / "bundle", histories_of(model.catalog, 5, 5))
    assert gpu.launches > 0 or not prefix


def test_sessions_stay_on_the_device_and_are_saved_from_it(bundle: Path, gpu: SimulatedCuda) -> None:
    build_engines(bundle)
    want, got = Recommender.load(bundle, threads=1), Recommender.load(bundle, "tensorrt")
    ours, theirs = got.session(["1", "2"]), want.session(["1", "2"])
    agreement = Agreement()
    for item in ("3", "0", "5", "6"):
        ours.append(item)
        theirs.append(item)
        agreement.add(item, pairs(theirs.recommend(8)), pairs(ours.recommend(8)))
    saved = ours.to_bytes()
    for where in (got, want):  # a session may be opened again on another engine
        agreement.add("restored", pairs(theirs.recommend(8)), pairs(where.restore_session(saved).recommend(8)))
    agreement.check()


def test_a_request_like_an_earlier_one_finds_its_memory_and_graphs_until_it_is_unloaded(
    bundle: Path, gpu: SimulatedCuda
) -> None:
    build_engines(bundle)
    recommender = Recommender.load(bundle, "tensorrt")
    first = pairs(recommender.recommend(["1", "2", "3"], 8))
    assert pairs(recommender.recommend(["1", "2", "3"], 8)) == first  # by graphs alone
    gc.collect()
    taken, graphs = gpu.taken, len(gpu.graphs)
    assert graphs > 0
    for _ in range(2):
        assert pairs(recommender.recommend(["1", "2", "3"], 8)) == first
        gc.collect()
    assert (gpu.taken, len(gpu.graphs)) == (taken, graphs)
    device = shared_device()  # an engine that is unloaded gives everything back
    assert recommender.decoder.device is device
    del recommender
    gc.collect()
    device.release()
    assert gpu.graphs == []
    assert gpu.taken == 0


def test_a_block_may_be_given_back_in_the_middle_of_taking_another(gpu: SimulatedCuda) -> None:
    """As happens where the garbage collector runs just then."""
    device = shared_device()
    cycle: list[Any] = [device.take(100)]
    cycle.append(cycle)
    make = gpu.module.cudaMalloc.side_effect

    def collect_first(size: int) -> Any:
        gc.collect()
        return make(size)

    gpu.module.cudaMalloc.side_effect = collect_first
    address = cycle[0].address
    del cycle
    other = device.take(10**6)
    assert device.take(100).address == address
    assert other.address != address


def test_requests_of_several_threads_do_not_disturb_each_other(bundle: Path, gpu: SimulatedCuda) -> None:
    build_engines(bundle)
    cpu = Recommender.load(bundle, threads=1)
    histories = [["1"], ["1", "2", "3"], ["4", "5"], ["6", "7", "0", "2"]]
    want = [[item for item, _ in pairs(cpu.recommend(history, 8))] for history in histories]
    loaded = [Recommender.load(bundle, "tensorrt") for _ in range(2)]

    def ask(number: int) -> bool:
        got = loaded[number % 2].recommend(histories[number // 2 % 4], 8)
        return [item for item, _ in pairs(got)] == want[number // 2 % 4]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(16)))


def test_graphs_are_bounded(bundle: Path, gpu: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engine, "MOST_GRAPHS", 2)
    monkeypatch.setattr(tensorrt_engine, "ROWS", 1)
    monkeypatch.setattr(tensorrt_engine, "CACHED", 1)
    build_engines(bundle)
    compare(bundle, [["1"], ["1", "2", "3"], ["4", "5"]])
    assert gpu.launches > len(gpu.graphs)
    gc.collect()
    shared_device().release()
    assert len(gpu.graphs) <= 2 * 2  # two stages


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"late\.engine: not the engine of its manifest: input_ids, logits"),  # that of the other stage
        (b"no engine", r"TensorRT cannot load it \(magic tag.*earn engine build"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(
    content: bytes | None, says: str, bundle: Path, gpu: SimulatedCuda
) -> None:
    record, folder = build_engines(bundle), bundle / TENSORRT_FOLDER
    path = folder / "late.engine"
    path.write_bytes(content or (folder / "early.engine").read_bytes())
    entry = FileEntry(path.stat().st_size, sha256(path))
    replace(record, files={**record.files, "late.engine": entry}).save(folder)
    with pytest.raises(EarnError, match=says):
        Recommender.load(bundle, "tensorrt")
