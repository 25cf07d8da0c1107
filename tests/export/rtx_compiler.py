"""Compiles graphs with TensorRT for RTX, whose parser and compiler run on machines without a GPU.

    python -m tests.export.rtx_compiler FOLDER      # of *.onnx, each beside a *.json

The JSON is {"profiles": [{input: [least, usual, most]}], "architectures": [name]}. Prints one line
of JSON: {graph: what was complained of}. Nothing is run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as tensorrt_rtx

INFORMS = "has Int64 binding"  # of every input in int64: how it will be bound


class Log(tensorrt_rtx.ILogger):  # type: ignore[misc]  # without type hints
    """Keeps warnings and errors."""

    def __init__(self) -> None:
        tensorrt_rtx.ILogger.__init__(self)
        self.complaints: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT."""
        if severity <= tensorrt_rtx.ILogger.Severity.WARNING and INFORMS not in message:
            self.complaints.append(message)


def compile_graph(path: Path) -> list[str]:
    """All that parser and compiler say of a graph."""
    log = Log()
    builder = tensorrt_rtx.Builder(log)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        return [parser.get_error(number).desc() for number in range(parser.num_errors)]
    config = builder.create_builder_config()
    how = json.loads(path.with_suffix(".json").read_text())
    architectures = how["architectures"]
    config.num_compute_capabilities = len(architectures)
    for number, name in enumerate(architectures):
        config.set_compute_capability(getattr(tensorrt_rtx.ComputeCapability, name), number)
    for ranges in how["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in ranges.items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        log.complaints.append("nothing was built")
    return log.complaints


if __name__ == "__main__":
    graphs = sorted(Path(sys.argv[1]).glob("*.onnx"))
    print(json.dumps({path.stem: compile_graph(path) for path in graphs}))
