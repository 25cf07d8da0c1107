"""A model repository for NVIDIA Triton Inference Server: the one graph, and the configuration that Triton reads.

    DIR/NAME/config.pbtxt     what goes in and out (`ModelConfig` of Triton's model_config.proto)
    DIR/NAME/1/model.onnx     the bundle's one graph, and beside it large weights under the names that it knows
    DIR/NAME/items.json       ids and titles by index, for clients: Triton leaves other files alone

A call may hold several users, one a row. Triton's own batcher joins requests of one shape alone, and histories are of
many lengths; so the configuration says `max_batch_size: 0`, and who wants batches sends them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import onnx

from earn.errors import EarnError
from earn.files import folder_written_whole
from earn.manifest import GRAPH_FILES, ITEMS_FILE, ONE_GRAPH_FILE, Manifest

TYPES = {onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.BOOL: "TYPE_BOOL"}


def write_repository(bundle: Path, repository: Path, name: str | None = None) -> Path:
    """Writes a bundle's one graph as a model of a repository, in place of a model of this name; returns its folder.

    Args:
        bundle: a bundle that has its one graph.
        repository: a folder for `tritonserver --model-repository`; it may hold other models.
        name: of the model; the bundle's if None.

    Raises:
        EarnError: the bundle has no such graph, the name is none for Triton, or another thing stands in its place.
    """
    name = bundle.resolve().name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise EarnError(f"{name!r} is no name for a model. Take letters, digits, dots, dashes and underscores.")
    manifest = Manifest.load(bundle, verify=False)
    if ONE_GRAPH_FILE not in manifest.files:
        raise EarnError(f"{bundle}: has no {ONE_GRAPH_FILE}. Write it: earn compose {bundle}")
    folder = repository / name
    if folder.exists() and not (folder / "config.pbtxt").is_file():
        raise EarnError(f"{folder}: stands in the model's place and is no model. Choose another folder or name.")
    graph = onnx.load(bundle / ONE_GRAPH_FILE, load_external_data=False).graph
    with folder_written_whole(folder) as beside:
        (beside / "1").mkdir()
        shutil.copyfile(bundle / ONE_GRAPH_FILE, beside / "1" / "model.onnx")
        for weights in {f"{file}.data" for file in GRAPH_FILES.values()} & set(manifest.files):  # of the stages
            shutil.copyfile(bundle / weights, beside / "1" / weights)
        shutil.copyfile(bundle / ITEMS_FILE, beside / ITEMS_FILE)
        (beside / "config.pbtxt").write_text(config(name, graph))
    return folder


def config(name: str, graph: onnx.GraphProto) -> str:
    """The configuration of a graph, as text."""
    tensors = {"input": graph.input, "output": graph.output}
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0"]
    return "\n".join([*lines, *(_tensor(kind, value) for kind, values in tensors.items() for value in values)]) + "\n"


def _tensor(kind: str, value: Any) -> str:
    form = value.type.tensor_type
    sizes = ", ".join(str(size.dim_value) if size.HasField("dim_value") else "-1" for size in form.shape.dim)
    return f'{kind} {{ name: "{value.name}" data_type: {TYPES[form.elem_type]} dims: [ {sizes} ] }}'
