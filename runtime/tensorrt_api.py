"""The `tensorrt` package as it is installed here (10.x or 11.x, from pip or with JetPack), and engines loaded by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from earn.errors import EarnError
from earn.runtime.cuda import Cuda, shared_device
from earn.runtime.engine_files import EngineKind, EngineRecord, Target, build_command

OLDEST = (10, 3)  # of JetPack 6; earlier ones lack ways to give a context its memory


@cache
def tensorrt() -> Any:
    """The package.

    Raises:
        EarnError: it is not installed, too old, or its libraries are missing.
    """
    try:
        import tensorrt as package
    except ModuleNotFoundError as error:
        raise EarnError('This needs tensorrt. Install it: pip install "tensorrt>=10.3,<12" cuda-bindings') from error
    except ImportError as error:  # a library that the package needs
        raise EarnError(f"tensorrt is installed but cannot be loaded ({error}).") from error
    version = str(package.__version__)
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise EarnError(f"TensorRT {version} is too old: take {OLDEST[0]}.{OLDEST[1]} or later.")
    return package


def make_log() -> Any:
    """A logger for TensorRT that keeps its errors, so that messages can say them: `.errors`, newest last."""
    package = tensorrt()

    class Log(package.ILogger):  # type: ignore[name-defined, misc]  # known at run time alone
        def __init__(self) -> None:
            package.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (package.ILogger.Severity.ERROR, package.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Log()


def last_error(log: Any) -> str:
    """The newest error of a log, in brackets, for the end of a sentence; "" if there is none."""
    return f" ({log.errors[-1]})" if log.errors else ""


def this_machine() -> Target:
    """What engines are built for and run on here.

    Raises:
        EarnError: there is no GPU, cuda-bindings or tensorrt is missing, or TensorRT is too old.
    """
    return Target(str(tensorrt().__version__), shared_device().gpu())


def load_engines(
    folder: Path, kind: EngineKind, record: EngineRecord, paths: Mapping[str, Path], log: Any
) -> tuple[Any, dict[str, Any]]:
    """TensorRT's runtime, which must live as long as the engines, and a bundle's engines by name.

    Raises:
        EarnError: TensorRT cannot load one of them.
    """
    runtime = tensorrt().Runtime(log)
    runtime.engine_host_code_allowed = record.version_compatible  # such engines bring a runtime along
    engines = {}
    for name, path in paths.items():
        engines[name] = runtime.deserialize_cuda_engine(path.read_bytes())
        if engines[name] is None:
            raise EarnError(
                f"{path}: TensorRT cannot load it{last_error(log)}. Build it anew: {build_command(folder, kind)}"
            )
    return runtime, engines


def check_engine(engine: Any, dtypes: Mapping[str, str], profiles: int, path: Path) -> None:
    """Compares an engine's tensors, their types and the number of its profiles with what they must be.

    Raises:
        EarnError: they differ.
    """
    kinds = tensorrt().DataType
    types = {"int64": kinds.INT64, "float32": kinds.FLOAT, "bool": kinds.BOOL}
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    wrong = sorted(names ^ dtypes.keys())
    if not wrong:
        wrong = [name for name, kind in dtypes.items() if engine.get_tensor_dtype(name) != types[kind]]
    if engine.num_optimization_profiles != profiles:
        wrong.append(f"{engine.num_optimization_profiles} profiles")
    if wrong:
        raise EarnError(f"{path}: not the engine of its manifest: {', '.join(wrong)}. Build it anew.")


class LoadedEngine:
    """An engine with the scratch memory that all of its contexts share: one call at a time."""

    def __init__(self, engine: Any, device: Cuda, log: Any) -> None:
        self._engine, self._device, self._log = engine, device, log
        profiles = range(engine.num_optimization_profiles)
        self._scratch_size = max(int(engine.get_device_memory_size_for_profile_v2(profile)) for profile in profiles)
        self._scratch = device.take(self._scratch_size)
        self._contexts: dict[int, Any] = {}  # by profile, for calls with the shapes that they have

    def _shared_context(self, profile: int) -> Any:
        """The one context of a profile for calls that are not captured."""
        if profile not in self._contexts:
            self._contexts[profile] = self._context(profile)
        return self._contexts[profile]

    def _context(self, profile: int) -> Any:
        """A new execution context for a profile, on the engine's scratch memory."""
        package = tensorrt()
        context = self._engine.create_execution_context(package.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EarnError(f"TensorRT cannot make an execution context{last_error(self._log)}.")
        context.set_device_memory(self._scratch.address, self._scratch_size)
        self._must(context.set_optimization_profile_async(profile, self._device.stream), f"profile {profile}")
        return context

    def _bind(self, context: Any, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        if shape is not None:
            self._must(context.set_input_shape(name, tuple(shape)), f"the shape {tuple(shape)} of {name}")
        self._must(context.set_tensor_address(name, address), f"the address of {name}")

    def _enqueue(self, context: Any, stream: int) -> None:
        self._must(context.execute_async_v3(stream), "to run")

    def _must(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise EarnError(f"TensorRT refuses {what}{last_error(self._log)}.")
