"""Bundles from elsewhere: what they claim is bounded, and what their files hold is known, before it is taken or run."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from earn.arrays import ArrayForm, read_arrays
from earn.catalog import Catalog
from earn.errors import EarnError
from earn.export.one_graph import compose_bundle
from earn.graph_files import MOST_ROUNDS, check_graph_file
from earn.manifest import RANGES, Manifest, check_graphs
from earn.runtime.recommender import Recommender
from tests.earn.test_manifest import edit, seal

Change = Callable[[onnx.ModelProto], object]
FORMS = {"a": ArrayForm("<i4", 2)}


def npy(header: str, data: bytes) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npz(**members: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    file.seek(0)
    return file


def test_arrays_are_those_that_numpy_wrote() -> None:
    for array in (np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((0, 3), np.int32), np.ones((1, 1), np.int32)):
        file = io.BytesIO()
        np.savez(file, a=array)
        np.testing.assert_array_equal(read_arrays(io.BytesIO(file.getvalue()), FORMS, 1000)["a"], array)


HEADER = "{'descr': '<i4', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (HEADER % "2, 2", "claims the shape"),
        (HEADER % "100000, 100000", "claims the shape"),
        (HEADER % "1", "of 2 axes belongs"),
        (HEADER % "1, 1" + "+ ().__class__", "no header"),
        (HEADER.replace("<i4", "<i8") % "1, 1", "where <i4"),
        (HEADER.replace("<i4", "|O") % "1, 1", "no header"),
        (HEADER.replace("False", "True") % "1, 1", "no header"),
        ("(" * 100, "no header"),
    ],
)
def test_an_array_that_is_not_what_its_header_claims_is_refused(header: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_arrays(npz(a=npy(header, b"\0" * 4)), FORMS, 1000)


def test_arrays_that_unpack_to_too_much_or_are_unknown_are_refused() -> None:
    with pytest.raises(ValueError, match="where 1000 may be"):
        read_arrays(npz(a=b"\0" * 10_000), FORMS, 1000)
    with pytest.raises(ValueError, match=r"it holds 'b\.npy'"):
        read_arrays(npz(b=b""), FORMS, 1000)


def test_a_catalog_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.npz"
    one = np.frombuffer(b"x", np.uint8)
    titles = np.full(80 << 20, ord("\n"), np.uint8)
    np.savez_compressed(path, tokens=one, item_ids=one, titles=titles, identifiers=np.zeros((1, 1), np.int32))
    assert path.stat().st_size < 200_000
    with pytest.raises(EarnError, match=r"catalog\.npz: not a readable catalog \(its arrays have \d+ bytes"):
        Catalog.load(path)


@pytest.mark.parametrize("codes", [[[0, -1, 0]], [[-2, 0, 0]], [[0, 3, 0]], [[0] * 65]])
def test_codes_that_are_no_identifier_are_refused(tmp_path: Path, codes: list[list[int]]) -> None:
    path = tmp_path / "catalog.npz"
    one, two = (np.frombuffer(text, np.uint8) for text in (b"x", b"x\ny"))
    np.savez(path, tokens=two, item_ids=one, titles=one, identifiers=np.array(codes, np.int32))
    with pytest.raises(EarnError, match=r"item 0 has the codes|identifiers of 65 tokens"):
        Catalog.load(path)


def resized(part: str, name: str, value: int, manifest: dict[str, Any]) -> None:
    manifest[part][name] = value


@pytest.mark.parametrize("name", sorted(RANGES))
def test_sizes_and_limits_beyond_any_bundle_are_refused(bundle: Path, name: str) -> None:
    part = "sizes" if name in json.loads((bundle / "manifest.json").read_text())["sizes"] else "limits"
    least, most = RANGES[name]
    for value in (least - 1, -1, most + 1, 10**30):
        edit(bundle, partial(resized, part, name, value))
        with pytest.raises(EarnError, match=r"manifest\.json"):
            Manifest.load(bundle, verify=False)


def test_caches_without_bound_are_refused_when_a_bundle_is_read_and_when_it_is_written(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    edit(bundle, lambda value: value["limits"].update(beams=60_000))
    edit(bundle, lambda value: value["sizes"].update(head_size=4096))
    with pytest.raises(EarnError, match="the caches of one user would take"):
        Manifest.load(bundle)
    with pytest.raises(EarnError, match=r"'beams' is 1000000; .* Export with smaller limits"):
        replace(manifest, limits=replace(manifest.limits, beams=10**6)).save(bundle)


def add(model: onnx.ModelProto, operator: str, *inputs: str, **attributes: Any) -> None:
    model.graph.node.append(helper.make_node(operator, inputs, [f"{operator}!"], **attributes))


def subgraph(operator: str = "Identity") -> onnx.GraphProto:
    return helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", [], [])


def constant(model: onnx.ModelProto, name: str, value: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def outside_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="secret", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")


def divided_by(value: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        constant(model, "zero", value)
        add(model, "Div", "keep", "zero")

    return change


BAD_GRAPHS: dict[str, tuple[Change, str]] = {
    "a loop": (lambda m: add(m, "Loop", "a", "b", body=subgraph()), "operator 'Loop'"),
    "a branch": (lambda m: add(m, "If", "a", then_branch=subgraph(), else_branch=subgraph()), "operator 'If'"),
    "memory": (lambda m: add(m, "ConstantOfShape", "a"), "operator 'ConstantOfShape'"),
    "a foreign domain": (lambda m: add(m, "Add", "a", "b", domain="evil"), "operator 'Add' of 'evil'"),
    "a hidden subgraph": (lambda m: add(m, "Add", "a", "b", body=subgraph()), "tensor or a graph as an attribute"),
    "a function": (lambda m: m.functions.add(name="f"), "functions"),
    "a training graph": (lambda m: m.training_info.add(), "training"),
    "weights elsewhere": (outside_weights, r"weights stand in 'secret\.bin', which the manifest does not list"),
    "a division by zero": (divided_by(np.array([2, 0])), "divisor 'zero' may be 0"),
    "a division by anything": (lambda m: add(m, "Div", "keep", "keep"), "divisor 'keep' may be 0"),
}


@pytest.mark.parametrize("what", BAD_GRAPHS)
def test_a_graph_that_is_none_of_ours_is_refused_before_it_runs(bundle: Path, what: str) -> None:
    change, says = BAD_GRAPHS[what]
    model = onnx.load(bundle / "late.onnx")
    change(model)
    onnx.save(model, bundle / "late.onnx")
    seal(bundle)
    with pytest.raises(EarnError, match=rf"late\.onnx: not a graph that this earn-edge writes: .*{says}"):
        Recommender.load(bundle)


def test_a_constant_divisor_without_a_zero_is_taken(bundle: Path) -> None:
    model = onnx.load(bundle / "late.onnx")
    divided_by(np.array([2, 1]))(model)
    onnx.save(model, bundle / "late.onnx")
    check_graph_file(bundle / "late.onnx", ())


def test_the_one_graph_may_loop_a_constant_number_of_times(bundle: Path) -> None:
    manifest = compose_bundle(bundle, "loop", 8, 4)
    check_graphs(bundle, manifest)
    path = bundle / "recommend.onnx"
    model = onnx.load(path)
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    rounds = next(tensor for tensor in model.graph.initializer if tensor.name == loop.input[0])
    for value in (-1, MOST_ROUNDS + 1, 2**62):
        rounds.CopyFrom(numpy_helper.from_array(np.array(value, np.int64), rounds.name))
        onnx.save(model, path)
        with pytest.raises(EarnError, match="not a constant of at most"):
            check_graph_file(path, ())
    rounds.CopyFrom(numpy_helper.from_array(np.array(2, np.int64), rounds.name))
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    body.node.append(helper.make_node("Loop", [rounds.name, ""], ["z"], body=subgraph()))
    onnx.save(model, path)
    with pytest.raises(EarnError, match="graph as an attribute"):
        check_graph_file(path, ())


def test_damaged_protobufs_are_refused(bundle: Path) -> None:
    path = bundle / "late.onnx"
    data = path.read_bytes()
    for damaged in (b"", b"\xff" * 100, data[:-1], data[: len(data) // 2], b"\x3a\xff\xff\xff\xff\x0f", b"\x3b" + data):
        path.write_bytes(damaged)
        with pytest.raises(EarnError, match=r"late\.onnx: not a graph"):
            check_graph_file(path, ())


def test_the_layout_of_the_hugging_face_cache_is_a_bundle(toy_bundle: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(toy_bundle.iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    want = Recommender.load(toy_bundle).recommend(["1", "2"])
    assert Recommender.load(snapshot).recommend(["1", "2"]) == want
    assert Recommender.load(snapshot, verify=False).recommend(["1", "2"]) == want
