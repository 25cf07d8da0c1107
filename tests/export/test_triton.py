"""The repository for Triton, held to Triton's own schema of configurations."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from earn.cli.main import main
from earn.errors import EarnError
from earn.export.bundle import export_bundle
from earn.export.one_graph import compose_bundle
from earn.export.triton import write_repository
from earn.model.earn_model import EarnModel
from earn.runtime.recommender import Recommender

text_format = pytest.importorskip("google.protobuf.text_format")
TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32", "tensor(bool)": "TYPE_BOOL"}


def read(config: Path) -> Any:
    """The configuration as Triton's schema reads it; the client's package holds that, its clients need grpc."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or found.origin is None:
        pytest.skip("tritonclient is not installed here")
    schema = Path(found.origin).parent / "grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", schema)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(config.read_text(), module.ModelConfig()), module.DataType


def test_what_triton_reads_is_what_the_graph_takes_and_gives(bundle: Path, tmp_path: Path) -> None:
    assert main(["compose", str(bundle), "--triton", str(tmp_path / "models")]) == 0
    folder = tmp_path / "models" / bundle.name
    session = onnxruntime.InferenceSession(folder / "1/model.onnx", providers=["CPUExecutionProvider"])
    config, types = read(folder / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == (bundle.name, "onnxruntime", 0)
    for told, graph in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        got = [(each.name, types.Name(each.data_type), list(each.dims)) for each in told]
        assert got == [(each.name, TYPES[each.type], [-1] * len(each.shape)) for each in graph]
    none = np.zeros((1, 0), np.int64)
    (items,) = session.run(["items"], {"history": np.array([[1, 2]]), "excluded": none, "k": np.array([3])})
    ids = Recommender.load(bundle).catalog.item_ids
    assert [ids[item] for item in items[0]] == [item.item_id for item in Recommender.load(bundle).recommend([1, 2], 3)]


def test_large_weights_go_with_the_graph(toy_model: EarnModel, tmp_path: Path) -> None:
    export_bundle(toy_model, tmp_path / "bundle", [["1"]], external_data_bytes=1)
    compose_bundle(tmp_path / "bundle")
    folder = write_repository(tmp_path / "bundle", tmp_path / "models")
    assert (folder / "config.pbtxt").read_text().startswith('name: "bundle"\n')
    shutil.rmtree(tmp_path / "bundle")
    onnxruntime.InferenceSession(folder / "1/model.onnx", providers=["CPUExecutionProvider"])


def test_nothing_else_is_replaced(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EarnError, match=r"has no recommend\.onnx\. Write it"):
        write_repository(bundle, tmp_path / "models")
    compose_bundle(bundle)
    other = tmp_path / "models" / "other"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(EarnError, match="is no model"):
        write_repository(bundle, tmp_path / "models", "other")
    with pytest.raises(EarnError, match="no name for a model"):
        write_repository(bundle, tmp_path / "models", "../up")
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    for _ in range(2):  # a model of this name is replaced
        assert write_repository(bundle, tmp_path / "models", "films-1").name == "films-1"
