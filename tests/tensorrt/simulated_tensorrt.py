"""TensorRT on the simulated GPU: its bindings, with builder, parser and runtime replaced; ONNX Runtime computes."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime

from tests.tensorrt.signatures import Fake
from tests.tensorrt.simulated_gpu import ALIGNED, SimulatedCuda


class SimulatedTensorRT:
    """The bindings, with builder, parser and runtime simulated; `.module` replaces them."""

    def __init__(self, bindings: ModuleType, cuda: SimulatedCuda) -> None:
        self.real, self.cuda = bindings, cuda
        self.errors: list[Any] = []  # of the parser
        self.refuses = ""  # what the builder says when it gives up
        self.configs: list[Any] = []
        self.workspaces: list[tuple[Any, int]] = []
        self.timings: list[bytes] = []  # that builds began with
        self.flags: set[Any] = set()
        self.ranges: list[tuple[Any, dict[str, Any]]] = []  # every profile, and what it was told
        self.added: list[tuple[Any, Any]] = []  # configuration, and a profile that it was given
        self.module = ModuleType("tensorrt")
        for name in dir(bindings):
            setattr(self.module, name, getattr(bindings, name))
        for name, make in (("Builder", self.builder), ("OnnxParser", self.parser), ("Runtime", self.runtime)):
            setattr(self.module, name, make)

    def builder(self, log: Any) -> Any:
        """Builder(log)."""

        def build(network: Any, config: Any) -> bytes | None:
            for phase, steps in (("outer", 1), ("inner", 3)):
                config.progress_monitor.phase_start(phase, None, steps)
            for step in range(3):
                if not config.progress_monitor.step_complete("inner", step):
                    return None
            config.progress_monitor.phase_finish("inner")
            if self.refuses:
                log.log(self.real.ILogger.Severity.ERROR, self.refuses)
                return None
            mine = [profile for owner, profile in self.added if owner is config]
            shapes = [next(told for made, told in self.ranges if made is profile) for profile in mine]
            return json.dumps({"graph": network.name, "profiles": shapes}).encode()

        def network(flags: int = 0) -> Any:
            assert flags == 1 << int(self.real.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            return Fake(self.real.INetworkDefinition)

        return Fake(
            self.real.Builder,
            create_network=network,
            create_builder_config=self.config,
            create_optimization_profile=self.profile,
            build_serialized_network=build,
        )

    def config(self) -> Any:
        """Builder.create_builder_config()."""
        cache = Fake(self.real.ITimingCache, serialize=lambda: b"timings of " + str(len(self.timings)).encode())

        def create_timing_cache(data: bytes) -> Any:
            self.timings.append(bytes(data))
            return cache

        made: Any = Fake(
            self.real.IBuilderConfig,
            add_optimization_profile=lambda profile: self.added.append((made, profile)),
            clear_flag=self.flags.discard,
            set_flag=self.flags.add,
            create_timing_cache=create_timing_cache,
            set_timing_cache=lambda cache, ignore: not self.timings[-1].startswith(b"foreign"),
            set_memory_pool_limit=lambda pool, size: self.workspaces.append((pool, size)),
        )
        self.configs.append(made)
        return made

    def profile(self) -> Any:
        """Builder.create_optimization_profile()."""
        shapes: dict[str, Any] = {}

        def set_shape(name: str, least: Any, usual: Any, most: Any) -> None:
            assert all(low <= mid <= high for low, mid, high in zip(least, usual, most, strict=True))
            shapes[name] = (least, usual, most)

        made = Fake(self.real.IOptimizationProfile, set_shape=set_shape)
        self.ranges.append((made, shapes))
        return made

    def parser(self, network: Any, log: Any) -> Any:
        """OnnxParser(network, log)."""

        def parse(path: str) -> bool:
            network.name = path
            return not self.errors

        return Fake(
            self.real.OnnxParser,
            parse_from_file=parse,
            get_error=lambda number: self.errors[number],
            num_errors=len(self.errors),
        )

    def runtime(self, log: Any) -> Any:
        """Runtime(log)."""

        def load(plan: bytes) -> Any:
            try:
                found = json.loads(bytes(plan))
            except ValueError:
                log.log(self.real.ILogger.Severity.ERROR, "magic tag does not match")
                return None
            return self.engine(found["graph"], found["profiles"])

        return Fake(self.real.Runtime, deserialize_cuda_engine=load)

    def engine(self, graph: str, profiles: list[Any]) -> Any:
        """Runtime.deserialize_cuda_engine(plan)."""
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        tensors = [*session.get_inputs(), *session.get_outputs()]
        types = {"tensor(int64)": self.real.DataType.INT64, "tensor(float)": self.real.DataType.FLOAT}
        types["tensor(bool)"] = self.real.DataType.BOOL
        return Fake(
            self.real.ICudaEngine,
            num_io_tensors=len(tensors),
            num_optimization_profiles=len(profiles),
            get_tensor_name=lambda number: tensors[number].name,
            get_tensor_dtype=lambda name: next(types[tensor.type] for tensor in tensors if tensor.name == name),
            get_device_memory_size_for_profile_v2=lambda number: 1000 * (number + 1),
            create_execution_context=lambda strategy: self.context(session, profiles, strategy),
        )

    def context(self, session: Any, profiles: list[Any], strategy: Any) -> Any:
        """ICudaEngine.create_execution_context(strategy)."""
        assert strategy == self.real.ExecutionContextAllocationStrategy.USER_MANAGED
        state = Context(session, profiles, self.cuda)
        return Fake(
            self.real.IExecutionContext,
            set_device_memory=state.set_memory,
            set_optimization_profile_async=state.set_profile,
            set_input_shape=state.set_shape,
            set_tensor_address=state.set_address,
            get_tensor_shape=state.shape_of,
            execute_async_v3=state.run,
        )


class Context:
    """An execution context that ONNX Runtime runs."""

    def __init__(self, session: Any, profiles: list[Any], cuda: SimulatedCuda) -> None:
        self.session, self.profiles, self.cuda = session, profiles, cuda
        self.memory = False
        self.profile: dict[str, Any] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_memory(self, address: int, size: int) -> None:
        assert size >= 1000 * len(self.profiles)
        assert self.cuda.is_device(address, size)
        self.memory = True

    def set_profile(self, number: int, stream: int) -> bool:
        assert self.cuda.is_stream(stream)
        self.profile = self.profiles[number]
        return True

    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        least, _, most = self.profile[name]
        if len(shape) != len(most) or not all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        ):
            return False
        self.shapes[name] = shape
        return True

    def set_address(self, name: str, address: int) -> bool:
        assert address % ALIGNED == 0
        self.addresses[name] = address
        return True

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of an output, where it follows from the shapes of int64 inputs: values must not change it."""
        found = set()
        for value in (0, -1):
            feeds = {tensor: np.full(shape, value, np.int64) for tensor, shape in self.shapes.items()}
            found.add(self.session.run([name], feeds)[0].shape)
        (shape,) = found
        return shape  # type: ignore[no-any-return]

    def run(self, stream: int) -> bool:
        assert self.cuda.is_stream(stream)
        assert self.memory
        names = [tensor.name for tensor in self.session.get_inputs()]
        outputs = [tensor.name for tensor in self.session.get_outputs()]
        assert self.shapes.keys() == set(names)
        assert self.addresses.keys() == {*names, *outputs}
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def work() -> None:
            feeds = {}
            for tensor in self.session.get_inputs():
                kind = np.dtype(np.int64 if "int64" in tensor.type else np.float32)
                shape = shapes[tensor.name]
                size = kind.itemsize * int(np.prod(shape))
                data = self.cuda.bytes_at(addresses[tensor.name], size) if size else np.empty(0, np.uint8)
                feeds[tensor.name] = np.array(data).view(kind).reshape(shape)
            for name, value in zip(outputs, self.session.run(outputs, feeds), strict=True):
                if value.nbytes:
                    target = self.cuda.bytes_at(addresses[name], value.nbytes)
                    target[:] = np.frombuffer(value.tobytes(), np.uint8)

        if stream in self.cuda.captured:
            self.cuda.captured[stream][1].append(work)
        else:
            self.cuda.forbid_capture()
            work()
        return True
