"""ONNX Runtime's providers for GPUs, simulated by the CPU's: what they are told, and where they read and write."""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import onnxruntime
import pytest

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.runtime import rtx
from earn.runtime.engine import choose_engine, load_engine, why_not
from earn.runtime.recommender import Recommender
from earn.specs import STAGES
from tests.support import Agreement, pairs
from tests.tensorrt.simulated_gpu import SimulatedCuda

# Settings that are known to the libraries of onnxruntime-gpu 1.31 and onnxruntime-ep-nv-tensorrt-rtx 0.5.
KNOWN = {
    *("use_tf32", "arena_extend_strategy", "nv_runtime_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path"),
    *(f"trt_engine_cache_{what}" for what in ("enable", "path", "prefix")),
    *(f"{prefix}_profile_{side}_shapes" for prefix in ("trt", "nv") for side in ("min", "opt", "max")),
}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt-ep": "TensorrtExecutionProvider"}
REAL_SESSION, REAL_OPTIONS = onnxruntime.InferenceSession, onnxruntime.SessionOptions


class Providers:
    """ONNX Runtime with simulated providers for GPUs."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self.cuda = cuda
        self.told: list[tuple[str, Mapping[str, str]]] = []  # provider and its settings; the CPU is no provider here
        self.loaded: list[Path] = []
        self.compiled: list[str] = []
        self.on_device = 0  # arrays that stayed there
        self.fails = ""

    def session(self, path: str, options: Any, providers: Any = None, enable_fallback: int = 1) -> Any:
        """InferenceSession(path, options, providers=...)."""
        assert not enable_fallback  # it would try the CPU in silence
        if self.fails:
            raise RuntimeError(self.fails)
        (chosen,) = providers or options.added
        name, settings = chosen if isinstance(chosen, tuple) else (chosen, {})
        real = REAL_SESSION(path, providers=["CPUExecutionProvider"])
        if name != PROVIDERS["cpu"]:
            assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"  # nor may it help out
            assert settings.keys() <= KNOWN
            assert all(isinstance(value, str) for value in settings.values())
            self.told.append((name, settings))
            self.loaded.append(Path(path))
        least, most = (sizes_of(settings, side) for side in ("min", "max"))

        def run(binding: Any) -> None:
            for tensor, (_, _, shape, _) in binding.inputs.items():
                ranges = zip(least.get(tensor, shape), shape, most.get(tensor, shape), strict=True)
                assert all(low <= size <= high for low, size, high in ranges), f"{tensor} {shape} lies outside"
            feeds = {tensor: self._read(*where) for tensor, where in binding.inputs.items()}
            names = list(binding.outputs)
            for tensor, value in zip(names, real.run(names, feeds), strict=True):
                self._write(value, *binding.outputs[tensor])

        return SimpleNamespace(
            get_providers=lambda: [name, "CPUExecutionProvider"],
            get_inputs=real.get_inputs,
            get_outputs=real.get_outputs,
            io_binding=self._binding,
            run_with_iobinding=run,
        )

    def _binding(self) -> Any:
        made = create_autospec(onnxruntime.IOBinding, instance=True)
        made.inputs, made.outputs = {}, {}

        def bind(where: dict[str, Any], name: str, device: str, number: int, kind: Any, shape: Any, at: int) -> None:
            assert number == 0
            where[name] = (device, np.dtype(kind), tuple(shape), at)

        def bind_host(name: str, array: Any) -> None:
            made.inputs[name] = ("cpu", array.dtype, array.shape, np.ascontiguousarray(array))

        made.bind_cpu_input.side_effect = bind_host
        made.bind_input.side_effect = partial(bind, made.inputs)
        made.bind_output.side_effect = partial(bind, made.outputs)
        return made

    def _bytes(self, device: str, size: int, address: int) -> Any:
        self.on_device += 1
        assert device == "cuda"
        return self.cuda.bytes_at(address, size) if size else np.empty(0, np.uint8)

    def _read(self, device: str, kind: np.dtype[Any], shape: tuple[int, ...], address: Any) -> Any:
        if device == "cpu":
            return address
        return np.array(self._bytes(device, kind.itemsize * math.prod(shape), address)).view(kind).reshape(shape)

    def _write(self, value: Any, device: str, kind: np.dtype[Any], shape: tuple[int, ...], address: int) -> None:
        assert (value.dtype, value.shape) == (kind, shape)
        if device == "cpu":
            ctypes.memmove(address, np.ascontiguousarray(value).ctypes.data, value.nbytes)
        else:
            self._bytes(device, value.nbytes, address)[:] = np.frombuffer(value.tobytes(), np.uint8)


def sizes_of(settings: Mapping[str, str], side: str) -> dict[str, Sequence[int]]:
    """The first profile that a provider is told: it stays with that one."""
    found: dict[str, Sequence[int]] = {}
    for key, text in settings.items():
        if key.endswith(f"_profile_{side}_shapes"):
            for part in text.split(","):
                name, _, sizes = part.partition(":")
                found.setdefault(name, list(map(int, sizes.split("x"))))
    return found


class Options(REAL_OPTIONS):  # type: ignore[misc, valid-type]
    """SessionOptions that note what they are given of a plugin."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[tuple[str, Mapping[str, str]]] = []

    def add_provider_for_devices(self, devices: list[Any], options: Mapping[str, str]) -> None:
        assert callable(REAL_OPTIONS.add_provider_for_devices)
        self.added.append((devices[0].ep_name, options))


@pytest.fixture
def gpu(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Providers:
    made = Providers(cuda)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", made.session)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    return made


@pytest.fixture
def plugin(gpu: Providers, monkeypatch: pytest.MonkeyPatch) -> Providers:
    """The plugin with TensorRT for RTX is installed too."""
    module = ModuleType(rtx.PLUGIN)
    module.get_library_path = lambda: "plugin.so"  # type: ignore[attr-defined]
    module.__version__ = "0.5.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, rtx.PLUGIN, module)
    found: list[Any] = []

    def register(name: str, path: str) -> None:
        assert path == "plugin.so"
        found.append(SimpleNamespace(ep_name=name))

    def compiler(options: Any, source: str) -> Any:
        assert options.added

        def compile_to_file(out: str) -> None:
            gpu.compiled.append(Path(source).name)
            Path(out).write_bytes(Path(source).read_bytes())

        made = create_autospec(real_compiler, instance=True)
        made.compile_to_file.side_effect = compile_to_file
        return made

    real_compiler = onnxruntime.ModelCompiler
    real_register = onnxruntime.register_execution_provider_library
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", create_autospec(real_register, side_effect=register)
    )
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: found)
    monkeypatch.setattr(onnxruntime, "ModelCompiler", create_autospec(real_compiler, side_effect=compiler))
    return gpu


def compare(folder: Path, engine: str) -> None:
    agreement = Agreement()
    want, got = Recommender.load(folder, threads=1), Recommender.load(folder, engine)
    histories = [["1", "2", "3"], ["4"], ["5", "6"]]
    for ours, theirs in zip(want.recommend_batch(histories, 8), got.recommend_batch(histories, 8), strict=True):
        agreement.add("batch", pairs(ours), pairs(theirs))
    agreement.add("one", pairs(want.recommend(["7"], 8)), pairs(got.recommend(["7"], 8)))
    agreement.check()


@pytest.mark.parametrize("engine", ["cuda", "tensorrt-ep"])
def test_lists_are_those_of_the_cpu_and_caches_stay_on_the_device(engine: str, bundle: Path, gpu: Providers) -> None:
    compare(bundle, engine)
    assert gpu.on_device > 20
    assert [name for name, _ in gpu.told] == [PROVIDERS[engine]] * 2
    if engine == "cuda":  # fp32 is fp32
        assert [settings["use_tf32"] for _, settings in gpu.told] == ["0", "0"]
        return
    Manifest.load(bundle)  # what the provider builds stands in the bundle, which is as it was
    kept = bundle / "engines" / "tensorrt-ep"
    assert kept.is_dir()
    for stage, (_, settings) in zip(STAGES, gpu.told, strict=True):
        assert settings["trt_engine_cache_path"] == str(kept)
        assert settings["trt_engine_cache_prefix"].startswith(f"{stage}-")


@pytest.mark.parametrize(
    ("engine", "precision", "says"),
    [
        ("cuda", "int8-dynamic", "finds no ranges of activations"),
        ("tensorrt-ep", "int8-dynamic", "earn calibrate BUNDLE DATA --precision int8 --engine tensorrt"),
        ("tensorrt-rtx", "int8", "in the CPU's form"),
    ],
)
def test_graphs_in_a_form_that_an_engine_does_not_take_are_refused(
    engine: str, precision: str, says: str, bundle: Path, plugin: Providers
) -> None:
    how = {"engine": "cpu", "method": "", "samples": 1, "seed": 0, "fine_products": [], "float_layers": []}
    manifest = replace(Manifest.load(bundle), precision=precision, calibration=how)
    with pytest.raises(EarnError, match=says):
        load_engine(engine, bundle, manifest)
    assert says in why_not(engine, bundle, manifest)
    assert choose_engine(bundle, manifest)[0] in ("cuda", "cpu")
    assert choose_engine(bundle, replace(manifest, precision="int8-dynamic"))[0] == "cpu"


def test_what_the_provider_says_is_passed_on(bundle: Path, gpu: Providers) -> None:
    gpu.fails = "libcublas.so.12: no such file"
    with pytest.raises(EarnError, match=r"CUDAExecutionProvider \(libcublas.*Check driver"):
        load_engine("cuda", bundle, Manifest.load(bundle))


def test_rtx_compiles_once_and_keeps_it(bundle: Path, plugin: Providers) -> None:
    compare(bundle, "tensorrt-rtx")
    compare(bundle, "tensorrt-rtx")
    assert plugin.compiled == ["early.onnx", "late.onnx"]
    kept = bundle / "engines" / "tensorrt-rtx"
    assert plugin.loaded == [kept / "early" / "early.onnx", kept / "late" / "late.onnx"] * 2
    assert {name for name, _ in plugin.told} == {rtx.PROVIDER}
    onnxruntime.register_execution_provider_library.assert_called_once()


@pytest.mark.parametrize("key", ["plugin", "architecture", "graphs", "profiles"])
def test_rtx_compiles_anew_for_another_version_gpu_or_bundle(key: str, bundle: Path, plugin: Providers) -> None:
    manifest = Manifest.load(bundle)
    load_engine("tensorrt-rtx", bundle, manifest)
    path = bundle / "engines" / "tensorrt-rtx" / "late" / rtx.RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "another"}))
    load_engine("tensorrt-rtx", bundle, manifest)
    assert plugin.compiled == ["early.onnx", "late.onnx", "late.onnx"]
    path.write_text("damaged")
    load_engine("tensorrt-rtx", bundle, manifest)
    assert plugin.compiled[3:] == ["late.onnx"]


def test_a_missing_plugin_and_one_that_finds_no_gpu_are_errors(
    bundle: Path, gpu: Providers, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EarnError, match=r"This needs onnxruntime_ep_nv_tensorrt_rtx\. Install it: pip install"):
        load_engine("tensorrt-rtx", bundle, Manifest.load(bundle))
    request.getfixturevalue("plugin")
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [])
    with pytest.raises(EarnError, match="finds no GPU that it takes"):
        load_engine("tensorrt-rtx", bundle, Manifest.load(bundle))


def test_a_bundle_that_cannot_be_written_to_is_an_error(bundle: Path, gpu: Providers) -> None:
    (bundle / "engines").write_text("a file where a folder belongs")
    with pytest.raises(EarnError, match="keeps what it builds in the bundle"):
        load_engine("tensorrt-ep", bundle, Manifest.load(bundle))
