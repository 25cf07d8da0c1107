"""Where a graph's weights stand: in its file while they are small, beyond that in one file beside it. No torch."""

from __future__ import annotations

from pathlib import Path

import onnx

EXTERNAL_DATA_BYTES = 16_000_000  # weights beyond this stand in a file of their own, which the runtime maps
_SMALLEST_OUTSIDE = 1024  # bytes; smaller tensors stay in the graph


def lay_out_weights(graph: onnx.ModelProto, path: Path, external_data_bytes: int = EXTERNAL_DATA_BYTES) -> None:
    """Writes a graph whose weights are loaded; large ones go to <path>.data."""
    is_large = sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > external_data_bytes
    onnx.save_model(
        graph,
        str(path),
        save_as_external_data=is_large,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=_SMALLEST_OUTSIDE,
    )
    data = path.with_name(f"{path.name}.data")
    if is_large and data.is_file():  # no tensor may be large enough
        data.chmod(0o644)  # onnx makes it private
