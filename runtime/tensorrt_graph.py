"""The bundle's one graph as one TensorRT engine: a request is one run, no host between the levels of the search.

Histories are padded to the few lengths that the engine has profiles for (see earn.shape_ranges). Shapes of all tensors
follow from those of the inputs, so nothing waits for a score to come back from the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from earn.errors import EarnError
from earn.manifest import Manifest
from earn.runtime.cuda import shared_device
from earn.runtime.engine_files import ONE_ENGINE, engine_paths
from earn.runtime.memory import Array
from earn.runtime.tensorrt_api import LoadedEngine, check_engine, load_engines, make_log, this_machine
from earn.shape_ranges import MOST_EXCLUDED

OUTPUTS = {"items": "int64", "scores": "float32", "count": "int64", "exact": "bool", "status": "int64"}


class TensorRTGraph(LoadedEngine):
    """One engine that takes histories and gives items; called as an ONNX Runtime session is."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Loads a bundle's engine.

        Raises:
            EarnError: there is none, it is not for this bundle and machine, or TensorRT is missing or refuses it.
        """
        record, paths = engine_paths(folder, manifest, this_machine(), kind=ONE_ENGINE)
        (name,) = paths
        log = make_log()
        self._runtime, engines = load_engines(folder, ONE_ENGINE, record, paths, log)
        self._profiles = ONE_ENGINE.ranges(manifest)[name]
        inputs = dict.fromkeys(self._profiles[0].ranges, "int64")
        check_engine(engines[name], inputs | OUTPUTS, len(self._profiles), paths[name])
        super().__init__(engines[name], shared_device(), log)
        self._lock = Lock()

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names for the inputs of the one graph (see `earn.export.one_graph`), in their order.

        Raises:
            EarnError: more items are excluded than an engine takes, or the device fails.
        """
        history, excluded = feeds["history"], feeds["excluded"]
        if excluded.shape[1] > MOST_EXCLUDED:
            raise EarnError(
                f"{excluded.shape[1]} items are excluded. One engine takes up to {MOST_EXCLUDED}; take another engine."
            )
        lengths = [profile.ranges["history"].most[1] for profile in self._profiles]
        profile = next(index for index, length in enumerate(lengths) if length >= history.shape[1])
        inputs = {
            "history": padded(history, lengths[profile]),
            "excluded": padded(excluded, 1),
            "k": feeds["k"],
        }
        with self._lock:
            return self._run(names, inputs, profile)

    def _run(self, names: Sequence[str], inputs: Mapping[str, Array], profile: int) -> list[Array]:
        context, device = self._shared_context(profile), self._device
        blocks = []  # memory of this call
        for name, array in inputs.items():
            blocks.append(device.take(array.nbytes))
            device.upload(array, blocks[-1].address)
            self._bind(context, name, blocks[-1].address, array.shape)
        outputs = {}
        for name, dtype in OUTPUTS.items():
            outputs[name] = np.empty(tuple(context.get_tensor_shape(name)), dtype)
            blocks.append(device.take(outputs[name].nbytes))
            self._bind(context, name, blocks[-1].address)
        self._enqueue(context, device.stream)
        for array, block in zip(outputs.values(), blocks[len(inputs) :], strict=True):
            device.download(block.address, array)
        return [outputs[name] for name in names]


def padded(rows: Sequence[Sequence[int] | Array] | Array, width: int = 0) -> Array:
    """The rows with -1 behind, contiguous, [b,n]: as long as the longest one, and `width` at the least."""
    wide = np.full((len(rows), max([width, *map(len, rows)])), -1, np.int64)
    for own, row in zip(wide, rows, strict=True):
        own[: len(row)] = row
    return wide
