from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from earn.calibration.precisions import PRECISIONS
from earn.errors import EarnError
from earn.export.engines import BuildSettings, build_engines
from earn.manifest import Manifest, refuse_foreign_folder
from earn.runtime.engine_files import TENSORRT_FOLDER, load_record
from earn.shape_ranges import profiles
from tests.tensorrt.signatures import Fake
from tests.tensorrt.simulated_tensorrt import SimulatedTensorRT


def test_engines_of_both_profiles_and_their_record_stand_in_the_bundle(bundle: Path, trt: SimulatedTensorRT) -> None:
    before = Manifest.load(bundle)
    record = build_engines(bundle)
    assert load_record(bundle) == record
    assert (record.gpu, record.architecture, record.driver) == ("NVIDIA Simulated 1", "8.9", "13.2")
    assert (record.precision, record.tensorrt) == ("fp32", trt.real.__version__)
    files = {path.name for path in (bundle / TENSORRT_FOLDER).iterdir()}
    assert files == {"early.engine", "late.engine", "engines.json", "timing.cache"}
    assert Manifest.load(bundle) == before  # what was delivered stays as it was
    assert before.with_files(bundle) == before
    refuse_foreign_folder(bundle)  # it may still be written anew
    for stage in ("early", "late"):
        plan = json.loads((bundle / TENSORRT_FOLDER / f"{stage}.engine").read_bytes())
        want = [
            {name: [list(own.least), list(own.usual), list(own.most)] for name, own in profile.ranges.items()}
            for profile in profiles(stage, before.sizes, before.limits)
        ]
        assert plan["profiles"] == want


def test_settings_reach_tensorrt(bundle: Path, trt: SimulatedTensorRT) -> None:
    trt.flags.add(trt.real.BuilderFlag.TF32)  # as TensorRT has it from the start
    settings = BuildSettings("ampere+", version_compatible=True, workspace_bytes=1 << 20, level=1)
    record = build_engines(bundle, settings)
    assert trt.flags == {trt.real.BuilderFlag.VERSION_COMPATIBLE}
    assert trt.workspaces == [(trt.real.MemoryPoolType.WORKSPACE, 1 << 20)] * 2
    for config in trt.configs:
        assert config.hardware_compatibility_level == trt.real.HardwareCompatibilityLevel.AMPERE_PLUS
        assert config.builder_optimization_level == 1
    assert (record.hardware, record.version_compatible) == ("ampere+", True)


def test_timings_are_kept_for_the_next_build(bundle: Path, trt: SimulatedTensorRT) -> None:
    build_engines(bundle)
    cache = bundle / TENSORRT_FOLDER / "timing.cache"
    kept, builds = cache.read_bytes(), len(trt.timings)
    build_engines(bundle)
    cache.write_bytes(b"foreign")
    build_engines(bundle)
    assert trt.timings[::builds][:3] == [b"", kept, b"foreign"]
    assert trt.timings[2 * builds + 1] == b""  # those of another version are left out


def test_progress_is_told_and_an_interrupt_changes_nothing(bundle: Path, trt: SimulatedTensorRT) -> None:
    seen: list[tuple[str, int, int]] = []
    record = build_engines(bundle, progress=lambda *step: seen.append(step))
    assert seen == [(f"{stage} stage: inner", step, 3) for stage in ("early", "late") for step in (1, 2, 3)]

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("late"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, BuildSettings(level=1), interrupt)
    assert load_record(bundle) == record
    assert sorted(path.name for path in (bundle / "engines").iterdir()) == ["tensorrt"]


def test_what_parser_and_builder_say_is_passed_on(bundle: Path, trt: SimulatedTensorRT) -> None:
    texts = {"node_operator": "NonZero", "node_name": "layers.1.odd", "desc": "not supported"}
    trt.errors = [Fake(trt.real.ParserError, **{name: lambda text=text: text for name, text in texts.items()})]
    with pytest.raises(EarnError, match=r"early\.onnx: TensorRT .*NonZero 'layers\.1\.odd': not supported"):
        build_engines(bundle)
    assert not (bundle / TENSORRT_FOLDER).exists()
    trt.errors, trt.refuses = [], "out of memory"
    with pytest.raises(EarnError, match=r"early\.onnx: TensorRT .* cannot build it \(out of memory\).*--workspace"):
        build_engines(bundle)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (BuildSettings(hardware="all"), "no hardware setting 'all'"),
        (BuildSettings(hardware="same"), "has no hardware setting 'same'"),  # SAME_COMPUTE_CAPABILITY came after 10.3
        (BuildSettings(level=9), "level is 9"),
        (BuildSettings(workspace_bytes=0), "workspace is 0"),
    ],
)
def test_settings_that_this_tensorrt_has_not_are_refused(
    settings: BuildSettings, reason: str, bundle: Path, trt: SimulatedTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trt.real.HardwareCompatibilityLevel
    older = type("Older", (), {"NONE": real.NONE, "AMPERE_PLUS": real.AMPERE_PLUS})
    monkeypatch.setattr(trt.module, "HardwareCompatibilityLevel", older)
    with pytest.raises(EarnError, match=reason):
        build_engines(bundle, settings)


@pytest.mark.parametrize("precision", ["int8", "int4", "int8-dynamic", "int8-weights", "int8-int4"])
def test_the_cpus_forms_are_refused_with_the_command_that_helps(
    precision: str, bundle: Path, trt: SimulatedTensorRT
) -> None:
    manifest = Manifest.load(bundle)
    how = {"engine": "cpu", "method": "", "samples": 1, "seed": 0, "fine_products": [], "float_layers": []}
    replace(manifest, precision=precision, calibration=how).save(bundle)
    with pytest.raises(EarnError, match=r"in the CPU's form.*earn calibrate .*--engine tensorrt") as refused:
        build_engines(bundle)
    (advised,) = re.findall(r"--precision (\S+)", str(refused.value))
    assert "tensorrt" in PRECISIONS[advised].engines
