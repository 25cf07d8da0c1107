"""ONNX Runtime's providers for GPUs, played by the CPU's: what they are told, and where they read and write."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import onnxruntime
import pytest

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.profiles import profiles
from earn.runtime import rtx
from earn.runtime.engine import ENGINES, load_engine
from earn.runtime.onnx_engine import tensorrt_options
from earn.runtime.recommender import Recommender
from tests.support import Agreement, pairs
from tests.tensorrt.fake_gpu import FakeCuda

# Settings that are known to the libraries of onnxruntime-gpu 1.31 and onnxruntime-ep-nv-tensorrt-rtx 0.5.
KNOWN = {
    "use_tf32",
    "arena_extend_strategy",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_engine_cache_prefix",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_fp16_enable",
    "trt_int8_enable",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
    "nv_runtime_cache_path",
    "nv_multi_profile_enable",
    "nv_profile_min_shapes",
    "nv_profile_opt_shapes",
    "nv_profile_max_shapes",
}
REAL_SESSION, REAL_OPTIONS = onnxruntime.InferenceSession, onnxruntime.SessionOptions


class Providers:
    """ONNX Runtime with providers for GPUs that are played."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.told: list[tuple[str, Mapping[str, str], bool]] = []  # provider, its settings, may the CPU help out
        self.loaded: list[Path] = []
        self.compiled: list[str] = []
        self.on_device = 0  # arrays that stayed there
        self.fails = ""

    def session(self, path: str, options: Any, providers: Any = None) -> Any:
        """InferenceSession(path, options, providers=...)."""
        if self.fails:
            raise RuntimeError(self.fails)
        (chosen,) = providers or options.played
        name, settings = chosen if isinstance(chosen, tuple) else (chosen, {})
        self.told.append((name, settings, not options.no_cpu))
        self.loaded.append(Path(path))
        real = REAL_SESSION(path, providers=["CPUExecutionProvider"])

        def run(binding: Any) -> None:
            feeds = {tensor: self._read(*place) for tensor, place in binding.inputs.items()}
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

        def bind(where: dict[str, Any]) -> Callable[..., None]:
            def note(name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
                assert number == 0
                where[name] = (device, kind, tuple(shape), address)

            return note

        def bind_host(name: str, array: Any) -> None:
            made.inputs[name] = ("cpu", array.dtype.type, array.shape, np.ascontiguousarray(array))

        made.bind_cpu_input.side_effect = bind_host
        made.bind_input.side_effect = bind(made.inputs)
        made.bind_output.side_effect = bind(made.outputs)
        return made

    def _bytes(self, device: str, kind: Any, shape: tuple[int, ...], address: int) -> Any:
        size = np.dtype(kind).itemsize * int(np.prod(shape))
        self.on_device += 1
        assert device == "cuda"
        return self.cuda.bytes_at(address, size) if size else np.empty(0, np.uint8)

    def _read(self, device: str, kind: Any, shape: tuple[int, ...], address: Any) -> Any:
        if device == "cpu":
            return address
        return np.array(self._bytes(device, kind, shape, address)).view(kind).reshape(shape)

    def _write(self, value: Any, device: str, kind: Any, shape: tuple[int, ...], address: int) -> None:
        assert value.shape == shape
        if device == "cpu":
            import ctypes

            ctypes.memmove(address, np.ascontiguousarray(value).ctypes.data, value.nbytes)
        elif value.nbytes:
            self._bytes(device, kind, shape, address)[:] = np.frombuffer(value.tobytes(), np.uint8)


class Options:
    """SessionOptions, as far as it is looked at."""

    def __init__(self) -> None:
        self.real = REAL_OPTIONS()
        self.no_cpu = False
        self.played: list[tuple[str, Mapping[str, str]]] = []
        self.enable_cpu_mem_arena, self.intra_op_num_threads = True, 0

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.real.add_session_config_entry(key, value)
        self.no_cpu |= (key, value) == ("session.disable_cpu_ep_fallback", "1")

    def add_provider_for_devices(self, devices: list[Any], options: Mapping[str, str]) -> None:
        assert callable(REAL_OPTIONS.add_provider_for_devices)
        self.played.append((devices[0].ep_name, options))


@pytest.fixture
def gpu(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Providers:
    made = Providers(cuda)
    names = [engine.provider for engine in ENGINES.values() if not engine.is_plugin]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", made.session)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    return made


@pytest.fixture
def plugin(gpu: Providers, monkeypatch: pytest.MonkeyPatch) -> Providers:
    """The plugin with TensorRT for RTX is installed too."""
    module = ModuleType(rtx.PLUGIN)
    module.get_library_path = lambda: "plugin.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, rtx.PLUGIN, module)
    found: list[Any] = []

    def register(name: str, path: str) -> None:
        assert path == "plugin.so"
        found.append(SimpleNamespace(ep_name=name))

    def compiler(options: Any, source: str, embed_compiled_data_into_model: bool) -> Any:
        assert options.played
        assert embed_compiled_data_into_model

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
    of_gpu = [told for told in gpu.told if told[0] == ENGINES[engine].provider]
    assert len(of_gpu) == 2
    for _, settings, may_cpu_help in of_gpu:
        assert settings.keys() <= KNOWN
        assert all(isinstance(value, str) for value in settings.values())
        assert not may_cpu_help


def test_fp32_is_fp32_on_cuda(bundle: Path, gpu: Providers) -> None:
    load_engine("cuda", bundle, Manifest.load(bundle))
    assert [settings["use_tf32"] for _, settings, _ in gpu.told] == ["0", "0"]


def test_both_profiles_are_told_to_the_provider(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    told = tensorrt_options(bundle, "late", manifest)
    decode, prefill = profiles("late", manifest.sizes, manifest.limits)
    for setting, of in (("min", "least"), ("opt", "usual"), ("max", "most")):
        parts = told[f"trt_profile_{setting}_shapes"].split(",")
        want = [
            f"{name}:{'x'.join(map(str, getattr(own, of)))}"
            for profile in (decode, prefill)
            for name, own in profile.ranges.items()
        ]
        assert parts == want
    assert "keep:" in told["trt_profile_min_shapes"]


def test_engines_of_the_provider_stand_in_the_bundle(bundle: Path, gpu: Providers) -> None:
    load_engine("tensorrt-ep", bundle, Manifest.load(bundle))
    (_, early, _), (_, late, _) = gpu.told
    assert early["trt_engine_cache_path"] == late["trt_engine_cache_path"] == str(bundle / "engines" / "tensorrt-ep")
    assert early["trt_engine_cache_prefix"].startswith("early-")
    assert late["trt_engine_cache_prefix"].startswith("late-")
    assert (bundle / "engines" / "tensorrt-ep").is_dir()
    Manifest.load(bundle)


def test_what_the_provider_says_is_passed_on(bundle: Path, gpu: Providers) -> None:
    gpu.fails = "libcublas.so.12: no such file"
    with pytest.raises(EarnError, match=r"CUDAExecutionProvider \(libcublas.*Check the driver"):
        load_engine("cuda", bundle, Manifest.load(bundle))


def test_rtx_compiles_once_and_keeps_it(bundle: Path, plugin: Providers) -> None:
    compare(bundle, "tensorrt-rtx")
    compare(bundle, "tensorrt-rtx")
    assert plugin.compiled == ["early.onnx", "late.onnx"]
    kept = bundle / "engines" / "tensorrt-rtx"
    of_gpu = [(path, told) for path, told in zip(plugin.loaded, plugin.told, strict=True) if told[0] == rtx.PROVIDER]
    assert [path for path, _ in of_gpu] == [kept / "early.onnx", kept / "late.onnx"] * 2
    for _, (_, settings, may_cpu_help) in of_gpu:
        assert settings.keys() <= KNOWN
        assert not may_cpu_help
    onnxruntime.register_execution_provider_library.assert_called_once()


@pytest.mark.parametrize("key", ["plugin", "graphs", "profiles"])
def test_rtx_compiles_anew_for_another_version_or_bundle(key: str, bundle: Path, plugin: Providers) -> None:
    manifest = Manifest.load(bundle)
    load_engine("tensorrt-rtx", bundle, manifest)
    path = bundle / "engines" / "tensorrt-rtx" / rtx.RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "another"}))
    load_engine("tensorrt-rtx", bundle, manifest)
    assert plugin.compiled == ["early.onnx", "late.onnx"] * 2
    path.write_text("damaged")
    load_engine("tensorrt-rtx", bundle, manifest)
    assert len(plugin.compiled) == 6


def test_without_the_plugin_the_error_says_what_to_install(bundle: Path, gpu: Providers) -> None:
    with pytest.raises(EarnError, match=r"This needs onnxruntime_ep_nv_tensorrt_rtx\. Install it: pip install"):
        load_engine("tensorrt-rtx", bundle, Manifest.load(bundle))


def test_a_plugin_that_finds_no_gpu_is_an_error(
    bundle: Path, plugin: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [])
    with pytest.raises(EarnError, match="finds no GPU on this machine"):
        load_engine("tensorrt-rtx", bundle, Manifest.load(bundle))


def test_a_bundle_that_cannot_be_written_to_is_an_error(bundle: Path, gpu: Providers) -> None:
    (bundle / "engines").write_text("a file where a folder belongs")
    with pytest.raises(EarnError, match="keeps what it builds in the bundle"):
        load_engine("tensorrt-ep", bundle, Manifest.load(bundle))
