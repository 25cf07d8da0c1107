"""Where a graph's weights stand: in its file while they are small, beyond that in one file beside it. No torch."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

EXTERNAL_DATA_BYTES = 16_000_000  # weights beyond this stand in a file of their own, which the runtime maps
_SMALLEST_OUTSIDE = 1024  # bytes; smaller tensors stay in the graph


def load_graph(path: Path) -> onnx.ModelProto:
    """A graph with its weights loaded.

    Files may be links, which onnx refuses: a bundle's are where a cache of downloads or a change of its catalog linked
    them. What a bundle's graphs may name as their weights is checked where the bundle is opened.
    """
    graph = onnx.load(str(path), load_external_data=False)
    for tensor in graph.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            with path.with_name(place["location"]).open("rb") as file:
                file.seek(int(place["offset"]))
                tensor.raw_data = file.read(int(place["length"]))
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
    return graph


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
