from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from earn.errors import EarnError
from earn.export.engines import build_engines
from earn.manifest import FileEntry, Manifest
from earn.runtime.cuda import Gpu
from earn.runtime.engine import choose_engine, load_engine
from earn.runtime.engine_files import TENSORRT_FOLDER, EngineRecord, Target, differences, graph_hash, ranges_hash
from earn.runtime.recommender import Recommender
from tests.tensorrt.simulated_tensorrt import SimulatedTensorRT

GPU = Gpu("NVIDIA Simulated 1", "8.9", "13.2")


def record_of(manifest: Manifest, **other: object) -> EngineRecord:
    record = EngineRecord(
        tensorrt="10.3.0",
        gpu=GPU.name,
        architecture=GPU.architecture,
        driver=GPU.driver,
        hardware="none",
        version_compatible=False,
        precision=manifest.precision,
        graphs=graph_hash(manifest),
        profiles=ranges_hash(manifest),
        files={name: FileEntry(1, "") for name in ("early.engine", "late.engine")},
    )
    return replace(record, **other)  # type: ignore[arg-type]


OTHER_MODEL = replace(GPU, name="NVIDIA Simulated 2")
HOPPER, TURING, BLACKWELL = Gpu("H", "9.0", "13.2"), Gpu("T", "7.5", "13.2"), Gpu("B", "12.0", "13.2")


@pytest.mark.parametrize(
    ("other", "version", "gpu", "says"),
    [
        ({}, "10.3.0", GPU, ""),
        ({}, "10.3.0", replace(GPU, driver="12.0"), ""),  # a driver may be updated
        ({}, "10.16.1", GPU, "built by TensorRT 10.3.0, here is 10.16.1"),
        ({"version_compatible": True}, "10.16.1", GPU, ""),
        ({"version_compatible": True}, "10.2.0", GPU, "here is 10.2.0"),
        ({"version_compatible": True}, "11.4.0", GPU, "here is 11.4.0"),
        ({}, "10.3.0", OTHER_MODEL, "for the GPU model that it was built on, here is NVIDIA Simulated 2"),
        ({"hardware": "same"}, "10.3.0", OTHER_MODEL, ""),
        ({"hardware": "same"}, "10.3.0", HOPPER, "here is H (9.0)"),
        ({"hardware": "ampere+"}, "10.3.0", HOPPER, ""),
        ({"hardware": "ampere+"}, "10.3.0", TURING, "here is T (7.5)"),
        ({"hardware": "ampere+"}, "10.3.0", BLACKWELL, ""),  # as numbers: 12.0 is later than 8.0
        ({"graphs": "x"}, "10.3.0", GPU, "from other graphs"),
        ({"precision": "fp16"}, "10.3.0", GPU, "from other graphs"),
        ({"profiles": "x"}, "10.3.0", GPU, "for other limits"),
    ],
)
def test_what_differs_is_said(other: dict[str, object], version: str, gpu: Gpu, says: str, toy_bundle: Path) -> None:
    manifest = Manifest.load(toy_bundle)
    found = differences(record_of(manifest, **other), manifest, Target(version, gpu))
    assert (says in "; ".join(found)) if says else found == []


def test_engines_that_are_missing_changed_or_of_another_machine_are_refused_with_the_command(
    bundle: Path, trt: SimulatedTensorRT
) -> None:
    def refused(says: str) -> None:
        with pytest.raises(EarnError, match=rf"{says}.*earn engine build {bundle}"):
            load_engine("tensorrt", bundle, Manifest.load(bundle))

    refused("no TensorRT engines in this bundle")
    build_engines(bundle)
    trt.cuda.name = "NVIDIA Simulated 2"
    refused("do not fit: .*here is NVIDIA Simulated 2")
    trt.cuda.name = GPU.name
    path = bundle / TENSORRT_FOLDER / "late.engine"
    path.write_bytes(path.read_bytes()[::-1])
    refused(r"late\.engine: missing or changed")
    for text in ("{}", "[]", '{"files": {}}', '{"files": 3}', "no json"):
        (bundle / TENSORRT_FOLDER / "engines.json").write_text(text)
        with pytest.raises(EarnError, match=r"engines\.json"):
            load_engine("tensorrt", bundle, Manifest.load(bundle))


def test_auto_takes_the_engines_where_they_fit_and_says_why_not(
    bundle: Path, trt: SimulatedTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    build_engines(bundle)
    assert choose_engine(bundle, Manifest.load(bundle)) == ("tensorrt", "")
    assert Recommender.load(bundle, "auto").recommend(["1"], 3)
    trt.cuda.architecture = (9, 0)
    name, why = choose_engine(bundle, Manifest.load(bundle))
    assert name == "cpu"
    assert "tensorrt: " in why
    assert "here is NVIDIA Simulated 1 (9.0)" in why
    assert "cuda: This onnxruntime has no CUDAExecutionProvider" in why
    with caplog.at_level("INFO", "earn"):
        Recommender.load(bundle, "auto")
    assert [record.getMessage() for record in caplog.records if "engine" in record.getMessage()] == [
        f"engine cpu ({why})"
    ]
