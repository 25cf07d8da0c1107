"""Engines of ONNX Runtime: both stages as sessions of one execution provider, on the CPU or on a GPU.

Nothing falls back in silence: the provider that was asked for takes every node of a graph, or loading fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earn.errors import EarnError
from earn.manifest import GRAPH_FILES, Manifest
from earn.runtime.cuda import shared_device
from earn.runtime.engine_files import cache_folder, graph_hash
from earn.runtime.memory import HOST
from earn.runtime.rtx import compiled_graph, register
from earn.shape_ranges import Range, Shape, whole_profile
from earn.specs import StageSpecs, all_specs

Options = Callable[[Path, str, Manifest], Mapping[str, str]]


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime."""

    name: str  # execution provider that must be the one that runs
    remedy: str  # what to install when it is not there
    options: Options = lambda folder, stage, manifest: {}  # the provider's settings for a stage of the bundle
    on_gpu: bool = True  # caches stay in the GPU's memory
    is_plugin: bool = False  # a package of its own brings the provider (see earn.runtime.rtx)


def cuda_options(folder: Path, stage: str, manifest: Manifest) -> Mapping[str, str]:
    """TF32 off: fp32 means fp32. Memory grows by what is asked for, not in powers of two."""
    return {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}


def tensorrt_options(folder: Path, stage: str, manifest: Manifest) -> Mapping[str, str]:
    """Engines and timings are kept in the bundle; an engine is built when it is first needed on a GPU.

    Without a flag for a precision the network is strongly typed: precision is what the graph says.
    """
    cache = str(cache_folder(folder, "tensorrt-ep"))
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_engine_cache_prefix": f"{stage}-{graph_hash(manifest)[:12]}",  # another graph's engine is never taken
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
        **_shapes("trt", stage, manifest),
    }


def rtx_options(folder: Path, stage: str, manifest: Manifest) -> Mapping[str, str]:
    """Kernels for this GPU are kept in the bundle."""
    cache = cache_folder(folder, "tensorrt-rtx") / "kernels"
    return {"nv_runtime_cache_path": str(cache), **_shapes("nv", stage, manifest)}


def _shapes(prefix: str, stage: str, manifest: Manifest) -> dict[str, str]:
    """The range of every input as both TensorRT providers take it: "name:1x2x3". They use the first range alone."""
    ranges = whole_profile(stage, manifest.sizes, manifest.limits).ranges

    def written(size: Callable[[Range], Shape]) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, size(own)))}" for name, own in ranges.items())

    return {
        f"{prefix}_profile_min_shapes": written(lambda own: own.least),
        f"{prefix}_profile_opt_shapes": written(lambda own: own.usual),
        f"{prefix}_profile_max_shapes": written(lambda own: own.most),
    }


def refuse_dynamic_ranges(manifest: Manifest, where: Path) -> None:
    """Raises EarnError for a bundle whose activations are quantized with ranges that are found anew at every call."""
    if manifest.precision == "int8-dynamic":
        raise EarnError(f"{where}: CUDA finds no ranges of activations (int8-dynamic). Take engine='cpu', or fp16.")


def check_provider(provider: Provider) -> None:
    """Registers a plugin's provider.

    Raises:
        EarnError: this ONNX Runtime lacks the provider, or it needs a GPU and there is none.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider.is_plugin:
        register(provider.remedy)
    elif provider.name not in available:
        raise EarnError(
            f"This onnxruntime has no {provider.name}, only {', '.join(available)}. Install it: {provider.remedy}"
        )
    if provider.on_gpu:
        shared_device()


def session_options(threads: int | None, spinning: bool, arena: bool) -> Any:
    """ONNX Runtime's options for what `load_engine` is asked for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = arena
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


class OnnxEngine:
    """Both stages as ONNX Runtime sessions."""

    def __init__(self, provider: Provider, folder: Path, manifest: Manifest, options: Callable[[], Any]) -> None:
        """Loads the bundle's graphs; `options` makes a session's options anew."""
        import onnxruntime

        self.device: Any = shared_device() if provider.on_gpu else HOST
        if provider.on_gpu and not provider.is_plugin and hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on
            with redirect_stdout(sys.stderr):  # it prints to stdout
                onnxruntime.preload_dlls()  # finds CUDA's libraries where pip has put them, else the system's
        self._folder = folder
        self._sessions: dict[str, Any] = {}
        for stage, specs in all_specs(manifest.sizes, manifest.limits).items():
            path = folder / GRAPH_FILES[stage]
            session = _session(provider, folder, stage, manifest, options)
            if session.get_providers()[0] != provider.name:
                raise EarnError(f"{path}: asked for {provider.name}, got {session.get_providers()[0]}.")
            check_graph(session, specs, path)
            self._sessions[stage] = session

    def run(self, stage: str, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Reads feeds and writes outputs where they lie.

        Raises:
            EarnError: the graph cannot be run on these sizes, or there is no memory for them.
        """
        session = self._sessions[stage]
        binding = session.io_binding()
        for name, array in feeds.items():
            if isinstance(array, np.ndarray):
                binding.bind_cpu_input(name, array)
            else:
                binding.bind_input(name, "cuda", 0, np.float32, array.shape, array.address)
        for name, array in outputs.items():
            if not isinstance(array, np.ndarray):
                binding.bind_output(name, "cuda", 0, np.float32, array.shape, array.address)
                continue
            if not array.flags.c_contiguous:  # it would be written past its rows
                raise ValueError(f"The array for {name} is not one piece of memory.")
            address = array.__array_interface__["data"][0]
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, address)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises classes of its own without a common base
            path = self._folder / GRAPH_FILES[stage]
            raise EarnError(
                f"{path}: ONNX Runtime failed in it ({error}). Ask for fewer users or beams if memory is short; "
                "otherwise copy the bundle again."
            ) from error


def _session(provider: Provider, folder: Path, stage: str, manifest: Manifest, new_options: Callable[[], Any]) -> Any:
    import onnxruntime

    path, settings = folder / GRAPH_FILES[stage], dict(provider.options(folder, stage, manifest))

    def options() -> Any:
        session_options = new_options()
        if provider.on_gpu:
            session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if provider.is_plugin:
            session_options.add_provider_for_devices(register(provider.remedy)[:1], settings)
        return session_options

    try:
        if provider.is_plugin:
            path = compiled_graph(cache_folder(folder, "tensorrt-rtx"), path, manifest, options())
            return onnxruntime.InferenceSession(str(path), options(), enable_fallback=0)
        providers = [(provider.name, settings)]
        return onnxruntime.InferenceSession(str(path), options(), providers=providers, enable_fallback=0)
    except EarnError:
        raise
    except Exception as error:  # onnxruntime raises classes of its own without a common base
        remedy = (
            "Check driver, CUDA, cuDNN and TensorRT (docs/gpu.md)" if provider.on_gpu else "Export the checkpoint again"
        )
        raise EarnError(f"{path}: ONNX Runtime cannot load it for {provider.name} ({error}). {remedy}.") from error


def check_graph(session: Any, specs: StageSpecs, path: Path) -> None:
    """Compares a graph's inputs and outputs with the tensor table: names, types, ranks and fixed sizes.

    Raises:
        EarnError: they differ; all differences are listed.
    """
    wrong: list[str] = []
    for side, nodes, table in (
        ("input", session.get_inputs(), specs.inputs),
        ("output", session.get_outputs(), specs.outputs),
    ):
        got, want = {node.name: node for node in nodes}, {spec.name: spec for spec in table}
        wrong += [f"{side} {name} is missing" for name in want.keys() - got.keys()]
        wrong += [f"{side} {name} is not in the table" for name in got.keys() - want.keys()]
        for name in want.keys() & got.keys():
            shape, axes = got[name].shape, want[name].axes
            fits = len(shape) == len(axes) and all(
                size == axis.most for size, axis in zip(shape, axes, strict=True) if axis.is_fixed
            )
            if not fits or got[name].type != _ONNX_TYPES[want[name].dtype]:
                wrong.append(f"{side} {name} is {got[name].type} {shape}")
    if wrong:
        raise EarnError(
            f"{path}: not the graph of its manifest: {'; '.join(sorted(wrong))}. Export the checkpoint again."
        )


_ONNX_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
